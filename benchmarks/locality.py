"""Tasks with one large argument that is on either of two nodes: placed where it is, or wherever the turn falls.

    python benchmarks/locality.py                    # about a minute; build/locality.json and .png
    python benchmarks/locality.py --quick

    aware      the default: a task goes where it starts soonest, the bytes to move counted in
               (fastray/scheduling/policy.py)
    unaware    scheduling_strategy="SPREAD": round the nodes in turn, whatever the arguments

The paper's Figure 8a, on one machine: both nodes share its cores, and bytes move over loopback. Each task gets an
object of its own, made on a node drawn by a seed, both policies in turns; latency is from `.remote` to its small
result. The driver is on one of the two nodes.

Not part of `make bench`: it compares fastray with itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time

import numpy

import fastray
from fastray.cluster_utils import Cluster

SIZES = {100_000: 200, 1_000_000: 200, 10_000_000: 100, 100_000_000: 30}  # bytes -> tasks of each policy
QUICK = {100_000: 4, 1_000_000: 4}
STORE_BYTES = 1 << 30
POLICIES = {"aware": "DEFAULT", "unaware": "SPREAD"}
COLOURS = {"aware": "#c8361d", "unaware": "#2b6ca3"}
SEED = 1


@fastray.remote(num_cpus=0)
def make(size):
    return numpy.ones(size, numpy.uint8)


@fastray.remote(num_cpus=0)
def use(array):
    """Where it ran, and something of the argument."""
    return fastray.get_runtime_context().get_node_id(), int(array[0]) + len(array)


def measure(sizes: dict[int, int], nodes: dict[str, str], draw: random.Random) -> list[dict]:
    """`nodes`: resource that only this node has -> its id."""
    rows = []
    for size, count in sizes.items():
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        moved = dict.fromkeys(POLICIES, 0)
        for i in range(2 * count + 2):
            policy = list(POLICIES)[i % 2]
            where = draw.choice(list(nodes))
            ref = make.options(resources={where: 0.01}).remote(size)
            fastray.wait([ref], fetch_local=False, timeout=60)
            task = use.options(scheduling_strategy=POLICIES[policy])
            start = time.perf_counter()
            node, answer = fastray.get(task.remote(ref), timeout=60)
            took = time.perf_counter() - start
            assert answer == size + 1
            if i >= 2:  # the first of each loads the function
                times[policy].append(took)
                moved[policy] += node != nodes[where]
            del ref
        for policy, taken in times.items():
            rows.append({
                "bytes": size, "policy": policy, "tasks": count, "moved": moved[policy],
                "mean_ms": 1e3 * statistics.mean(taken), "median_ms": 1e3 * statistics.median(taken),
                "max_ms": 1e3 * max(taken),
            })  # fmt: skip
            print(
                f"{size:>11,} B  {policy:8} mean {rows[-1]['mean_ms']:8.2f} ms  median {rows[-1]['median_ms']:8.2f} ms"
                f"  {moved[policy]:3} of {count} moved",
                flush=True,
            )
    return rows


def draw_plot(found: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for policy in POLICIES:
        rows = [row for row in found["rows"] if row["policy"] == policy]
        axes.plot(
            [row["bytes"] for row in rows], [row["mean_ms"] for row in rows], "o-", color=COLOURS[policy], label=policy
        )
    axes.set(xscale="log", yscale="log", xlabel="bytes of the argument", ylabel="mean latency of a task, ms")
    axes.set_title(f"locality, two nodes on {found['cores']} cores, load {found['load']:.1f}", fontsize=9)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few small ones, to see that it works")
    parser.add_argument("--json", default="build/locality.json")
    parser.add_argument("--png", default="build/locality.png", help="empty: none")
    arguments = parser.parse_args()
    found = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "seed": SEED}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTRAY_TMPDIR"] = folder
        store = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args={**store, "resources": {"here": 1}})
        try:
            far = cluster.add_node(**store, resources={"there": 1})
            cluster.wait_for_nodes()
            fastray.init(address=cluster.address, log_to_driver=False)
            nodes = {"here": cluster.head_node.node_id, "there": far.node_id}
            found["rows"] = measure(QUICK if arguments.quick else SIZES, nodes, random.Random(SEED))
        finally:
            fastray.shutdown()
            cluster.shutdown()
    os.makedirs(os.path.dirname(arguments.json) or ".", exist_ok=True)
    with open(arguments.json, "w") as file:
        json.dump(found, file, indent=1)
    if arguments.png:
        draw_plot(found, arguments.png)


if __name__ == "__main__":
    main()
