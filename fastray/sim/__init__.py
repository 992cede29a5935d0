"""Faults made on purpose: simulated ones, by the hundred thousand (`python -m fastray.sim`), and real ones
(`fastray killmatrix`).

    world             what a seed is played in; `WORLDS` has them by name. It runs the real decision code on virtual
                      time and checks its invariants after each event
    sweep             many seeds; the first violation of each kind of failure is kept
    replay, shrink    one seed again, with a transcript; the smallest part of its plan that still fails

    lineage_world.py  one of the worlds; the other is csrc/sim_world.h

    kill_matrix.py    kills processes for real: the command, and its table
    kill_rows.py      its rows: which process is killed at which moment, and what has to come out
    kill_program.py   a program whose processes are killed
    kill_tasks.py     what its workers run

What the simulated node is, and how it was shown to find bugs: docs/internals/simulation.md.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class World(Protocol):
        """What a seed is played in."""

        def run(self, seed: int, plan: Plan, trace: bool = False) -> Outcome:
            """Plays one seed."""

        def sweep(self, first: int, count: int) -> tuple[int | None, int, dict[str, int]]:
            """Up to the first seed that fails: (that seed or None, seeds played, totals by name)."""


NO_LIMIT = 0xFFFFFFFF
SWEEP_STEP = 2000  # seeds between two looks at signals


class Plan(NamedTuple):
    """How much of a seed's plan is played: the first so many faults, tasks and calls, actors."""

    faults: int = NO_LIMIT
    tasks: int = NO_LIMIT
    actors: int = NO_LIMIT


class Outcome(NamedTuple):
    """What came of one seed. `violation` is empty when all invariants held; equal runs have equal digests."""

    seed: int
    violation: str
    digest: int
    events: int
    counts: dict[str, int]
    trace: str


class NodeWorld:
    """One node: scheduler, workers, tasks, actors (csrc/sim_world.h)."""

    def run(self, seed: int, plan: Plan, trace: bool = False) -> Outcome:
        from fastray._native.simulation import run_seed

        result = run_seed(seed, plan.faults, plan.tasks, plan.actors, trace)
        names = ("decisions", "tasks", "calls", "forks", "deaths", "restarts", "faults", "virtual_ns")
        counts = {name: int(result[name]) for name in names}
        return Outcome(
            seed, result["violation"], int(result["digest"]), int(result["events"]), counts, result["trace"]
        )

    def sweep(self, first: int, count: int) -> tuple[int | None, int, dict[str, int]]:
        from fastray._native.simulation import sweep

        return sweep(first, count)


class LineageWorld:
    """A graph of tasks whose results go and come back (lineage_world.py)."""

    def run(self, seed: int, plan: Plan, trace: bool = False) -> Outcome:
        from fastray.sim.lineage_world import run

        return run(seed, plan, trace)

    def sweep(self, first: int, count: int) -> tuple[int | None, int, dict[str, int]]:
        totals: dict[str, int] = {}
        for done in range(count):
            outcome = self.run(first + done, Plan())
            for name, value in {"events": outcome.events, **outcome.counts}.items():
                totals[name] = totals.get(name, 0) + value
            if outcome.violation:
                return first + done, done + 1, totals
        return None, count, totals


WORLDS: dict[str, World] = {"node": NodeWorld(), "lineage": LineageWorld()}


def replay(seed: int, world: str = "node", plan: Plan = Plan()) -> Outcome:  # noqa: B008  (immutable)
    """One seed, with its transcript."""
    return WORLDS[world].run(seed, plan, trace=True)


def sweep(first: int, count: int, world: str = "node") -> Iterator[tuple[int, dict[str, int], int | None]]:
    """Plays seeds `first` to `first + count - 1`. Yields (seeds played, totals, seed that failed or None) every
    SWEEP_STEP seeds and after each that failed.
    """
    at, end = first, first + count
    while at < end:
        failed, done, totals = WORLDS[world].sweep(at, min(SWEEP_STEP, end - at))
        at += done
        yield done, totals, failed


def shrink(seed: int, world: str = "node") -> Plan:
    """The smallest plan found with which the seed still fails: each part of it as small as it can be alone.

    Raises ValueError when the seed does not fail.
    """

    def fails(plan: Plan) -> bool:
        return bool(WORLDS[world].run(seed, plan).violation)

    whole = WORLDS[world].run(seed, Plan())
    if not whole.violation:
        raise ValueError(f"seed {seed} of world {world!r} holds all invariants: there is nothing to shrink")
    plan = Plan()
    most = {
        "actors": 8,
        "tasks": whole.counts["tasks"] + whole.counts["calls"] + 1,
        "faults": whole.counts["faults"] + 1,
    }
    for part, limit in most.items():
        for size in _sizes(limit):
            smaller = plan._replace(**{part: size})
            if fails(smaller):
                plan = smaller
                break
    return plan


def _sizes(limit: int) -> Iterator[int]:
    """0, 1, 2, ... up to `limit`: a small part of a plan may fail where a larger one does not."""
    yield from range(limit + 1)
