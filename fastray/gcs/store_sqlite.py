"""Rows in a SQLite database in WAL mode: one file, one writer, one transaction for each group.

    durable group       synchronous=FULL: the log is on the disk when `append` returns
    any other           synchronous=NORMAL: it is with the kernel; it survives `kill -9` of everything, and is
                        never lost before an earlier group is
    lock                an flock on <file>.lock, held while the store is open; the kernel lets go of it the
                        moment the process dies

The history is trimmed to HISTORY_MAX by the writes themselves. Called by store.py.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable

from fastray.gcs.store import Group, Store, StoreError

HISTORY_MAX = 1_000_000
TRIM_EVERY = 10_000  # new entries between two trims
CHECKPOINT_PAGES = 4_000  # the log is folded into the file at 16 MB

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (number INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS history_key ON history (key);
"""


class SqliteStore(Store):
    def __init__(self, path: str, *, history_max: int = HISTORY_MAX, wait_for_lock: bool = False) -> None:
        self.path = path
        self._history_max = history_max
        self._untrimmed = 0
        self._full = True
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
        self._lock = _lock(path + ".lock", wait_for_lock)
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
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise StoreError(f"cannot write {self.path}: {error}") from error

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


def _lock(path: str, wait: bool) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        raise StoreError(f"another server has this store open ({path} is locked)") from None
    return fd
