"""Functions and classes by the hash of their content, and the key-value store. The values are opaque.

A function stays while a job that exported it runs, or an actor of its class may start again. Keys live in
namespaces and stay until deleted. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.records import Function, Row
from fastray.gcs.table import Changes, Refused, Table


class FunctionTable(Table[Function]):
    name, row, published = "function", Function, False

    def export(self, command: commands.FunctionPut, changes: Changes) -> bool:
        row = self.rows.get(command.digest)
        if row is not None and command.job in row.jobs:
            return False
        if row is None:
            self.put(changes, command.digest, Function(command.blob, [command.job]))
            return True
        row.jobs.append(command.job)
        self.put(changes, command.digest, row)
        return False

    def blob(self, digest: bytes) -> bytes:
        return self.require(digest, "function").blob

    def job_ended(self, job: int, in_use: set[bytes], changes: Changes) -> None:
        """`in_use`: hashes of classes whose actors live on."""
        for digest, row in list(self.rows.items()):
            if job in row.jobs:
                row.jobs.remove(job)
                self.put(changes, digest, row)
            if not row.jobs and digest not in in_use:
                self.drop(changes, digest)


class Value(Row):
    value: bytes


class KeyValueTable(Table[Value]):
    name, row, published = "kv", Value, False

    @staticmethod
    def _key(namespace: str, key: bytes) -> bytes:
        if "\0" in namespace:
            raise Refused("invalid", "a namespace cannot have a zero byte")
        return namespace.encode() + b"\0" + key

    def set(self, command: commands.KvPut, changes: Changes) -> bool:
        key = self._key(command.namespace, command.key)
        there = key in self.rows
        if command.overwrite or not there:
            self.put(changes, key, Value(command.value))
        return not there

    def get(self, command: commands.KvGet) -> list[bytes | None]:
        found = (self.rows.get(self._key(command.namespace, key)) for key in command.keys)
        return [row.value if row is not None else None for row in found]

    def keys(self, namespace: str, prefix: bytes) -> list[bytes]:
        start = self._key(namespace, prefix)
        skip = len(self._key(namespace, b""))
        return sorted(key[skip:] for key in self.rows if key.startswith(start))

    def delete(self, command: commands.KvDelete, changes: Changes) -> int:
        if not command.prefix:
            return int(self.drop(changes, self._key(command.namespace, command.key)) is not None)
        keys = self.keys(command.namespace, command.key)
        for key in keys:
            self.drop(changes, self._key(command.namespace, key))
        return len(keys)
