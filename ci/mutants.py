"""Plants one bug at a time in the pure decisions and lets the simulator look for it: a table for simulation.md.

Each mutant is compiled with tests/native/simulation_test.cpp in a scratch folder; the tree is not touched.
Arguments: seeds to play for each (20000). Exits with 1 when a mutant that should be found was not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

CXX = os.environ.get("CXX", "g++")
ROOT = Path(__file__).resolve().parent.parent
SIMULATION = sorted(path.name for path in (ROOT / "csrc").glob("sim_*.cpp"))
DECISIONS = sorted(path.name for path in (ROOT / "csrc").glob("scheduler_state*.cpp"))
SOURCES = [*DECISIONS, *SIMULATION]


class Mutant(NamedTuple):
    what: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "a dead worker's lease is not given back",
        "scheduler_state.cpp",
        "  lease_returned(slot, 0);\n  workers_",
        "  workers_",
    ),
    Mutant(
        "what a decision starts actors with is not reserved",
        "scheduler_state.cpp",
        "  take(pools_[pool], r.demand, r.gpus, r.gpu_units, -1);\n  reserved_.push_back(r);\n",
        "",
    ),
    Mutant(
        "the claimant waits for what blocked tasks hold",
        "scheduler_state_fairness.cpp",
        "|| !can_come(c)) return;",
        ") return;",
    ),
    Mutant(
        "a fraction of a GPU is put on any GPU",
        "scheduler_state.cpp",
        "if (pool.gpu_free[g] >= demand && (best < 0",
        "if (pool.gpu_free[g] > 0 && (best < 0",
    ),
    Mutant(
        "a blocked worker keeps its CPU when it returns its lease",
        "scheduler_state.cpp",
        "  if (limits_.cpu >= 0 && w.blocked) units[static_cast<size_t>(limits_.cpu)] = 0;\n",
        "",
    ),
    Mutant(
        "a worker that was told to leave is given a lease",
        "scheduler_state.cpp",
        "w.cls >= 0 || w.exiting ||",
        "w.cls >= 0 ||",
    ),
    Mutant(
        "workers are not told apart by environment",
        "scheduler_state.cpp",
        "|| w.revoking || w.env != env)",
        "|| w.revoking)",
    ),
    Mutant(
        "workers that come are not counted",
        "scheduler_state.cpp",
        " && coming_to(cls, now) < c.tasks ? 1 : 0;",
        " ? 1 : 0;",
    ),
    Mutant(
        "a removed group keeps what nobody used of it",
        "scheduler_state_groups.cpp",
        "pools_[0].free[i] += pool.free[i];",
        ";",
    ),
    Mutant(
        "GPUs of a removed group stay taken",
        "scheduler_state_groups.cpp",
        "pools_[0].gpu_free[g] += pool.gpu_free[g];",
        ";",
    ),
    Mutant(
        "a task in a bundle gets any GPU of the node",
        "scheduler_state.cpp",
        "  (void)gpus_for(c.demand, pools_[pool], &w.gpus, &w.gpu_units);\n  w.granted_at",
        "  (void)gpus_for(c.demand, pools_[0], &w.gpus, &w.gpu_units);\n  w.granted_at",
    ),
    Mutant(
        "idle leases of other classes are kept",
        "scheduler_state.cpp",
        "if (now - w.since >= kIdleLeaseNs)\n",
        "if (now < 0)\n",
    ),
    Mutant(
        "the node does not stand for a class without lease",
        "scheduler_state.cpp",
        "if (!c.known || c.leases != 0 || c.standing",
        "if (!c.known || c.leases != 0 || cls != 0 || c.standing",
    ),
    Mutant(
        "after a decision that acted there is no other look",
        "loop_pace.h",
        "    if (acted || !quiet)\n",
        "    if (!quiet)\n",
    ),
    Mutant("one retry too many", "death_policy.h", "attempts < static_cast", "attempts <= static_cast"),
    Mutant(
        "a call of an actor with checkpoints is not run again",
        "death_policy.h",
        "(c.checkpoints || has_retries(c.max_retries, c.attempts))",
        "has_retries(c.max_retries, c.attempts)",
    ),
    Mutant(
        "an actor starts again after kill()",
        "death_policy.h",
        "fate.restarts = fate.end == kEndNone && !a.no_restart && left;",
        "fate.restarts = left;",
    ),
    Mutant(
        "a call that had not begun fails with its actor's process",
        "death_policy.h",
        "  if (restarts && c.waited) return CallFate::kWaits;\n",
        "",
    ),
]


def compile_objects(folder: Path, sources: list[str], out: Path) -> list[Path]:
    """Object files of `sources` in `folder`, in `out`."""
    objects = []
    for source in sources:
        target = out / (Path(source).stem + ".o")
        flags = ["-std=c++20", "-O1", "-w", "-I", str(folder)]
        subprocess.run([CXX, *flags, "-c", str(folder / source), "-o", str(target)], check=True)
        objects.append(target)
    return objects


def play(folder: Path, seeds: int, scratch: Path, objects: list[Path]) -> str:
    """What the simulator says of the core in `folder`: "" or the first violation."""
    program = scratch / "simulation"
    flags = ["-std=c++20", "-O1", "-w", "-I", str(folder), "-I", str(ROOT / "tests" / "native")]
    test = scratch / "tests" / "native" / "simulation_test.cpp"
    command = [CXX, *flags, str(test), *map(str, objects), "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program), str(seeds)], capture_output=True, text=True, timeout=600)
    return "" if done.returncode == 0 else (done.stdout.strip() or f"ended with {done.returncode}")


def main() -> int:
    """Prints the table."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    missed = 0
    print("| planted bug | in | seeds until found | what was violated |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / "csrc"
        shutil.copytree(ROOT / "csrc", folder)
        (scratch / "tests" / "native").mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "native" / "simulation_test.cpp", scratch / "tests" / "native")
        whole = dict(zip(SOURCES, compile_objects(folder, SOURCES, scratch)))
        for mutant in MUTANTS:
            path = folder / mutant.file
            text = path.read_text()
            if text.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.file} does not have this once any more: {mutant.old!r}")
            path.write_text(text.replace(mutant.old, mutant.new))
            again = [mutant.file] if mutant.file.endswith(".cpp") else SOURCES
            (scratch / "o").mkdir(exist_ok=True)
            objects = dict(whole)
            objects.update(zip(again, compile_objects(folder, again, scratch / "o")))
            said = play(folder, seeds, scratch, list(objects.values()))
            path.write_text(text)
            found = re.match(r"seed (\d+): (.*)", said)
            missed += not said
            count = f"{int(found.group(1)):,}" if found else ("-" if said else f"not in {seeds:,}")
            print(f"| {mutant.what} | `{mutant.file}` | {count} | {found.group(2) if found else said} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
