"""Placement groups on one node: reserving, waiting, running inside, removing; names, jobs, GPUs, children.

    group    makes a group and removes it at the end of the test
"""

from __future__ import annotations

import os
import pickle
import warnings

import pytest
from integration_helpers import eventually, note, open_gate, tally, wait_for_gate, worker_pids

import fastray
from fastray import exceptions
from fastray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside

GET_S = 30


@pytest.fixture(scope="module")
def session():
    fastray.init(num_cpus=4, num_gpus=3, resources={"lab": 2}, namespace="here")
    yield
    fastray.shutdown()


pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
def group():
    made = []

    def make(*args, **options):
        made.append(placement_group(*args, **options))
        return made[-1]

    yield make
    for one in made:
        remove_placement_group(one)
    assert eventually(lambda: free("CPU") == 4)


def free(name):
    return fastray.available_resources().get(name, 0)


@fastray.remote
def where():
    current = get_current_placement_group()
    return None if current is None else current.id.hex()


@fastray.remote
def hold(path, gate):
    note(path, str(os.getpid()))
    wait_for_gate(gate)
    return fastray.get_gpu_ids()


@fastray.remote(num_cpus=1)
class Actor:
    def pid(self):
        return os.getpid()

    def where(self):
        current = get_current_placement_group()
        return None if current is None else current.id.hex()

    def child(self):
        return fastray.get(where.remote(), timeout=GET_S)

    def wait(self, gate):
        wait_for_gate(gate)


# ---- reserving -------------------------------------------------------------------------------------------


def test_a_group_reserves_all_of_its_bundles(group):
    pg = group([{"CPU": 1}, {"CPU": 2, "lab": 1}], name="all")
    assert fastray.get(pg.ready(), timeout=GET_S) == pg
    assert pg.wait(0)
    assert pg.bundle_specs == [{"CPU": 1.0}, {"CPU": 2.0, "lab": 1.0}]
    assert pg.bundle_count == 2
    assert not pg.is_empty
    assert PlacementGroup.empty().is_empty
    assert (free("CPU"), free("lab")) == (1, 1)
    assert fastray.cluster_resources()["CPU"] == 4
    row = placement_group_table(pg)
    assert row["state"] == "CREATED"
    assert row["bundles"] == dict(enumerate(pg.bundle_specs))
    assert row["bundles_to_node_id"] == dict.fromkeys((0, 1), fastray.nodes()[0]["NodeID"])
    assert placement_group_table()[pg.id.hex()] == row
    remove_placement_group(pg)
    assert placement_group_table(pg)["state"] == "REMOVED"
    assert eventually(lambda: free("CPU") == 4)


def test_a_group_waits_for_what_tasks_hold_and_takes_it_all_at_once(group, tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    refs = [hold.remote(path, gate) for _ in range(2)]
    assert eventually(lambda: len(tally(path)) == 2)
    pg = group([{"CPU": 2}, {"CPU": 1}])
    assert not pg.wait(0.1)
    assert placement_group_table(pg)["state"] == "PENDING"
    assert fastray.wait([pg.ready()], timeout=0.05)[0] == []
    open_gate(gate)
    assert pg.wait(GET_S)
    fastray.get(refs, timeout=GET_S)


def test_groups_come_in_the_order_they_were_made(group):
    first = group([{"CPU": 4}])
    assert first.wait(GET_S)
    second, third = group([{"CPU": 3}]), group([{"CPU": 3}])
    assert not third.wait(0.05)
    remove_placement_group(first)
    assert second.wait(GET_S)
    assert not third.wait(0.05)
    remove_placement_group(second)
    assert third.wait(GET_S)


def test_what_never_fits_is_said_once_and_waits(group):
    with pytest.warns(UserWarning, match="never fits.*CPU: asks for 100, there is 4"):
        pg = group([{"CPU": 100}])
    assert not pg.wait(0.05)
    assert placement_group_table(pg)["stats"]["scheduling_state"] == "INFEASIBLE"
    for bundles, strategy in (([{"nowhere": 1}], "PACK"), ([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")):
        with pytest.warns(UserWarning, match="never fits"):
            assert not group(bundles, strategy).wait(0.02)
    with pytest.warns(UserWarning, match="no node has the labels zone in"):
        group([{"CPU": 1}], bundle_label_selector=[{"zone": "a"}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert group([{"CPU": 2}, {"CPU": 2}], "SPREAD").wait(GET_S)  # nothing of this holds up others


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([],), "must not be empty"),
        (({"CPU": 1},), "must be a list"),
        (([{}],), "asks for nothing"),
        (([{"CPU": 0}],), "asks for nothing"),
        (([{"CPU": -1}],), "cannot be reserved"),
        (([{"CPU": float("nan")}],), "cannot be reserved"),
        (([{"CPU": "1"}],), "dict of names to amounts"),
        (([{"GPU": 1.5}],), "must be whole"),
        (([{"CPU": 1}], "ANYHOW"), "must be one of"),
        (([{"CPU": 1}], "PACK", 3), "must be a string"),
        (([{"CPU": 1}], "PACK", "", "for ever"), "lifetime"),
        (([{"CPU": 1}] * 5000,), "too large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_group_is_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        placement_group(*arguments)


# ---- running inside --------------------------------------------------------------------------------------


def test_tasks_run_in_the_bundle_they_ask_for(group, tmp_path):
    pg = group([{"CPU": 1}, {"CPU": 1, "lab": 1}])
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    inside = [hold.options(scheduling_strategy=Inside(pg, 0)).remote(path, gate) for _ in range(3)]
    assert eventually(lambda: len(tally(path)) == 1)
    assert fastray.get(where.options(scheduling_strategy=Inside(pg, 1)).remote(), timeout=GET_S) == pg.id.hex()
    assert fastray.get(where.options(resources={"lab": 1}, scheduling_strategy=Inside(pg)).remote()) == pg.id.hex()
    assert fastray.get(where.remote(), timeout=GET_S) is None
    assert len(tally(path)) == 1  # one CPU, one task
    open_gate(gate)
    fastray.get(inside, timeout=GET_S)
    assert len(tally(path)) == 3


def test_a_full_bundle_gives_its_classes_turns(group):
    pg = group([{"CPU": 1}])
    quick = where.options(scheduling_strategy=Inside(pg))
    other = where.options(scheduling_strategy=Inside(pg), runtime_env={"env_vars": {"OTHER": "1"}})
    many = [quick.remote() for _ in range(3000)]
    assert fastray.get(other.remote(), timeout=GET_S) == pg.id.hex()
    assert set(fastray.get(many, timeout=GET_S)) == {pg.id.hex()}


def test_what_no_bundle_has_is_an_error_at_once(group):
    pg = group([{"CPU": 1}, {"CPU": 1, "lab": 1}])
    for options, strategy, error in (
        ({}, Inside(pg, 2), "invalid: the placement group has the bundles 0 to 1"),
        ({"num_cpus": 2}, Inside(pg), "does not fit into any bundle"),
        ({"num_gpus": 1}, Inside(pg), "does not fit into any bundle"),
        ({"resources": {"lab": 1}}, Inside(pg, 0), "does not fit into bundle 0"),
    ):
        with pytest.raises(exceptions.InvalidOptionError, match=error):
            where.options(scheduling_strategy=strategy, **options).remote()
        with pytest.raises(ValueError, match=error):
            Actor.options(scheduling_strategy=strategy, **options).remote()
    with pytest.raises(TypeError, match="must be a PlacementGroup"):
        where.options(scheduling_strategy=Inside("group")).remote()
    assert fastray.get(where.options(scheduling_strategy=Inside(None)).remote(), timeout=GET_S) is None


def test_the_older_options_mean_the_same(group):
    pg = group([{"CPU": 1}, {"CPU": 1}])
    assert fastray.get(where.options(placement_group=pg, placement_group_bundle_index=1).remote()) == pg.id.hex()
    with pytest.raises(ValueError, match="invalid"):
        where.options(placement_group=pg, placement_group_bundle_index=5).remote()


def test_actors_live_in_a_group(group):
    pg = group([{"CPU": 1}])
    actor = Actor.options(scheduling_strategy=Inside(pg)).remote()
    assert fastray.get(actor.where.remote(), timeout=GET_S) == pg.id.hex()
    waiting = Actor.options(scheduling_strategy=Inside(pg)).remote()
    assert fastray.wait([waiting.pid.remote()], timeout=0.05)[0] == []  # the bundle is full
    del actor
    assert fastray.get(waiting.where.remote(), timeout=GET_S) == pg.id.hex()


def test_an_actor_is_started_again_in_its_group(group):
    pg = group([{"CPU": 1}])
    actor = Actor.options(scheduling_strategy=Inside(pg), max_restarts=1, max_task_retries=1).remote()
    first = fastray.get(actor.pid.remote(), timeout=GET_S)
    fastray.kill(actor, no_restart=False)
    assert fastray.get(actor.pid.remote(), timeout=GET_S) != first
    assert fastray.get(actor.where.remote(), timeout=GET_S) == pg.id.hex()


def test_children_are_captured_when_asked(group):
    @fastray.remote
    def parent():
        context = fastray.get_runtime_context()
        child = fastray.get(where.remote(), timeout=GET_S)
        outside = fastray.get(where.options(scheduling_strategy=Inside(None)).remote(), timeout=GET_S)
        return child, outside, context.should_capture_child_tasks_in_placement_group, context.get_placement_group_id()

    @fastray.remote
    def grandparent():
        return fastray.get(parent.remote(), timeout=GET_S)

    pg = group([{"CPU": 1}])
    name = pg.id.hex()
    for task in (parent, grandparent):
        captured = task.options(scheduling_strategy=Inside(pg, placement_group_capture_child_tasks=True))
        assert fastray.get(captured.remote(), timeout=GET_S) == (name, None, True, name)
    plain = parent.options(scheduling_strategy=Inside(pg))
    assert fastray.get(plain.remote(), timeout=GET_S) == (None, None, False, name)
    actor = Actor.options(scheduling_strategy=Inside(pg, 0, True)).remote()
    assert fastray.get(actor.child.remote(), timeout=GET_S) == name


def test_gpus_of_a_bundle_are_its_own(group, tmp_path):
    pg = group([{"GPU": 2}, {"GPU": 0.5}])
    assert pg.wait(GET_S)
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    both = hold.options(num_cpus=0, num_gpus=2, scheduling_strategy=Inside(pg, 0)).remote(path, gate)
    half = hold.options(num_cpus=0, num_gpus=0.5, scheduling_strategy=Inside(pg, 1)).remote(path, gate)
    outside = hold.options(num_cpus=0, num_gpus=0.5).remote(path, gate)
    open_gate(gate)
    ids = fastray.get([both, half, outside], timeout=GET_S)
    assert len(ids[0]) == 2
    assert ids[1] == ids[2] == sorted({0, 1, 2} - set(ids[0]))
    assert eventually(lambda: free("GPU") == 0.5)


def test_several_returns_and_streams_in_a_group(group):
    pg = group([{"CPU": 1}])

    @fastray.remote(num_returns=2)
    def two():
        return 1, 2

    @fastray.remote
    def items():
        yield from range(3)

    inside = {"scheduling_strategy": Inside(pg)}
    assert fastray.get(two.options(**inside).remote(), timeout=GET_S) == [1, 2]
    assert [fastray.get(ref) for ref in items.options(**inside).remote()] == [0, 1, 2]


def test_a_group_made_in_a_task(group):
    @fastray.remote
    def make():
        pg = placement_group([{"CPU": 1}])
        assert pg.wait(GET_S)
        return pg, fastray.get(where.options(scheduling_strategy=Inside(pg)).remote(), timeout=GET_S)

    pg, name = fastray.get(make.remote(), timeout=GET_S)
    assert name == pg.id.hex()
    assert pickle.loads(pickle.dumps(pg)) == pg
    remove_placement_group(pg)


# ---- removing --------------------------------------------------------------------------------------------


def test_removal_fails_what_runs_and_what_waits(group, tmp_path):
    pg = group([{"CPU": 1}, {"CPU": 1}])
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    actor = Actor.options(scheduling_strategy=Inside(pg, 0), max_restarts=-1, max_task_retries=-1).remote()
    pid = fastray.get(actor.pid.remote(), timeout=GET_S)
    call = actor.wait.remote(gate)
    tasks = [hold.options(scheduling_strategy=Inside(pg, 1)).remote(path, gate) for _ in range(3)]
    dependent = where.options(scheduling_strategy=Inside(pg, 1)).remote
    waits = fastray.remote(lambda _: 1).options(scheduling_strategy=Inside(pg)).remote(hold.remote(path, gate))
    pending = Actor.options(scheduling_strategy=Inside(pg, 0)).remote()
    assert eventually(lambda: len(tally(path)) == 2)
    runs = {int(line) for line in tally(path)}
    remove_placement_group(pg)
    for task in tasks:
        with pytest.raises(exceptions.TaskPlacementGroupRemoved):
            fastray.get(task, timeout=GET_S)
    for ref in (call, actor.pid.remote(), pending.pid.remote()):
        with pytest.raises(exceptions.ActorDiedError, match="its placement group was removed"):
            fastray.get(ref, timeout=GET_S)
    open_gate(gate)  # the task outside goes on; what waited for it in the group fails then
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        fastray.get(waits, timeout=GET_S)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        dependent()
    with pytest.raises(exceptions.ActorPlacementGroupRemoved):
        Actor.options(scheduling_strategy=Inside(pg)).remote()
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        fastray.get(pg.ready(), timeout=GET_S)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        pg.wait(GET_S)
    assert eventually(lambda: pid not in worker_pids() and len(runs & set(worker_pids())) <= 1)
    assert eventually(lambda: free("CPU") == 4)
    remove_placement_group(pg)  # again: nothing
    assert fastray.get(where.remote(), timeout=GET_S) is None


def test_a_group_that_waits_can_be_removed(group):
    first = group([{"CPU": 4}])
    assert first.wait(GET_S)
    pg = group([{"CPU": 1}])
    ready = pg.ready()
    task = where.options(scheduling_strategy=Inside(pg)).remote()
    remove_placement_group(pg)
    for ref in (ready, task):
        with pytest.raises(exceptions.TaskPlacementGroupRemoved):
            fastray.get(ref, timeout=GET_S)


def test_a_killed_worker_s_task_runs_again_in_its_group(group, tmp_path):
    path = str(tmp_path / "tally")

    @fastray.remote(max_retries=1)
    def dies_once():
        note(path)
        if len(tally(path)) == 1:
            os._exit(1)
        return fastray.get_runtime_context().get_placement_group_id()

    pg = group([{"CPU": 1}])
    assert fastray.get(dies_once.options(scheduling_strategy=Inside(pg)).remote(), timeout=GET_S) == pg.id.hex()


def test_groups_without_number_leave_nothing_behind():
    from fastray._native.groups import GROUPS_MAX
    from fastray.runtime import current_runtime

    attachment = current_runtime().attachment
    for i in range(GROUPS_MAX + 100):
        pg = placement_group([{"CPU": 1}])
        if i % 10 == 0:
            assert fastray.get(where.options(scheduling_strategy=Inside(pg)).remote(), timeout=GET_S) == pg.id.hex()
        remove_placement_group(pg)
    assert len(placement_group_table()) < GROUPS_MAX
    assert attachment.classes_in_use() < 150
    assert attachment.functions_in_use() < 100
    assert eventually(lambda: free("CPU") == 4)


# ---- names and jobs --------------------------------------------------------------------------------------


def test_a_group_is_found_by_its_name(group):
    pg = group([{"CPU": 1}], name="ours")
    assert get_placement_group("ours") == pg
    assert get_placement_group("ours").bundle_specs == [{"CPU": 1.0}]

    @fastray.remote
    def find():
        return fastray.util.get_placement_group("ours")

    assert fastray.get(find.remote(), timeout=GET_S) == pg
    with pytest.raises(exceptions.PlacementGroupExistsError, match="'ours' exists in namespace 'here'"):
        placement_group([{"CPU": 1}], name="ours")
    remove_placement_group(pg)
    with pytest.raises(ValueError, match="no placement group named 'ours'"):
        get_placement_group("ours")
    assert group([{"CPU": 1}], name="ours").wait(GET_S)
    for wrong in ("", 3):
        with pytest.raises(ValueError, match="the name must"):
            get_placement_group(wrong)


def test_the_module_is_the_function():
    import fastray.util.placement_group as module

    assert fastray.util.placement_group is module
    pg = fastray.util.placement_group([{"CPU": 1}])
    assert isinstance(pg, module.PlacementGroup)
    fastray.util.remove_placement_group(pg)


def test_local_mode_has_groups_that_are_ready_at_once():
    fastray.shutdown()
    with fastray.init(local_mode=True, num_cpus=1):
        pg = placement_group([{"CPU": 1}], name="local")
        assert fastray.get(pg.ready()) == pg
        assert pg.wait(1)
        assert get_placement_group("local").bundle_specs == [{"CPU": 1.0}]
        assert fastray.get(where.options(scheduling_strategy=Inside(pg)).remote()) is None
        remove_placement_group(pg)
    fastray.init(num_cpus=4, num_gpus=3, resources={"lab": 2}, namespace="here")
