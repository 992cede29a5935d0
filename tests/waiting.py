"""What the helpers of all tests wait with: `eventually`, gates and tallies. Tasks import it too (tests/ is on
`sys.path`)."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

WAIT_S = 30.0  # more than anything here takes on a loaded machine; never reached when all is well
POLL_S = 0.003


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, seconds=WAIT_S):
    """Polls until `condition()` is true; its value, false when it never was."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(POLL_S)


def wait_for_gate(path, seconds=WAIT_S):
    """Returns when the file exists. Raises TimeoutError."""
    if not eventually(lambda: os.path.exists(path), seconds):
        raise TimeoutError(f"{path} was never made")


def open_gate(path):
    """Lets everybody through who waits for `path`."""
    with open(path, "x"):
        pass


def note(path, text="x"):
    """Appends a line to a tally: one write, so that several processes may."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def tally(path):
    """The lines of a tally."""
    try:
        return Path(path).read_text().split()
    except FileNotFoundError:
        return []


def is_alive(pid):
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][:1] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
