"""Rows in a SQLite database in WAL mode: one file, one writer, one transaction for each group.

    durable group       synchronous=FULL: the log is on the disk when `append` returns
    any other           synchronous=NORMAL: it is with the kernel; it survives `kill -9` of everything, and is
                        never lost before an earlier group is
    lock                an flock on <file>.lock, held while the store is open; the kernel lets go of it the
                        moment the process dies

    followed            each group is also written as one blob under a number, for a standby to read what is new

The history is trimmed to HISTORY_MAX, the blobs to GROUPS_MAX, by the writes themselves. Called by store.py and
standby.py.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable

import msgspec

from fastray.gcs.store import Group, Store, StoredRow, StoreError

HISTORY_MAX = 1_000_000
TRIM_EVERY = 10_000  # new entries between two trims
GROUPS_MAX = 256
CHECKPOINT_PAGES = 4_000  # the log is folded into the file at 16 MB

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (number INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS history_key ON history (key);
CREATE TABLE IF NOT EXISTS groups (number INTEGER PRIMARY KEY, rows BLOB NOT NULL);
"""


_decode_rows = msgspec.msgpack.Decoder(list[StoredRow]).decode


class SqliteStore(Store):
    def __init__(
        self,
        path: str,
        *,
        history_max: int = HISTORY_MAX,
        followed: bool = False,
        lock: int | None = None,
    ) -> None:
        """`lock`: the descriptor of `lock_store`, if the caller has it already. Raises StoreError."""
        self.path = path
        self._history_max = history_max
        self._followed = followed
        self._untrimmed = 0
        self._full = True
        self._lock = lock_store(path, wait=False) if lock is None else lock
        try:
            self._db = self._open(path)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise StoreError(f"cannot open {path}: {error}") from error

    @staticmethod
    def _open(path: str) -> sqlite3.Connection:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            "cache_size=-16000",
            "temp_store=MEMORY",
        ):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(_SCHEMA)
        return db

    def load(self) -> Iterable[tuple[str, bytes, bytes]]:
        return self._db.execute("SELECT kind, key, value FROM rows").fetchall()

    def append(self, group: Group) -> None:
        db = self._db
        try:
            if group.durable != self._full:
                db.execute(f"PRAGMA synchronous={'FULL' if group.durable else 'NORMAL'}")
                self._full = group.durable
            db.execute("BEGIN IMMEDIATE")
            kept = [row for row in group.rows if row[2] is not None]
            gone = [row[:2] for row in group.rows if row[2] is None]
            db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", kept)
            db.executemany("DELETE FROM rows WHERE kind = ? AND key = ?", gone)
            if group.history:
                db.executemany("INSERT INTO history (key, value) VALUES (?, ?)", group.history)
                self._trim(len(group.history))
            if self._followed:
                self._log(group)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise StoreError(f"cannot write {self.path}: {error}") from error

    def _log(self, group: Group) -> None:
        blob = msgspec.msgpack.encode(group.rows)
        number = self._db.execute("INSERT INTO groups (rows) VALUES (?)", (blob,)).lastrowid or 0
        if number % GROUPS_MAX == 0:
            self._db.execute("DELETE FROM groups WHERE number <= ?", (number - GROUPS_MAX,))

    def _trim(self, added: int) -> None:
        self._untrimmed += added
        if self._untrimmed >= min(TRIM_EVERY, self._history_max):
            self._untrimmed = 0
            newest = self._db.execute("SELECT max(number) FROM history").fetchone()[0]
            self._db.execute("DELETE FROM history WHERE number <= ?", (newest - self._history_max,))

    def history(self, key: bytes, limit: int) -> list[bytes]:
        where, given = ("WHERE key = ?", (key, limit)) if key else ("", (limit,))
        query = f"SELECT value FROM history {where} ORDER BY number DESC LIMIT ?"
        return [row[0] for row in self._db.execute(query, given)]

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)


def lock_store(path: str, *, wait: bool) -> int:
    """The descriptor that holds the lock; with `wait`, once nobody else does. Raises StoreError."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        raise StoreError(f"another server has this store open ({path}.lock is locked)") from None
    return fd


class Reader:
    """What a standby reads beside the server that writes."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        self._seen = 0
        self._version = -1

    def load(self) -> list[tuple[str, bytes, bytes]]:
        """All rows; what `news` tells comes after them."""
        db = self._db
        db.execute("BEGIN")
        self._version = self._data_version()
        (self._seen,) = db.execute("SELECT coalesce(max(number), 0) FROM groups").fetchone()
        rows: list[tuple[str, bytes, bytes]] = db.execute("SELECT kind, key, value FROM rows").fetchall()
        db.execute("COMMIT")
        return rows

    def news(self) -> list[StoredRow] | None:
        """Rows written since, in order; None when some of it is gone and everything has to be loaded."""
        version = self._data_version()
        if version == self._version:
            return []
        self._version = version
        found = self._db.execute("SELECT number, rows FROM groups WHERE number > ? ORDER BY number", (self._seen,))
        rows: list[StoredRow] = []
        for number, blob in found:
            if number != self._seen + 1:
                return None
            self._seen = number
            rows += _decode_rows(blob)
        return rows or None  # a write without a group: its server is not followed

    def _data_version(self) -> int:
        """Changes with every commit of another connection."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        self._db.close()
