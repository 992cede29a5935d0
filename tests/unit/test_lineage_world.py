"""The simulated lineage: a sweep holds all invariants, and planted bugs are found.

`FASTRAY_SIM_SEEDS` is the number of seeds of the sweep.
"""

from __future__ import annotations

import os

import pytest

from fastray import sim
from fastray.recovery import lineage
from fastray.recovery.lineage import Missing, Plan

SEEDS = int(os.environ.get("FASTRAY_SIM_SEEDS", "2000"))
MUTANT_SEEDS = 2000

plan, why_not = lineage.plan, lineage._why_not


def test_a_short_sweep_holds_all_invariants():
    counts = {"runs": 0, "errors": 0, "faults": 0}
    for _, totals, failed in sim.sweep(1, SEEDS, "lineage"):
        assert failed is None, sim.replay(failed, "lineage").violation
        for name in counts:
            counts[name] += totals[name]
    assert min(counts.values()) > SEEDS // 2


def test_a_seed_plays_the_same_way_with_and_without_a_transcript():
    for seed in range(1, 50):
        quiet, told = sim.WORLDS["lineage"].run(seed, sim.Plan()), sim.replay(seed, "lineage")
        assert (quiet.digest, quiet.events, quiet.counts) == (told.digest, told.events, told.counts)
        assert quiet.trace == ""
        assert told.trace.count("\n") == told.events


def test_a_plan_may_be_played_in_part():
    for seed in range(1, 50):
        part = sim.replay(seed, "lineage", sim.Plan(faults=0, tasks=3))
        assert part.counts["faults"] == part.counts["runs"] == 0
        assert part.counts["tasks"] <= 3 + 2  # a task with two returns has three nodes


def too_much(graph, wanted):
    found = plan(graph, wanted)
    more = [key for key, node in graph.items() if node.kind == "task" and key not in found.runs]
    return Plan(more[:1] + found.runs, found.missing)


def backwards(graph, wanted):
    found = plan(graph, wanted)
    return Plan(found.runs[::-1], found.missing)


def one_less(graph, wanted):
    found = plan(graph, wanted)
    return Plan(found.runs[1:], found.missing)


def wrong_chain(graph, wanted):
    found = plan(graph, wanted)
    return Plan(found.runs, [Missing(m.key, m.reason, m.chain[:1] + m.chain[2:]) for m in found.missing])


def attempts_without_end(task):
    reason = why_not(task)
    return "" if reason == lineage.NO_ATTEMPTS else reason


def lineage_for_ever(task):
    reason = why_not(task)
    return "" if reason == lineage.NO_LINEAGE else reason


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("plan", too_much),
        ("plan", backwards),
        ("plan", one_less),
        ("plan", wrong_chain),
        ("_why_not", attempts_without_end),
        ("_why_not", lineage_for_ever),
        ("THERE", ("failed",)),
    ],
)
def test_planted_bugs_are_found(monkeypatch, name, mutant):
    monkeypatch.setattr(lineage, name, mutant)
    failed = [seed for _, _, seed in sim.sweep(1, MUTANT_SEEDS, "lineage") if seed is not None]
    assert failed
    smallest = sim.shrink(failed[0], "lineage")
    assert sim.replay(failed[0], "lineage", smallest).violation
