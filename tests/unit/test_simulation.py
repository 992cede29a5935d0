"""The simulator's front end, and a short sweep of the simulated node.

`FASTRAY_SIM_SEEDS` is the number of seeds of the sweep.
"""

from __future__ import annotations

import os

import pytest

from fastray import sim
from fastray.sim import __main__ as command

SEEDS = int(os.environ.get("FASTRAY_SIM_SEEDS", "2000"))


class Broken:
    """A world in which seeds above 10 fail once there are 3 faults and 5 tasks."""

    def run(self, seed, plan, trace=False):
        faults, tasks, actors = min(plan.faults, 20), min(plan.tasks, 30), min(plan.actors, 4)
        bad = seed > 10 and faults >= 3 and tasks >= 5
        counts = {"tasks": tasks, "calls": 0, "faults": faults, "actors": actors}
        return sim.Outcome(seed, "it broke" if bad else "", seed, 7, counts, "a line\n" if trace else "")

    def sweep(self, first, count):
        for done in range(count):
            if self.run(first + done, sim.Plan()).violation:
                return first + done, done + 1, {"events": 7 * (done + 1)}
        return None, count, {"events": 7 * count}


@pytest.fixture(autouse=True)
def _broken_world(monkeypatch):
    monkeypatch.setitem(sim.WORLDS, "broken", Broken())


def test_a_short_sweep_of_the_node_holds_all_invariants():
    played = 0
    for done, totals, failed in sim.sweep(1, SEEDS):
        assert failed is None, sim.replay(failed).violation
        assert totals["deaths"] > 0
        played += done
    assert played == SEEDS


def test_a_seed_plays_the_same_way_with_and_without_a_transcript():
    for seed in range(1, 20):
        quiet, told = sim.WORLDS["node"].run(seed, sim.Plan()), sim.replay(seed)
        assert (quiet.digest, quiet.events, quiet.counts) == (told.digest, told.events, told.counts)
        assert quiet.trace == ""
        assert "starts task" in told.trace or "call" in told.trace or told.counts["tasks"] == 0


def test_seeds_differ():
    assert len({sim.replay(seed).digest for seed in range(1, 50)}) == 49


def test_a_plan_may_be_played_in_part():
    whole, part = sim.replay(3), sim.replay(3, plan=sim.Plan(faults=0, tasks=5, actors=0))
    assert whole.counts["faults"] > 0
    assert part.counts["faults"] == part.counts["calls"] == 0
    assert part.events < whole.events


def test_a_failing_seed_is_shrunk_to_what_still_fails():
    assert sim.shrink(11, "broken") == sim.Plan(faults=3, tasks=5, actors=0)
    with pytest.raises(ValueError, match="seed 10 of world 'broken' holds all invariants"):
        sim.shrink(10, "broken")


def test_the_command_says_which_seed_fails_and_how_to_see_it_again(capsys):
    assert command.main(["--world", "broken", "--seeds", "50"]) == 1
    said = capsys.readouterr().out
    assert "seed 11: VIOLATED it broke" in said
    assert "11 seeds in" in said
    assert command.main(["--world", "broken", "--seeds", "20", "--keep-going"]) == 1
    assert "20 seeds in" in (said := capsys.readouterr().out)
    assert "10 failed" in said
    assert command.main(["--world", "broken", "--seed", "11", "--shrink", "--trace"]) == 1
    said = capsys.readouterr().out
    assert "smallest: --seed 11 --faults 3 --tasks 5 --actors 0" in said
    assert "a line" in said
    assert command.main(["--world", "broken", "--seed", "10"]) == 0


@pytest.mark.parametrize("arguments", [["--trace"], ["--shrink"], ["--seeds", "-1"], ["--world", "moon"]])
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert arguments[0] in capsys.readouterr().err
