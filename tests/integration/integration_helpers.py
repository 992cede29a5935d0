"""What several integration tests need: files as events, programs in processes of their own, the node's
processes.

Tasks import this module too (conftest.py puts its folder on `sys.path`, which workers inherit).

    gate    a file: who waits for it goes on when it exists
    tally   a file to which each run of a task appends a line
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from waiting import WAIT_S, eventually, is_alive, note, open_gate, tally, wait_for_gate  # noqa: F401


def twice(session, program):
    """Results of two sessions that run the same program."""
    results = []
    for _ in range(2):
        with session():
            results.append(program())
    return results


def processes():
    """Rows of the process table of this process's session (Attachment.processes)."""
    from fastray.runtime import current_runtime

    return current_runtime().attachment.processes()


def worker_pids():
    """Pids of the workers of the session."""
    return [row[2] for row in processes() if row[1] == 2]


def node_pid():
    """Pid of the session's node process."""
    from fastray.runtime import current_runtime

    return current_runtime().node.pid


def store_bytes():
    """Bytes of objects in the store, once this process has let go of what others no longer borrow."""
    from fastray.runtime import current_runtime

    attachment = current_runtime().attachment
    attachment.counters()
    return attachment.store_usage()["object_bytes"]


def kill_self(number=signal.SIGKILL):
    """Ends this process by a signal."""
    os.kill(os.getpid(), number)
    signal.pause()


def program_environment(extra=None):
    """Environment for a program that imports the same fastray as we."""
    import fastray

    root = str(Path(fastray.__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1", **(extra or {})}


def _command(source, folder, arguments, inline):
    text = textwrap.dedent(source)
    if inline:
        return [sys.executable, "-c", text, *map(str, arguments)]
    path = Path(folder, "program.py")
    draft = Path(folder, "program.draft")
    draft.write_text(text)
    draft.replace(path)  # another program may just be reading it
    return [sys.executable, str(path), *map(str, arguments)]


def run_program(source, folder, *arguments, inline=False, env=None, cwd=None, seconds=WAIT_S, check=True):
    """Runs a program; CompletedProcess with text output. `inline`: by `python -c`."""
    done = subprocess.run(
        _command(source, folder, arguments, inline),
        capture_output=True,
        text=True,
        timeout=seconds,
        env=program_environment(env),
        cwd=cwd,
    )
    if check:
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_program(source, folder, *arguments, env=None, **options):
    """Starts a program; Popen with text pipes."""
    return subprocess.Popen(
        _command(source, folder, arguments, False),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=program_environment(env),
        **options,
    )


# ---- what a program left behind --------------------------------------------------------------------------

GONE_S = 1.0  # "within a second nothing is left"


def marked_pids(mark):
    """Living processes with PROGRAM_MARK=mark in their environment: a program and all it started."""
    wanted = f"PROGRAM_MARK={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environment = Path("/proc", entry, "environ").read_bytes()
            except OSError:  # ended meanwhile, or not ours
                continue
            if wanted in environment.split(b"\0") and is_alive(int(entry)):
                found.append(int(entry))
    return found


def files_of_fastray():
    """Files in /dev/shm that bear our name."""
    return {str(path) for path in Path("/dev/shm").glob("*fastray*")}


def comes_to_rest(pid, rest_s=0.03):
    """Waits until the main thread of `pid` sleeps, and sleeps on: it has reached the wait that we test."""

    def switches():
        status = Path(f"/proc/{pid}/status").read_text()
        return "State:\tS" in status and status.partition("voluntary_ctxt_switches:")[2].split()[0]

    def rests():
        before = switches()
        time.sleep(rest_s)
        return before and switches() == before

    return eventually(rests)
