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
    from collections.abc import Sequence
    from typing import Any

    from fastray.runtime_envs.setup import Setup

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
    for fd, target in ((stdout, 1), (stderr, 2)):
        os.dup2(fd, target)
        os.close(fd)
    settle_fresh()
    _oom_score()
    _reseed()
    setup_error = None
    if environment:
        try:
            setup = _apply(environment, segment, slot, control)
            if setup is not None and setup.interpreter:
                _go_on_fresh(setup, {"segment": segment, "slot": slot, "bell": bell, "control": control}, crashed)
        except Exception as error:  # its tasks say so
            setup_error = error
    import gc

    gc.enable()
    from fastray.worker import main

    main(segment, slot, bell, control, setup_error, crashed)


def settle_fresh() -> None:
    """What a program's start undoes: name, streams, signals."""
    name_process(b"fastray.worker")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
    _signals()


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


def _apply(blob: bytes, segment: int, slot: int, control: int) -> Setup | None:
    """The job's environment, in a daemon; over it the runtime_env. What takes more than variables and a directory is
    fastray/runtime_envs/setup.py's.
    """
    import pickle

    from fastray.runtime_env import is_plain

    environment = pickle.loads(blob)
    job = environment.get("_job")
    if job:
        _become_part_of(job)
    variables = environment.get("env_vars") or {}
    set_variables(variables)
    directory = environment.get("working_dir")
    setup = None
    if not is_plain(environment):
        from fastray._native.session import session_of
        from fastray.control import setting_up_message
        from fastray.runtime_envs.setup import set_up

        told = iter((setting_up_message(slot),))  # once
        setup = set_up(environment, session_of(segment), lambda: [os.write(control, text) for text in told])
        directory = setup.directory
        front = setup.front
        if setup.prefix:
            os.environ["VIRTUAL_ENV"] = setup.prefix
            os.environ["PATH"] = os.pathsep.join([f"{setup.prefix}/bin", os.environ.get("PATH", os.defpath)])
    else:
        front = [directory] if directory else []
    if directory:
        os.chdir(directory)
    if front:
        sys.path[:0] = front
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*front, before] if before else front)
    return setup


def set_variables(variables: dict[str, str]) -> None:
    """As Ray: `${NAME}` is replaced by the variable NAME, by nothing when there is none."""
    for name, text in variables.items():
        if "$" in text:
            import re

            text = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match.group(1), ""), os.path.expandvars(text))
        os.environ[name] = text


def _go_on_fresh(setup: Setup, settings: dict[str, Any], crashed: Sequence[int]) -> None:
    import fastray.worker
    from fastray.runtime_envs.fresh import become

    names = ("driver_namespace", "driver_labels", "record_failures")
    become(setup, {**settings, "crashed": list(crashed), **{name: getattr(fastray.worker, name) for name in names}})


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
