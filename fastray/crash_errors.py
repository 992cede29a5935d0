"""What a task's caller is told when the task took its worker with it: WorkerCrashedError and TaskTimeoutError.

    signal, exit code    how the process ended; one of them is None
    attempt              one run of the task; each killed its worker

exceptions.py re-exports both. values.pyx makes them from the CrashReport that the node wrote into the record.
"""

from __future__ import annotations

from fastray.task_error import FastrayError


class WorkerCrashedError(FastrayError):
    """The worker process died while it ran the task, and no retry is left (`max_retries`).

    Look at `signal` and `stderr_tail` first: SIGKILL without a trace is mostly the kernel's out-of-memory
    killer, SIGSEGV a native library, an exit code `os._exit` or `sys.exit` in the task.
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
    ) -> None:
        self.signal = signal
        self.exit_code = exit_code
        self.pid = pid
        self.last_task = last_task
        self.stderr_tail = stderr_tail
        self.attempts = attempts
        super().__init__(message or self._describe())

    def _death(self) -> str:
        if self.signal is not None:
            return f"was killed by {signal_name(self.signal)}"
        if self.exit_code is not None:
            return f"exited with code {self.exit_code}"
        return "died unexpectedly"

    def _describe(self) -> str:
        worker = "The worker process" + (f" (pid {self.pid})" if self.pid is not None else "")
        during = f" while it ran task {self.last_task}" if self.last_task else ""
        tries = f"; tried {self.attempts} times" if self.attempts > 1 else ""
        tail = self.stderr_tail.strip("\n")
        return f"{worker} {self._death()}{during}{tries}." + (
            f"\nLast lines of its stderr:\n{tail}" if tail else ""
        )


class TaskTimeoutError(WorkerCrashedError, TimeoutError):
    """The task ran longer than its `timeout_s`, at each attempt, and its worker was killed for it.

    `timeout_s` is the limit. Time that the task waits in `get` or `wait`, or is stopped (SIGSTOP), counts.
    """

    def __init__(self, message: str | None = None, *, timeout_s: float = 0.0, **details: object) -> None:
        self.timeout_s = timeout_s
        super().__init__(message, **details)  # type: ignore[arg-type]  # those of WorkerCrashedError

    def _death(self) -> str:
        return f"was killed by fastray because of timeout_s={self.timeout_s:g}"


def signal_name(number: int) -> str:
    """`SIGKILL (9)`."""
    import signal

    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"
