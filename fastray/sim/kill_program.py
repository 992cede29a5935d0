"""A program of the kill matrix: the runs of one row in one session. `python -m fastray.sim.kill_program`.

Arguments: name of the row, runs, seed, folder. For each run one line of JSON, then one with what the session
still keeps when all references are dropped. The program of a driver's row prints "ready" and is killed.
Started by kill_matrix.py.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time

import fastray
from fastray.runtime import current_runtime
from fastray.sim.kill_rows import CPUS, ROWS, Row, Run, get
from fastray.sim.kill_tasks import square

KEPT_WAIT_S = 10.0  # the node takes back what it adopted on its slow tick
BOOKKEEPING_BYTES_MAX = 100_000  # of functions and queues; what the rows keep is larger


def main(argv: list[str]) -> int:
    """0 when all runs were made, whatever came out."""
    name, runs, seed, folder = argv[0], int(argv[1]), argv[2], argv[3]
    row = ROWS[name]
    if row.is_driver:
        row.body(os.path.join(folder, "0"), lambda: print("ready", flush=True))
        return 1  # it is to be killed before
    rng = random.Random(f"{seed} {name}")
    fastray.init(num_cpus=CPUS)
    for number in range(runs):
        print(json.dumps(one_run(row, os.path.join(folder, str(number)), number, rng)), flush=True)
    print(json.dumps({"kept_bytes": kept_bytes()}), flush=True)
    fastray.shutdown()
    return 0


def one_run(row: Row, folder: str, number: int, rng: random.Random) -> dict[str, object]:
    """Kills once; what came out. A session that does not work afterwards has not recovered."""
    run = Run(folder, number, rng)
    error = ""
    try:
        row.body(run)
        if get([square.remote(i) for i in range(100)]) != [i * i for i in range(100)]:
            error = "the session's later results are wrong"
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    finally:
        run.close()
    return {"error": error, "right": run.right, "ms": run.recovery_s * 1000}


def kept_bytes() -> int:
    """Bytes of objects that are still in the store although nothing refers to them; 0 when there are no more than
    functions and queues take, which stay.
    """
    deadline = time.monotonic() + KEPT_WAIT_S
    attachment = current_runtime().attachment
    while True:
        gc.collect()
        attachment.counters()
        kept = attachment.store_usage()["object_bytes"]
        if kept <= BOOKKEEPING_BYTES_MAX:
            return 0
        if time.monotonic() > deadline:
            return kept
        get(square.remote(1))  # an idle node sleeps
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
