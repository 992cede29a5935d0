"""Large values on three nodes: they come from where they are, and from another copy when that node dies.

    head      of which this process is a driver; it owns the values
    maker     makes them
    reader    reads them
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import agent_of, far_cluster
from waiting import eventually, note, open_gate, tally, wait_for_gate

import fastray
from fastray.runtime import current_runtime

GET_S = 60
BIG = 1_000_000  # doubles: 8 MB
MADE = {"maker": 0.01}


@pytest.fixture
def cluster(tmp_path):
    with far_cluster(tmp_path / "runtime", head_cpus=1, resources={"maker": 1}) as made:
        made.reader = made.add_node(num_cpus=2, resources={"reader": 1})
        made.wait_for_nodes()
        yield made


@fastray.remote(resources=MADE, num_cpus=0)
def make(log, value):
    note(log)
    return np.full(BIG, float(value))


@fastray.remote(resources={"reader": 0.01}, num_cpus=0)
class Reader:
    def keep(self, refs):
        self.refs = refs
        return float(fastray.get(refs[0])[0])

    def forget(self):
        self.refs = None


@fastray.remote(resources={"reader": 0.01}, num_cpus=0)
def first(array, started=None, gate=None):
    if gate is not None:
        note(started)
        wait_for_gate(gate)
    return float(array[0])


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def made(ref):
    assert fastray.wait([ref], fetch_local=False, timeout=GET_S)[0] == [ref]
    return ref


def bytes_here():
    current_runtime().attachment.counters()
    return current_runtime().attachment.store_usage()["object_bytes"]


def test_a_value_goes_straight_to_who_reads_it(cluster, tmp_path):
    refs = [made(make.remote(str(tmp_path / "log"), n)) for n in range(3)]
    assert get([first.remote(ref) for ref in refs]) == [0.0, 1.0, 2.0]
    assert bytes_here() < 8 * BIG  # none of them came by here
    assert [get(ref)[0] for ref in refs] == [0.0, 1.0, 2.0]
    assert bytes_here() > 3 * 8 * BIG


def test_a_copy_serves_when_the_node_that_made_the_value_dies(cluster, tmp_path):
    log = str(tmp_path / "log")
    ref = made(make.remote(log, 7))
    reader = Reader.remote()
    assert get(reader.keep.remote([ref])) == 7.0
    assert bytes_here() < 8 * BIG
    cluster.kill_node(cluster.far_node)
    assert np.array_equal(get(ref), np.full(BIG, 7.0))
    assert len(tally(log)) == 1
    assert get(first.remote(ref)) == 7.0


def test_without_a_copy_it_is_computed_again(cluster, tmp_path):
    log = str(tmp_path / "log")
    ref = made(make.remote(log, 7))
    reader = Reader.remote()
    assert get(reader.keep.remote([ref])) == 7.0
    get(reader.forget.remote())
    node = cluster.add_node(num_cpus=1, resources={"maker": 1})
    cluster.wait_for_nodes()
    attached = fastray.remote(resources={"reader": 0.01}, num_cpus=0)(bytes_here)
    assert eventually(lambda: get(attached.remote()) < 8 * BIG)  # the reader's copy is gone
    cluster.kill_node(cluster.far_node)
    assert np.array_equal(get(ref), np.full(BIG, 7.0))
    assert len(tally(log)) == 2
    assert node.alive


def test_a_transfer_whose_source_dies_goes_on_from_another_copy(cluster, tmp_path):
    log = str(tmp_path / "log")
    ref = made(make.remote(log, 7))
    reader = Reader.remote()
    assert get(reader.keep.remote([ref])) == 7.0
    third = cluster.add_node(num_cpus=1, resources={"third": 1})
    cluster.wait_for_nodes()
    agent = agent_of(cluster.far_node)
    os.kill(agent, signal.SIGSTOP)  # it takes the question and does not answer
    try:
        answer = first.options(resources={"third": 0.01}).remote(ref)
        assert not fastray.wait([answer], timeout=0.5)[0]
    finally:
        cluster.kill_node(cluster.far_node)
    assert get(answer) == 7.0
    assert len(tally(log)) == 1
    assert third.alive


def test_what_only_the_dead_node_had_is_computed_again_for_who_was_reading_it(cluster, tmp_path):
    log = str(tmp_path / "log")
    ref = made(make.remote(log, 7))
    cluster.add_node(num_cpus=1, resources={"maker": 1})
    cluster.wait_for_nodes()
    os.kill(agent_of(cluster.far_node), signal.SIGSTOP)
    answer = first.remote(ref)
    assert not fastray.wait([answer], timeout=0.5)[0]
    cluster.kill_node(cluster.far_node)
    assert get(answer) == 7.0
    assert len(tally(log)) == 2


def test_values_that_hold_references_arrive_with_them(cluster, tmp_path):
    @fastray.remote(resources=MADE, num_cpus=0)
    def nested():
        return np.ones(BIG), [fastray.put(np.full(BIG, 2.0)), fastray.put("small")]

    @fastray.remote(resources={"reader": 0.01}, num_cpus=0)
    def read(value):
        array, refs = value
        return float(array[0]), float(fastray.get(refs[0])[0]), fastray.get(refs[1])

    ref = made(nested.remote())
    assert get(read.remote(ref)) == (1.0, 2.0, "small")
    assert get(get(ref)[1][1]) == "small"


def test_the_stores_object_table_knows_where_values_are(cluster, tmp_path):
    from fastray.cluster.launch import find_token
    from fastray.gcs import commands
    from fastray.gcs.client import GcsClient

    head = cluster.head_node
    store = GcsClient(head.address, find_token(head.address, head.session_path))

    def nodes_of(key):
        found = store.call(commands.ObjectsLocate([key]))[0]
        return None if found is None else sorted(node.hex() for node in found[1])

    ref = made(make.remote(str(tmp_path / "log"), 7))
    key = ref.binary()
    maker, reader = cluster.far_node.node_id, cluster.reader.node_id
    assert eventually(lambda: nodes_of(key) == [maker])
    size, _, task = store.call(commands.ObjectsLocate([key]))[0]
    assert size > 8 * BIG
    assert task.hex() == ref.task_id()
    actor = Reader.remote()
    assert get(actor.keep.remote([ref])) == 7.0
    assert eventually(lambda: nodes_of(key) == sorted([maker, reader]))
    assert get(ref)[0] == 7.0
    assert eventually(lambda: nodes_of(key) == sorted([maker, reader, head.node_id]))
    del ref
    get(actor.forget.remote())
    assert eventually(lambda: bytes_here() is not None and nodes_of(key) is None)
    store.close()


def test_nothing_is_left_of_copies_that_nobody_needs(cluster, tmp_path):
    gate, started = str(tmp_path / "gate"), str(tmp_path / "started")
    ref = made(make.remote(str(tmp_path / "log"), 7))
    answers = [first.remote(ref, started, gate) for _ in range(2)]
    assert eventually(lambda: len(tally(started)) == 2)
    open_gate(gate)
    assert get(answers) == [7.0, 7.0]
    del ref, answers
    for resource in ("reader", "maker"):
        used = fastray.remote(resources={resource: 0.01}, num_cpus=0)(bytes_here)
        assert eventually(lambda used=used: get(used.remote()) < 8 * BIG)
