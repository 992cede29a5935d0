"""A placement group: a node for each bundle, at once or not at all.

    PACK             as few nodes as it can: the node that takes most of what is left, again and again
    SPREAD           as many nodes as it can: an assignment without a shared node if there is one, else the
                     nodes with the fewest bundles
    STRICT_PACK      one node for all
    STRICT_SPREAD    no two on one node: found by matching, so that it is found whenever there is one

When the greedy search of PACK or SPREAD fails, a bounded search over all assignments follows, so that a group that
fits is not called infeasible. Bundles that survived a node's death stay where they are; the others are placed around
them. Called by global_scheduler.py.
"""

from __future__ import annotations

from fastray.scheduling.resources import Units, add, fits, missing
from fastray.scheduling.view import Busy, Infeasible, NodeView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Where = dict[int, bytes]  # bundle -> node


SEARCH_STEPS_MAX = 20_000


def place_group(
    bundles: Sequence[Units],
    strategy: str,
    nodes: Sequence[NodeView],
    kept: Mapping[int, bytes] | None = None,
    origin: bytes = b"",
) -> list[bytes] | Infeasible | Busy:
    """A node for each bundle; Busy when it would fit into an idle cluster; Infeasible when it never does.

    `kept`: bundles that have their node (and its resources) already. Of nodes that are as good for bundles which are to
    be together, `origin` is taken.
    """
    kept = dict(kept or {})
    found = _search(bundles, strategy, {node.node_id: dict(node.available) for node in nodes}, kept, origin)
    if found is not None:
        return [found[index] for index in range(len(bundles))]
    idle = {node.node_id: dict(node.total) for node in nodes}
    for index, node_id in kept.items():
        if node_id in idle:
            add(idle[node_id], bundles[index], -1)
    if _search(bundles, strategy, idle, kept, origin) is not None:
        return Busy("its resources are in use")
    return _why_not(bundles, strategy, nodes)


def _search(
    bundles: Sequence[Units], strategy: str, free: dict[bytes, Units], kept: Mapping[int, bytes], origin: bytes
) -> Where | None:
    """`free` is used up on the way."""
    untouched = {node_id: dict(there) for node_id, there in free.items()}
    left = [index for index in range(len(bundles)) if index not in kept]
    # The hardest first: what few nodes have, then the large ones.
    holders = {i: sum(fits(bundles[i], there) for there in free.values()) for i in left}
    left.sort(key=lambda i: (holders[i], -sum(bundles[i].values()), i))
    if strategy == "STRICT_PACK":
        found = _on_one(bundles, left, free, set(kept.values()), origin)
    elif strategy == "PACK":
        found = _packed(bundles, left, free, list(dict.fromkeys(kept.values())), origin)
    else:
        found = _matched(bundles, left, {n: there for n, there in free.items() if n not in kept.values()})
        if found is None and strategy == "SPREAD":
            found = _evenly(bundles, left, free, kept)
    if found is None and not strategy.startswith("STRICT"):
        found = _anyhow(bundles, left, untouched)
    return None if found is None else {**kept, **found}


def _on_one(
    bundles: Sequence[Units], left: Sequence[int], free: Mapping[bytes, Units], only: set[bytes], origin: bytes
) -> Where | None:
    together: Units = {}
    for index in left:
        add(together, bundles[index])
    fitting = [n for n, there in free.items() if fits(together, there) and (not only or only == {n})]
    if not fitting:
        return None
    tightest = min(fitting, key=lambda n: (n != origin, sum(free[n].values()), n))
    return dict.fromkeys(left, tightest)


def _packed(
    bundles: Sequence[Units], left: Sequence[int], free: dict[bytes, Units], first: Sequence[bytes], origin: bytes
) -> Where | None:
    found: Where = {}
    rest = list(left)
    used = list(first)  # nodes of the group so far
    while rest:
        takes = {node_id: _fill(bundles, rest, there) for node_id, there in free.items()}
        best = max(
            sorted(takes),
            key=lambda n: (n in used and bool(takes[n]), len(takes[n]), n == origin, -sum(free[n].values())),
            default=b"",
        )
        if not takes.get(best):
            return None
        for index in takes[best]:
            add(free[best], bundles[index], -1)
            found[index] = best
            rest.remove(index)
        used.append(best)
    return found


def _fill(bundles: Sequence[Units], rest: Sequence[int], there: Units) -> list[int]:
    """Which of the bundles a node takes, in order."""
    room = dict(there)
    taken = []
    for index in rest:
        if fits(bundles[index], room):
            add(room, bundles[index], -1)
            taken.append(index)
    return taken


def _matched(bundles: Sequence[Units], left: Sequence[int], free: Mapping[bytes, Units]) -> Where | None:
    """A node of its own for each bundle, by augmenting paths; the emptiest nodes are tried first."""
    order = sorted(free, key=lambda n: (-sum(free[n].values()), n))
    holder: dict[bytes, int] = {}

    def assign(index: int, seen: set[bytes]) -> bool:
        for node_id in order:
            if node_id in seen or not fits(bundles[index], free[node_id]):
                continue
            seen.add(node_id)
            if node_id not in holder or assign(holder[node_id], seen):
                holder[node_id] = index
                return True
        return False

    if not all(assign(index, set()) for index in left):
        return None
    return {index: node_id for node_id, index in holder.items()}


def _evenly(
    bundles: Sequence[Units], left: Sequence[int], free: dict[bytes, Units], kept: Mapping[int, bytes]
) -> Where | None:
    count = dict.fromkeys(free, 0)
    for node_id in kept.values():
        count[node_id] = count.get(node_id, 0) + 1
    found: Where = {}
    for index in left:
        fitting = [n for n, there in free.items() if fits(bundles[index], there)]
        if not fitting:
            return None
        best = min(fitting, key=lambda n: (count[n], -sum(free[n].values()), n))
        add(free[best], bundles[index], -1)
        count[best] += 1
        found[index] = best
    return found


def _anyhow(bundles: Sequence[Units], left: Sequence[int], free: dict[bytes, Units]) -> Where | None:
    """Any assignment, by depth-first search of SEARCH_STEPS_MAX steps."""
    found: Where = {}
    steps = 0

    def assign(position: int) -> bool:
        nonlocal steps
        if position == len(left):
            return True
        bundle = bundles[left[position]]
        for node_id, room in free.items():
            steps += 1
            if steps > SEARCH_STEPS_MAX:
                return False
            if fits(bundle, room):
                add(room, bundle, -1)
                found[left[position]] = node_id
                if assign(position + 1):
                    return True
                add(room, bundle)
        return False

    return found if assign(0) else None


def _why_not(bundles: Sequence[Units], strategy: str, nodes: Sequence[NodeView]) -> Infeasible:
    for index, bundle in enumerate(bundles):
        if not any(fits(bundle, node.total) for node in nodes):
            lacks = missing(bundle, [node.total for node in nodes])
            return Infeasible(f"no node is large enough for bundle {index}", lacks)
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return Infeasible(f"STRICT_SPREAD of {len(bundles)} bundles needs as many nodes; there are {len(nodes)}")
    together: Units = {}
    for bundle in bundles:
        add(together, bundle)
    if strategy == "STRICT_PACK":
        lacks = missing(together, [node.total for node in nodes])
        return Infeasible("STRICT_PACK: no node is large enough for all bundles together", lacks)
    everything: Units = {}
    for node in nodes:
        add(everything, node.total)
    lacks = missing(together, [everything])
    return Infeasible(f"the cluster is too small for all bundles with {strategy}", lacks)
