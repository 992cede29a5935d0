"""The report of a worker's death, from the bytes in a failed record to values (csrc/crash_report.h writes it).

    ProcessEvent   one of the last things that the dead process did, from its flight recorder
    Attempt        how an earlier attempt of the task ended
    read_crash     bytes -> WorkerCrashedError or TaskTimeoutError
    read_events    the events alone, for actors

Loaded when an error is read, not before.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fastray.crash_errors import Attempt, TaskTimeoutError, WorkerCrashedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = struct.Struct("<iiiIIIQQqqIIII")
ATTEMPT = struct.Struct("<iiiI")
EVENT = struct.Struct("<qqQQ")
TASK, BLOCKED, LEASE, RETURNED, CHECKPOINT = range(1, 6)  # EventKind
KINDS = {TASK: "task", BLOCKED: "blocked", LEASE: "lease", RETURNED: "returned", CHECKPOINT: "checkpoint"}


class ProcessEvent(NamedTuple):
    """One of the last things that a process did. Times are in seconds before its death was noticed."""

    kind: str  # "task", "blocked" (waits in get or wait), "lease", "returned" (a lease), "checkpoint"
    ago_s: float  # when it began
    took_s: float | None  # None: it had not ended
    name: str  # of the function
    task_id: str  # of the task it ran or waited for; "" for leases
    failed: bool  # ended by an exception
    detail: int  # class of a lease; calls in a checkpoint

    def __str__(self) -> str:
        named = f"{self.name} {self.task_id}".strip()
        took = "did not end" if self.took_s is None else f"took {_seconds(self.took_s)}"
        if self.kind == "task":
            text = f"task {named} {took}" + (", raised" if self.failed else "")
        elif self.kind == "blocked":
            text = f"waited for {named}, {took}"
        elif self.kind == "checkpoint":
            text = f"checkpoint after {self.detail} calls"
        else:
            text = f"lease on class {self.detail} " + ("granted" if self.kind == "lease" else "given back")
        return f"{-self.ago_s:.6f} s  {text}"


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def read_events(data: bytes, session: int, name_of: Callable[[int], str]) -> list[ProcessEvent]:
    """The EventReports in `data`, oldest first; `name_of(i)` is the name of function-table entry `i`."""
    events = []
    for ago_ns, took_ns, record, what in EVENT.iter_unpack(data):
        kind, detail = what & 0xFF, what >> 9
        of_task = kind in (TASK, BLOCKED)
        events.append(
            ProcessEvent(
                KINDS.get(kind, f"event {kind}"),
                ago_ns / 1e9,
                None if took_ns < 0 else took_ns / 1e9,
                name_of(detail) if of_task and detail else "",
                task_id(session, record) if of_task else "",
                bool(what & 0x100),
                0 if of_task else detail,
            )
        )
    return events


def task_id(session: int, record: int) -> str:
    """What `ObjectRef.task_id` prints for the task with this id in its record."""
    return f"{session:016x}{record:016x}"


def clean_tail(text: str) -> str:
    """The end of a worker's stderr without the names of tasks that its lines carry for the driver (logs.py)."""
    import re

    cut = re.match("[^\x1e\n]*\x1f", text)  # the name at the beginning may have lost its own
    return re.sub("\x1e[^\x1f]*\x1f", "", text[cut.end() :] if cut else text)


def _attempt(pid: int, signal: int, exit_code: int, timeout_ms: int) -> Attempt:
    return Attempt(pid, signal or None, None if signal else exit_code, timeout_ms / 1000 if timeout_ms else None)


def read_crash(data: bytes, session: int, name_of: Callable[[int], str]) -> WorkerCrashedError:
    """The exception for a CrashReport and what follows it; arguments as for `read_events`."""
    data = data.ljust(REPORT.size, b"\0")  # a store without room keeps the beginning only
    (*last, attempts, function, task, peak, uptime_ns, time_ns, oom_kills, n_earlier, n_events, _) = (
        REPORT.unpack_from(data)
    )
    middle = REPORT.size + n_earlier * ATTEMPT.size
    end = middle + n_events * EVENT.size
    death = _attempt(*last)
    details: dict[str, object] = dict(
        pid=death.pid,
        signal=death.signal,
        exit_code=death.exit_code,
        attempts=attempts,
        last_task=name_of(function) or None,
        task_id=task_id(session, task),
        peak_memory_bytes=peak,
        uptime_s=uptime_ns / 1e9,
        died_at=time_ns / 1e9,
        oom_kills=oom_kills,
        earlier=[_attempt(*row) for row in ATTEMPT.iter_unpack(data[REPORT.size : middle])],
        events=read_events(data[middle:end], session, name_of),
        stderr_tail=clean_tail(data[end:].decode("utf-8", "replace")),
    )
    if death.timeout_s is not None:
        return TaskTimeoutError(timeout_s=death.timeout_s, **details)  # type: ignore[arg-type]
    return WorkerCrashedError(**details)  # type: ignore[arg-type]
