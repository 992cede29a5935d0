"""Failed tasks on disk, so that they can be run again after their session: `init(record_failures=DIR)`.

    failure    a file `TASK_ID.failure`: a header (what `fastray replay` lists), then the pickled Lineage
    recorder   writes them: in the worker when a task raises for the last time; when a task took its worker with it, in
               the next worker or in the process that asks, whoever is first

Values of references among the arguments are written in their place. A task with more than RECORD_BYTES_MAX of arguments
has a header only, which says so. Files appear by rename, mode 0600, in a directory of mode 0700; the oldest go when
there are more than FILES_MAX or BYTES_MAX in all. Reading one unpickles it: only files of this user, that no
other can write, are read.
"""

from __future__ import annotations

import io
import os
import pickle
import stat
import sys
import time

from fastray.exceptions import ReplayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fastray.crash_errors import WorkerCrashedError
    from fastray.recovery.capture import Lineage
    from fastray.runtime import Runtime

VARIABLE = "FASTRAY_RECORD_FAILURES"
FORMAT = 1
SUFFIX = ".failure"
RECORD_BYTES_MAX = 64 << 20
FILES_MAX = 1000
BYTES_MAX = 1 << 30
TRIM_EVERY = 16  # files, or RECORD_BYTES_MAX


class Failure:
    """One recorded failure: its header; `lineage()` reads the rest."""

    def __init__(self, path: str, header: dict[str, Any], body_at: int) -> None:
        self.path = path
        self.header = header
        self._body_at = body_at

    @property
    def task_id(self) -> str:
        return str(self.header["task_id"])

    def lineage(self) -> Lineage:
        """What `replay.run` takes. Raises ReplayError when it cannot be loaded here."""
        if self.header["omitted"]:
            raise ReplayError(f"the arguments of task {self.task_id} were not recorded: {self.header['omitted']}")
        here = _python()
        if self.header["python"] != here:
            raise ReplayError(
                f"task {self.task_id} was recorded by Python {self.header['python']}, this is {here}: use that one"
            )
        with open(self.path, "rb") as file:
            file.seek(self._body_at)
            lineage: Lineage = pickle.load(file)
        return lineage


# ---- reading -------------------------------------------------------------------------------------------


def read_failure(path: str) -> Failure:
    """The header of a file. Raises ReplayError when it is no failure, or others could have written it."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise ReplayError(f"{path} is not read: it is not yours, or others may write it")
        try:
            header = pickle.load(file)
            known = header["format"] == FORMAT
        except Exception as error:
            raise ReplayError(f"{path} is not a recorded failure") from error
        if not known:
            raise ReplayError(f"{path} has format {header['format']}, this fastray reads {FORMAT}")
        return Failure(path, header, file.tell())


def list_failures(directory: str) -> list[Failure]:
    """All of a directory, the latest first; files that cannot be read are passed over."""
    found = []
    for name in os.listdir(directory):
        if name.endswith(SUFFIX):
            try:
                found.append(read_failure(os.path.join(directory, name)))
            except (ReplayError, OSError):  # another's, or removed meanwhile
                continue
    return sorted(found, key=lambda failure: -failure.header["time"])


# ---- writing -------------------------------------------------------------------------------------------


def prepare_directory(path: str) -> None:
    """Makes it, for this user alone. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write into {path}")


class FailureRecorder:
    """Writes the failures of one process of a session."""

    def __init__(self, runtime: Runtime, directory: str) -> None:
        self._runtime = runtime
        self._directory = directory
        self._since_trim = [TRIM_EVERY, 0]  # files, bytes: the first write looks

    def start(self) -> None:
        """From now on failures of this process, and crashes that it asks about, are written."""
        from fastray._native import returns, values

        self._runtime.attachment.record_failures()
        returns.record_failures(self.failed)
        values.record_crashes(self.crashed)

    @staticmethod
    def stop() -> None:
        from fastray._native import returns, values

        returns.record_failures(None)
        values.record_crashes(None)

    def failed(self, handle: int, error: BaseException) -> None:
        """The task with this handle raised `error`, and is not tried again. Called before anyone sees the result."""
        from fastray.task_error import describe_cause, format_remote_traceback

        self._try(handle, describe_cause(error), format_remote_traceback(error))

    def crashed(self, record: int, error: WorkerCrashedError) -> None:
        """Somebody here asked for the result in `record`, and it is a crash: of its task, or of one it depends on."""
        from fastray._native import replay as native

        handle = native.task_of_handle(native.handle_at(record))
        mine = handle and native.describe(handle)[0] == int(error.task_id[16:], 16)
        if mine and not os.path.exists(self._path(error.task_id)):
            self._try(handle, str(error).split("\n", 1)[0], str(error))

    def write_crashed(self, handles: Sequence[int]) -> None:
        """Those that nobody has asked for yet. The node holds the records meanwhile."""
        from fastray._native import replay as native

        for handle in handles:
            native.error_of_handle(handle)  # reading it calls `crashed`

    def _path(self, task_id: str) -> str:
        return os.path.join(self._directory, task_id + SUFFIX)

    def _try(self, handle: int, line: str, text: str) -> None:
        from fastray.recovery.capture import capture

        try:
            self._write(capture(self._runtime, handle), line, text)
        except Exception as error:  # a full disk, an argument that cannot be pickled: the task's own error counts
            print(f"fastray: a failure could not be recorded: {error}", file=sys.stderr)

    def _write(self, lineage: Lineage, line: str, text: str) -> None:
        body, omitted = b"", None
        try:
            body = dumps(lineage)
        except _TooLarge:
            omitted = f"they are larger than {RECORD_BYTES_MAX:,} bytes"
        header = {
            "format": FORMAT, "task_id": lineage.task_id, "name": lineage.step.name, "time": time.time(),
            "error": line, "text": text, "attempts": lineage.attempts, "python": _python(), "cwd": os.getcwd(),
            "sys_path": list(sys.path), "actor": lineage.actor is not None, "omitted": omitted,
        }  # fmt: skip
        data = pickle.dumps(header, protocol=5) + body
        temporary = os.path.join(self._directory, f".{lineage.task_id}.{os.getpid()}.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(temporary, self._path(lineage.task_id))
        except BaseException:
            os.unlink(temporary)
            raise
        self._since_trim[0] += 1
        self._since_trim[1] += len(data)
        if self._since_trim[0] >= TRIM_EVERY or self._since_trim[1] >= RECORD_BYTES_MAX:
            self._since_trim = [0, 0]
            trim(self._directory)


def trim(directory: str) -> None:
    """Removes the oldest files, and what a killed writer left, until the rest is within bounds."""
    files = []
    for entry in os.scandir(directory):
        if entry.name.endswith((SUFFIX, ".tmp")):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process trims too
                continue
            if entry.name.endswith(SUFFIX) or time.time() - status.st_mtime > 3600:
                files.append((status.st_mtime if entry.name.endswith(SUFFIX) else 0.0, status.st_size, entry.path))
    files.sort()
    total = sum(size for _, size, _ in files)
    for i, (written, size, path) in enumerate(files):
        if written and len(files) - i <= FILES_MAX and total <= BYTES_MAX:
            return
        total -= size
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue


# ---- pickling ------------------------------------------------------------------------------------------


class _TooLarge(Exception):
    pass


class _Bounded(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > RECORD_BYTES_MAX:
            raise _TooLarge
        return super().write(data)


def dumps(lineage: Lineage) -> bytes:
    """Pickled with functions by value where needed, and the values of references in their place."""
    import cloudpickle

    from fastray._native import pickling
    from fastray._native.object_ref import ObjectRef
    from fastray.actor import ActorHandle, ActorMethod

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is ObjectRef:
                return _reduce_reference(value)
            if isinstance(value, (ActorHandle, ActorMethod)):
                return LostActor, (repr(value),)
            return super().reducer_override(value)

    file = _Bounded()
    pickler = Pickler(file, protocol=5)
    pickling.use_table(pickler)
    pickler.dump(lineage)
    return file.getvalue()


def _reduce_reference(ref: Any) -> tuple[Any, ...]:
    from fastray._native.replay import is_done
    from fastray._native.wait import get

    if is_done(ref):
        return restore_reference, (get(ref),)
    return lost_reference, (repr(ref),)


def restore_reference(value: Any) -> Any:
    """A reference to the value that the recorded one had."""
    from fastray._native.objects import put

    return put(value)


def lost_reference(shown: str) -> Any:
    """Raises ReplayError: the reference had no value when the task failed."""
    raise ReplayError(f"an argument holds {shown}, which had no value when the task failed")


class LostActor:
    """Stands for a handle of an actor of the recorded session. Any use raises ReplayError."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return f"LostActor({self._shown})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ReplayError(f"{self._shown} ended with the recorded session: .{name} cannot be used in a replay")


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
