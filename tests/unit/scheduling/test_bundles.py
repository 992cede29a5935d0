"""Placement groups: tables of nodes, bundles and where each must go; and searches compared with all possible ones."""

from __future__ import annotations

import itertools
import random

import pytest

from fastray.scheduling.bundles import place_group
from fastray.scheduling.resources import add, fits, units
from fastray.scheduling.view import Busy, Infeasible, NodeView


def cluster(*given: dict) -> list[NodeView]:
    """Nodes a, b, c ..."""
    return [NodeView(bytes([97 + i]), units(total)) for i, total in enumerate(given)]


def cpus(*amounts: float) -> list[dict]:
    return [{"CPU": amount} for amount in amounts]


@pytest.mark.parametrize(
    ("strategy", "nodes", "bundles", "wanted"),
    [
        ("PACK", cpus(4, 4), cpus(1, 1, 2), "aaa"),
        ("PACK", cpus(2, 3), cpus(1, 1, 1), "bbb"),  # the one that takes them all
        ("PACK", cpus(2, 2, 2), cpus(2, 1, 1), "abb"),
        ("PACK", cpus(1, 4), cpus(4, 1), "ba"),
        ("PACK", cpus(2, 2), cpus(2, 2, 2), None),
        ("SPREAD", cpus(4, 4), cpus(1, 1), "ab"),
        ("SPREAD", cpus(4, 4), cpus(1, 1, 1), "aba"),
        ("SPREAD", cpus(4, 1), cpus(1, 1, 1), "aba"),
        ("SPREAD", cpus(1, 4), cpus(2, 1), "ba"),  # the large one takes the large node
        ("STRICT_PACK", cpus(2, 4), cpus(1, 2, 1), "bbb"),
        ("STRICT_PACK", cpus(8, 4), cpus(1, 2, 1), "bbb"),  # the tightest
        ("STRICT_PACK", cpus(3, 3), cpus(2, 2), None),
        ("STRICT_SPREAD", cpus(4, 4), cpus(1, 1), "ab"),
        ("STRICT_SPREAD", cpus(4, 1, 2), cpus(1, 2, 4), "bca"),
        ("STRICT_SPREAD", cpus(9, 9), cpus(1, 1, 1), None),
        ("STRICT_SPREAD", [{"CPU": 1, "GPU": 1}, {"CPU": 1}], [{"CPU": 1}, {"GPU": 1}], "ba"),
    ],
)
def test_where_bundles_go(strategy, nodes, bundles, wanted):
    found = place_group([units(b) for b in bundles], strategy, cluster(*nodes))
    if wanted is None:
        assert isinstance(found, Infeasible)
    else:
        assert b"".join(found).decode() in (wanted, wanted.translate(str.maketrans("ab", "ba")))
        assert_allowed(strategy, cluster(*nodes), [units(b) for b in bundles], found)


def assert_allowed(strategy, nodes, bundles, found):
    free = {node.node_id: dict(node.available) for node in nodes}
    for bundle, node_id in zip(bundles, found):
        assert fits(bundle, free[node_id])
        add(free[node_id], bundle, -1)
    if strategy == "STRICT_PACK":
        assert len(set(found)) == 1
    if strategy == "STRICT_SPREAD":
        assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("strategy", "nodes", "bundles", "reason", "missing"),
    [
        ("PACK", cpus(4), [{"GPU": 1}], "bundle 0", {"GPU": (1, 0)}),
        ("PACK", cpus(2, 2), cpus(2, 2, 1), "too small", {"CPU": (5, 4)}),
        ("STRICT_PACK", cpus(3, 3), cpus(2, 2), "together", {"CPU": (4, 3)}),
        ("STRICT_SPREAD", cpus(9), cpus(1, 1), "as many nodes; there are 1", {}),
        ("SPREAD", [], cpus(1), "bundle 0", {"CPU": (1, 0)}),
    ],
)
def test_a_group_that_never_fits_says_why(strategy, nodes, bundles, reason, missing):
    found = place_group([units(b) for b in bundles], strategy, cluster(*nodes))
    assert isinstance(found, Infeasible)
    assert reason in found.reason
    assert found.missing == missing


def test_a_group_that_would_fit_an_idle_cluster_waits():
    nodes = cluster(*cpus(2, 2))
    nodes[0].available["CPU"] = 0
    assert isinstance(place_group([units({"CPU": 1})] * 2, "STRICT_SPREAD", nodes), Busy)


@pytest.mark.parametrize(
    ("strategy", "kept", "wanted"),
    [
        ("STRICT_SPREAD", {0: b"a"}, {b"b", b"c"}),
        ("SPREAD", {0: b"b"}, {b"a", b"c"}),
        ("PACK", {0: b"b"}, {b"b"}),
        ("STRICT_PACK", {0: b"c"}, {b"c"}),
    ],
)
def test_bundles_that_survived_stay_and_the_others_are_placed_around_them(strategy, kept, wanted):
    nodes = cluster(*cpus(4, 4, 4))
    for node_id in kept.values():
        next(node for node in nodes if node.node_id == node_id).available["CPU"] -= 10_000
    found = place_group([units({"CPU": 1})] * 3, strategy, nodes, kept)
    assert found[0] == kept[0]
    assert set(found[1:]) == wanted


@pytest.mark.parametrize("seed", range(200))
def test_a_place_is_found_whenever_there_is_one(seed):
    chance = random.Random(seed)
    sizes = [{"CPU": chance.randint(1, 6), "GPU": chance.randint(0, 2)} for _ in range(chance.randint(1, 4))]
    nodes = cluster(*sizes)
    bundles = [
        units({"CPU": chance.randint(1, 4), "GPU": chance.choice([0, 0, 1])}) for _ in range(chance.randint(1, 4))
    ]
    for strategy in ("STRICT_PACK", "STRICT_SPREAD", "PACK", "SPREAD"):
        found = place_group(bundles, strategy, nodes)
        if isinstance(found, list):
            assert_allowed(strategy, nodes, bundles, found)
        else:
            for where in itertools.product([node.node_id for node in nodes], repeat=len(bundles)):
                with pytest.raises(AssertionError):
                    assert_allowed(strategy, nodes, bundles, where)
