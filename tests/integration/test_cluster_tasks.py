"""Tasks and objects across two nodes of this machine: whatever works on one node works there.

    far      what only the second node has; a task that asks for it runs there
    driver   of the head, for the module
"""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import far_cluster
from integration_helpers import eventually, note, open_gate, tally, wait_for_gate

import fastray
from fastray._native import link as native
from fastray.exceptions import GetTimeoutError, TaskCancelledError, TaskUnschedulableError
from fastray.util.scheduling_strategies import In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy

GET_S = 60
BIG = 200_000  # doubles: 1.6 MB, stays where it is made and moves by Flight

far = fastray.remote(resources={"far": 0.01}, num_cpus=0)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    with far_cluster(folder, resources={"far": 4}, labels={"zone": "far"}) as made:
        yield made


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def here():
    return fastray.get_runtime_context().get_node_id()


@far
def where():
    return fastray.get_runtime_context().get_node_id()


@far
def make(value, n=BIG):
    return np.full(n, float(value))


@far
def total(array):
    return float(array.sum()), fastray.get_runtime_context().get_node_id()


@fastray.remote
def total_here(array):
    return float(array.sum()), fastray.get_runtime_context().get_node_id()


# ---- tasks -------------------------------------------------------------------------------------------------


def test_a_task_runs_where_its_resources_are(cluster):
    assert get(where.remote()) == cluster.far_node.node_id
    assert get(fastray.remote(lambda: 1).remote()) == 1
    assert here() == cluster.head_node.node_id


def test_thousands_of_tasks_each_have_their_result():
    add = far(lambda a, b=0: a + b)
    assert get([add.remote(i) for i in range(5000)]) == list(range(5000))
    assert get([add.remote(i, b=1) for i in range(100)]) == list(range(1, 101))


def test_arguments_of_every_kind_travel(cluster):
    small, big = fastray.put([1, 2]), fastray.put(np.ones(BIG))
    pending = fastray.remote(lambda: time.sleep(0.2) or 5).remote()

    @far
    def use(a, b, c, text, *, nested):
        inner = fastray.get(nested["ref"])
        return a, float(b.sum()), c, len(text), inner

    assert get(use.remote(small, big, pending, "x" * 5000, nested={"ref": small})) == ([1, 2], BIG, 5, 5000, [1, 2])


def test_functions_bring_their_closures():
    kept = fastray.put(np.arange(10))
    offset = 7

    @far
    def use():
        return int(fastray.get(kept).sum()) + offset

    assert get(use.remote()) == 52


def test_an_exception_comes_back_as_itself():
    @far
    def fail():
        raise KeyError("far away")

    with pytest.raises(KeyError, match="far away"):
        get(fail.remote())


def test_several_returns_and_streams():
    @fastray.remote(num_returns=3, resources={"far": 0.01}, num_cpus=0)
    def three():
        return 1, np.ones(BIG), "x"

    one, array, text = get(three.remote())
    assert (one, array.sum(), text) == (1, BIG, "x")

    @far
    def count(n):
        for i in range(n):
            yield i, np.zeros(50)
        if n == 3:
            raise ValueError("enough")

    assert [get(ref)[0] for ref in count.remote(500)] == list(range(500))
    stream = count.remote(3)
    assert [get(next(stream))[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="enough"):
        get(next(stream))


def test_a_stream_waits_for_its_consumer(tmp_path):
    made = str(tmp_path / "made")

    @fastray.remote(resources={"far": 0.01}, num_cpus=0, _generator_backpressure_num_objects=3)
    def count():
        for i in range(30):
            note(made)
            yield i

    stream = count.remote()
    first = get(next(stream))
    assert eventually(lambda: len(tally(made)) >= 4)
    assert len(tally(made)) < 20  # some wait there, some here
    assert [first] + [get(ref) for ref in stream] == list(range(30))


def test_a_task_there_submits_tasks_there_and_here(cluster):
    @far
    def outer():
        inner = fastray.remote(num_cpus=0)(lambda: fastray.get_runtime_context().get_node_id())
        return fastray.get(inner.remote())

    assert get(outer.remote()) == cluster.far_node.node_id


def test_references_in_results_are_held_by_who_gets_them():
    @far
    def make_refs():
        return [fastray.put(np.ones(BIG)), fastray.put("small"), 3]

    array, text, three = get(make_refs.remote())
    assert (get(array).sum(), get(text), three) == (BIG, "small", 3)


# ---- where -------------------------------------------------------------------------------------------------


def test_strategies_name_nodes(cluster):
    node_id = fastray.remote(num_cpus=0)(lambda: fastray.get_runtime_context().get_node_id())
    for node in (cluster.head_node, cluster.far_node):
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        assert get(node_id.options(scheduling_strategy=strategy).remote()) == node.node_id
    labels = NodeLabelSchedulingStrategy({"zone": In("far")})
    assert get(node_id.options(scheduling_strategy=labels).remote()) == cluster.far_node.node_id
    assert get(node_id.options(label_selector={"zone": "far"}).remote()) == cluster.far_node.node_id
    spread = {get(node_id.options(scheduling_strategy="SPREAD").remote()) for _ in range(8)}
    assert spread == {cluster.head_node.node_id, cluster.far_node.node_id}


def test_tasks_that_would_wait_long_go_where_there_is_room(cluster):
    @fastray.remote
    def slow():
        time.sleep(0.4)
        return fastray.get_runtime_context().get_node_id()

    nodes = get([slow.remote() for _ in range(8)])
    assert set(nodes) == {cluster.head_node.node_id, cluster.far_node.node_id}


def test_what_no_node_has_is_said_at_once():
    with pytest.raises(TaskUnschedulableError, match="nowhere"):
        get(fastray.remote(resources={"nowhere": 1})(abs).remote(1))
    gone = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(TaskUnschedulableError, match="not alive"):
        get(fastray.remote(scheduling_strategy=gone)(abs).remote(1))


# ---- large values ------------------------------------------------------------------------------------------


def test_a_large_result_is_fetched_when_it_is_asked_for():
    ref = make.remote(3)
    assert fastray.wait([ref], fetch_local=False, timeout=GET_S)[0] == [ref]
    assert np.array_equal(get(ref), np.full(BIG, 3.0))


def test_a_task_follows_its_large_argument_or_has_it_brought(cluster):
    ref = make.remote(4)
    assert get(total.remote(ref)) == (4.0 * BIG, cluster.far_node.node_id)
    assert get(total_here.options(num_cpus=1).remote(ref))[0] == 4.0 * BIG
    put = fastray.put(np.ones(BIG))
    assert get(total.remote(put)) == (BIG, cluster.far_node.node_id)


def test_a_value_of_many_parts_arrives_whole():
    @far
    def parts():
        return [np.arange(n, dtype=np.uint8) for n in (0, 1, 5_000_000, 3, 9_000_000)], "text" * 1000

    arrays, text = get(parts.remote())
    assert [len(a) for a in arrays] == [0, 1, 5_000_000, 3, 9_000_000]
    assert all(np.array_equal(a, np.arange(len(a), dtype=np.uint8)) for a in arrays)
    assert text == "text" * 1000


def test_what_nobody_holds_is_given_back_on_both_nodes(cluster):
    @far
    def used():
        from fastray.runtime import current_runtime

        return current_runtime().attachment.store_usage()["object_bytes"]

    def both():
        from fastray.runtime import current_runtime

        attachment = current_runtime().attachment
        attachment.counters()
        return attachment.store_usage()["object_bytes"] + get(used.remote())

    refs = [make.remote(i) for i in range(5)]
    get([total.remote(ref) for ref in refs])
    get(refs)
    full = both()
    assert full > 8 * 8 * BIG
    del refs
    assert eventually(lambda: both() < 4 * 8 * BIG)


# ---- stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_task_there_is_cancelled(tmp_path, force):
    started = str(tmp_path / "started")

    @far
    def long():
        note(started)
        time.sleep(600)

    ref = long.remote()
    assert eventually(lambda: tally(started))
    fastray.cancel(ref, force=force)
    with pytest.raises(TaskCancelledError):
        get(ref)


def test_a_task_that_waits_there_is_cancelled(tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote(resources={"far": 4}, num_cpus=0)
    def hold():
        wait_for_gate(gate)

    first, second = hold.remote(), hold.remote()
    with pytest.raises(GetTimeoutError):
        fastray.get(second, timeout=0.2)
    fastray.cancel(second)
    with pytest.raises(TaskCancelledError):
        get(second)
    open_gate(gate)
    get(first)


def test_what_tasks_print_there_is_printed_here(capfd):
    @far
    def say():
        print("hello from far", flush=True)

    get(say.remote())
    assert eventually(lambda: "hello from far" in capfd.readouterr().out)


def test_the_node_knows_that_it_is_in_a_cluster():
    from fastray.runtime import current_runtime

    assert current_runtime().attachment.clustered
    assert native.ROUTE_CLASS != native.FETCH_CLASS


def test_drivers_that_come_one_after_the_other_have_their_functions_there(cluster, run_program):
    """The same function, at the same place of the table, is another one in the next job."""
    run_program(
        """
        import sys
        import fastray

        @fastray.remote(resources={"far": 0.01}, num_cpus=0)
        def far(n):
            return n + 1

        for n in range(12):
            fastray.init(address=sys.argv[1])
            assert fastray.get(far.remote(n), timeout=60) == n + 1
            fastray.shutdown()
        """,
        cluster.address,
    )
