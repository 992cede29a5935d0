"""Where objects are, and who waits for them: the paper's object table.

    location    the epoch of a node that has a copy; one of a dead node counts for nothing, so that a death
                writes no rows here
    callback    left by a client that asks for an object without a copy (Figure 7b, step 2); the first copy
                calls it, once (step 5). It is lost with the server, and left again by the client
    lost        an object whose last copy died; its row names the task that makes it. LOST_MAX are kept
    owner       the epoch of the node that owns it, if anybody said; the row ends with it

Called by tables.py; `sweep` from time to time after a death.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import islice

from fastray.gcs import commands
from fastray.gcs.node_table import NodeTable
from fastray.gcs.records import Object
from fastray.gcs.table import Changes, Context, Event, Table, encode

LOST_MAX = 100_000
Found = tuple[int, list[bytes], bytes]  # bytes, ids of nodes, task


class ObjectTable(Table[Object]):
    name, row, published = "object", Object, False

    def __init__(self, nodes: NodeTable) -> None:
        super().__init__()
        self._nodes = nodes
        self._watchers: dict[bytes, set[bytes]] = {}  # object -> clients
        self._watched: dict[bytes, set[bytes]] = {}  # client -> objects
        self._lost: deque[bytes] = deque()
        self._sweep: Iterator[bytes] = iter(())

    def add(self, command: commands.ObjectsAdd, changes: Changes) -> None:
        self._nodes.alive(command.epoch)
        for key, size, task in command.objects:
            row = self.rows.get(key)
            if row is None:
                row = Object(size, [command.epoch], task, command.owner)
            else:
                living = self._nodes.by_epoch
                row.locations = [e for e in row.locations if e in living and e != command.epoch]
                row.locations.append(command.epoch)
                row.size, row.task = size, task or row.task
            self.put(changes, key, row)
            for client in self._watchers.pop(key, ()):
                self._watched[client].discard(key)
                changes.callbacks.append((client, Event(self.name, 0, key, encode(self._found(row)))))

    def evict(self, command: commands.ObjectsEvict, changes: Changes) -> None:
        self._nodes.alive(command.epoch)
        for key in command.ids:
            row = self.rows.get(key)
            if row is not None and command.epoch in row.locations:
                row.locations.remove(command.epoch)
                self.put(changes, key, row)
                self._note_if_lost(key, row, changes)

    def delete(self, command: commands.ObjectsDelete, changes: Changes) -> int:
        return sum(self.drop(changes, key) is not None for key in command.ids)

    def _found(self, row: Object) -> Found:
        living = self._nodes.by_epoch
        return row.size, [living[e].node_id for e in row.locations if e in living], row.task

    def locate(self, ids: list[bytes]) -> list[Found | None]:
        rows = self.rows
        return [self._found(rows[key]) if key in rows else None for key in ids]

    def watch(self, ids: list[bytes], context: Context) -> list[Found | None]:
        found = self.locate(ids)
        for key, where in zip(ids, found):
            if where is None or not where[1]:
                self._watchers.setdefault(key, set()).add(context.client)
                self._watched.setdefault(context.client, set()).add(key)
        return found

    def unwatch(self, ids: list[bytes], client: bytes) -> None:
        for key in ids:
            clients = self._watchers.get(key)
            if clients is not None and client in clients:
                clients.discard(client)
                self._watched[client].discard(key)
                if not clients:
                    del self._watchers[key]

    def client_gone(self, client: bytes) -> None:
        self.unwatch(list(self._watched.get(client, ())), client)
        self._watched.pop(client, None)

    def node_died(self) -> None:
        """Starts to look for what lost its last copy."""
        self._sweep = iter(list(self.rows))

    def sweep(self, changes: Changes, objects_max: int) -> None:
        for key in islice(self._sweep, objects_max):
            row = self.rows.get(key)
            if row is not None and row.owner and row.owner not in self._nodes.by_epoch:
                self.drop(changes, key)
            elif row is not None:
                self._note_if_lost(key, row, changes)

    def largest(self, limit: int) -> list[tuple[bytes, int, list[bytes], bytes]]:
        """(id, bytes, ids of nodes, task) of the largest objects."""
        keys = heapq.nlargest(limit, self.rows, key=lambda key: self.rows[key].size)
        found = []
        for key in keys:
            size, nodes, task = self._found(self.rows[key])
            found.append((key, size, nodes, task))
        return found

    def _note_if_lost(self, key: bytes, row: Object, changes: Changes) -> None:
        if any(epoch in self._nodes.by_epoch for epoch in row.locations):
            return
        self._lost.append(key)
        while len(self._lost) > LOST_MAX:
            oldest = self._lost.popleft()
            gone = self.rows.get(oldest)
            if gone is not None and not any(epoch in self._nodes.by_epoch for epoch in gone.locations):
                self.drop(changes, oldest)

    def is_valid(self) -> bool:
        pairs = {(client, key) for key, clients in self._watchers.items() for client in clients}
        return pairs == {(client, key) for client, keys in self._watched.items() for key in keys} and all(
            self._watchers.values()
        )
