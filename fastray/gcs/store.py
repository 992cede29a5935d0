"""Where rows survive: a small interface, so that other engines can follow, and the memory backend.

    row        (table, key, value) in bytes; a value None deletes
    group      rows that become durable together or not at all
    history    ended tasks, newest last; bounded by the backend; never loaded at start

    memory:                 nothing survives
    sqlite:/path/to/file    store_sqlite.py

An engine on other hosts (etcd, Redis) needs no more than the methods of Store: a prefix for each table, one
transaction for each group, a trimmed list for the history. Called by server.py, from one thread at a time.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Optional

from fastray.exceptions import InvalidOptionError

StoredRow = tuple[str, bytes, Optional[bytes]]
MEMORY_HISTORY_MAX = 10_000


class Group(NamedTuple):
    """`durable`: must survive a power failure; otherwise the death of every process is enough."""

    rows: list[StoredRow]
    history: list[tuple[bytes, bytes]]
    durable: bool


class StoreError(Exception):
    """The backend cannot write or read; nothing of the group was kept."""


class Store(abc.ABC):
    @abc.abstractmethod
    def load(self) -> Iterable[tuple[str, bytes, bytes]]:
        """All rows."""

    @abc.abstractmethod
    def append(self, group: Group) -> None:
        """Makes a group durable. Raises StoreError."""

    @abc.abstractmethod
    def history(self, key: bytes, limit: int) -> list[bytes]:
        """Newest first; of one key only, unless it is empty."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the use of the store."""


class MemoryStore(Store):
    def __init__(self) -> None:
        self._rows: dict[tuple[str, bytes], bytes] = {}
        self._history: deque[tuple[bytes, bytes]] = deque(maxlen=MEMORY_HISTORY_MAX)

    def load(self) -> Iterable[tuple[str, bytes, bytes]]:
        return [(table, key, value) for (table, key), value in self._rows.items()]

    def append(self, group: Group) -> None:
        for table, key, value in group.rows:
            if value is None:
                self._rows.pop((table, key), None)
            else:
                self._rows[table, key] = value
        self._history.extend(group.history)

    def history(self, key: bytes, limit: int) -> list[bytes]:
        found = [value for name, value in reversed(self._history) if key in (b"", name)]
        return found[:limit]

    def close(self) -> None:
        self._rows.clear()


def open_store(url: str, *, followed: bool = False) -> Store:
    """`followed`: a standby reads along.

    Raises InvalidOptionError for a URL of no known engine, StoreError when it cannot be opened.
    """
    if url == "memory:":
        return MemoryStore()
    from fastray.gcs.store_sqlite import SqliteStore

    return SqliteStore(sqlite_path(url), followed=followed)


def sqlite_path(url: str) -> str:
    """The file of a sqlite: URL. Raises InvalidOptionError for any other."""
    scheme, _, path = url.partition(":")
    if scheme != "sqlite" or not path.strip("/"):
        raise InvalidOptionError(f"store {url!r} is neither memory: nor sqlite:/path/to/file", option="store")
    return "/" + path.lstrip("/") if path.startswith("//") else path
