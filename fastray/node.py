"""The node process of a session: forks the workers, and runs the local scheduler. Here for a private node; daemon.py
is the same process without a driver of its own, and shares `settle` and `serve`.

The driver starts it with posix_spawn and these file descriptors: 3 the segment, 4 the bell, 5 the control
socket (SOCK_SEQPACKET), 6 the log socket. The first message on 5 says what the driver's process looks like.
After that the loop in C++ (csrc/local_scheduler.h) does everything but forking, importing and leaving.

This process is the template of all workers, so it stays free of threads and imports little: what is imported
here, workers have from the start, and what is not, costs the first result nothing. It ends with its driver.
"""

from __future__ import annotations

import gc
import marshal
import os
import signal
import sys

from fastray._native.node import FORK, PRELOAD, READABLE, LocalScheduler, adopt_orphans, name_process
from fastray.node_child import become_worker

SEGMENT_FD, BELL_FD, CONTROL_FD, LOG_FD = 3, 4, 5, 6
HELLO_BYTES_MAX = 1 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_modules: list[str] = []  # what workers will want, because the driver has it


def main() -> None:
    """Runs the node until its driver leaves. Does not return."""
    hello = marshal.loads(os.read(CONTROL_FD, HELLO_BYTES_MAX))
    settle(hello)
    log_fd = LOG_FD if _is_open(LOG_FD) else -1
    for fd in (SEGMENT_FD, BELL_FD, CONTROL_FD, log_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    loop = LocalScheduler(SEGMENT_FD, BELL_FD, CONTROL_FD, log_fd)
    _modules.extend(hello.get("preload", ()))
    loop.preload_later(list(_modules))
    serve(loop, str(hello.get("namespace") or ""), str(hello.get("record_failures") or ""), labels=hello.get("labels"))
    os._exit(0)


def serve(
    loop: LocalScheduler,
    namespace: str = "",
    record_failures: str = "",
    on_readable: Callable[[int], None] | None = None,
    labels: dict[str, str] | None = None,
) -> None:
    """Runs the node until it is to leave, when all that it started is dead. Does not return in workers.

    `on_readable(fd)` is called for descriptors that the loop watches; `labels` are those of a private node.
    """
    import cloudpickle  # noqa: F401  (for the workers)

    import fastray.worker

    fastray.worker.driver_namespace = namespace
    fastray.worker.record_failures = record_failures
    fastray.worker.driver_labels = labels or {}
    loop.set_ready()
    gc.disable()  # workers inherit the heap: do not touch it
    gc.freeze()
    while True:
        what = loop.run()
        if what == FORK:
            _fork(loop)
        elif what == PRELOAD:
            _preload(loop.modules)
        elif what == READABLE and on_readable is not None:
            on_readable(loop.readable)
        else:
            return


def settle(hello: dict[str, object]) -> None:
    """Process session, name, paths and signals of this process."""
    try:
        os.setsid()
    except PermissionError:  # we lead a group already
        pass
    name_process(b"fastray.node")
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    paths = hello.get("sys_path")
    if isinstance(paths, list):
        sys.path[:] = paths
    cwd = hello.get("cwd")
    if isinstance(cwd, str):
        try:
            os.chdir(cwd)
        except OSError:
            pass  # removed meanwhile; workers start in /


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _fork(loop: LocalScheduler) -> None:
    node_pid = os.getpid()
    if loop.for_actor and "fastray.actor_worker" not in sys.modules:
        # once here instead of in each actor; also what the node would import when it has nothing to do
        _preload(["fastray.actor_worker", "fastray.actor_info", "fastray.logs", *_modules])
    try:
        pid = os.fork()
    except OSError:
        loop.forked(-1)
        return
    if pid == 0:
        try:
            become_worker(loop, node_pid)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    try:
        os.setpgid(pid, pid)  # the child does it too: whoever comes first
    except OSError:
        pass
    loop.forked(pid)


def _preload(modules: list[str]) -> None:
    import importlib

    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            pass  # only a head start: the task that needs it will say what is wrong
    gc.freeze()
