"""Resources: how many tasks run at once, fractions, zero CPUs, custom ones, GPUs; classes share fairly."""

from __future__ import annotations

import os
import threading
import time

import pytest
from integration_helpers import eventually, kill_self, note, open_gate, processes, tally, wait_for_gate, worker_pids

import fastray

GET_S = 30


@pytest.fixture(scope="module")
def session():
    fastray.init(num_cpus=4, num_gpus=2, resources={"lab": 2, "half": 1})
    yield
    fastray.shutdown()


pytestmark = pytest.mark.usefixtures("session")


@fastray.remote
def hold(path, gate):
    """Runs until the gate opens; notes in the tally when it began."""
    note(path)
    wait_for_gate(gate)
    return sorted(map(int, fastray.get_gpu_ids())), os.environ.get("CUDA_VISIBLE_DEVICES")


@fastray.remote
def quick(i=0):
    return i


@pytest.fixture
def most_at_once(tmp_path):
    """`most_at_once(n, **options)`: how many of `n` tasks with these options run at the same time."""

    def count(n, expected, **options):
        path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
        refs = [hold.options(**options).remote(path, gate) for _ in range(n)]
        assert eventually(lambda: len(tally(path)) >= expected)
        # others that could run would do so before a task that comes after them and needs nothing
        fastray.get([quick.options(num_cpus=0).remote() for _ in range(20)], timeout=GET_S)
        running = len(tally(path))
        open_gate(gate)
        fastray.get(refs, timeout=GET_S)
        assert len(tally(path)) == n
        return running

    return count


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 4),
        ({"num_cpus": 2}, 2),
        ({"num_cpus": 3}, 1),
        ({"num_cpus": 4}, 1),
        ({"num_cpus": 0.5}, 8),
        ({"num_cpus": 1.5}, 2),
        ({"num_cpus": 0, "resources": {"lab": 1}}, 2),
        ({"num_cpus": 0, "resources": {"lab": 2}}, 1),
        ({"num_cpus": 0, "resources": {"half": 0.25}}, 4),
        ({"num_cpus": 0, "resources": {"half": 0.5, "lab": 1}}, 2),
        ({"num_cpus": 0, "num_gpus": 1}, 2),
        ({"num_cpus": 0, "num_gpus": 2}, 1),
        ({"num_cpus": 0, "num_gpus": 0.5}, 4),
    ],
    ids=str,
)
def test_as_many_run_at_once_as_there_is_room_for(most_at_once, options, expected):
    assert most_at_once(expected + 3, expected, **options) == expected


def test_tasks_of_no_cpu_run_beside_tasks_that_hold_all(tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    refs = [hold.remote(path, gate) for _ in range(4)]
    assert eventually(lambda: len(tally(path)) == 4)
    assert fastray.get([quick.options(num_cpus=0).remote(i) for i in range(10)], timeout=GET_S) == list(range(10))
    open_gate(gate)
    fastray.get(refs, timeout=GET_S)


def test_classes_together_never_take_more_than_there_is(tmp_path):
    """Tasks of many shapes; each notes what it takes and gives, under a lock file's order."""
    path = str(tmp_path / "sum")

    @fastray.remote
    def use(cpus):
        note(path, f"{cpus}")
        time.sleep(0.002)
        note(path, f"-{cpus}")

    shapes = [0.5, 1, 2, 3, 4, 1.5, 0.25]
    fastray.get([use.options(num_cpus=shapes[i % 7]).remote(shapes[i % 7]) for i in range(210)], timeout=GET_S)
    level = peak = 0.0
    for step in map(float, tally(path)):
        level += step
        peak = max(peak, level)
    assert level == 0
    assert 2 <= peak <= 4


# ---- GPUs ------------------------------------------------------------------------------------------------


def test_gpus_are_given_out_by_index(tmp_path):
    running, gate = str(tmp_path / "running"), str(tmp_path / "gate")

    @fastray.remote(num_gpus=1)
    def which():
        note(running)
        wait_for_gate(gate)
        return fastray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    @fastray.remote(num_gpus=2)
    def both():
        return sorted(fastray.get_gpu_ids()), os.environ["CUDA_VISIBLE_DEVICES"]

    assert eventually(lambda: not any(row[4] for row in processes()))  # no lease of an earlier test
    refs = [which.remote() for _ in range(2)]
    assert eventually(lambda: len(tally(running)) == 2)  # both at once, so that each has one of its own
    open_gate(gate)
    assert sorted(fastray.get(refs, timeout=GET_S)) == [([0], "0"), ([1], "1")]
    assert fastray.get(both.remote(), timeout=GET_S) == ([0, 1], "0,1")
    assert fastray.get_gpu_ids() == []


def test_a_worker_that_had_one_gpu_sees_two_when_it_gets_two():
    @fastray.remote(num_gpus=1)
    def one():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    @fastray.remote(num_gpus=2)
    def both():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    for _ in range(12):  # whichever worker runs the second has run the first before, sooner or later
        assert fastray.get(one.remote(), timeout=GET_S) in ("0", "1")
        assert fastray.get(both.remote(), timeout=GET_S) == "0,1"


def test_a_class_whose_lease_went_while_the_node_fell_asleep_is_served():
    half = fastray.remote(num_cpus=0.5)(abs)
    for i in range(25):  # an idle lease goes back after 50 ms, the node sleeps after 50 ms: around both
        time.sleep(0.04 + i / 1000)
        assert fastray.get(half.remote(-i), timeout=5) == i


def test_two_tasks_at_once_have_different_gpus(tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    refs = [hold.options(num_gpus=1).remote(path, gate) for _ in range(2)]
    assert eventually(lambda: len(tally(path)) == 2)
    open_gate(gate)
    rows = fastray.get(refs, timeout=GET_S)
    assert sorted(ids[0] for ids, _ in rows) == [0, 1]
    assert all(visible == str(ids[0]) for ids, visible in rows)


def test_fractions_share_one_gpu(tmp_path):
    path, gate = str(tmp_path / "tally"), str(tmp_path / "gate")
    refs = [hold.options(num_gpus=0.5, num_cpus=0).remote(path, gate) for _ in range(4)]
    assert eventually(lambda: len(tally(path)) == 4)
    open_gate(gate)
    assert sorted(ids[0] for ids, _ in fastray.get(refs, timeout=GET_S)) == [0, 0, 1, 1]


def test_tasks_without_gpus_see_none():
    ids, visible = fastray.get(
        fastray.remote(lambda: (fastray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"))).remote(),
        timeout=GET_S,
    )
    assert ids == []
    assert visible in ("", None)


def test_gpus_of_a_driver_that_sees_only_some_keep_their_names(run_program):
    run_program(
        """
        import os, fastray
        fastray.init(num_cpus=2, num_gpus=2)
        @fastray.remote(num_gpus=1)
        def which():
            return fastray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]
        ids, visible = fastray.get(which.remote())
        assert visible in ("5", "7"), visible
        """,
        env={"CUDA_VISIBLE_DEVICES": "5,7"},
    )


def test_a_gpu_comes_back_when_its_worker_dies():
    @fastray.remote(num_gpus=2, max_retries=0)
    def doomed():
        kill_self()

    for _ in range(3):
        with pytest.raises(fastray.exceptions.WorkerCrashedError):
            fastray.get(doomed.remote(), timeout=GET_S)
    assert fastray.get(quick.options(num_gpus=2).remote(3), timeout=GET_S) == 3
    assert eventually(lambda: fastray.available_resources().get("GPU") == 2)


# ---- fairness --------------------------------------------------------------------------------------------


def test_a_big_task_is_not_starved_by_a_flood_of_small_ones():
    """Small tasks come without end; one that needs every CPU gets its turn."""
    stop = threading.Event()
    done = []

    def flood():
        while not stop.is_set():
            done.extend(fastray.get([pause.remote() for _ in range(40)], timeout=GET_S))

    @fastray.remote
    def pause():
        time.sleep(0.001)
        return 1

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert eventually(lambda: len(done) > 100)
        for _ in range(3):
            assert fastray.get(quick.options(num_cpus=4).remote(5), timeout=GET_S) == 5
        assert fastray.get(quick.options(num_cpus=3, num_gpus=1).remote(6), timeout=GET_S) == 6
    finally:
        stop.set()
        for thread in threads:
            thread.join(GET_S)


def test_small_tasks_are_not_starved_by_a_flood_of_big_ones():
    @fastray.remote(num_cpus=4)
    def pause():
        time.sleep(0.001)

    flood = [pause.remote() for _ in range(1000)]
    assert fastray.get(quick.remote(5), timeout=GET_S) == 5
    assert fastray.get(quick.options(num_cpus=0.5).remote(6), timeout=GET_S) == 6
    _, left = fastray.wait(flood, num_returns=len(flood), timeout=0)
    assert left  # they got their turn before the flood was over
    fastray.get(flood, timeout=GET_S)


def test_many_classes_at_once_all_end():
    refs = [quick.options(num_cpus=(i % 40) / 10, resources={"lab": (i % 3) / 2}).remote(i) for i in range(600)]
    assert fastray.get(refs, timeout=GET_S) == list(range(600))


def test_nested_tasks_of_other_classes_do_not_deadlock():
    @fastray.remote(num_cpus=4)
    def outer(n):
        if n == 0:
            return fastray.get(quick.options(num_cpus=3).remote(1))
        return fastray.get(outer.options(num_cpus=1 + n % 4).remote(n - 1))

    assert fastray.get([outer.remote(6) for _ in range(4)], timeout=GET_S) == [1] * 4


def test_idle_workers_of_one_class_give_way_to_another():
    for options in ({"num_cpus": 1}, {"num_cpus": 4}, {"num_cpus": 2, "num_gpus": 1}, {"num_cpus": 0.5}) * 3:
        assert fastray.get([quick.options(**options).remote(i) for i in range(10)], timeout=GET_S) == list(range(10))
    assert eventually(lambda: len(worker_pids()) <= 10), worker_pids()


def test_strategies_are_taken():
    from fastray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = fastray.nodes()[0]["NodeID"]
    for strategy in ("DEFAULT", "SPREAD", NodeAffinitySchedulingStrategy(here, soft=False)):
        assert fastray.get(quick.options(scheduling_strategy=strategy).remote(1), timeout=GET_S) == 1
    elsewhere = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(fastray.exceptions.TaskUnschedulableError):
        quick.options(scheduling_strategy=elsewhere).remote(1)
    elsewhere = NodeAffinitySchedulingStrategy("ab" * 28, soft=True)
    assert fastray.get(quick.options(scheduling_strategy=elsewhere).remote(1), timeout=GET_S) == 1


def test_plain_tasks_are_of_the_class_whose_workers_are_there_before_work():
    from fastray.options import DEFAULT_OPTIONS
    from fastray.runtime import current_runtime

    assert current_runtime().scheduling_class(DEFAULT_OPTIONS) == 0
