"""`eventually`: what the helpers of all tests wait with. Tasks import it too (tests/ is on `sys.path`)."""

from __future__ import annotations

import time

WAIT_S = 30.0  # more than anything here takes on a loaded machine; never reached when all is well
POLL_S = 0.003


def eventually(condition, seconds=WAIT_S):
    """Polls until `condition()` is true; its value, false when it never was."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(POLL_S)
