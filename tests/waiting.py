"""`eventually`: what the helpers of all tests wait with. Tasks import it too (tests/ is on `sys.path`)."""

from __future__ import annotations

import socket
import time

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
