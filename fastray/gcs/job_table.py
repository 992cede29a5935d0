"""Jobs: drivers that are attached, and (the ENDED_MAX youngest) those that were.

A job ends when its driver's node says so, or when the failure detector finds the connection of its pulse closed for
too long. Numbers start at 1 and are never given twice; nodes reserve them in blocks. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.records import FAILED, FINISHED, RUNNING, Job
from fastray.gcs.table import Changes, Context, Refused, Table

ENDED_MAX = 1000
RESERVED_MAX = 10_000  # numbers at once


class JobTable(Table[Job]):
    name, row = "job", Job

    def __init__(self) -> None:
        super().__init__()
        self._last = 0
        self._ended: dict[bytes, None] = {}  # oldest first

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        for key, row in sorted(self.rows.items(), key=lambda item: item[1].ended_at):
            self._last = max(self._last, row.job_id)
            if row.state != RUNNING:
                self._ended[key] = None

    @staticmethod
    def key(job_id: int) -> bytes:
        return job_id.to_bytes(4, "big")

    @property
    def last(self) -> int:
        """The last number that was given or reserved."""
        return self._last

    def reserve(self, count: int) -> int:
        """The first of `count` numbers. The caller makes `last` durable."""
        if not 0 < count <= RESERVED_MAX:
            raise Refused("invalid", f"cannot reserve {count} numbers for jobs: 1 to {RESERVED_MAX}")
        self._last += count
        return self._last - count + 1

    def reserved_before(self, last: int) -> None:
        """At the start: numbers to `last` are taken."""
        self._last = max(self._last, last)

    def start(self, command: commands.JobStart, context: Context, changes: Changes) -> int:
        number = command.job_id or self.reserve(1)
        if not 0 < number <= self._last:
            raise Refused("invalid", f"number {number} was not reserved")
        before = self.rows.get(self.key(number))
        if before is not None and before.node != command.node:
            raise Refused("exists", f"job {number} is one of node {before.node.hex()}")
        row = Job(
            number,
            command.namespace,
            context.client,
            command.entrypoint,
            command.node,
            started_at=context.now if before is None else before.started_at,
            metadata=command.metadata,
        )
        self._ended.pop(self.key(number), None)
        self.put(changes, self.key(number), row)
        return number

    def end(self, command: commands.JobEnd, now: float, changes: Changes) -> bool:
        """Whether it still ran."""
        if not 0 < command.job_id <= self._last:
            raise Refused("missing", f"no job {command.job_id}")
        row = self.rows.get(self.key(command.job_id))
        if row is None or row.state != RUNNING:
            return False
        row.state, row.ended_at, row.reason = FAILED if command.failed else FINISHED, now, command.reason
        changes.urgent = True
        self.put(changes, self.key(row.job_id), row)
        self._ended[self.key(row.job_id)] = None
        while len(self._ended) > ENDED_MAX:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self.drop(changes, oldest)
        return True

    def of_client(self, client: bytes) -> list[Job]:
        return [row for row in self.rows.values() if row.client == client and row.state == RUNNING]

    def is_valid(self) -> bool:
        return super().is_valid() and set(self._ended) == {k for k, r in self.rows.items() if r.state != RUNNING}
