"""From a fork of the node to a worker: what has to be done to the process before `fastray.worker.main`.

The child gives up everything that is the node's, becomes a process group of its own that dies with the node,
and gets its own streams, signals, environment and random numbers. Called by fastray/node.py in the child.
"""

from __future__ import annotations

import os
import signal
import sys

from fastray._native.node import LocalScheduler, die_with_parent, name_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OOM_SCORE_MORE = 500  # the kernel is to kill a worker rather than the node or the driver


def become_worker(loop: LocalScheduler, node_pid: int) -> None:
    """Turns this child into a worker and runs it to its end."""
    slot = loop.slot
    stdout, stderr, control = loop.child_fds
    segment, bell = loop.node_fds
    environment = loop.runtime_env()
    crashed = loop.crashed
    loop.become_child()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != node_pid:  # it died before the line above
        os._exit(1)
    os.setpgid(0, 0)
    name_process(b"fastray.worker")
    _streams(stdout, stderr)
    _signals()
    _oom_score()
    _reseed()
    setup_error = None
    if environment:
        try:
            _apply(environment)
        except Exception as error:  # its tasks say so
            setup_error = error
    import gc

    gc.enable()
    from fastray.worker import main

    main(segment, slot, bell, control, setup_error, crashed)


def _streams(stdout: int, stderr: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, target)
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)


def _signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it


def _oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as f:
            now = int(f.read())
            f.seek(0)
            f.write(b"%d" % min(1000, now + OOM_SCORE_MORE))
    except OSError:
        pass  # not allowed here


def _reseed() -> None:
    """`random` does it by itself after a fork; numpy's global generator does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _apply(blob: bytes) -> None:
    """The job's environment, in a daemon; over it the runtime_env: environment variables, working directory."""
    import pickle

    environment = pickle.loads(blob)
    job = environment.get("_job")
    if job:
        _become_part_of(job)
    os.environ.update(environment.get("env_vars") or {})
    directory = environment.get("working_dir")
    if directory:
        os.chdir(directory)
        sys.path.insert(0, directory)


def _become_part_of(job: dict[str, Any]) -> None:
    """The worker gets what it would have inherited from its driver, had that started it."""
    import fastray.worker

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")  # of the node: leases name GPUs by their place among these
    os.environ.clear()
    os.environ.update(job["environ"])
    if gpus is not None:
        os.environ["FASTRAY_DRIVER_GPUS"] = gpus
    os.umask(job["umask"])
    sys.path[:] = job["sys_path"]
    sys.path_importer_cache.clear()
    fastray.worker.driver_namespace = job["namespace"]
    fastray.worker.record_failures = job["record_failures"]
    try:
        os.chdir(job["cwd"])
    except OSError:
        pass  # removed meanwhile; it stays in /
