"""Placement groups: bundles of resources that are reserved together.

    PENDING --all agreed--> PLACED --a node of it died--> RESCHEDULING --all agreed--> PLACED ...
            any of these --removed, its job ended--> REMOVED

    proposed   a node for each bundle, while they are asked; a kept bundle stays where it is
    agreed     those that have reserved what is proposed for them
    attempt    grows with each proposal and each loss; an answer to an older one is refused
    lost       the node that a bundle was lost with: when that comes back it still has it

So the row is the group's two-phase commit: whoever dies, what is reserved anywhere and named by no row is given back.
An agent proposes (fastray/transfer/group_keeper.py); this table only keeps what was decided. REMOVED_MAX removed ones
are kept. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.node_table import NodeTable
from fastray.gcs.records import PENDING, PLACED, REMOVED, RESCHEDULING, STRATEGIES, Node, PlacementGroup
from fastray.gcs.table import Changes, Refused, Table

REMOVED_MAX = 1000
TICK_S = 1e-6


class PlacementGroupTable(Table[PlacementGroup]):
    name, row = "placement_group", PlacementGroup

    def __init__(self, nodes: NodeTable) -> None:
        super().__init__()
        self._nodes = nodes
        self._names: dict[tuple[str, str], bytes] = {}
        self._removed: dict[bytes, None] = {}  # oldest first
        self._latest = 0.0  # when one was created. No two at once: groups are placed in that order

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        for key, row in self.rows.items():
            self._latest = max(self._latest, row.created_at)
            if row.state == REMOVED:
                self._removed[key] = None
            elif row.name:
                self._names[row.namespace, row.name] = key

    def create(self, command: commands.GroupCreate, now: float, changes: Changes) -> PlacementGroup:
        group = command.group
        if not group.group_id or not group.bundles:
            raise Refused("invalid", "a placement group needs an id and at least one bundle")
        if group.strategy not in STRATEGIES:
            raise Refused("invalid", f"strategy {group.strategy!r} is none of {', '.join(STRATEGIES)}")
        if group.group_id in self.rows:
            return self.rows[group.group_id]
        if group.name and (group.namespace, group.name) in self._names:
            raise Refused("exists", f"namespace {group.namespace!r} has a placement group {group.name!r}")
        self._latest = max(now, self._latest + TICK_S)
        group.state, group.attempt, group.created_at = PENDING, 0, self._latest
        group.epochs, group.lost = [0] * len(group.bundles), [b""] * len(group.bundles)
        group.proposed, group.agreed = [], []
        if group.name:
            self._names[group.namespace, group.name] = group.group_id
        self.put(changes, group.group_id, group)
        return group

    def _searched(self, group_id: bytes, attempt: int) -> PlacementGroup:
        group = self.require(group_id, "placement group")
        if group.state not in (PENDING, RESCHEDULING) or group.attempt != attempt:
            raise Refused("stale", f"the group is {group.state} in attempt {group.attempt}")
        return group

    def propose(self, command: commands.GroupPropose, changes: Changes) -> PlacementGroup:
        group = self._searched(command.group_id, command.attempt)
        if command.epochs:
            if len(command.epochs) != len(group.bundles):
                raise Refused("invalid", f"{len(group.bundles)} bundles, {len(command.epochs)} nodes")
            for epoch, kept in zip(command.epochs, group.epochs):
                self._nodes.alive(epoch)
                if kept not in (0, epoch):
                    raise Refused("invalid", f"a bundle is at epoch {kept}, and cannot move to {epoch}")
        self._search(group, list(command.epochs), changes)
        return group

    def _search(self, group: PlacementGroup, proposed: list[int], changes: Changes) -> None:
        group.attempt += 1
        group.proposed, group.agreed = proposed, []
        self.put(changes, group.group_id, group)

    def agree(self, command: commands.GroupAgree, now: float, changes: Changes) -> PlacementGroup:
        group = self._searched(command.group_id, command.attempt)
        self._nodes.alive(command.epoch)
        asked = {epoch for epoch, kept in zip(group.proposed, group.epochs) if not kept}
        if command.epoch not in asked:
            raise Refused("invalid", f"epoch {command.epoch} was not asked in attempt {command.attempt}")
        group.agreed = sorted({*group.agreed, command.epoch})
        if set(group.agreed) == asked:
            self._place(group, group.proposed)
            group.placed_at = group.placed_at or now
        self.put(changes, group.group_id, group)
        return group

    @staticmethod
    def _place(group: PlacementGroup, epochs: list[int]) -> None:
        group.state, group.epochs, group.reason = PLACED, epochs, ""
        group.proposed, group.agreed, group.lost = [], [], [b""] * len(group.bundles)

    def remove(self, command: commands.GroupRemove, changes: Changes) -> PlacementGroup:
        group = self.require(command.group_id, "placement group")
        if group.state == REMOVED:
            return group
        group.state, group.reason = REMOVED, command.reason
        group.epochs, group.lost = [0] * len(group.bundles), [b""] * len(group.bundles)
        group.proposed, group.agreed = [], []
        if group.name:
            self._names.pop((group.namespace, group.name), None)
        self.put(changes, group.group_id, group)
        self._removed[group.group_id] = None
        while len(self._removed) > REMOVED_MAX:
            oldest = next(iter(self._removed))
            del self._removed[oldest]
            self.drop(changes, oldest)
        return group

    def by_name(self, namespace: str, name: str) -> PlacementGroup:
        key = self._names.get((namespace, name))
        if key is None:
            raise Refused("missing", f"namespace {namespace!r} has no placement group {name!r}")
        return self.rows[key]

    def node_died(self, node: Node, reason: str, changes: Changes) -> None:
        epoch = node.epoch
        for group in [g for g in self.rows.values() if epoch in g.epochs or epoch in g.proposed]:
            if epoch in group.epochs:
                group.state, group.reason = RESCHEDULING, f"node died: {reason}"
                group.lost = [node.node_id if e == epoch else was for e, was in zip(group.epochs, group.lost)]
                group.epochs = [0 if e == epoch else e for e in group.epochs]
            self._search(group, [], changes)

    def node_came(self, node_id: bytes, epoch: int, changes: Changes) -> None:
        """A node that was given up joins again: what it had of groups it has still, if that is not placed elsewhere."""
        for group in [g for g in self.rows.values() if node_id in g.lost]:
            group.epochs = [epoch if was == node_id else e for e, was in zip(group.epochs, group.lost)]
            group.lost = [b"" if was == node_id else was for was in group.lost]
            self._search(group, [], changes)
            if all(group.epochs):
                self._place(group, group.epochs)

    def job_ended(self, job: int, changes: Changes) -> None:
        """Groups that were made in an actor end with it; its node sees to that, as long as it lives."""
        living = {node.node_id for node in self._nodes.by_epoch.values()}
        for group in list(self.rows.values()):
            stays = group.detached or (group.in_actor and group.node in living)
            if group.job == job and group.state != REMOVED and not stays:
                self.remove(commands.GroupRemove(group.group_id, "its job ended"), changes)

    def is_valid(self) -> bool:
        return super().is_valid() and all(
            len(g.epochs) == len(g.bundles) == len(g.lost)
            and len(g.proposed) in (0, len(g.bundles))
            and (all(g.epochs) == (g.state == PLACED))
            and not any(e and was for e, was in zip(g.epochs, g.lost))
            for g in self.rows.values()
        )
