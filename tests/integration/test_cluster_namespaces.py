"""A cluster of machines of their own: each node has its network namespace, with an address, and its PID namespace. See
tests/namespaces.py.

    head, far    two machines with a node each; this process is a driver of the head's, in another PID namespace
    guest        a machine without a node
"""

from __future__ import annotations

import contextlib
import os
import re

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from integration_helpers import eventually, note, open_gate, tally, wait_for_gate
from namespaces import Network, missing

import fastray
from fastray.exceptions import TaskCancelledError
from fastray.util import state

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
GET_S = 60
BIG = 4_000_000  # doubles: 32 MB, in two parts by Flight
TRIES = 20

far = fastray.remote(resources={"far": 0.01}, num_cpus=0)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with Network(tmp_path_factory.mktemp("network")) as made:
        made.head, made.far, made.guest = (made.machine() for _ in range(3))
        made.head.start("--num-cpus=2")
        made.far.start("--num-cpus=2", '--resources={"far": 4}', head=made.head)
        yield made


@pytest.fixture
def cluster(network):
    with fastray.init(address=network.head.path):
        assert eventually(lambda: len(fastray.nodes()) >= 2)
        yield network


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def where():
    return fastray.get_runtime_context().get_node_id()


def total(array):
    return float(array.sum())


@fastray.remote
class Keeper:
    def __init__(self):
        self.kept = []

    def keep(self, value):
        self.kept.append(value)
        return len(self.kept)

    def pid(self):
        return os.getpid()


# ---- addresses of their own --------------------------------------------------------------------------------


def test_nodes_have_the_addresses_of_their_machines(cluster):
    head, node = cluster.head, cluster.far
    found = {row["NodeID"]: row for row in fastray.nodes() if row["Alive"]}
    assert {found[machine.node_id]["NodeManagerAddress"] for machine in (head, node)} == {head.host, node.host}
    assert fastray.cluster_resources()[f"node:{node.host}"] == 1.0
    for machine in (head, node):
        shown = machine.command("status").stdout
        assert f"Cluster at {head.host}:6379: 2 nodes alive" in shown
        assert f"at {node.host}, pid {node.info['pid']}" in shown


def test_tasks_and_objects_go_both_ways(cluster):
    assert get(far(where).remote()) == cluster.far.node_id
    assert get([far(lambda x: x + 1).remote(i) for i in range(2000)]) == list(range(1, 2001))
    array = np.arange(BIG, dtype=float)
    assert get(far(total).remote(fastray.put(array))) == array.sum()
    made = far(lambda n: np.arange(n, dtype=float)).remote(BIG)
    assert np.array_equal(get(made), array)
    assert get(fastray.remote(total).remote(made)) == array.sum()


def test_actors_are_found_from_both_machines(cluster):
    keeper = Keeper.options(name="keeper", resources={"far": 0.01}, num_cpus=0, namespace="shop").remote()
    assert get([keeper.keep.remote(i) for i in range(5)]) == [1, 2, 3, 4, 5]
    source = """
import fastray
fastray.init(address="auto", namespace="shop")
keeper = fastray.get_actor("keeper")
say(fastray.get(keeper.keep.remote("mine"), timeout=60), len(fastray.nodes()))
"""
    assert cluster.far.program(source) == [[6, 2]]
    assert cluster.head.program(source) == [[7, 2]]


# ---- who may join ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"), [({}, "no token"), ({"FASTRAY_AUTH_TOKEN": "x" * 43}, "the wrong token")], ids=["none", "wrong"]
)
def test_a_machine_without_the_token_does_not_join(cluster, given, said):
    address = cluster.head.info["gcs"]
    done = cluster.guest.command("start", f"--address={address}", **given)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert len([row for row in fastray.nodes() if row["Alive"]]) == 2
    assert not list(cluster.guest.folder.glob("session-*"))


def test_a_machine_with_the_token_joins_and_leaves(cluster):
    guest = cluster.guest
    guest.start("--num-cpus=1", '--resources={"guest": 1}', head=cluster.head)
    assert get(fastray.remote(where).options(resources={"guest": 1}).remote()) == guest.node_id
    assert guest.command("stop").returncode == 0
    assert eventually(lambda: len([row for row in fastray.nodes() if row["Alive"]]) == 2)


# ---- equal pids --------------------------------------------------------------------------------------------


def twins(cluster, make):
    """make(options) here and there, tried until both have one pid: (near, there, pid). `make` returns what it made, and
    its pid."""
    for attempt in range(TRIES):
        made = []
        for machine in (cluster.head, cluster.far):
            machine.next_pid(1000 + 50 * attempt)
            here = {"num_cpus": 0, "resources": {f"node:{machine.host}": 0.01}}
            made.append(make(here, attempt))
        if made[0][1] == made[1][1]:
            return made[0][0], made[1][0], made[0][1]
    raise AssertionError("no two processes had one pid")


def actor_twins(cluster):
    def make(here, _):
        actor = Keeper.options(**here).remote()
        return actor, get(actor.pid.remote())

    return twins(cluster, make)


@pytest.mark.parametrize("killed", [0, 1], ids=["here", "there"])
def test_a_kill_ends_the_actor_that_is_meant(cluster, killed):
    *pair, _ = actor_twins(cluster)
    wanted = {pair[0]._actor_id.hex(): cluster.head.node_id, pair[1]._actor_id.hex(): cluster.far.node_id}

    def listed():
        return {row.actor_id: row.node_id for row in state.list_actors() if row.state == "ALIVE"}

    assert eventually(lambda: listed() == wanted)
    fastray.kill(pair[killed])
    with pytest.raises(fastray.exceptions.ActorDiedError):
        get(pair[killed].pid.remote())
    assert get(pair[not killed].keep.remote(1)) == 1


def waits(started, gate):
    note(started, os.getpid())
    wait_for_gate(gate)
    return where()


@pytest.mark.parametrize("cancelled", [0, 1], ids=["here", "there"])
def test_cancelling_by_force_kills_the_worker_that_is_meant(cluster, tmp_path, cancelled):
    gate = str(tmp_path / "gate")
    count = iter(range(2 * TRIES))

    def make(here, _):
        started = str(tmp_path / f"started{next(count)}")
        fresh = {"env_vars": {"FRESH": started}}  # a worker of its own
        ref = fastray.remote(waits).options(runtime_env=fresh, max_retries=0, **here).remote(started, gate)
        assert eventually(lambda: tally(started))
        return ref, int(tally(started)[0])

    *pair, pid = twins(cluster, make)

    def both_run():
        rows = [row for row in state.list_tasks() if (row.worker_pid, row.state) == (pid, "RUNNING")]
        return {row.node_id for row in rows} == {cluster.head.node_id, cluster.far.node_id}

    assert eventually(both_run)
    fastray.cancel(pair[cancelled], force=True)
    with pytest.raises(TaskCancelledError):
        get(pair[cancelled])
    open_gate(gate)
    other = (cluster.head, cluster.far)[not cancelled]
    assert get(pair[not cancelled]) == other.node_id


def test_what_two_processes_of_one_pid_print_is_not_mixed(cluster, capfd):
    *pair, pid = actor_twins(cluster)
    for part in ("one ", "two ", "three\n"):  # in turn, in parts of a line
        for number, actor in enumerate(pair):
            get(actor.__ray_call__.remote(lambda _, text: print(text, end="", flush=True), f"{number} {part}"))
    wanted = {
        rf"\(\S* ?pid={pid}\) 0 one 0 two 0 three",
        rf"\(\S* ?pid={pid}, ip={re.escape(cluster.far.host)}\) 1 one 1 two 1 three",
    }
    seen = [""]

    def all_seen():
        seen[0] += capfd.readouterr().out
        return all(re.search(pattern, seen[0]) for pattern in wanted)

    assert eventually(all_seen), seen


# ---- drivers in other PID namespaces -----------------------------------------------------------------------

SIBLING = """
import os, fastray
fastray.init(address=sys.argv[1])
far = fastray.remote(resources={"far": 0.01}, num_cpus=0)
node = lambda: fastray.get_runtime_context().get_node_id()
say(os.getpid(), *fastray.get([fastray.remote(node).remote(), far(node).remote()], timeout=60))
stuck = fastray.remote(lambda: __import__("signal").pause()).remote()
sys.stdin.readline()
"""


def drivers():
    """Their number."""
    return sum(row.status == "RUNNING" for row in state.list_jobs())


def test_a_driver_in_a_sibling_namespace_has_the_pid_of_the_daemon(cluster):
    """Its own pid is what it is in its namespace: the daemon's is somebody else there, itself."""
    head, guest = cluster.head, cluster.guest
    daemon = head.info["pid"]
    guest.next_pid(daemon)
    with guest.driver(SIBLING, head.path) as driver:  # whose end is a SIGKILL
        assert driver.hears() == [daemon, head.node_id, cluster.far.node_id]
        assert drivers() == 2
        assert eventually(lambda: [row for row in state.list_workers() if row.is_running_task])
    assert eventually(lambda: drivers() == 1)
    assert eventually(lambda: not [row for row in state.list_workers() if row.is_running_task])


def test_drivers_of_one_pid_are_two(cluster):
    source = """
import os, fastray
os.makedirs(sys.argv[2] + "/package"); open(sys.argv[2] + "/package/mine.py", "w").write("me = %r" % sys.argv[2])
fastray.init(address=sys.argv[1], runtime_env={"py_modules": [sys.argv[2] + "/package"]})
say(os.getpid())
sys.stdin.readline()
far = fastray.remote(resources={"far": 0.01}, num_cpus=0)
def mine():
    from package import mine
    return mine.me
say(set(fastray.get([far(mine).remote() for _ in range(20)], timeout=60)) == {sys.argv[2]})
"""
    head, guest = cluster.head, cluster.guest
    with contextlib.ExitStack() as stack:
        both = []
        for machine in (head, guest):
            machine.next_pid(3000)
            both.append(stack.enter_context(machine.driver(source, head.path, machine.folder / "made")))
        pids = [driver.hears()[0] for driver in both]
        assert pids[0] == pids[1]
        assert drivers() == 3
        for driver in both:
            driver.tell()
        assert [driver.hears() for driver in both] == [[True], [True]]


def test_stop_from_a_sibling_namespace_says_where_to_go(cluster):
    done = cluster.guest.command("stop", f"--temp-dir={cluster.head.folder}")
    assert (done.returncode, "another PID namespace" in done.stderr) == (1, True), done
    assert get(far(where).remote()) == cluster.far.node_id
