"""One request, among nodes: the paper's global policy (section 4.2.2), and Ray's strategies.

    feasible    has, in total, what is asked for, and the labels
    cost        seconds until the task would start there: the node's wait, one task's time if nothing is free,
                the bytes to move over the bandwidth, and a hop if it is not the node that asks

DEFAULT takes the cheapest, then a node without GPUs for a request without, then the least used. SPREAD goes
around the nodes that are free now. `place` changes nothing. Called by global_scheduler.py.
"""

from __future__ import annotations

from fastray.scheduling.labels import describe, meets
from fastray.scheduling.resources import fits, missing
from fastray.scheduling.view import Busy, Infeasible, NodeView, Placed, Request
from fastray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastray.util.scheduling_strategies import Operator

    Outcome = Placed | Infeasible | Busy

BANDWIDTH = 2e9  # bytes a second between nodes
HOP_S = 300e-6  # one remote round trip


def place(request: Request, nodes: Sequence[NodeView], after: bytes = b"") -> Outcome:
    """`after`: where the last SPREAD request went."""
    if request.bundles is not None:
        return _in_group(request)
    strategy = request.strategy
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return _with_affinity(request, strategy, nodes)
    labels: Mapping[str, Operator] = request.labels
    preferred: Mapping[str, Operator] = {}
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        labels, preferred = {**labels, **strategy.hard}, strategy.soft
    feasible = feasible_nodes(request, labels, nodes)
    if not feasible:
        return infeasible(request.resources, labels, nodes)
    if strategy == "SPREAD":
        return _next(request, feasible, after)
    if preferred:
        liked = [node for node in feasible if meets(node.labels, preferred)]
        free = [node for node in feasible if fits(request.resources, node.available)]
        feasible = [node for node in free if node in liked] or free or liked or feasible
    return _cheapest(request, feasible)


def feasible_nodes(
    request: Request, labels: Mapping[str, Operator], nodes: Iterable[NodeView]
) -> list[NodeView]:
    return [node for node in nodes if fits(request.resources, node.total) and meets(node.labels, labels)]


def cost_s(request: Request, node: NodeView) -> float:
    """Seconds until the request would start on `node`."""
    seconds = node.wait_s
    if not fits(request.resources, node.available):
        seconds += request.seconds
    if request.arguments:
        seconds += sum(a.size for a in request.arguments if node.node_id not in a.nodes) / BANDWIDTH
    return seconds if node.node_id == request.origin else seconds + HOP_S


def preference(request: Request, node: NodeView) -> tuple[float, bool, float, bytes]:
    """The least of these is the node that DEFAULT takes."""
    asked = request.resources
    return cost_s(request, node), "GPU" in node.total and "GPU" not in asked, node.use(asked), node.node_id


def _cheapest(request: Request, feasible: Iterable[NodeView]) -> Placed:
    best = min(feasible, key=lambda node: preference(request, node))
    return Placed(best.node_id, fits(request.resources, best.available))


def _next(request: Request, feasible: Sequence[NodeView], after: bytes) -> Placed:
    free = [node for node in feasible if fits(request.resources, node.available)]
    if not free:  # round the nodes with the shortest wait
        shortest = min(node.wait_s for node in feasible)
        feasible = [node for node in feasible if node.wait_s == shortest]
    around = sorted(free or feasible, key=lambda node: (node.node_id <= after, node.node_id))
    return Placed(around[0].node_id, bool(free))


def _with_affinity(
    request: Request, strategy: NodeAffinitySchedulingStrategy, nodes: Sequence[NodeView]
) -> Outcome:
    wanted = bytes.fromhex(strategy.node_id)
    node = next((node for node in nodes if node.node_id == wanted), None)
    can = node is not None and fits(request.resources, node.total) and meets(node.labels, request.labels)
    if node is not None and can:
        free = fits(request.resources, node.available)
        if free or not (strategy._spill_on_unavailable or strategy._fail_on_unavailable):
            return Placed(wanted, free)
        if strategy._fail_on_unavailable:
            return Infeasible(f"node {strategy.node_id} has no room now, and the strategy says to fail then")
    if strategy.soft:
        return place(request._replace(strategy="DEFAULT"), nodes)
    if node is None:
        return Infeasible(f"node {strategy.node_id} is not alive, and soft=False allows no other")
    return infeasible(request.resources, request.labels, [node])


def _in_group(request: Request) -> Outcome:
    """Any of the group's bundles, or the one; the emptiest first, the lowest index among equals."""
    bundles = request.bundles or ()
    wanted = [bundle for bundle in bundles if request.bundle_index in (-1, bundle.number)]
    if not wanted:
        return Busy("the bundle is not placed" if bundles else "the placement group is not placed")
    feasible = [bundle for bundle in wanted if fits(request.resources, bundle.total)]
    if not feasible:
        lacks = missing(request.resources, [bundle.total for bundle in wanted])
        return Infeasible("no bundle of the placement group is large enough", lacks)
    free = [bundle for bundle in feasible if fits(request.resources, bundle.available)]
    best = min(
        free or feasible,
        key=lambda b: (sum(b.total[n] - b.available.get(n, 0) for n in request.resources), b.number),
    )
    return Placed(best.node_id, bool(free), best.number)


def infeasible(
    asked: Mapping[str, int], labels: Mapping[str, Operator], nodes: Sequence[NodeView]
) -> Infeasible:
    """Says what is missing."""
    if not nodes:
        return Infeasible("the cluster has no node")
    labelled = [node for node in nodes if meets(node.labels, labels)]
    if not labelled:
        return Infeasible(f"no node has the labels: {describe(labels)}")
    lacks = missing(asked, [node.total for node in labelled])
    with_labels = f" among those with the labels {describe(labels)}" if labels else ""
    if lacks:
        return Infeasible(f"no node has enough of {', '.join(sorted(lacks))}{with_labels}", lacks)
    closest = min(labelled, key=lambda node: (len(missing(asked, [node.total])), node.node_id))
    lacks = missing(asked, [closest.total])
    return Infeasible(
        f"no node has all of {', '.join(sorted(asked))} together{with_labels}; the closest, "
        f"{closest.node_id.hex()}, lacks {', '.join(sorted(lacks))}",
        lacks,
    )
