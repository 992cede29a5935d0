"""Where one request goes: tables of clusters, requests and the node each must get."""

from __future__ import annotations

import re

import pytest

from fastray.scheduling.global_scheduler import GlobalScheduler
from fastray.scheduling.labels import conditions, describe, meets
from fastray.scheduling.policy import BANDWIDTH, place
from fastray.scheduling.resources import units
from fastray.scheduling.view import Argument, Bundle, Busy, Infeasible, NodeView, Placed, Request, queue_wait_s
from fastray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

MB = 1_000_000


def node(name: str, free: float | None = None, wait_s: float = 0.0, labels=None, **total: float) -> NodeView:
    """`free`: CPUs that are free, of all unless given."""
    total = {"CPU": 4.0, **total}
    view = NodeView(name.encode(), units(total), labels=labels, wait_s=wait_s)
    if free is not None:
        view.available["CPU"] = units({"CPU": free}).get("CPU", 0)
    return view


def ask(strategy: object = "DEFAULT", **options) -> Request:
    resources = options.pop("resources", {"CPU": 1.0})
    return Request(units(resources), strategy, **options)


def argument(size: int, *nodes: str) -> Argument:
    return Argument(size, frozenset(name.encode() for name in nodes))


@pytest.mark.parametrize(
    ("why", "nodes", "request_", "wanted"),
    [
        ("a free node before a busy one", [node("a", 0), node("b")], ask(), "b"),
        ("at home, all else equal", [node("a"), node("b")], ask(origin=b"b"), "b"),
        ("a free node elsewhere before a busy home", [node("a", 0), node("b")], ask(origin=b"a"), "b"),
        ("the shortest queue", [node("a", 0, 3.0), node("b", 0, 1.0), node("c", 0, 2.0)], ask(), "b"),
        ("the least used of free ones", [node("a", 1), node("b", 3), node("c", 2)], ask(), "b"),
        ("by name, all else equal", [node("b"), node("a")], ask(), "a"),
        ("only where a GPU is", [node("a"), node("b", 0, 9.0, GPU=1.0)], ask(resources={"GPU": 0.5}), "b"),
        ("not on a GPU node without need", [node("a", GPU=1.0), node("b", 1)], ask(), "b"),
        ("on a GPU node rather than wait", [node("a", GPU=1.0), node("b", 0)], ask(), "a"),
        ("a custom resource", [node("a"), node("b", disk=2.0)], ask(resources={"disk": 2.0}), "b"),
        ("where the argument is", [node("a"), node("b")], ask(arguments=[argument(MB, "b")]), "b"),
        (
            "where most bytes are",
            [node("a"), node("b")],
            ask(arguments=[argument(MB, "a"), argument(3 * MB, "b")]),
            "b",
        ),
        (
            "to large arguments, if the queue there is short",
            [node("a"), node("b", 0, 0.3)],
            ask(arguments=[argument(int(BANDWIDTH), "b")], seconds=0.1),
            "b",
        ),
        (
            "away from small ones, if the queue there is long",
            [node("a"), node("b", 0, 0.3)],
            ask(arguments=[argument(MB, "b")], seconds=0.1),
            "a",
        ),
        ("the last free one, exactly", [node("a", 0.3), node("b", 0.2)], ask(resources={"CPU": 0.3}), "a"),
        ("nothing asked for", [node("a", 0)], ask(resources={}), "a"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_default(why, nodes, request_, wanted):
    assert place(request_, nodes).node_id == wanted.encode(), why


def test_a_place_says_whether_it_is_free_now():
    assert place(ask(), [node("a", 1)]) == Placed(b"a", True)
    assert place(ask(), [node("a", 0.5)]) == Placed(b"a", False)


@pytest.mark.parametrize(
    ("nodes", "request_", "reason", "missing"),
    [
        ([], ask(), "no node", {}),
        ([node("a")], ask(resources={"CPU": 8.0}), "enough of CPU", {"CPU": (8, 4)}),
        ([node("a")], ask(resources={"CPU": 1, "TPU": 1}), "enough of TPU", {"TPU": (1, 0)}),
        (
            [node("a", CPU=8.0), node("b", GPU=1.0)],
            ask(resources={"CPU": 8, "GPU": 1}),
            f"together; the closest, {b'a'.hex()}, lacks GPU",
            {"GPU": (1, 0)},
        ),
        ([node("a")], ask(labels={"zone": In("x")}), r"labels: zone in \(x\)", {}),
        (
            [node("a", labels={"zone": "x"}), node("b", CPU=9.0)],
            ask(resources={"CPU": 9.0}, labels={"zone": In("x")}),
            "among those with the labels zone",
            {"CPU": (9, 4)},
        ),
    ],
)
def test_an_infeasible_request_says_what_is_missing(nodes, request_, reason, missing):
    found = place(request_, nodes)
    assert isinstance(found, Infeasible)
    assert re.search(reason, found.reason)
    assert found.missing == missing


A, C = b"a".hex(), b"c".hex()


@pytest.mark.parametrize(
    ("strategy", "free_on_a", "wanted"),
    [
        (NodeAffinitySchedulingStrategy(A, soft=False), 4, Placed(b"a", True)),
        (NodeAffinitySchedulingStrategy(A, soft=False), 0, Placed(b"a", False)),
        (NodeAffinitySchedulingStrategy(A, soft=True), 0, Placed(b"a", False)),
        (NodeAffinitySchedulingStrategy(A, soft=True, _spill_on_unavailable=True), 0, Placed(b"b", True)),
        (NodeAffinitySchedulingStrategy(C, soft=True), 4, Placed(b"a", True)),
    ],
)
def test_affinity_to_a_node(strategy, free_on_a, wanted):
    assert place(ask(strategy), [node("a", free_on_a), node("b", 3)]) == wanted


def test_affinity_that_cannot_be_met():
    gone = place(ask(NodeAffinitySchedulingStrategy(C, soft=False)), [node("a")])
    assert isinstance(gone, Infeasible)
    assert f"node {C} is not alive" in gone.reason
    nodes = [node("a"), node("b", CPU=9)]
    small = place(ask(NodeAffinitySchedulingStrategy(A, soft=False), resources={"CPU": 5}), nodes)
    assert isinstance(small, Infeasible)
    assert small.missing == {"CPU": (5, 4)}
    full = NodeAffinitySchedulingStrategy(A, soft=False, _fail_on_unavailable=True)
    assert isinstance(place(ask(full), [node("a", 0)]), Infeasible)
    soft = place(ask(NodeAffinitySchedulingStrategy(A, soft=True), resources={"CPU": 5}), nodes)
    assert soft == Placed(b"b", True)


ZONES = [
    node("a", 0, labels={"zone": "x", "disk": "ssd"}),
    node("b", 1, labels={"zone": "x"}),
    node("c", 4, labels={"zone": "y", "disk": "ssd"}),
]


@pytest.mark.parametrize(
    ("hard", "soft", "wanted"),
    [
        ({"zone": In("x")}, None, b"b"),
        ({"zone": In("x", "y")}, None, b"c"),
        ({"zone": NotIn("y")}, None, b"b"),
        ({"disk": DoesNotExist()}, None, b"b"),
        ({"disk": Exists()}, None, b"c"),
        ({"zone": In("x")}, {"disk": Exists()}, b"b"),  # free before preferred
        ({}, {"zone": In("y")}, b"c"),
        ({}, {"zone": In("z")}, b"c"),  # nobody has it
    ],
)
def test_labels(hard, soft, wanted):
    assert place(ask(NodeLabelSchedulingStrategy(hard, soft=soft)), ZONES).node_id == wanted


@pytest.mark.parametrize(
    ("selector", "labels", "met"),
    [
        ({"zone": "x"}, {"zone": "x"}, True),
        ({"zone": "x"}, {}, False),
        ({"zone": "!x"}, {"zone": "y"}, True),
        ({"zone": "!x"}, {}, True),
        ({"zone": "in(x, y)"}, {"zone": "y"}, True),
        ({"zone": "!in(x,y)"}, {"zone": "y"}, False),
        ({"zone": "x", "disk": "ssd"}, {"zone": "x"}, False),
    ],
)
def test_label_selectors(selector, labels, met):
    assert meets(labels, conditions(selector)) is met


def test_conditions_read_well():
    wanted = {"a": In("x", "y"), "b": NotIn("z"), "c": Exists(), "d": DoesNotExist()}
    assert describe(wanted) == "a in (x, y), b not in (z), c exists, d does not exist"


# ---- inside a placement group -------------------------------------------------------------------------


def bundle(number: int, name: str, free: float = 2.0) -> Bundle:
    return Bundle(number, name.encode(), units({"CPU": 2.0}), units({"CPU": free}))


@pytest.mark.parametrize(
    ("bundles", "index", "wanted"),
    [
        ([bundle(0, "a"), bundle(1, "b")], -1, Placed(b"a", True, 0)),
        ([bundle(0, "a", 1), bundle(1, "b")], -1, Placed(b"b", True, 1)),
        ([bundle(0, "a", 0), bundle(1, "b")], 0, Placed(b"a", False, 0)),
        ([bundle(1, "b")], 0, Busy("the bundle is not placed")),
        ([], -1, Busy("the placement group is not placed")),
    ],
)
def test_inside_a_group(bundles, index, wanted):
    assert place(ask(bundles=bundles, bundle_index=index), [node("z")]) == wanted


def test_too_large_for_any_bundle():
    found = place(ask(resources={"CPU": 3}, bundles=[bundle(0, "a")]), [node("z")])
    assert isinstance(found, Infeasible)
    assert found.missing == {"CPU": (3, 2)}


# ---- the state machine --------------------------------------------------------------------------------


@pytest.fixture
def scheduler():
    scheduler = GlobalScheduler()
    for name in (b"a", b"b", b"c"):
        scheduler.joined(name, {"CPU": 2.0}, {})
    return scheduler


def test_a_burst_between_heartbeats_does_not_all_go_to_one_node(scheduler):
    placed = [scheduler.submit(ask()) for _ in range(9)]
    assert sorted(p.node_id for p in placed[:6]) == [b"a", b"a", b"b", b"b", b"c", b"c"]
    assert [p.now for p in placed] == [True] * 6 + [False] * 3
    assert sorted(p.node_id for p in placed[6:]) == [b"a", b"b", b"c"]


def test_a_heartbeat_takes_the_place_of_what_was_assumed(scheduler):
    for _ in range(6):
        scheduler.submit(ask())
    scheduler.said(b"b", {"CPU": 2.0}, {})
    scheduler.said(b"a", {"CPU": 0.0}, {"f": [10, 0.5]})
    assert scheduler.nodes[b"a"].wait_s == queue_wait_s([(10, 0.5)], 2) == 2.5
    assert scheduler.submit(ask()) == Placed(b"b", True)


@pytest.mark.parametrize("strategy", ["DEFAULT", "SPREAD"])
def test_a_node_that_is_not_reached_is_taken_last(scheduler, strategy):
    scheduler.joined(b"d", {"CPU": 2.0, "disk": 1.0}, {})
    scheduler.unreachable = {b"a", b"d"}
    assert {scheduler.submit(ask(strategy)).node_id for _ in range(9)} == {b"b", b"c"}
    assert {p.node_id for p in scheduler.submit_many(ask(strategy), 9)} == {b"b", b"c"}
    disk = ask(strategy, resources={"disk": 1.0})
    assert scheduler.submit(disk) == Placed(b"d", True)  # it waits for it, and is not called impossible
    assert scheduler.submit_many(disk, 1) == [Placed(b"d", False)]
    there = NodeAffinitySchedulingStrategy(b"a".hex(), soft=False)
    assert scheduler.submit(ask(there)) == Placed(b"a", True)
    assert isinstance(scheduler.submit(ask(resources={"TPU": 1.0})), Infeasible)


@pytest.mark.parametrize("strategy", ["DEFAULT", "SPREAD"])
def test_many_at_once_go_where_they_go_one_by_one(strategy):
    def cluster() -> GlobalScheduler:
        made = GlobalScheduler()
        for number in range(10):
            made.joined(b"n%d" % number, {"CPU": 1.0 + number % 3, "GPU": float(number == 4)}, {})
        return made

    request = ask(strategy, arguments=[argument(MB, "n3")], seconds=0.01, origin=b"n7")
    single = cluster()
    assert cluster().submit_many(request, 200) == [single.submit(request) for _ in range(200)]
    assert isinstance(cluster().submit_many(ask(resources={"TPU": 1}), 1)[0], Infeasible)


def test_spread_goes_around_the_free_nodes(scheduler):
    placed = [scheduler.submit(ask("SPREAD")).node_id for _ in range(6)]
    assert placed == [b"a", b"b", b"c", b"a", b"b", b"c"]
    scheduler.said(b"b", {"CPU": 1.0}, {})
    assert scheduler.submit(ask("SPREAD")) == Placed(b"b", True)
    assert scheduler.submit(ask("SPREAD")).now is False


def test_what_was_infeasible_fits_once_a_node_joins(scheduler):
    request = ask(resources={"GPU": 1.0})
    assert isinstance(scheduler.submit(request), Infeasible)
    version = scheduler.version
    scheduler.said(b"a", {"CPU": 2.0}, {})
    assert scheduler.version == version
    scheduler.joined(b"g", {"CPU": 2.0, "GPU": 1.0}, {})
    assert scheduler.version > version
    assert scheduler.submit(request) == Placed(b"g", True)
    scheduler.gone(b"g")
    scheduler.gone(b"g")
    assert isinstance(scheduler.submit(request), Infeasible)


def test_groups_take_their_resources(scheduler):
    bundles = [units({"CPU": 2.0})] * 2
    first, second = scheduler.submit_group(bundles, "SPREAD")
    (third,) = {b"a", b"b", b"c"} - {first, second}
    assert scheduler.submit(ask()) == Placed(third, True)
    assert isinstance(scheduler.submit_group(bundles, "SPREAD"), Busy)
    scheduler.gone(first)
    scheduler.release(third, units({"CPU": 1.0}))
    assert scheduler.submit_group(bundles, "SPREAD", {1: second}) == [third, second]
    scheduler.release(b"gone", bundles[0])
