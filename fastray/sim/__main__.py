"""`python -m fastray.sim`: plays seeds, or one seed again.

    --seeds 100000            plays that many, prints what was violated and by which seed
    --seed N                  plays this one; with --trace its transcript, with --shrink the smallest part that fails
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from fastray.sim import NO_LIMIT, WORLDS, Plan, replay, shrink, sweep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastray.sim import Outcome

SHOWN_MAX = 20


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all invariants held, 1 when not. Exits with 2 on wrong arguments."""
    arguments = _parse(argv)
    if arguments.seed is None:
        return _sweep(arguments.first, arguments.seeds, arguments.world, arguments.keep_going)
    plan = Plan(arguments.faults, arguments.tasks, arguments.actors)
    if arguments.shrink:
        try:
            plan = shrink(arguments.seed, arguments.world)
        except ValueError as error:  # there is nothing to shrink
            print(error, file=sys.stderr)
            return 2
        parts = [f"--{name} {value}" for name, value in plan._asdict().items() if value != NO_LIMIT]
        print(f"smallest: --seed {arguments.seed} {' '.join(parts)}")
    outcome = replay(arguments.seed, arguments.world, plan)
    if arguments.trace:
        print(outcome.trace, end="")
    print(_line(outcome))
    return int(bool(outcome.violation))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fastray.sim", description="Simulated faults on virtual time.")
    parser.add_argument("--seeds", type=int, default=10_000, metavar="N", help="play so many (default 10000)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first of them (default 1)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    parser.add_argument("--seed", type=int, metavar="N", help="play this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happens")
    parser.add_argument("--shrink", action="store_true", help="with --seed: find the smallest part that still fails")
    parser.add_argument("--world", choices=list(WORLDS), default="node", help="what is simulated (default node)")
    for part in ("faults", "tasks", "actors"):
        help_text = f"with --seed: only the first N {part} of its plan"
        parser.add_argument(f"--{part}", type=int, default=NO_LIMIT, metavar="N", help=help_text)
    arguments = parser.parse_args(argv)
    for name in ("seeds", "first", "seed", "faults", "tasks", "actors"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < 1 << (64 if name in ("first", "seed") else 32):
            parser.error(f"--{name} {value}: out of range")
    if arguments.seed is None and (arguments.trace or arguments.shrink):
        parser.error("--trace and --shrink are for one seed: --seed N")
    return arguments


def _sweep(first: int, count: int, world: str, keep_going: bool) -> int:
    totals: Counter[str] = Counter()
    played, failures = 0, 0
    start = time.monotonic()
    for done, counts, failed in sweep(first, count, world):
        played += done
        totals.update(counts)
        if failed is None:
            continue
        failures += 1
        if failures <= SHOWN_MAX:
            print(_line(WORLDS[world].run(failed, Plan())), flush=True)
        if not keep_going:
            break
    took = time.monotonic() - start
    numbers = ", ".join(f"{value:,} {name}" for name, value in totals.items())
    print(f"{played:,} seeds in {took:.1f} s, {failures} failed: {numbers}")
    return int(failures > 0)


def _line(outcome: Outcome) -> str:
    said = f"VIOLATED {outcome.violation}" if outcome.violation else "all invariants hold"
    return f"seed {outcome.seed}: {said} ({outcome.events} events, digest {outcome.digest:016x})"


if __name__ == "__main__":
    sys.exit(main())
