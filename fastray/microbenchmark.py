"""`fastray microbenchmark`: the table of performance goals, measured on this machine, with peers beside it.

Each row runs in a fresh session, several times: best and median are printed, the goal beside them, and the
ratio to each peer that was measured in the same run (with far fewer tasks: peers are slow). Rates count
single tasks, each submitted by a call of its own unless the row says otherwise; workers are processes.
Machines are noisy: compare within one run.

Called by fastray.cli. The rows are in _benchmark/rows.py, the work in _benchmark/work.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fastray._benchmark.rows import Row

RUNS, RUNS_QUICK, RUNS_PEER = 5, 2, 2
SIDES_TASKS = 500_000


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; 0, or 1 when a row failed. Exits with 2 on wrong arguments."""
    arguments = _parse(argv)
    from fastray._benchmark.rows import rows

    chosen = [row for row in rows() if arguments.only in row.title]
    results: list[dict[str, Any]] = []
    _print_head(arguments.peers)
    failed = False
    for row in chosen:
        result = _measure(row, arguments)
        failed = failed or "error" in result
        results.append(result)
        print(_line(result, arguments.peers), flush=True)
    sides = {} if arguments.only else _sides(arguments.quick)
    if arguments.json:
        with open(arguments.json, "w") as out:
            json.dump({"machine": _machine(), "rows": results, "sides_ns": sides}, out, indent=1)
            out.write("\n")
    return int(failed)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from fastray._benchmark import peers

    parser = argparse.ArgumentParser(prog="fastray microbenchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the tasks, two runs")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help=f"runs of each row (default {RUNS})")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose title has TEXT")
    parser.add_argument(
        "--peers",
        default=",".join(peers.available()),
        metavar="NAMES",
        help=f"of {','.join(peers.PEERS)}; default: those installed; '' for none",
    )
    arguments = parser.parse_args(argv)
    arguments.peers = [name for name in arguments.peers.split(",") if name]
    for name in arguments.peers:
        if name not in peers.PEERS:
            parser.error(f"no peer {name!r}; there are {', '.join(peers.PEERS)}")
        if peers.missing(name):
            parser.error(f"--peers {name}: {peers.missing(name)}")
    arguments.runs = arguments.runs or (RUNS_QUICK if arguments.quick else RUNS)
    return arguments


# ---- measuring ----------------------------------------------------------------------------


def _measure(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    from fastray._benchmark.run import sampler, why_not
    from fastray._benchmark.work import median

    result: dict[str, Any] = {"title": row.title, "workers": row.workers, "unit": row.unit, "goal": row.goal}
    best = max if row.is_rate else min
    try:
        with sampler(row, "fastray", arguments.quick) as sample:
            values: list[Any] = [sample() for _ in range(arguments.runs)]
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        return result
    result.update(best=best(values), median=median(values), values=values, peers={})
    for name in arguments.peers:
        if why_not(row, name):
            continue
        try:
            with sampler(row, name, arguments.quick) as sample:
                found = [value for value in (sample() for _ in range(RUNS_PEER)) if value is not None]
        except Exception as error:
            print(f"{row.title}: {name} failed: {error}", file=sys.stderr)
            continue
        if found:  # the better one: the first run also warms the peer up
            result["peers"][name] = best(found)
    return result


def _sides(quick: bool) -> dict[str, float]:
    """ns per task of each side, alone: the best of some runs with one worker."""
    import fastray
    from fastray._benchmark import work

    fastray.init(num_cpus=1, log_to_driver=False)
    try:
        runs = [
            work.sides(SIDES_TASKS // 5 if quick else SIDES_TASKS)
            for _ in range(RUNS_QUICK if quick else RUNS)
        ]
    finally:
        fastray.shutdown()
    best = {side: min(run[side] for run in runs) for side in runs[0]}
    print(
        "\nns per task, each side alone (1 worker, best): "
        + ", ".join(f"{s} {ns:.0f}" for s, ns in best.items())
    )
    return best


def _machine() -> dict[str, Any]:
    import os
    import platform

    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


# ---- printing -----------------------------------------------------------------------------


def amount(value: float, unit: str) -> str:
    """A value as the table shows it: 4.21 M/s, 1.93 us, 0.98 x."""
    if unit == "/s":
        for factor, letter in ((1e6, " M"), (1e3, " k")):
            if value >= factor:
                return f"{value / factor:.3g}{letter}/s"
        return f"{value:.3g} /s"
    return f"{value:.3g} {unit}"


def _print_head(peers: list[str]) -> None:
    machine = _machine()
    print(
        f"{machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, "
        f"load {machine['load']:.1f}\n"
        "w: worker processes; ratios: fastray's median against the peer, above 1 is faster or smaller\n"
    )
    head = f"{'':42} {'w':>1} {'best':>11} {'median':>11} {'goal':>11} {'':4}"
    print(head + "".join(f" {name:>10}" for name in peers))


def _line(result: dict[str, Any], peers: list[str]) -> str:
    start = f"{result['title']:42} {result['workers']:>1}"
    if "error" in result:
        return f"{start} {result['error']}"
    from fastray._benchmark.rows import RATES

    unit = result["unit"]
    is_rate = unit in RATES
    met = ratio_to(result["median"], result["goal"] or 1, is_rate) >= 1
    cells = [amount(result[key], unit) for key in ("best", "median")]
    cells.append(amount(result["goal"], unit) if result["goal"] else "-")
    verdict = "" if not result["goal"] else "ok" if met else "low"
    line = start + "".join(f" {cell:>11}" for cell in cells) + f" {verdict:4}"
    for name in peers:
        value = result["peers"].get(name)
        ratio = "" if value is None else f"{ratio_to(result['median'], value, is_rate):.3g}x"
        line += f" {ratio:>10}"
    return line


def ratio_to(ours: float, theirs: float, is_rate: bool) -> float:
    """How many times better ours is."""
    return ours / theirs if is_rate else theirs / ours
