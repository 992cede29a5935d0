"""Nodes are killed and join again under a running program: what goes on, and what has to be run once more.

    python benchmarks/reconstruction.py              # about two minutes; build/reconstruction.json and .png
    python benchmarks/reconstruction.py --quick

    tasks     chains of tasks of 100 ms, each with the result of the one before, which stays on the node that made it.
              Two of three nodes are killed, and two join. The paper's Figure 11a
    actors    counters that add up, over three nodes, one of which is killed; with a checkpoint every 10 calls, and with
              none before the kill, so that all calls since the start run again. Figure 11b in shape

    original  the first run of a task or a call; every later one of the same is a re-execution

Each run writes a line into a file: which task, when. The driver's own node runs none, and is not killed. Nodes are
daemons of this machine, killed with SIGKILL; tasks sleep, so that its cores are not what limits them. In the end every
value is checked. Not part of `make bench`: it compares fastray with itself.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time

import numpy

import fastray
from fastray.cluster_utils import Cluster

TASK_S, CALL_S = 0.1, 0.02
SLOTS = 4  # tasks of a node at once
CHAINS, AHEAD = 16, 10
VALUE_BYTES, STORE_BYTES = 200_000, 2 << 30  # values of more than 100 kB stay where they were made
ACTORS, CALLS_AHEAD, CHECKPOINT_CALLS, NEVER = 6, 20, 10, 4000
BIN_S = 0.5
WAIT_S = 120
ON_A_NODE = {"resources": {"slot": 1}, "num_cpus": 0}


def note(log, *what):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, (*what, time.time()))) + "\n").encode())
    finally:
        os.close(fd)


@fastray.remote(max_retries=-1)
def begin():
    return numpy.zeros(VALUE_BYTES // 8)


@fastray.remote(max_retries=-1, **ON_A_NODE)
def step(log, chain, number, before):
    time.sleep(TASK_S)
    note(log, chain, number)
    return numpy.full(VALUE_BYTES // 8, before[0] + 1)


class Counter:
    """Adds up; each call says what the sum became."""

    def __init__(self, log, name):
        self.log, self.name, self.sum = log, name, 0

    def add(self, n):
        time.sleep(CALL_S)
        note(self.log, self.name, n)
        self.sum += n
        return self.sum

    def __fastray_save__(self):
        return self.sum

    def __fastray_restore__(self, state):
        self.sum = state


class Nodes:
    """The cluster, and what happens to it: ("kill" or "join", seconds after the start)."""

    def __init__(self, events):
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
        self.workers = [self.add() for _ in range(3)]
        self.cluster.wait_for_nodes()
        self.happened = []
        self._events = events
        self._thread = None

    def add(self):
        return self.cluster.add_node(num_cpus=1, resources={"slot": SLOTS}, object_store_memory=STORE_BYTES)

    def begin(self):
        self.start = time.time()
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _play(self):
        for what, at in self._events:
            time.sleep(max(0.0, self.start + at - time.time()))
            if what == "kill":
                self.cluster.kill_node(self.workers.pop(0))
            else:
                self.workers.append(self.add())
            self.happened.append((what, time.time() - self.start))

    def close(self):
        if self._thread is not None:
            self._thread.join()
        fastray.shutdown()
        self.cluster.shutdown()


def is_done(ref) -> bool:
    return bool(fastray.wait([ref], timeout=0, fetch_local=False)[0])


def chains(log: str, nodes: Nodes, seconds: float) -> None:
    """Keeps AHEAD tasks of each chain submitted until the time is over, then waits for all."""
    made = [[begin.remote()] for _ in range(CHAINS)]
    done = [0] * CHAINS
    nodes.begin()
    while time.time() - nodes.start < seconds:
        for chain, refs in enumerate(made):
            while done[chain] + 1 < len(refs) and is_done(refs[done[chain] + 1]):
                done[chain] += 1
            while len(refs) - 1 - done[chain] < AHEAD:
                refs.append(step.remote(log, chain, len(refs), refs[-1]))
        time.sleep(TASK_S / 4)
    for refs in made:
        assert fastray.get(refs[-1], timeout=WAIT_S)[0] == len(refs) - 1
        assert fastray.get(refs[len(refs) // 2], timeout=WAIT_S)[0] == len(refs) // 2


def actors(log: str, nodes: Nodes, seconds: float, checkpoint_calls: int) -> None:
    """Keeps CALLS_AHEAD calls of each actor submitted until the time is over, then waits for all."""
    made = fastray.remote(max_restarts=-1, max_task_retries=-1, checkpoint_calls=checkpoint_calls, **ON_A_NODE)(Counter)
    counters = [made.options(scheduling_strategy="SPREAD").remote(log, i) for i in range(ACTORS)]
    waiting: list[list] = [[] for _ in counters]
    calls = [0] * ACTORS
    nodes.begin()
    while time.time() - nodes.start < seconds:
        for i, refs in enumerate(waiting):
            while refs and fastray.wait([refs[0]], timeout=0)[0]:
                assert fastray.get(refs.pop(0)) == (calls[i] - len(refs)) * (calls[i] - len(refs) + 1) // 2
            while len(refs) < CALLS_AHEAD:
                calls[i] += 1
                refs.append(counters[i].add.remote(calls[i]))
        time.sleep(CALL_S / 2)
    for i, refs in enumerate(waiting):
        assert fastray.get(refs[-1], timeout=WAIT_S) == calls[i] * (calls[i] + 1) // 2


def run(work, events, seconds: float, *more) -> dict:
    """One cluster, one piece of work: its throughput in bins, originals and re-executions apart."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTRAY_TMPDIR"] = folder
        log = os.path.join(folder, "log")
        nodes = Nodes(events)
        try:
            fastray.init(address=nodes.cluster.address, log_to_driver=False)
            work(log, nodes, seconds, *more)
        finally:
            nodes.close()
        seen: set[tuple[str, str]] = set()
        counts: dict[str, dict[int, int]] = {"original": {}, "again": {}}
        with open(log) as file:
            for line in file:
                who, what, at = line.split()
                kind = "again" if (who, what) in seen else "original"
                seen.add((who, what))
                bin_ = int((float(at) - nodes.start) / BIN_S)
                counts[kind][bin_] = counts[kind].get(bin_, 0) + 1
    last = max(max(c, default=0) for c in counts.values())
    found = {kind: [c.get(i, 0) / BIN_S for i in range(last + 1)] for kind, c in counts.items()}
    totals = {kind: sum(c.values()) for kind, c in counts.items()}
    return {"bin_s": BIN_S, "per_second": found, "totals": totals, "events": nodes.happened}


def draw_plot(found: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(found["runs"]), figsize=(7, 7), layout="constrained")
    for axes, (name, row) in zip(panels, found["runs"].items()):
        original, again = row["per_second"]["original"], row["per_second"]["again"]
        at = [(i + 0.5) * row["bin_s"] for i in range(len(original))]
        axes.bar(at, original, width=row["bin_s"], color="#5fa8d3", label="original")
        axes.bar(at, again, width=row["bin_s"], bottom=original, color="#c8361d", label="re-executed")
        for what, when in row["events"]:
            axes.axvline(when, color="0.3", linestyle=":" if what == "join" else "-", linewidth=1)
            axes.annotate(what, (when, axes.get_ylim()[1]), fontsize=7, ha="center")
        totals = row["totals"]
        axes.set_title(f"{name}: {totals['original']:,} run, {totals['again']:,} again", fontsize=9, pad=12)
        axes.set_ylabel("ended a second", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, loc="lower right")
    panels[-1].set_xlabel(f"seconds; {found['cores']} cores, load {found['load']:.1f}", fontsize=8)
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the time, to see that it works")
    parser.add_argument("--json", default="build/reconstruction.json")
    parser.add_argument("--png", default="build/reconstruction.png", help="empty: none")
    arguments = parser.parse_args()
    scale = 0.25 if arguments.quick else 1.0
    leave_and_join = [("kill", 8 * scale), ("kill", 16 * scale), ("join", 24 * scale), ("join", 32 * scale)]
    runs = {
        "tasks": (chains, leave_and_join, 40 * scale),
        "actors with checkpoints": (actors, [("kill", 10 * scale)], 20 * scale, CHECKPOINT_CALLS),
        "actors without": (actors, [("kill", 10 * scale)], 20 * scale, NEVER),
    }
    found: dict = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "runs": {}}
    for name, run_of in runs.items():
        row = found["runs"][name] = run(*run_of)
        totals = row["totals"]
        print(f"{name}: {totals['original']:,} run, {totals['again']:,} again; {row['events']}", flush=True)
    os.makedirs(os.path.dirname(arguments.json) or ".", exist_ok=True)
    with open(arguments.json, "w") as file:
        json.dump(found, file, indent=1)
    if arguments.png:
        draw_plot(found, arguments.png)


if __name__ == "__main__":
    main()
