"""A second server that has everything in memory, and takes over the moment the first one dies.

    follow      reads what the first one wrote, from the same database, every FOLLOW_EVERY_S
    lock        waited for by a thread; the kernel gives it the moment the first server is gone
    take over   reads the rest, starts a new incarnation, listens on the same port

Nothing is sent between the two: what is acknowledged is in the database, and the lock says who may write. So two
servers never serve at once, and no acknowledged write is missing. Called by __main__.py.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading

from fastray.gcs.store import StoreError
from fastray.gcs.store_sqlite import Reader, SqliteStore, lock_store
from fastray.gcs.tables import GlobalState

FOLLOW_EVERY_S = 0.05
FOLLOW_IDLE_S = 0.25  # between looks at a store that does not change


class Standby:
    """Made inside of a running event loop. `path` is the database of the first server."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader: Reader | None = None
        self._state = GlobalState()
        self._locked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._wait_for_lock, name="gcs-lock", daemon=True).start()

    def _wait_for_lock(self) -> None:
        lock = lock_store(self._path, wait=True)
        loop = self._locked.get_loop()
        loop.call_soon_threadsafe(self._locked.set_result, lock)

    async def prepare(self) -> None:
        """Returns when it has what the first server has, or there is none."""
        while not self._locked.done() and not self._look():
            await asyncio.wait([self._locked], timeout=FOLLOW_EVERY_S)

    async def take_over(self) -> tuple[GlobalState, SqliteStore]:
        """The state and the store of the server that died, once it has."""
        pause_s = FOLLOW_EVERY_S
        while not self._locked.done():
            pause_s = FOLLOW_EVERY_S if self._look() else FOLLOW_IDLE_S
            await asyncio.wait([self._locked], timeout=pause_s)
        store = SqliteStore(self._path, followed=True, lock=self._locked.result())
        self._look()
        if self._reader is not None:
            self._reader.close()
        return self._state, store

    def _look(self) -> bool:
        """Whether there was something new. A database that is being made is looked at again."""
        try:
            if self._reader is None:
                if not os.path.exists(self._path):
                    return False
                self._reader = Reader(self._path)
                self._load()
                return True
            news = self._reader.news()
        except sqlite3.Error:
            if self._locked.done():
                raise StoreError(f"cannot read {self._path}") from None
            if self._reader is not None:
                self._reader.close()
            self._reader = None
            return False
        if news is None:
            self._load()
            return True
        for table, key, value in news:
            if value is None:
                self._state.forget(table, key)
            else:
                self._state.restore(table, key, value)
        return bool(news)

    def _load(self) -> None:
        assert self._reader is not None
        self._state = GlobalState()
        for table, key, value in self._reader.load():
            self._state.restore(table, key, value)
