"""Placement groups whose bundles are on several nodes of this machine: placing, running inside, waiting, removing.

    far      what only the second node has
    group    makes a group and removes it at the end of the test; then all resources have to be back
"""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import far_cluster
from integration_helpers import eventually, note, open_gate, run_program, tally, wait_for_gate

import fastray
from fastray import exceptions
from fastray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from fastray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside

GET_S = 60
BIG = 200_000  # doubles: they stay where they are made


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with far_cluster(tmp_path_factory.mktemp("runtime"), resources={"far": 4}, labels={"zone": "far"}) as made:
        yield made


@pytest.fixture
def group():
    made = []

    def make(*args, **options):
        made.append(placement_group(*args, **options))
        return made[-1]

    yield make
    for one in made:
        remove_placement_group(one)
    assert eventually(all_is_free)


def free(name):
    return fastray.available_resources().get(name, 0)


def all_is_free():
    return all(free(name) == amount for name, amount in fastray.cluster_resources().items() if name in ("CPU", "far"))


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def node_id():
    return fastray.get_runtime_context().get_node_id()


def home(cluster):
    return cluster.head_node.node_id, cluster.far_node.node_id


@fastray.remote
def where():
    current = get_current_placement_group()
    return node_id(), None if current is None else current.id.hex()


@fastray.remote(num_cpus=0)
def children(n):
    return fastray.get([where.options(num_cpus=0).remote() for _ in range(n)], timeout=GET_S)


@fastray.remote
def hold(path, gate):
    note(path, node_id())
    wait_for_gate(gate)
    return node_id()


@fastray.remote(num_cpus=1)
class Actor:
    def where(self):
        current = get_current_placement_group()
        return node_id(), None if current is None else current.id.hex()

    def child(self):
        return fastray.get(where.options(num_cpus=0).remote(), timeout=GET_S)

    def make(self):
        self.made = placement_group([{"CPU": 1}, {"far": 1}])
        return self.made if self.made.wait(GET_S) else None


def nodes_of(pg):
    """The node of each bundle."""
    assert pg.wait(GET_S)
    return list(placement_group_table(pg)["bundles_to_node_id"].values())


# ---- placing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "bundles", "nodes"),
    [
        ("STRICT_SPREAD", [{"CPU": 1}, {"CPU": 1}], 2),
        ("SPREAD", [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}], 2),
        ("PACK", [{"CPU": 1}, {"CPU": 1}], 1),
        ("PACK", [{"CPU": 2}, {"CPU": 2}], 2),
        ("STRICT_PACK", [{"CPU": 1}, {"CPU": 1}], 1),
        ("PACK", [{"CPU": 1, "far": 1}, {"far": 3}], 1),
    ],
)
def test_bundles_are_where_the_strategy_says(cluster, group, strategy, bundles, nodes):
    pg = group(bundles, strategy, name="all")
    there = nodes_of(pg)
    assert len(set(there)) == nodes
    assert set(there) <= set(home(cluster))
    if "far" in bundles[0]:
        assert there == [cluster.far_node.node_id] * 2
    row = placement_group_table(pg)
    assert (row["state"], row["strategy"], row["name"]) == ("CREATED", strategy, "all")
    assert row["bundles"] == {i: {n: float(a) for n, a in b.items()} for i, b in enumerate(bundles)}
    assert eventually(lambda: free("CPU") == 4 - sum(bundle.get("CPU", 0) for bundle in bundles))
    assert get(pg.ready()) == pg
    inside = [where.options(num_cpus=0, scheduling_strategy=Inside(pg, i)).remote() for i in range(len(bundles))]
    assert get(inside) == [(node, pg.id.hex()) for node in there]


def test_labels_say_where_a_bundle_may_be(cluster, group):
    pg = group([{"CPU": 1}, {"CPU": 1}], bundle_label_selector=[{"zone": "far"}, {"zone": "!far"}])
    assert nodes_of(pg) == [cluster.far_node.node_id, cluster.head_node.node_id]
    with pytest.warns(UserWarning, match=r"never fits.*no node has the labels zone in \(moon\)"):
        assert not group([{"CPU": 1}], bundle_label_selector=[{"zone": "moon"}]).wait(0.05)


def test_a_group_waits_for_what_tasks_hold_on_any_node_and_smaller_ones_pass(group, tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    refs = [hold.options(resources={"far": 1}, num_cpus=1).remote(path, gate) for _ in range(2)]
    assert eventually(lambda: len(tally(path)) == 2)
    pg = group([{"CPU": 2}, {"CPU": 2}], "STRICT_SPREAD")
    ready = pg.ready()
    assert not pg.wait(0.2)
    assert placement_group_table(pg)["state"] == "PENDING"
    assert group([{"far": 1}]).wait(GET_S)
    open_gate(gate)
    get([*refs, ready])
    assert placement_group_table(pg)["state"] == "CREATED"


def test_a_group_takes_its_turn_while_tasks_come_and_go(group, tmp_path):
    gate = str(tmp_path / "gate")
    busy = [busily.options(resources={"far": 0.5}, num_cpus=1).remote(gate) for _ in range(60)]
    pg = group([{"CPU": 2}, {"CPU": 2}], "STRICT_SPREAD")
    assert pg.wait(GET_S)
    open_gate(gate)
    remove_placement_group(pg)
    get(busy)


@fastray.remote
def busily(gate):
    """A tenth of a second each, until the gate is open."""
    from waiting import eventually as wait_until

    wait_until(lambda: os.path.exists(gate), 0.1)


def test_groups_that_want_the_same_do_not_wait_for_each_other(group):
    groups = [group([{"CPU": 2}, {"CPU": 2}], "STRICT_SPREAD") for _ in range(4)]
    left = list(groups)
    while left:
        ready = eventually(lambda: next((pg for pg in left if pg.wait(0)), None))
        remove_placement_group(ready)
        left.remove(ready)


def test_what_fits_nowhere_waits_for_a_node(cluster, group):
    with pytest.warns(UserWarning, match="never fits.*moon"):
        pg = group([{"CPU": 1}, {"moon": 1}])
    inside = where.options(num_cpus=0, scheduling_strategy=Inside(pg, 1)).remote()
    assert not pg.wait(0.2)
    assert placement_group_table(pg)["stats"]["scheduling_state"] == "INFEASIBLE"
    node = cluster.add_node(num_cpus=1, resources={"moon": 1})
    try:
        assert pg.wait(GET_S)
        assert get(inside) == (node.node_id, pg.id.hex())
        remove_placement_group(pg)
    finally:
        cluster.remove_node(node)


# ---- running inside --------------------------------------------------------------------------------------


def test_tasks_of_any_bundle_run_on_all_nodes(cluster, group, tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    pg = group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
    refs = [hold.options(scheduling_strategy=Inside(pg)).remote(path, gate) for _ in range(2)]
    assert eventually(lambda: set(tally(path)) == set(home(cluster)))
    open_gate(gate)
    assert set(get(refs)) == set(home(cluster))
    many = where.options(scheduling_strategy=Inside(pg))
    results = get([many.remote() for _ in range(2000)])
    assert {group_id for _, group_id in results} == {pg.id.hex()}


def test_tasks_that_were_submitted_before_the_group_was_placed(cluster, group):
    pg = group([{"CPU": 1}, {"far": 1}], "SPREAD")
    refs = [where.options(num_cpus=0, scheduling_strategy=Inside(pg, i)).remote() for i in (0, 1, 1, 0)]
    far = cluster.far_node.node_id
    nodes = [node for node, _ in get(refs)]
    assert nodes[1:3] == [far, far]
    assert nodes[0] == nodes_of(pg)[0]


def test_children_are_captured_on_every_node(cluster, group):
    pg = group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
    for index in range(2):
        inside = Inside(pg, index, placement_group_capture_child_tasks=True)
        found = get(children.options(scheduling_strategy=inside).remote(4))
        assert {group_id for _, group_id in found} == {pg.id.hex()}
        outside = get(children.options(scheduling_strategy=Inside(pg, index)).remote(4))
        assert {group_id for _, group_id in outside} == {None}


def test_a_group_goes_with_a_task_to_another_node(cluster, group):
    @fastray.remote(resources={"far": 0.1}, num_cpus=0)
    def use(pg):
        there = [where.options(num_cpus=0, scheduling_strategy=Inside(pg, i)).remote() for i in range(2)]
        assert pg.wait(GET_S)
        assert pg.bundle_count == 2
        found = get_placement_group("passed")
        return fastray.get(there, timeout=GET_S), found == pg, placement_group_table(pg)["state"]

    pg = group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD", name="passed")
    nodes = nodes_of(pg)
    assert get(use.remote(pg)) == ([(node, pg.id.hex()) for node in nodes], True, "CREATED")


def test_arguments_that_are_elsewhere_come_along(cluster, group):
    @fastray.remote(num_cpus=0)
    def make():
        return np.ones(BIG)

    @fastray.remote(num_cpus=0)
    def total(*arrays):
        return node_id(), sum(float(a.sum()) for a in arrays)

    pg = group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
    nodes = nodes_of(pg)
    made = [make.options(scheduling_strategy=Inside(pg, i)).remote() for i in range(2)]
    for index in (0, 1):
        found = get(total.options(scheduling_strategy=Inside(pg, index)).remote(*made))
        assert found == (nodes[index], 2.0 * BIG)
    node, amount = get(total.options(scheduling_strategy=Inside(pg)).remote(*made))
    assert (node in nodes, amount) == (True, 2.0 * BIG)


def test_actors_run_in_their_bundles(cluster, group):
    pg = group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
    nodes = nodes_of(pg)
    actors = [Actor.options(scheduling_strategy=Inside(pg, i)).remote() for i in range(2)]
    assert get([actor.where.remote() for actor in actors]) == [(node, pg.id.hex()) for node in nodes]
    assert [group_id for _, group_id in get([actor.child.remote() for actor in actors])] == [None, None]
    del actors
    capturing = Inside(pg, placement_group_capture_child_tasks=True)
    anywhere = [Actor.options(scheduling_strategy=capturing).remote() for _ in range(2)]
    assert {node for node, _ in get([actor.where.remote() for actor in anywhere])} == set(nodes)
    assert {group_id for _, group_id in get([actor.child.remote() for actor in anywhere])} == {pg.id.hex()}


def test_what_does_not_fit_into_a_bundle_is_refused(group):
    pg = group([{"CPU": 1}, {"far": 1}])
    with pytest.raises(exceptions.InvalidOptionError, match="does not fit into bundle 0"):
        where.options(num_cpus=2, scheduling_strategy=Inside(pg, 0)).remote()
    with pytest.raises(exceptions.InvalidOptionError, match="placement_group_bundle_index=2 is invalid"):
        where.options(scheduling_strategy=Inside(pg, 2)).remote()


# ---- names, jobs, owners ---------------------------------------------------------------------------------


def test_a_name_is_taken_for_the_whole_cluster(cluster, group):
    @fastray.remote(num_cpus=0)
    def make(name):
        return placement_group([{"CPU": 1}], name=name)

    pg = group([{"CPU": 1}], name="once")
    for node in home(cluster):
        there = make.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        with pytest.raises(exceptions.PlacementGroupExistsError, match="once"):
            get(there.remote("once"))
    assert get_placement_group("once") == pg
    remove_placement_group(pg)
    far = make.options(scheduling_strategy=NodeAffinitySchedulingStrategy(cluster.far_node.node_id, soft=False))

    def make_again():
        try:
            return get(far.remote("once"))
        except exceptions.PlacementGroupExistsError:  # the store has not heard of the removal yet
            return None

    again = eventually(make_again)
    assert get_placement_group("once") == again != pg
    assert again.wait(GET_S)
    remove_placement_group(again)
    with pytest.raises(exceptions.InvalidOptionError, match="no placement group named 'once'"):
        eventually(lambda: get_placement_group("once") is None)


def test_a_group_ends_with_its_driver_and_a_detached_one_does_not(cluster, tmp_path):
    program = """
        import sys
        import fastray
        from fastray.util.placement_group import placement_group
        fastray.init(address=sys.argv[1], namespace=sys.argv[2])
        for name, lifetime in (("mine", None), ("everybodys", "detached")):
            pg = placement_group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD", name=name, lifetime=lifetime)
            assert pg.wait(60)
    """
    run_program(program, tmp_path, cluster.head_node.session_path, fastray.get_runtime_context().namespace)
    assert eventually(lambda: free("CPU") == 2)
    detached = get_placement_group("everybodys")
    assert placement_group_table(detached)["is_detached"]
    with pytest.raises(exceptions.InvalidOptionError, match="no placement group named 'mine'"):
        get_placement_group("mine")
    nodes = nodes_of(detached)
    found = get([where.options(scheduling_strategy=Inside(detached, i)).remote() for i in range(2)])
    assert found == [(node, detached.id.hex()) for node in nodes]
    remove_placement_group(detached)
    assert eventually(all_is_free)


def test_a_group_made_in_an_actor_on_another_node(cluster):
    actor = Actor.options(resources={"far": 1}).remote()
    pg = get(actor.make.remote())
    assert nodes_of(pg)[1] == cluster.far_node.node_id
    assert get(where.options(scheduling_strategy=Inside(pg, 0)).remote())[1] == pg.id.hex()
    remove_placement_group(pg)
    assert eventually(lambda: placement_group_table(pg)["state"] == "REMOVED")
    del actor
    assert eventually(all_is_free)


# ---- removing --------------------------------------------------------------------------------------------


def test_removal_ends_what_runs_and_what_waits_on_all_nodes(group, tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    pg = group([{"CPU": 1}, {"CPU": 2}], "STRICT_SPREAD")
    actor = Actor.options(scheduling_strategy=Inside(pg, 1)).remote()
    get(actor.where.remote())
    running = [hold.options(scheduling_strategy=Inside(pg, i)).remote(path, gate) for i in range(2)]
    assert eventually(lambda: len(set(tally(path))) == 2)
    waiting = [where.options(scheduling_strategy=Inside(pg, i)).remote() for i in (0, 1, -1)]
    later = where.options(scheduling_strategy=Inside(pg)).remote(*[])
    remove_placement_group(pg)
    for ref in (*running, *waiting, later):
        with pytest.raises(exceptions.TaskPlacementGroupRemoved):
            get(ref)
    with pytest.raises(exceptions.ActorDiedError):
        get(actor.where.remote())
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        where.options(scheduling_strategy=Inside(pg)).remote()
    with pytest.raises(exceptions.ActorPlacementGroupRemoved):
        Actor.options(scheduling_strategy=Inside(pg)).remote()
    assert placement_group_table(pg)["state"] == "REMOVED"
    assert eventually(all_is_free)


def test_removal_while_it_waits_and_from_another_node(cluster, group):
    @fastray.remote(resources={"far": 0.1}, num_cpus=0)
    def remove(pg):
        remove_placement_group(pg)

    placed, waits = group([{"CPU": 2}, {"CPU": 2}], "STRICT_SPREAD"), group([{"CPU": 2}, {"CPU": 2}])
    assert placed.wait(GET_S)
    ready = waits.ready()
    get(remove.remote(waits))
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        get(ready)
    get(remove.remote(placed))
    assert eventually(lambda: placement_group_table(placed)["state"] == "REMOVED")
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        eventually(lambda: placed.wait(0) is None)
    assert eventually(all_is_free)
