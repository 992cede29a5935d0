"""Placement groups: bundles of resources that are reserved together.

    PENDING --placed--> PLACED --a node of it died--> RESCHEDULING --placed--> PLACED ...
           any of these --removed, its job ended--> REMOVED

    attempt    grows when a bundle is lost; an answer of an older search is refused

The scheduler places; this table only keeps what it decided. REMOVED_MAX removed ones are kept. Called by
tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.node_table import NodeTable
from fastray.gcs.records import PENDING, PLACED, REMOVED, RESCHEDULING, STRATEGIES, PlacementGroup
from fastray.gcs.table import Changes, Refused, Table

REMOVED_MAX = 1000


class PlacementGroupTable(Table[PlacementGroup]):
    name, row = "placement_group", PlacementGroup

    def __init__(self, nodes: NodeTable) -> None:
        super().__init__()
        self._nodes = nodes
        self._names: dict[tuple[str, str], bytes] = {}
        self._removed: dict[bytes, None] = {}  # oldest first

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        for key, row in self.rows.items():
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
            raise Refused("exists", f"placement group {group.group_id.hex()} is there")
        if group.name and (group.namespace, group.name) in self._names:
            raise Refused("exists", f"namespace {group.namespace!r} has a placement group {group.name!r}")
        group.state, group.attempt, group.created_at = PENDING, 0, now
        group.epochs = [0] * len(group.bundles)
        if group.name:
            self._names[group.namespace, group.name] = group.group_id
        self.put(changes, group.group_id, group)
        return group

    def placed(self, command: commands.GroupPlaced, changes: Changes) -> PlacementGroup:
        group = self.require(command.group_id, "placement group")
        if group.state not in (PENDING, RESCHEDULING) or group.attempt != command.attempt:
            raise Refused("stale", f"the group is {group.state} in attempt {group.attempt}")
        if len(command.epochs) != len(group.bundles):
            raise Refused("invalid", f"{len(group.bundles)} bundles, {len(command.epochs)} nodes")
        for epoch in command.epochs:
            self._nodes.alive(epoch)
        group.state, group.epochs, group.reason = PLACED, list(command.epochs), ""
        self.put(changes, group.group_id, group)
        return group

    def remove(self, command: commands.GroupRemove, changes: Changes) -> PlacementGroup:
        group = self.require(command.group_id, "placement group")
        if group.state == REMOVED:
            return group
        group.state, group.reason = REMOVED, command.reason
        group.epochs = [0] * len(group.bundles)
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

    def node_died(self, epoch: int, reason: str, changes: Changes) -> None:
        for group in [g for g in self.rows.values() if epoch in g.epochs]:
            changes.urgent = True
            group.state, group.reason = RESCHEDULING, f"node died: {reason}"
            group.attempt += 1
            group.epochs = [0 if e == epoch else e for e in group.epochs]
            self.put(changes, group.group_id, group)

    def job_ended(self, job: int, changes: Changes) -> None:
        for group in list(self.rows.values()):
            if group.job == job and not group.detached and group.state != REMOVED:
                self.remove(commands.GroupRemove(group.group_id, "its job ended"), changes)

    def is_valid(self) -> bool:
        return super().is_valid() and all(
            len(g.epochs) == len(g.bundles) and (all(g.epochs) == (g.state == PLACED))
            for g in self.rows.values()
        )
