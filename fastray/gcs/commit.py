"""Group commit: what changed while a group was being written becomes the next group.

    add         takes the changes of one step; a death in them is published at once, with all that was to be
                published before it
    settled     returns when everything added before it is durable, and was published

Rows are encoded when a group is sealed, so that a row that changed often is written once. A store that cannot
write (a full disk) is tried again; nobody is answered meanwhile. Called by server.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

from fastray.gcs.store import Group, Store, StoreError
from fastray.gcs.table import Changes, Event, encode

DURABLE = frozenset({"meta", "node", "job", "actor", "placement_group", "kv"})
RETRY_EVERY_S = 0.5

log = logging.getLogger("fastray.gcs")
Publish = Callable[[list[Event], list[tuple[bytes, Event]]], None]


class Committer:
    def __init__(self, store: Store, publish: Publish) -> None:
        self._store = store
        self._publish = publish
        self._pending = Changes()
        self._group: asyncio.Future[None] | None = None  # of the changes that are pending
        self._writing: asyncio.Future[None] | None = None  # of the group that is being written
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gcs-store")
        self._task = asyncio.get_running_loop().create_task(self._run())
        self.failing = ""  # why the store cannot write

    def add(self, changes: Changes) -> None:
        if not changes:
            return
        pending = self._pending
        pending.rows.update(changes.rows)
        pending.history.extend(changes.history)
        pending.events.extend(changes.events)
        pending.callbacks.extend(changes.callbacks)
        if changes.urgent:
            self._publish_pending(pending)
        if self._group is None:
            self._group = asyncio.get_running_loop().create_future()
            self._wake.set()

    async def settled(self) -> None:
        waited = self._group or self._writing
        if waited is not None:
            await asyncio.shield(waited)

    async def history(self, key: bytes, limit: int) -> list[bytes]:
        await self.settled()
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._store.history, key, limit
        )

    async def close(self) -> None:
        await self.settled()
        self._task.cancel()
        self._thread.shutdown()

    def _publish_pending(self, pending: Changes) -> None:
        if pending.events or pending.callbacks:
            self._publish(pending.events, pending.callbacks)
            pending.events, pending.callbacks = [], []

    async def _run(self) -> None:
        try:
            await self._write_forever()
        except Exception:
            # Memory is ahead of the disk, and nothing would be written any more. The next server has the truth.
            log.critical("the store's writer failed: this server ends", exc_info=True)
            os._exit(1)

    async def _write_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            sealed, self._pending = self._pending, Changes()
            self._writing, self._group = self._group, None
            if sealed.rows or sealed.history:
                await self._write(_group(sealed))
            self._publish_pending(sealed)
            writing, self._writing = self._writing, None
            if writing is not None:
                writing.set_result(None)

    async def _write(self, group: Group) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._thread, self._store.append, group)
                self.failing = ""
                return
            except StoreError as error:
                if not self.failing:
                    log.error("%s; trying again every %s s, nobody is answered meanwhile", error, RETRY_EVERY_S)
                self.failing = str(error)
                await asyncio.sleep(RETRY_EVERY_S)


def _group(changes: Changes) -> Group:
    rows = [
        (table, key, None if row is None else encode(row)) for (table, key), row in changes.rows.items()
    ]
    durable = any(table in DURABLE for table, _, _ in rows)
    return Group(rows, [(key, encode(row)) for key, row in changes.history], durable)
