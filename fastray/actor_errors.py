"""What a failed call says about the actor it was made to: from the report in the record to the exception.

    ActorReport   how an actor ended: why, where, when, its last call, the end of its stderr; did this call run
    actor_error   bytes of a failed record -> ActorDiedError or ActorUnavailableError

The node writes the report (csrc/local_scheduler_actors.cpp); values.pyx calls `actor_error`.
"""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

from fastray.crash_errors import describe_events, describe_process
from fastray.exceptions import ActorDiedError, ActorUnavailableError, RuntimeEnvSetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.crash_report import ProcessEvent
    from fastray.exceptions import ActorError, TaskError

SIGKILL = 9
# ActorEnd
CRASHED, INIT_FAILED, KILLED, EXITED, HANDLES_GONE, START_FAILED, TIMED_OUT, JOB_OVER = range(1, 9)
NODE_GONE, GROUP_REMOVED = 9, 10
_WHY = {
    CRASHED: "its process died",
    INIT_FAILED: "its constructor raised",
    KILLED: "it was killed by fastray.kill()",
    EXITED: "it left by exit_actor() or sys.exit()",
    HANDLES_GONE: "no handle of it was left",
    START_FAILED: "its process could not be started",
    TIMED_OUT: "a call, or its constructor, ran longer than its timeout_s and its process was killed",
    NODE_GONE: "the node where it ran is gone",
    GROUP_REMOVED: "its placement group was removed",
    JOB_OVER: "the driver that owned it ended (only lifetime=\"detached\" lives on)",
}


def why_text(end: int) -> str:
    """A sentence for an ActorEnd."""
    return _WHY.get(end, "it ended")


class ActorReport(NamedTuple):
    """How an actor ended, as its node saw it."""

    why: int  # ActorEnd
    actor_id: str
    class_name: str
    actor_name: str
    pid: int
    signal: int
    exit_code: int
    time_ns: int  # wall clock
    restarts: int
    max_restarts: int
    last_call: str
    stderr_tail: str
    may_have_run: bool
    method: str  # the call that failed
    cause: TaskError | None  # the constructor's error
    peak_memory_bytes: int = 0
    uptime_s: float = 0.0
    oom_kills: int = 0
    events: tuple[ProcessEvent, ...] = ()  # the last ones of its process

    def describe_process(self) -> str:
        """ "pid 123, signal 9 (SIGKILL)"; an empty string when there was no process."""
        if not self.pid:
            return ""
        if not self.signal:
            return f"pid {self.pid}, exit code {self.exit_code}"
        try:
            name = f" ({signal.Signals(self.signal).name})"
        except ValueError:
            name = ""
        return f"pid {self.pid}, signal {self.signal}{name}"

    def describe(self) -> str:
        """The message of the error, without what is different for a dead one and one that restarts."""
        shown = f"{self.class_name} {self.actor_name!r}" if self.actor_name else self.class_name
        process = self.describe_process()
        when = time.strftime("%H:%M:%S", time.localtime(self.time_ns / 1e9))
        when += f".{self.time_ns // 1_000_000 % 1000:03d}"
        lines = [f"Actor {shown} ({self.actor_id}): {_WHY.get(self.why, 'it died')}"]
        lines[0] += f" ({process}) at {when}." if process else f" at {when}."
        if self.last_call:
            lines.append(f"Last call: {self.last_call}.")
        ran = "may have run" if self.may_have_run else "did not run"
        lines.append(f"This call of {self.method} {ran}.")
        if self.max_restarts:
            limit = "no limit" if self.max_restarts < 0 else str(self.max_restarts)
            lines.append(f"Restarts: {self.restarts} of {limit}.")
        if self.signal == SIGKILL and self.why == CRASHED:
            lines.append("SIGKILL also comes from the kernel when memory runs out: see dmesg.")
        if self.why in (CRASHED, TIMED_OUT):
            lines += describe_process(self.uptime_s, self.peak_memory_bytes, self.oom_kills)
            lines += describe_events(self.events)
        if self.stderr_tail.strip():
            lines.append("Last lines of its stderr:\n" + self.stderr_tail.rstrip())
        return "\n".join(lines)


def read_report(data: bytes, actor_id_of: int, method: str) -> ActorReport:
    """The ActorReport in the bytes of a failed record; `actor_id_of` is the session's id."""
    from fastray._native.actors import unpack_death
    from fastray._native.values import name_of
    from fastray.crash_report import clean_tail, read_events

    fields = unpack_death(data)
    cause = None
    if fields["cause"]:
        from fastray.serialization import load_exception

        cause = load_exception(fields["cause"])
    events = tuple(read_events(fields["events"], actor_id_of, name_of))
    return ActorReport(
        fields["end"], "".join(f"{part:016x}" for part in fields["id"]), fields["class_name"], fields["actor_name"],
        fields["pid"], fields["signal"], fields["exit_code"], fields["time_ns"], fields["restarts"],
        fields["max_restarts"], fields["last_call"], clean_tail(fields["stderr_tail"]), fields["may_have_run"], method,
        cause, fields["peak_memory_bytes"], fields["uptime_s"], fields["oom_kills"], events,
    )  # fmt: skip


class ActorSetupError(ActorDiedError, RuntimeEnvSetupError):
    """The actor is dead since its runtime_env could not be set up: Ray's calls raise RuntimeEnvSetupError then."""


def died_error(report: ActorReport) -> ActorDiedError:
    """The error of a call to an actor that is dead for good."""
    message = report.describe()
    if report.cause is not None:
        message += f"\n{report.cause}"
    elif report.why == CRASHED and report.max_restarts == 0:
        message += "\nIt was not to be restarted: max_restarts=... starts it again, max_task_retries=... its calls."
    kind = ActorSetupError if isinstance(report.cause, RuntimeEnvSetupError) else ActorDiedError
    error = kind(report.cause, actor_id=report.actor_id, error_msg=message)
    error.report = report
    return error


def unavailable_error(report: ActorReport) -> ActorUnavailableError:
    """The error of a call that ran when the actor died; the actor is started again."""
    error = ActorUnavailableError(
        report.describe() + "\nThe actor is started again. max_task_retries=... runs such a call again.",
        bytes.fromhex(report.actor_id),
    )
    error.report = report
    return error


def actor_error(data: bytes, unavailable: bool, method: str) -> ActorError:
    """The exception for the bytes of a failed record (see values.pyx)."""
    from fastray.runtime import current_runtime

    report = read_report(data, current_runtime().attachment.session_id, method)
    return unavailable_error(report) if unavailable else died_error(report)
