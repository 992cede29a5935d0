"""What a task's caller is told when the task took its worker with it: WorkerCrashedError and TaskTimeoutError.

    signal, exit code    how a process ended; one of them is None
    attempt              one run of the task; each of them took its worker with it
    event                something that the dead process did shortly before, see crash_report.ProcessEvent

exceptions.py re-exports both errors. crash_report.py makes them from what the node wrote into the record.
"""

from __future__ import annotations

from fastray.task_error import FastrayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastray.crash_report import ProcessEvent

EVENTS_SHOWN = 6


class Attempt:
    """How one attempt of a task ended."""

    __slots__ = ("exit_code", "pid", "signal", "timeout_s")

    def __init__(
        self, pid: int | None, signal: int | None, exit_code: int | None, timeout_s: float | None = None
    ) -> None:
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.timeout_s = timeout_s  # the limit, when it ran longer and was killed for it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attempt) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[object, ...]:
        return self.pid, self.signal, self.exit_code, self.timeout_s

    def __repr__(self) -> str:
        return f"Attempt{self._values()}"

    def __str__(self) -> str:
        """`was killed by SIGKILL (9)` and the like."""
        if self.timeout_s is not None:
            return f"was killed by fastray because of timeout_s={self.timeout_s:g}"
        if self.signal is not None:
            return f"was killed by {signal_name(self.signal)}"
        return f"exited with code {self.exit_code}" if self.exit_code is not None else "died unexpectedly"


class WorkerCrashedError(FastrayError):
    """The worker process died while it ran the task, and no retry is left (`max_retries`).

    Look at `signal` and `stderr_tail` first: SIGKILL without a trace is mostly the kernel's out-of-memory
    killer (`oom_kills`, `peak_memory_bytes`), SIGSEGV a native library, an exit code `os._exit` or `sys.exit` in the
    task. `events` is what the process did last, `earlier` how the attempts before ended.

    Attributes of the last attempt: `pid`, `signal`, `exit_code`, `last_task` (name), `task_id`, `peak_memory_bytes`
    (resident, as the kernel counted), `uptime_s` of the process, `died_at` (seconds since the epoch), `oom_kills`
    (processes killed by the kernel on this machine since it was looked at last).
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        signal: int | None = None,
        exit_code: int | None = None,
        pid: int | None = None,
        last_task: str | None = None,
        stderr_tail: str = "",
        attempts: int = 1,
        task_id: str = "",
        peak_memory_bytes: int = 0,
        uptime_s: float = 0.0,
        died_at: float = 0.0,
        oom_kills: int = 0,
        earlier: Sequence[Attempt] = (),
        events: Sequence[ProcessEvent] = (),
    ) -> None:
        self.signal = signal
        self.exit_code = exit_code
        self.pid = pid
        self.last_task = last_task
        self.stderr_tail = stderr_tail
        self.attempts = attempts
        self.task_id = task_id
        self.peak_memory_bytes = peak_memory_bytes
        self.uptime_s = uptime_s
        self.died_at = died_at
        self.oom_kills = oom_kills
        self.earlier = list(earlier)
        self.events = list(events)
        super().__init__(message or self._describe())

    def _death(self) -> Attempt:
        return Attempt(self.pid, self.signal, self.exit_code)

    def _describe(self) -> str:
        worker = "The worker process" + (f" (pid {self.pid})" if self.pid is not None else "")
        during = f" while it ran task {self.last_task}" if self.last_task else ""
        tries = f"; tried {self.attempts} times" if self.attempts > 1 else ""
        lines = [f"{worker} {self._death()}{during}{tries}."]
        if self.task_id:
            lines.append(f"Task id: {self.task_id}")
        lines += describe_process(self.uptime_s, self.peak_memory_bytes, self.oom_kills)
        lines += describe_earlier(self.earlier, self.attempts)
        lines += describe_events(self.events)
        tail = self.stderr_tail.strip("\n")
        if tail:
            lines.append(f"Last lines of its stderr:\n{tail}")
        return "\n".join(lines)


class TaskTimeoutError(WorkerCrashedError, TimeoutError):
    """The task ran longer than its `timeout_s`, at each attempt, and its worker was killed for it.

    `timeout_s` is the limit. Time that the task waits in `get` or `wait`, or is stopped (SIGSTOP), counts.
    """

    def __init__(self, message: str | None = None, *, timeout_s: float = 0.0, **details: object) -> None:
        self.timeout_s = timeout_s
        super().__init__(message, **details)  # type: ignore[arg-type]  # those of WorkerCrashedError

    def _death(self) -> Attempt:
        return Attempt(self.pid, self.signal, self.exit_code, self.timeout_s)


# ---- lines of messages ----------------------------------------------------------------------------------


def describe_process(uptime_s: float, peak_memory_bytes: int, oom_kills: int) -> list[str]:
    """What is known of the process that died, in a line or none."""
    if not peak_memory_bytes:
        return []
    text = f"It lived for {uptime_s:.3g} s and had at most {peak_memory_bytes / 1e6:,.0f} MB of memory."
    if oom_kills:
        text += " The kernel's out-of-memory killer was at work at that time."
    return [text]


def describe_earlier(earlier: Sequence[Attempt], attempts: int) -> list[str]:
    """A line for each attempt before the last, as far as they are known; the last is number `attempts`."""
    first = attempts - len(earlier)
    return [f"Attempt {first + i}: pid {attempt.pid} {attempt}." for i, attempt in enumerate(earlier)]


def describe_events(events: Sequence[ProcessEvent]) -> list[str]:
    """The last few of what the process did, oldest first."""
    if not events:
        return []
    return ["Last events before its death:", *(f"  {event}" for event in list(events)[-EVENTS_SHOWN:])]


def signal_name(number: int) -> str:
    """`SIGKILL (9)`."""
    import signal

    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"
