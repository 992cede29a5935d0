"""What tasks print, on its way from the worker's file descriptors to the driver's screen.

    record     what a worker's stream writes: 0x1E, task name, 0x1F, text. It says whose text it is, in-band,
               so that nothing has to be matched up later; bytes without a record in front (a C library, a
               subprocess) are text of the process as a whole
    line       text up to a newline; what a carriage return overwrote before it is dropped
    source     (pid, stream, host): where a line comes from; host is "" on nodes with the driver's address

`install_task_streams` runs in a worker, once. `LogPrinter` runs in the driver; it is fed with what was read
from the workers' pipes or files, and prints `(name pid=123) line`, `(name pid=123, ip=10.0.0.2) line` if it was
another machine's.

Repeats: the same line from several workers within `window_s` is printed once, and then its number:
`(f pid=7) loading [repeated 3x across cluster]`. Only identical text counts as the same, and one worker that
repeats itself is printed every time, since then the repeats are the program's own output. (Ray takes lines
that differ in digits for the same. That hides results.)

The printer never owns the streams: it looks up sys.stdout and sys.stderr for each line, because notebooks and
test runners replace them. It has no thread and no clock of its own: `tick` does what time makes due and says
when to call again. Callers: worker.py; node.py or runtime.py of the driver.
"""

from __future__ import annotations

import _thread
import io
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    Origin = tuple[int, str]  # (pid, host)

RECORD = b"\x1e"
NAME_END = b"\x1f"
NAME_BYTES_MAX = 256
LINE_BYTES_MAX = 1 << 20  # a longer line is printed in parts
PARTIAL_WAIT_S = 0.5  # a line without its end is printed after this time
DEDUP_WINDOW_S = 5.0
REPEATS_MAX = 4096  # different lines remembered at a time
_PROGRESS_MOVE_S = 0.1  # least time between two states of a progress bar on a terminal
_PROGRESS_LINE_S = 10.0  # and elsewhere
_CONTROL = {ord(RECORD): None, ord(NAME_END): None, ord("\n"): " ", ord("\r"): " "}

# ---- worker --------------------------------------------------------------------------------------


unfinished: list[_RecordWriter] = []  # streams with a line begun; the worker ends a task by flushing them


class _RecordWriter(io.RawIOBase):
    """Bytes in, records out to a file descriptor; whole lines at once, the rest at `flush`."""

    def __init__(self, fd: int, get_task_name: Callable[[], str]) -> None:
        super().__init__()
        self._fd = fd
        self._get_task_name = get_task_name
        self._pending = b""
        self._name = b""  # of the task that began the pending line
        self._lock = _thread.RLock()  # a signal handler may print while its thread does

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        chunk = bytes(data)  # type: ignore[call-overload]  # any buffer
        with self._lock:
            if not self._pending:
                name = self._get_task_name().translate(_CONTROL)
                self._name = name.encode("utf-8", "backslashreplace")[:NAME_BYTES_MAX]
            text = self._pending + chunk.replace(RECORD, b"")
            end = text.rfind(b"\n") + 1
            self._pending = text[end:]
            if end:
                self._emit(text[:end])
            if len(self._pending) > LINE_BYTES_MAX:
                self.flush()
            elif self._pending and self not in unfinished:
                unfinished.append(self)
        return len(chunk)

    def flush(self) -> None:
        with self._lock:
            text, self._pending = self._pending, b""
            if text:
                self._emit(text)

    def _emit(self, text: bytes) -> None:
        mark = RECORD + self._name + NAME_END
        *lines, rest = text.split(b"\n")
        record = b"".join(mark + line + b"\n" for line in lines) + (mark + rest if rest else b"")
        while record:
            record = record[os.write(self._fd, record) :]

    def after_fork(self) -> None:
        """In a child of the worker: the parent prints what is pending, and its locks are its own."""
        self._pending = b""
        self._lock = _thread.RLock()


class TaskStream(io.TextIOBase):
    """A text stream over a worker's fd 1 or 2 whose lines say which task wrote them."""

    def __init__(self, fd: int, get_task_name: Callable[[], str]) -> None:
        super().__init__()
        self.buffer = _RecordWriter(fd, get_task_name)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # io.TextIOBase has it writable
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def fileno(self) -> int:
        return self.buffer.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.buffer.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        self.buffer.flush()


def install_task_streams(get_task_name: Callable[[], str]) -> tuple[TaskStream, TaskStream]:
    """Replaces sys.stdout and sys.stderr of this worker; returns both, to `flush` when the worker idles or
    ends.

    `get_task_name` is asked at the start of each line; "" stands for no task.
    """
    streams = (TaskStream(1, get_task_name), TaskStream(2, get_task_name))
    sys.stdout, sys.stderr = streams
    for stream in streams:
        os.register_at_fork(after_in_child=stream.buffer.after_fork)
    return streams


# ---- driver --------------------------------------------------------------------------------------


class _Source:
    """Bytes of one source that are not printed yet."""

    __slots__ = ("changed_s", "line", "name", "origin", "progress_s", "rest", "stream")

    def __init__(self, origin: Origin, stream: str) -> None:
        self.origin = origin
        self.stream = stream
        self.rest = b""  # the beginning of a record whose name is not complete
        self.line = b""  # the beginning of a line
        self.name = ""
        self.changed_s = 0.0
        self.progress_s: float | None = None  # when the bar in `line` was shown last


class _Repeat:
    """A line that several workers printed: what is still to be said about it."""

    __slots__ = ("count", "last", "since_s", "workers")

    def __init__(self, origin: Origin, now_s: float) -> None:
        self.workers = {origin}
        self.since_s = now_s
        self.count = 0  # not printed yet
        self.last = ("", origin)


class LogPrinter:
    """Prints what workers wrote to the driver's sys.stdout and sys.stderr.

    `stdout` and `stderr` fix the targets (tests); `dedup=False` prints every line. Safe to call from any
    thread.
    """

    def __init__(
        self,
        *,
        dedup: bool = True,
        window_s: float = DEDUP_WINDOW_S,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dedup = dedup
        self._window_s = window_s
        self._fixed = {"stdout": stdout, "stderr": stderr}
        self._clock = clock
        self._lock = _thread.allocate_lock()
        self._sources: dict[tuple[Origin, str], _Source] = {}
        self._repeats: dict[tuple[str, str], _Repeat] = {}  # (stream, text), oldest first
        self._progress_on: set[str] = set()  # streams whose cursor stands in a progress line

    def feed(self, pid: int, stream: str | int, chunk: bytes, host: str = "") -> None:
        """Takes bytes as they were read from the worker `pid` of `host`; `stream` is "stdout", "stderr", 1 or 2."""
        name = stream if isinstance(stream, str) else ("stdout" if stream == 1 else "stderr")
        origin = (pid, host)
        with self._lock:
            source = self._sources.get((origin, name))
            if source is None:
                source = self._sources[(origin, name)] = _Source(origin, name)
            source.changed_s = self._clock()
            self._parse(source, chunk)
            if b"\r" in source.line:
                self._print_progress(source)

    def tick(self) -> float | None:
        """Prints what is due; seconds until it wants to be called again, None when nothing waits."""
        with self._lock:
            now_s = self._clock()
            waits: list[float] = []
            for source in self._sources.values():
                if not source.line:
                    continue
                left_s = source.changed_s + PARTIAL_WAIT_S - now_s
                if b"\r" not in source.line and left_s <= 0:
                    self._end_line(source)
                elif b"\r" not in source.line:
                    waits.append(left_s)
            for key, repeat in list(self._repeats.items()):
                left_s = repeat.since_s + self._window_s - now_s
                if left_s > 0:
                    waits.append(left_s)
                    continue
                del self._repeats[key]
                if self._print_repeat(key, repeat):  # still going on: count for another window
                    repeat.since_s, repeat.count = now_s, 0
                    self._repeats[key] = repeat
                    waits.append(self._window_s)
            return min(waits) if waits else None

    def forget(self, pid: int, host: str = "") -> None:
        """The worker is dead and everything it wrote was fed: prints what it left unfinished."""
        with self._lock:
            for key in [key for key in self._sources if key[0] == (pid, host)]:
                self._finish(self._sources.pop(key))

    def close(self) -> None:
        """Prints everything that waits."""
        with self._lock:
            for source in self._sources.values():
                self._finish(source)
            self._sources.clear()
            for key, repeat in self._repeats.items():
                self._print_repeat(key, repeat)
            self._repeats.clear()

    # ---- bytes to lines ----

    def _parse(self, source: _Source, chunk: bytes) -> None:
        data = source.rest + chunk
        source.rest = b""
        at = 0
        while at < len(data):
            if data[at : at + 1] == RECORD:
                end = data.find(NAME_END, at, at + NAME_BYTES_MAX + 2)
                if end < 0 and len(data) - at <= NAME_BYTES_MAX + 1:
                    source.rest = data[at:]
                    return
                if end < 0:  # no record of ours after all
                    at += 1
                    continue
                self._begin_record(source, data[at + 1 : end].decode("utf-8", "backslashreplace"))
                at = end + 1
                continue
            stops = [stop for stop in (data.find(b"\n", at), data.find(RECORD, at)) if stop >= 0]
            stop = min(stops) if stops else len(data)
            source.line += data[at:stop]
            at = stop
            if data[at : at + 1] == b"\n":
                at += 1
                self._end_line(source)
                source.name = ""
            elif len(source.line) > LINE_BYTES_MAX:
                self._end_line(source)

    def _begin_record(self, source: _Source, name: str) -> None:
        if source.line and source.name != name:
            self._end_line(source)
        source.name = name

    def _finish(self, source: _Source) -> None:
        source.line += source.rest.lstrip(RECORD)
        source.rest = b""
        if source.line:
            self._end_line(source)

    def _end_line(self, source: _Source) -> None:
        text = _visible(source.line)
        source.line = b""
        source.progress_s = None
        key = (source.stream, text)
        repeat = self._repeats.get(key) if self._dedup and text else None
        if repeat is None:
            if self._dedup and text:
                if len(self._repeats) >= REPEATS_MAX:
                    oldest = next(iter(self._repeats))
                    self._print_repeat(oldest, self._repeats.pop(oldest))
                self._repeats[key] = _Repeat(source.origin, self._clock())
            self._print(source.stream, source.name, source.origin, text)
            return
        repeat.workers.add(source.origin)
        if len(repeat.workers) == 1:
            self._print(source.stream, source.name, source.origin, text)
            return
        repeat.count += 1
        repeat.last = (source.name, source.origin)

    # ---- lines to the screen ----

    def _print_repeat(self, key: tuple[str, str], repeat: _Repeat) -> bool:
        if not repeat.count:
            return False
        stream, text = key
        note = f" [repeated {repeat.count}x across cluster]" if repeat.count > 1 else ""
        self._print(stream, repeat.last[0], repeat.last[1], text + note)
        return True

    def _target(self, stream: str) -> TextIO | None:
        fixed = self._fixed[stream]
        return fixed if fixed is not None else getattr(sys, stream)

    def _print(self, stream: str, name: str, origin: Origin, text: str) -> None:
        target = self._target(stream)
        start = "\n" if stream in self._progress_on else ""  # leave the bar where it is
        self._progress_on.discard(stream)
        _write(target, f"{start}{_prefix(name, origin, target)} {text}\n")

    def _print_progress(self, source: _Source) -> None:
        """A progress bar moves in place on a terminal; elsewhere it is a line now and then, and at its
        end.
        """
        target = self._target(source.stream)
        moves = _is_terminal(target)
        interval_s = _PROGRESS_MOVE_S if moves else _PROGRESS_LINE_S
        if source.progress_s is None and not moves:
            source.progress_s = source.changed_s
        if source.progress_s is not None and source.changed_s - source.progress_s < interval_s:
            return
        source.progress_s = source.changed_s
        if not moves:
            self._print(source.stream, source.name, source.origin, _visible(source.line))
            return
        self._progress_on.add(source.stream)
        _write(target, f"\r{_prefix(source.name, source.origin, target)} {_visible(source.line)}\x1b[K")


def _visible(line: bytes) -> str:
    """The text of a line as a terminal would show it: what follows the last carriage return that has any."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r")
    return text[text.rfind("\r") + 1 :]


def _is_terminal(target: TextIO | None) -> bool:
    try:
        return target is not None and target.isatty()
    except (AttributeError, ValueError):  # a replaced stream without isatty, or a closed one
        return False


def _prefix(name: str, origin: Origin, target: TextIO | None) -> str:
    pid, host = origin
    text = f"({name + ' ' if name else ''}pid={pid}{', ip=' + host if host else ''})"
    return f"\x1b[36m{text}\x1b[0m" if _is_terminal(target) else text


def _write(target: TextIO | None, text: str) -> None:
    if target is None:  # pythonw, or a daemon without streams
        return
    try:
        try:
            target.write(text)
        except UnicodeEncodeError:
            encoding = getattr(target, "encoding", None) or "ascii"
            target.write(text.encode(encoding, "backslashreplace").decode(encoding))
        target.flush()
    except (OSError, ValueError):  # the program closed its stream, or the reader of its pipe went away
        return
