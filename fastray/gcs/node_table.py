"""Nodes, and what they have left. Epochs fence what was declared dead.

    alive(epoch)    the node of that epoch, or Refused("stale"): every report of a node passes here
    load            the available resources and queues of each live node, from heartbeats

A node that registers again gets a new epoch; the life before is over at once. Dead nodes are kept for people,
the DEAD_MAX youngest of them. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs.commands import Beat, BeatReply, NodeRegister
from fastray.gcs.records import ALIVE, DEAD, Load, Node
from fastray.gcs.table import Changes, Context, Refused, Table

DEAD_MAX = 1000


class LoadTable(Table[Load]):
    name, row, persistent = "load", Load, False

    def beat(self, beat: Beat, key: bytes, changes: Changes) -> bool:
        """Applies a full load or a delta; False when the version before is not here."""
        row = self.rows.get(key)
        if beat.full:
            row = Load(beat.epoch, dict(beat.available), dict(beat.queues), beat.version)
        elif row is None or row.epoch != beat.epoch or row.version + 1 != beat.version:
            return row is not None and row.epoch == beat.epoch and row.version == beat.version  # a repeat
        else:
            row.available.update(beat.available)
            row.queues.update(beat.queues)
            row.version = beat.version
        row.queues = {name: queue for name, queue in row.queues.items() if queue}
        if beat.full or beat.available or beat.queues:
            self.put(changes, key, row)
        return True


class NodeTable(Table[Node]):
    name, row = "node", Node

    def __init__(self) -> None:
        super().__init__()
        self.loads = LoadTable()
        self.by_epoch: dict[int, Node] = {}  # live ones
        self._dead: dict[bytes, None] = {}  # oldest first
        self._last_epoch = 0

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        self.loads.begin(incarnation)
        for row in sorted(self.rows.values(), key=lambda row: row.died_at):
            self._last_epoch = max(self._last_epoch, row.epoch)
            if row.state == ALIVE:
                self.by_epoch[row.epoch] = row
            else:
                self._dead[row.node_id] = None

    def alive(self, epoch: int) -> Node:
        node = self.by_epoch.get(epoch)
        if node is None:
            raise Refused("stale", f"epoch {epoch} is over: the node was declared dead, or joined again")
        return node

    def require_alive(self, node_id: bytes) -> Node:
        node = self.rows.get(node_id)
        if node is None or node.state != ALIVE:
            raise Refused("stale", f"node {node_id.hex()} is not alive")
        return node

    def register(self, command: NodeRegister, context: Context, changes: Changes) -> int:
        """The new epoch. The caller has ended an earlier life of the same node."""
        node = command.node
        if not node.node_id:
            raise Refused("invalid", "a node needs an id")
        if any(amount < 0 for amount in node.resources.values()):
            raise Refused("invalid", f"a node cannot have negative resources: {node.resources}")
        self._last_epoch += 1
        node.epoch, node.client = self._last_epoch, context.client
        node.state, node.registered_at, node.died_at, node.reason = ALIVE, context.now, 0.0, ""
        self.by_epoch[node.epoch] = node
        self._dead.pop(node.node_id, None)
        self.put(changes, node.node_id, node)
        self.loads.put(changes, node.node_id, Load(node.epoch, dict(node.resources), {}, 0))
        return node.epoch

    def died(self, epoch: int, reason: str, now: float, changes: Changes) -> Node | None:
        """The node that this was news of; None when it is known."""
        node = self.by_epoch.pop(epoch, None)
        if node is None:
            return None
        node.state, node.died_at, node.reason = DEAD, now, reason
        changes.urgent = True
        self.put(changes, node.node_id, node)
        self.loads.drop(changes, node.node_id)
        self._dead[node.node_id] = None
        while len(self._dead) > DEAD_MAX:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            self.drop(changes, oldest)
        return node

    def beat(self, beat: Beat, changes: Changes) -> BeatReply:
        node = self.by_epoch.get(beat.epoch)
        if node is None or node.client != beat.client:  # a store that was begun anew counts from 1 again
            return BeatReply(fenced=True, resync=False)
        return BeatReply(fenced=False, resync=not self.loads.beat(beat, node.node_id, changes))

    def of_client(self, client: bytes) -> list[Node]:
        return [node for node in self.by_epoch.values() if node.client == client]

    def is_valid(self) -> bool:
        living = {node.epoch for node in self.rows.values() if node.state == ALIVE}
        return (
            super().is_valid()
            and living == set(self.by_epoch)
            and self.loads.rows.keys() <= {node.node_id for node in self.by_epoch.values()}
            and len(self._dead) + len(living) == len(self.rows)
            and all(node.epoch <= self._last_epoch for node in self.rows.values())
        )
