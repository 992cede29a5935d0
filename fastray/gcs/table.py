"""A table: rows by key, a version, and the events of late. Pure code, as everything that is built on it.

    version   grows with every change; the upper bits are the server's incarnation, so that a version of an
              earlier process is never taken for one of this
    event     (topic, version, key, row as bytes; empty when the row is gone)
    changes   what one step did: rows to persist, events to publish, rows of history. The step's caller
              persists and publishes; a table never does

A subscriber that has all events up to a version asks for those `since` it; when they are no longer kept, it
reads the whole table anew. Called by tables.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from fastray.gcs.commands import Failure
from fastray.gcs.records import Row

EVENTS_KEPT_MAX = 4096
INCARNATION_SHIFT = 40

encode = msgspec.msgpack.Encoder().encode
R = TypeVar("R", bound=Row)


class Refused(Exception):
    """Ends a command with a Failure."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class Event(msgspec.Struct, array_like=True, gc=False, frozen=True):
    topic: str
    version: int
    key: bytes
    value: bytes


class Context(NamedTuple):
    """Who asks, and what time it is."""

    client: bytes
    now: float


class Changes:
    """What a step did. `rows` keeps rows, not bytes: a row that changes twice before a write is written once."""

    __slots__ = ("callbacks", "events", "history", "rows", "urgent")

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], Row | None] = {}
        self.events: list[Event] = []
        self.callbacks: list[tuple[bytes, Event]] = []  # to one client each
        self.history: list[tuple[bytes, Row]] = []
        self.urgent = False  # a death: published before it is durable

    def __bool__(self) -> bool:
        return bool(self.rows or self.events or self.callbacks or self.history)


class Table(Generic[R]):
    """Rows of one kind. `name` is also its topic."""

    name: str
    row: type[R]
    published = True
    persistent = True

    def __init__(self) -> None:
        self.rows: dict[bytes, R] = {}
        self.version = 0
        self._recent: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self._decode = msgspec.msgpack.Decoder(self.row).decode

    def put(self, changes: Changes, key: bytes, row: R) -> None:
        self.rows[key] = row
        if self.persistent:
            changes.rows[self.name, key] = row
        if self.published:
            self._publish(changes, key, encode(row))

    def drop(self, changes: Changes, key: bytes) -> R | None:
        row = self.rows.pop(key, None)
        if row is None:
            return None
        if self.persistent:
            changes.rows[self.name, key] = None
        if self.published:
            self._publish(changes, key, b"")
        return row

    def _publish(self, changes: Changes, key: bytes, value: bytes) -> None:
        self.version += 1
        event = Event(self.name, self.version, key, value)
        self._recent.append(event)
        changes.events.append(event)

    def require(self, key: bytes, what: str) -> R:
        row = self.rows.get(key)
        if row is None:
            raise Refused("missing", f"no {what} {key.hex()}")
        return row

    def restore(self, key: bytes, value: bytes) -> None:
        """A row from the store, at start."""
        self.rows[key] = self._decode(value)

    def begin(self, incarnation: int) -> None:
        """After the last restore: indices, and a version no earlier process has given."""
        self.version = incarnation << INCARNATION_SHIFT

    def since(self, version: int) -> list[Event] | None:
        """Events after `version`; None when the table has to be read anew."""
        if version == self.version:
            return []
        missed = self.version - version
        if not 0 < missed <= len(self._recent):
            return None
        return list(self._recent)[-missed:]

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        return [(key, encode(row)) for key, row in self.rows.items()]

    def values(self) -> list[Any]:
        return list(self.rows.values())

    def is_valid(self) -> bool:
        """Invariants, for tests."""
        return not self._recent or self._recent[-1].version == self.version
