"""`fastray killmatrix`: kills each kind of process with SIGKILL at each moment, and writes a table of what came out.

    row         a component and a moment (kill_rows.py), run many times in a program of its own
    recovered   the user got what the row promises, and the session (or a new one) works on
    left over   processes of the session two seconds after its end, its files, bytes in its store

All kills are real, on this machine, and so are the times: from the kill to the answer the user waits for. For a
driver, which has no user any more: to the end of the last process of its session.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from fastray.sim.kill_rows import MOMENT_S, ROWS, Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

RUNS = 20
MARK = "FASTRAY_KILL_MATRIX"
GONE_S = 2.0
PROGRAM_S = 300.0
HEAD = (
    "| component | killed | runs | recovered | results right | the user sees | recovery p50 / max, ms | left over |",
    "|---|---|---|---|---|---|---|---|",
)


class Outcome(NamedTuple):
    """What the runs of a row came to."""

    row: Row
    runs: int
    recovered: int
    right: int
    times_ms: list[float]
    left: list[str]
    errors: list[str]

    @property
    def ok(self) -> bool:
        return self.recovered == self.right == self.runs and not self.left

    def line(self) -> str:
        """The row of the table."""
        took = self.times_ms
        times = f"{statistics.median(took):.1f} / {max(took):.1f}" if took else "-"
        left = ", ".join(self.left) or "0"
        row = self.row
        return (
            f"| {row.component} | {row.moment} | {self.runs} | {self.recovered} | {self.right} | {row.sees} "
            f"| {times} | {left} |"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the rows and prints the table; 1 when a run did not recover or something was left over. Exits with 2
    on wrong arguments.
    """
    arguments = _parse(argv)
    outcomes = []
    for row in ROWS.values():
        if arguments.only in f"{row.component}: {row.moment}":
            outcomes.append(run_row(row, arguments.runs, arguments.seed))
            outcome = outcomes[-1]
            print(f"{'ok    ' if outcome.ok else 'FAILED'} {row.component}: {row.moment}", file=sys.stderr)
            for error in outcome.errors:
                print(f"    {error}", file=sys.stderr)
    table = "\n".join([*HEAD, *(outcome.line() for outcome in outcomes)]) + "\n"
    if arguments.out:
        Path(arguments.out).write_text(table)
    print(table, end="")
    return int(not all(outcome.ok for outcome in outcomes))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fastray killmatrix", description="Kill each kind of process at each moment; what comes of it."
    )
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"kills in each row (default {RUNS})")
    parser.add_argument("--seed", default="1", help="of what is drawn: moments, victims, numbers of calls (default 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose `component: moment` has TEXT")
    parser.add_argument("--out", metavar="FILE", help="write the table there too")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: at least 1")
    if not any(arguments.only in f"{row.component}: {row.moment}" for row in ROWS.values()):
        parser.error(f"--only {arguments.only!r}: no row has it")
    return arguments


def run_row(row: Row, runs: int, seed: str) -> Outcome:
    """All runs of a row, and what they left behind."""
    with tempfile.TemporaryDirectory(prefix="killmatrix-") as folder:
        session = _Session(folder)
        results = _kill_drivers(row, runs, seed, session) if row.is_driver else _run_program(row, runs, seed, session)
        errors = sorted({str(result["error"]) for result in results if result.get("error")})
        made = [result for result in results if "right" in result]
        done = [result for result in made if not result["error"]]
        left = session.what_is_left()
        left += [f"{result['kept_bytes']} bytes" for result in results if result.get("kept_bytes")]
    times = [float(result["ms"]) for result in done]
    return Outcome(row, runs, len(done), sum(bool(result["right"]) for result in done), times, left, errors)


def _run_program(row: Row, runs: int, seed: str, session: _Session) -> list[dict[str, float | str]]:
    program = session.start(row.name, runs, seed)
    try:
        said, problems = program.communicate(timeout=PROGRAM_S)
    except subprocess.TimeoutExpired:
        program.kill()
        said, problems = program.communicate()
    results = [json.loads(line) for line in said.splitlines()]
    if program.returncode != 0:
        results.append({"error": f"the program ended with {program.returncode}: {problems[-2000:]}"})
    return results


# ---- drivers -------------------------------------------------------------------------------------------


def _kill_drivers(row: Row, runs: int, seed: str, session: _Session) -> list[dict[str, float | str]]:
    """One program for each kill, and one after it that shows that nothing is in its way."""
    rng = random.Random(f"{seed} {row.name}")
    results: list[dict[str, float | str]] = []
    for _ in range(runs):
        program = session.start(row.name, 1, seed)
        assert program.stdout is not None
        error = "" if program.stdout.readline() == "ready\n" else "the program did not come so far"
        time.sleep(rng.random() * MOMENT_S)
        killed_at = time.monotonic()
        program.send_signal(signal.SIGKILL)
        program.communicate()
        if not error and not session.wait_for_end(killed_at + GONE_S):
            error = f"after {GONE_S:g} s there are still: {session.processes()}"
        ms = (time.monotonic() - killed_at) * 1000
        again = session.start("worker_any", 1, seed)
        said, _ = again.communicate(timeout=PROGRAM_S)
        first = json.loads((said.splitlines() or ["{}"])[0])
        error = error or first.get("error", "the program does not start again")
        results.append({"error": error, "right": first.get("right", False), "ms": ms})
    return results


class _Session:
    """Programs that bear a mark, and the folder for what they write."""

    def __init__(self, folder: str) -> None:
        self._mark = uuid.uuid4().hex
        self._folder = folder
        self._files = _shared_files()
        self._programs = 0
        self._temporary = Path(folder, "tmp")
        self._temporary.mkdir()

    def start(self, name: str, runs: int, seed: str) -> subprocess.Popen[str]:
        self._programs += 1
        folder = Path(self._folder, str(self._programs))
        folder.mkdir()
        root = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [sys.executable, "-m", "fastray.sim.kill_program", name, str(runs), seed, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, MARK: self._mark, "TMPDIR": str(self._temporary), "PYTHONPATH": path},
        )

    def processes(self) -> list[int]:
        """Those that bear the mark and live."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
        return found

    def wait_for_end(self, deadline: float) -> bool:
        """True when no process is left."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(pid)
                    select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
                    os.close(pidfd)
            if time.monotonic() > deadline:
                return False
        return True

    def what_is_left(self) -> list[str]:
        """Processes, files; each as a word for the table."""
        left = []
        if not self.wait_for_end(time.monotonic() + GONE_S):
            left.append(f"{len(self.processes())} processes")
        files = len(_shared_files() - self._files) + len(list(self._temporary.iterdir()))
        if files:
            left.append(f"{files} files")
        return left


def _shared_files() -> set[Path]:
    return set(Path("/dev/shm").glob("*fastray*"))
