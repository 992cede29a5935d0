"""Where the bundles of the cluster's placement groups go, and when. A state machine: rows and nodes in, proposals out.

    proposal   nodes are asked to reserve bundles. What has room says so at once, else the bundle stands in the node's
               line, where it comes to its turn
    patient    the oldest proposal that is not agreed to: it may wait PATIENT_S, twice as long each time, the others
               HASTY_S. So of two groups that wait for each other's resources the younger gives way, and one that waits
               for what an actor holds does not keep other nodes' resources for ever
    tried      what was free when a group was found not to fit: it is looked at again when more is free
    lost       a bundle whose node died. The node may come back within RETURN_S and has the bundle then; after that it
               is placed anew, around the bundles that are left

Groups are looked at in the order they were made; smaller ones pass one that does not fit now. One process of the
cluster has one of these (fastray/transfer/group_keeper.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastray.scheduling.bundles import place_group
from fastray.scheduling.labels import conditions, describe, meets
from fastray.scheduling.resources import add, units
from fastray.scheduling.view import Busy, Infeasible, NodeView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastray.scheduling.resources import Units

    Key = tuple[bytes, int]  # group and attempt
    Free = dict[bytes, Units]

PATIENT_S, HASTY_S, RETURN_S = 2.0, 0.5, 2.0
PATIENCE_S_MAX = 32.0
SETTLE_S = 1.0  # so long heartbeats may still tell of what was withdrawn
STORE = "object_store_memory"  # changes all the time


class Wanted(NamedTuple):
    """A group that is not placed, as the control store has it; `kept`: bundle -> node that has it."""

    group_id: bytes
    attempt: int
    bundles: Sequence[Mapping[str, float]]
    strategy: str
    selectors: Sequence[Mapping[str, str]]
    kept: Mapping[int, bytes]
    proposed: Sequence[bytes]  # a node for each bundle, while they are asked
    has_lost: bool  # bundles whose node may come back
    origin: bytes = b""  # the node where it was made


class Proposal(NamedTuple):
    group_id: bytes
    attempt: int
    nodes: list[bytes]  # one for each bundle; none: what was proposed is withdrawn


class _Tried:
    """A group that did not fit: what was free then."""

    def __init__(self, now: float, free: Free, retry_at: float) -> None:
        self.free, self.at, self.retry_at = free, now, retry_at

    def again(self, now: float, free: Free) -> bool:
        """Whether more is free now. What others took meanwhile counts when it comes back."""
        grown = any(
            node_id not in self.free or any(amount > self.free[node_id].get(name, 0) for name, amount in there.items())
            for node_id, there in free.items()
        )
        if not grown and now - self.at >= SETTLE_S:
            self.free = free
        return grown or now >= self.retry_at


class GroupPlacer:
    def __init__(self) -> None:
        self._since: dict[Key, float] = {}  # when an attempt was seen first
        self._tried: dict[bytes, _Tried] = {}
        self._patient: dict[bytes, list[bytes]] = {}  # group -> the nodes of its last patient proposal
        self._patience: dict[bytes, float] = {}
        self.due = 0.0  # when `decide` is to be called though nothing happens; 0.0: not

    def decide(
        self, now: float, wanted: Sequence[Wanted], nodes: Iterable[NodeView], held: dict[bytes, Units]
    ) -> list[Proposal]:
        """`wanted` in the order they were made; `held`: what bundles that are placed have of each node. Changes `nodes`
        and `held`.
        """
        views = {node.node_id: node for node in nodes}
        proposed = [group for group in wanted if group.proposed]
        for group in proposed:
            self._take(group, group.proposed, views, held)
        for node in views.values():  # heartbeats may not tell of it yet
            for name, amount in held.get(node.node_id, {}).items():
                node.available[name] = min(node.available.get(name, 0), node.total.get(name, 0) - amount)
        free = _free(views)
        self._forget(wanted)
        self.due = 0.0
        proposals = []
        for number, group in enumerate(proposed):
            patience = HASTY_S if number else self._patience.get(group.group_id, PATIENT_S)
            if self._due(group, now, patience):
                proposals.append(self._withdraw(group, now, free, patience))
        waits = bool(proposed)
        for group in wanted:
            tried = self._tried.get(group.group_id)
            if group.proposed or (tried is not None and not tried.again(now, free)):
                continue
            if group.has_lost and not self._due(group, now, RETURN_S):
                continue
            found = place(group, views.values())
            if isinstance(found, Busy) and not waits:
                found = self._place_patiently(group, views, held)
                waits = isinstance(found, list)
            if not isinstance(found, list):
                self._tried[group.group_id] = _Tried(now, _free(views), math.inf)
                continue
            self._tried.pop(group.group_id, None)
            proposals.append(Proposal(group.group_id, group.attempt, found))
            self._take(group, found, views, held)
        return proposals

    @staticmethod
    def _take(group: Wanted, nodes: Sequence[bytes], views: Mapping[bytes, NodeView], held: dict[bytes, Units]) -> None:
        for index, node_id in enumerate(nodes):
            if index not in group.kept and node_id in views:
                add(views[node_id].available, units(group.bundles[index]), -1)
                add(held.setdefault(node_id, {}), units(group.bundles[index]))

    def _due(self, group: Wanted, now: float, wait_s: float) -> bool:
        """Its attempt is `wait_s` old."""
        end = self._since.setdefault((group.group_id, group.attempt), now) + wait_s
        if now < end:
            self.due = min(self.due or end, end)
        return now >= end

    def _withdraw(self, group: Wanted, now: float, free: Free, patience: float) -> Proposal:
        """What the nodes give back then is no reason to try again."""
        then = {node_id: dict(there) for node_id, there in free.items()}
        for index, node_id in enumerate(group.proposed):
            if index not in group.kept and node_id in then:
                add(then[node_id], units(group.bundles[index]))
        self._patience[group.group_id] = min(2 * self._patience.get(group.group_id, PATIENT_S), PATIENCE_S_MAX)
        self._tried[group.group_id] = _Tried(now, then, now + patience)
        self.due = min(self.due or now + patience, now + patience)
        return Proposal(group.group_id, group.attempt, [])

    def _forget(self, wanted: Sequence[Wanted]) -> None:
        keys = {(group.group_id, group.attempt) for group in wanted}
        ids = {group.group_id for group in wanted}
        self._since = {key: since for key, since in self._since.items() if key in keys}
        for known in (self._tried, self._patient, self._patience):
            for group_id in [group_id for group_id in known if group_id not in ids]:
                del known[group_id]

    def _place_patiently(
        self, group: Wanted, views: Mapping[bytes, NodeView], held: Mapping[bytes, Units]
    ) -> list[bytes] | Infeasible | Busy:
        """As if no task ran anywhere: it takes its turn among those. Not where it has waited in vain, if there is
        another way."""
        idle = []
        for node in views.values():
            left = dict(node.total)
            add(left, held.get(node.node_id, {}), -1)
            idle.append(NodeView(node.node_id, dict(node.total), left, node.labels))
        before = self._patient.pop(group.group_id, [])
        asked = {node_id for index, node_id in enumerate(before) if index not in group.kept}
        rest = [node for node in idle if node.node_id not in asked or node.node_id in group.kept.values()]
        found = place(group, rest) if asked else Busy("")
        if not isinstance(found, list):
            found = place(group, idle)
        if isinstance(found, list):
            self._patient[group.group_id] = found
        return found


def _free(views: Mapping[bytes, NodeView]) -> Free:
    return {
        node_id: {name: amount for name, amount in node.available.items() if name != STORE}
        for node_id, node in views.items()
    }


def place(group: Wanted, nodes: Iterable[NodeView]) -> list[bytes] | Infeasible | Busy:
    """As `place_group`, for nodes that have the labels its bundles ask for."""
    bundles = [units(bundle) for bundle in group.bundles]
    views = list(nodes)
    if any(group.selectors):
        views = [NodeView(n.node_id, dict(n.total), dict(n.available), n.labels) for n in views]
        for index, selector in enumerate(group.selectors):
            wishes = conditions(selector)
            if not selector:
                continue
            fitting = [node for node in views if meets(node.labels, wishes)]
            if not fitting:
                return Infeasible(f"no node has the labels {describe(wishes)}")
            mark = f"labels {describe(wishes)}"  # a resource that only they have
            bundles[index][mark] = 1
            for node in fitting:
                node.total[mark] = node.available[mark] = len(bundles)
    return place_group(bundles, group.strategy, views, group.kept, group.origin)
