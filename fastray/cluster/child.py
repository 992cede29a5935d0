"""The first steps of a process that a daemon starts beside its node. Run by the programs in supervisor.py, before
anything else is imported.
"""

from __future__ import annotations

import os
import signal
import time


def begin(parent: int, name: str, pause_s: float) -> None:
    """Ties the process to its daemon `parent`, and waits `pause_s` (the one before it died at once)."""
    from fastray._native.node import die_with_parent, name_process

    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    name_process(name.encode())
    time.sleep(pause_s)
