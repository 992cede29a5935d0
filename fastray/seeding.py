"""Random numbers that a task draws again when it runs again: the option `seed` of tasks and methods.

    seed=True   the numbers follow from the task's id alone
    seed=n      from n and the task's id: another n, another sample

Before such a task runs, its process seeds `random`, and numpy's global generator when numpy is imported by then. Ids
are given in order of submission, so the same program draws the same numbers in each run, and each attempt of a task
the same. Without the option nothing is seeded. Called by worker.pyx and by recovery/replay.py.
"""

from __future__ import annotations

import sys


def seed_task(record_id: int, seed: bool | int) -> None:
    """Seeds this process's global generators for the task with this Record::id."""
    import random

    number = record_id if seed is True else (int(seed) + 1) << 64 | record_id
    random.seed(number)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed([number >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)])
