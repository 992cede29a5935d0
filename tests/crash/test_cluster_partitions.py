"""What a cluster does when packets between its machines are lost, and when a machine loses its power. Silence only: no
socket is closed, unless it says so. See tests/namespaces.py.

    head      a machine of which this process is a driver
    one, two  machines with nodes that have "far"
    cut       a machine, from all others; `mend` joins it again
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from cluster_helpers import alive, row_of, rows
from namespaces import Network, missing
from waiting import eventually, note, open_gate, tally, wait_for_gate

import fastray
from fastray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = [pytest.mark.crash, pytest.mark.skipif(bool(missing()), reason=missing())]
GET_S = 60
BIG = 200_000  # doubles: 1.6 MB, stays where it is made and moves by Flight
HUGE = 32_000_000  # 256 MB
TRIES = 5
SHORT_S = 1.0  # of the 2.5 that a node may be silent

far = fastray.remote(resources={"far": 1}, num_cpus=0)


@contextmanager
def lay(folder):
    with Network(folder) as made:
        made.head = made.machine()
        made.head.start("--num-cpus=1", '--resources={"other": 4}')
        made.one = far_machine(made, "one")
        assert sees(made, made.head, made.one)
        yield made


@pytest.fixture
def network(tmp_path):
    """For a test that takes a node away: `head` and `one`."""
    with lay(tmp_path / "network") as made, fastray.init(address=made.head.path):
        yield made


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    with lay(tmp_path_factory.mktemp("lasting")) as made:
        second_far(made)
        yield made


@pytest.fixture
def whole(lasting):
    """For tests after which it is as before: `head`, `one` and `two`."""
    with fastray.init(address=lasting.head.path):
        yield lasting


def far_machine(network, name):
    machine = network.machine()
    resources = {"far": 8, "other": 8 * (name == "two"), name: 8}
    machine.start("--num-cpus=2", f"--resources={json.dumps(resources)}", head=network.head)
    return machine


def second_far(network):
    network.two = far_machine(network, "two")
    assert sees(network, *network.machines)
    return network.two


def sees(network, *machines):
    """Waits until the head sees exactly these alive."""
    return eventually(lambda: alive(network.head) == {machine.node_id for machine in machines})


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def on(machine, function):
    return fastray.remote(function).options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
    )


def where():
    return fastray.get_runtime_context().get_node_id()


@far
def hold(started, gate):
    note(started, where())
    wait_for_gate(gate)
    note(gate + ".passed", where())
    return where()


@far
def make(log, value, n=BIG):
    note(log)
    return np.full(n, float(value))


def first(array):
    return float(array[0])


def made(refs):
    assert len(fastray.wait(refs, num_returns=len(refs), fetch_local=False, timeout=GET_S)[0]) == len(refs)
    return refs


@fastray.remote(resources={"far": 1}, num_cpus=0, max_restarts=5, checkpoint_calls=10)
class Counter:
    def __init__(self):
        self.n = 0

    def __fastray_save__(self):
        return self.n

    def __fastray_restore__(self, n):
        self.n = n

    def add(self):
        self.n += 1
        return self.n, where()


# ---- a node that is cut off --------------------------------------------------------------------------------


def test_what_a_node_did_that_is_cut_off_goes_on_elsewhere(network, tmp_path):
    started, gate, log = (str(tmp_path / name) for name in ("started", "gate", "log"))
    one, old = network.one, network.one.node_id
    counter = Counter.remote()
    assert get([counter.add.remote() for _ in range(15)])[-1] == (15, old)
    values = made([make.remote(log, k) for k in range(3)])
    refs = [hold.remote(started, gate) for _ in range(3)]
    assert eventually(lambda: len(tally(started)) == 3)
    two = second_far(network)
    network.cut(one)
    assert sees(network, network.head, two)
    assert rows(network.head)[old]["reason"].startswith("no heartbeat")
    assert eventually(lambda: len(tally(started)) == 6)
    assert get(counter.add.remote()) == (16, two.node_id)
    assert [first(get(value)) for value in values] == [0.0, 1.0, 2.0]
    assert len(tally(log)) == 6
    open_gate(gate)
    assert get(refs) == [two.node_id] * 3


def test_a_node_that_comes_back_is_fenced_and_begins_anew(network, tmp_path):
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    one, old = network.one, network.one.node_id
    refs = [hold.remote(started, gate) for _ in range(3)]
    assert eventually(lambda: len(tally(started)) == 3)
    epoch = row_of(network.head, one)["epoch"]
    one.unplug()
    assert sees(network, network.head)
    open_gate(gate)
    assert eventually(lambda: tally(gate + ".passed") == [old] * 3)  # the results are there, and cannot be told
    one.plug()
    assert eventually(lambda: one.info.get("node_id", old) != old)
    assert sees(network, network.head, one)
    assert row_of(network.head, one)["epoch"] > epoch
    assert get(refs) == [one.node_id] * 3
    assert len(tally(started)) == 6
    assert get(on(one, where).remote()) == one.node_id


def test_transfers_from_a_node_that_vanished_hold_up_no_others(network, tmp_path):
    """More of them than there are threads for transfers."""
    log = str(tmp_path / "log")
    refs = made([make.remote(log, k, HUGE // 4) for k in range(8)])
    second_far(network)
    at = network.one.sent()
    found = []
    thread = threading.Thread(target=lambda: found.extend(get(refs)))
    thread.start()
    assert eventually(lambda: network.one.sent() > at + (8 << 20))
    network.cut(network.one, one_way=True)
    thread.join(GET_S)
    assert [(first(array), array.shape) for array in found] == [(float(k), (HUGE // 4,)) for k in range(8)]


# ---- a short cut -------------------------------------------------------------------------------------------


def lives(network):
    return {node_id: (row["state"], row["epoch"]) for node_id, row in rows(network.head).items()}


def mend_soon(network):
    time.sleep(SHORT_S)  # how long the cut is, not what is waited for
    network.mend(network.one)


def test_a_short_cut_in_a_stream_of_tasks_is_not_noticed(whole):
    before, done, results = lives(whole), threading.Event(), []

    def submit():
        add = on(whole.one, lambda x: x + 1)
        begin = 0
        while not done.is_set():
            results.append((begin, get([add.remote(begin + k) for k in range(500)])))
            begin += 500

    thread = threading.Thread(target=submit)
    thread.start()
    assert eventually(lambda: results)
    whole.cut(whole.one)
    mend_soon(whole)
    windows = len(results)
    assert eventually(lambda: len(results) > windows + 1)
    done.set()
    thread.join(GET_S)
    assert all(got == list(range(begin + 1, begin + 501)) for begin, got in results)
    assert lives(whole) == before


def test_a_short_cut_in_a_transfer_is_not_noticed(whole, tmp_path):
    log = str(tmp_path / "log")
    before = lives(whole)
    for attempt in range(1, TRIES + 1):  # until the cut comes before the end of the transfer
        (value,) = made([make.options(resources={"one": 1}).remote(log, attempt, HUGE)])
        found = []
        at = whole.one.sent()
        thread = threading.Thread(target=lambda: found.append(get(value)))  # noqa: B023
        thread.start()
        assert eventually(lambda: whole.one.sent() > at + (8 << 20))  # noqa: B023
        whole.cut(whole.one)
        hit = whole.one.sent() < at + 8 * HUGE and not found
        mend_soon(whole)
        thread.join(GET_S)
        assert found[0].shape == (HUGE,)
        assert found[0].min() == found[0].max() == attempt
        if hit:
            break
    assert hit
    assert len(tally(log)) == attempt
    assert lives(whole) == before


LOCAL = """
import fastray
fastray.init(address="auto")
say("attached")
add = fastray.remote(lambda x: x + 1)
try:
    for line in sys.stdin:
        say(fastray.get([add.remote(i) for i in range(200)], timeout=60) == list(range(1, 201)))
except fastray.exceptions.LocalRayletDiedError:
    say("its node died")
"""


def test_nodes_work_on_while_the_head_is_cut_off_for_a_short_time(whole):
    before = lives(whole)
    with whole.one.driver(LOCAL) as driver:
        assert driver.hears() == ["attached"]
        whole.cut(whole.head)
        for _ in range(5):
            driver.tell()
            assert driver.hears() == [True]
        whole.mend(whole.head)
        assert get(on(whole.one, where).remote()) == whole.one.node_id
        driver.tell()
        assert driver.hears() == [True]
    assert lives(whole) == before


# ---- two nodes that do not reach each other ----------------------------------------------------------------


def test_two_nodes_that_do_not_reach_each_other_go_on(whole, tmp_path):
    one, two = whole.one, whole.two
    log = str(tmp_path / "log")
    values = made([make.options(resources={"one": 1}).remote(log, k) for k in range(2)])
    small = on(one, lambda: 7).remote()
    assert get([on(two, first).remote(values[0]), small]) == [0.0, 7]
    before = lives(whole)
    whole.cut(one, two)
    assert get(on(two, first).remote(values[1])) == 1.0  # by way of the head, or computed again
    assert get([on(two, lambda x: x).remote(small), on(one, lambda x: x).remote(small)]) == [7, 7]
    nested = fastray.remote(resources={"other": 1}, num_cpus=0)(where)
    submit = fastray.remote(lambda n: fastray.get([nested.remote() for _ in range(n)], timeout=GET_S))
    found = get(submit.options(num_cpus=0, resources={"one": 1}).remote(20))
    assert set(found) == {whole.head.node_id}  # of two that could, the one that it reaches
    whole.mend(one, two)
    there = fastray.remote(lambda: fastray.get(fastray.remote(where).options(resources={"two": 1}).remote()))
    assert get(there.options(resources={"one": 1}).remote()) == two.node_id
    assert lives(whole) == before


# ---- power loss --------------------------------------------------------------------------------------------

SIBLING = """
import fastray
fastray.init(address=sys.argv[1])
stuck = fastray.remote(lambda: __import__("signal").pause()).remote()
say("attached")
try:
    fastray.get(stuck, timeout=60)
except fastray.exceptions.LocalRayletDiedError:
    say("its node died")
"""


@pytest.mark.parametrize("linked", [True, False], ids=["its sockets are closed", "nobody hears of it"])
def test_a_machine_loses_its_power(network, tmp_path, linked):
    started, gate, log = (str(tmp_path / name) for name in ("started", "gate", "log"))
    one, old = network.one, network.one.node_id
    (lost,) = made([make.remote(log, 6)])
    refs = [hold.remote(started, gate) for _ in range(4)]
    assert eventually(lambda: len(tally(started)) == 4)
    two = second_far(network)
    (kept,) = made([make.options(resources={"two": 1}).remote(log, 7)])
    with two.driver(SIBLING, one.path) as driver:
        assert driver.hears() == ["attached"]
        if not linked:
            network.cut(one)
        one.off()
        assert driver.hears() == ["its node died"]
    assert sees(network, network.head, two)
    assert rows(network.head)[old]["reason"].startswith("its connection closed" if linked else "no heartbeat")
    open_gate(gate)
    assert set(get(refs)) == {two.node_id}
    assert [first(get(lost)), first(get(kept))] == [6.0, 7.0]
    assert len(tally(log)) == 3


# ---- the head is cut off -----------------------------------------------------------------------------------

def test_nodes_work_on_while_the_head_is_cut_off_and_begin_anew_when_it_is_back(network):
    head, one, old = network.head, network.one, network.one.node_id
    with one.driver(LOCAL) as driver:
        assert driver.hears() == ["attached"]
        network.cut(head)
        assert sees(network, head)  # and the other node sees nothing
        driver.tell()
        assert driver.hears() == [True]
        assert get(fastray.remote(where).remote()) == head.node_id
        network.mend(head)
        assert eventually(lambda: one.info.get("node_id", old) != old)
        driver.tell()
        assert driver.hears() == ["its node died"]
    assert sees(network, head, one)
    assert get(on(one, where).remote()) == one.node_id
