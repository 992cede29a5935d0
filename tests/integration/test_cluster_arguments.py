"""Large arguments and values between two nodes: what is passed by value, and what is no array.

    large    a megabyte and more: it goes by Flight, and the task waits for it at the node where it runs
    far      what only the second node has
"""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import far_cluster
from integration_helpers import eventually, note, open_gate, tally, wait_for_gate

import fastray
from fastray.exceptions import TaskCancelledError

GET_S = 60
LARGE = 400_000  # doubles: 3.2 MB

far = fastray.remote(resources={"far": 0.01}, num_cpus=0)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    with far_cluster(folder, resources={"far": 4}) as made:
        yield made


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def array(value, n=LARGE):
    return np.full(n, float(value))


def objects(count):
    """A value without buffers: its pickle is large."""
    return [(i, str(i)) for i in range(count)]


@far
def describe(first, *rest, named=None):
    return float(first.sum()), len(rest), [float(part.sum()) for part in rest], named and len(named)


def test_arrays_by_value():
    assert get(describe.remote(array(1))) == (LARGE, 0, [], None)
    assert get(describe.remote(array(1), array(2), array(0, 3), named=objects(3))) == (LARGE, 2, [2 * LARGE, 0], 3)


def test_beside_references_of_all_kinds():
    there = far(array).remote(3)
    small = fastray.put(np.ones(4))
    refs = [describe.remote(array(1), there, small, fastray.put(array(5))) for _ in range(5)]
    assert get(refs) == [(LARGE, 3, [3 * LARGE, 4, 5 * LARGE], None)] * 5


def test_arguments_and_values_without_buffers():
    many = objects(200_000)
    back = far(lambda given: (given, objects(150_000)))
    given, made = get(back.remote(many))
    assert given == many
    assert made == objects(150_000)
    text = os.urandom(3 << 20)
    assert get(far(lambda data: data[::-1]).remote(text)) == text[::-1]


def test_references_inside_a_large_argument():
    inside = fastray.put(array(7))

    @far
    def look(given):
        return float(get(given["ref"]).sum()) + float(given["array"].sum())

    assert get(look.remote({"ref": inside, "array": array(1)})) == 8 * LARGE


@pytest.mark.parametrize("larger", ["here", "there"])
def test_a_task_goes_where_most_of_its_arguments_are(cluster, larger):
    here = array(1, 10 * LARGE if larger == "here" else LARGE)
    runs = fastray.remote(lambda *given: fastray.get_runtime_context().get_node_id())
    node = cluster.head_node if larger == "here" else cluster.far_node
    for argument in (fastray.put(here), here):  # by value too
        there = far(array).remote(1, 10 * LARGE if larger == "there" else LARGE)
        fastray.wait([there], fetch_local=False)
        assert eventually(lambda: fastray.available_resources().get("CPU") == 4)  # nobody seems to be busy
        assert get(runs.remote(there, argument)) == node.node_id


def test_many_at_once():
    refs = [describe.remote(array(i, 200_000)) for i in range(40)]
    assert [found[0] for found in get(refs)] == [200_000.0 * i for i in range(40)]


def test_hundreds_that_go_in_frames():
    """Each below a megabyte: what waits in a node's memory to be sent is bounded."""
    values = [np.full(100_000, float(i)) for i in range(4)]
    refs = [describe.remote(values[i % 4]) for i in range(150)]
    assert [found[0] for found in get(refs)] == [100_000.0 * (i % 4) for i in range(150)]


@fastray.remote(resources={"far": 0.01}, num_cpus=0, max_restarts=1)
class Holder:
    def __init__(self, given):
        self.given = given
        self.seen = []

    def see(self, what):
        self.seen.append(float(np.sum(what)))

    def all(self):
        return self.seen

    def sum_and_pid(self):
        return float(self.given.sum()), os.getpid()

    def die(self):
        os._exit(1)


def test_calls_of_an_actor_stay_in_their_order():
    holder = Holder.remote(np.ones(1))
    for i in range(30):
        holder.see.remote(array(i, 200_000) if i % 3 == 0 else i)
    assert get(holder.all.remote()) == [i * (200_000.0 if i % 3 == 0 else 1) for i in range(30)]


def test_an_actor_is_made_with_large_arguments_and_again():
    holder = Holder.remote(array(2))
    total, pid = get(holder.sum_and_pid.remote())
    assert total == 2 * LARGE
    holder.die.remote()

    def again():
        try:
            return get(holder.sum_and_pid.remote())
        except fastray.exceptions.ActorUnavailableError:
            return None

    total, other = eventually(again)
    assert (total, other != pid) == (2 * LARGE, True)


def test_a_retry_has_them_too(tmp_path):
    @fastray.remote(resources={"far": 0.01}, num_cpus=0, max_retries=2)
    def dies_twice(given):
        note(tmp_path / "runs")
        if len(tally(tmp_path / "runs")) < 3:
            os._exit(1)
        return float(given.sum())

    assert get(dies_twice.remote(array(4))) == 4 * LARGE


def test_cancelled_while_they_are_there(tmp_path):
    @fastray.remote(resources={"far": 3.5}, num_cpus=0)
    def block():
        open_gate(tmp_path / "begun")
        wait_for_gate(tmp_path / "gate")

    blocker = block.remote()
    wait_for_gate(tmp_path / "begun")
    waiting = [describe.options(resources={"far": 1}).remote(array(i)) for i in range(4)]
    for ref in waiting[:2]:
        fastray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            get(ref)
    open_gate(tmp_path / "gate")
    assert [found[0] for found in get(waiting[2:])] == [2 * LARGE, 3 * LARGE]
    get(blocker)


@far
def used():
    """Bytes of objects in the far node's store."""
    from fastray.runtime import current_runtime

    attachment = current_runtime().attachment
    attachment.counters()
    return attachment.store_usage()["object_bytes"]


def test_nothing_is_kept_of_arguments():
    """At either node, when their tasks are done and nobody has a reference."""
    before = get(used.remote())
    get([describe.remote(array(1)) for _ in range(10)])
    assert eventually(lambda: get(used.remote()) < before + 2 * 8 * LARGE)


def test_nothing_is_kept_of_closures_when_their_driver_has_ended(cluster, run_program):
    before = get(used.remote())
    program = f"""
        import fastray, numpy as np
        fastray.init(address={cluster.address!r})
        held = [fastray.put(np.ones({LARGE})) for _ in range(5)]

        @fastray.remote(resources={{"far": 0.01}}, num_cpus=0)
        def total():
            return sum(fastray.get(ref).sum() for ref in held)

        print(fastray.get(total.remote()), fastray.get(total.remote()))
    """
    assert run_program(program).stdout.split() == [str(5.0 * LARGE)] * 2
    assert eventually(lambda: get(used.remote()) < before + 8 * LARGE)
