"""Drivers of a daemon: attaching, several at once, each with its own environment and logs, and what stays when they go.

    daemon    one node for the module (tests/conftest.py); each test's drivers come and go
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import sys

import pytest
from daemon_helpers import Daemon
from integration_helpers import eventually, is_alive, open_gate, tally, wait_for_gate

import fastray
from fastray import control, sessions
from fastray.exceptions import ActorDiedError, InvalidOptionError, OwnerDiedError
from fastray.util import state

GET_S = 30.0


@pytest.fixture
def driver(daemon):
    """This process as a driver of the module's daemon."""
    fastray.init(address=daemon.path)
    yield fastray
    fastray.shutdown()


def idle(daemon):
    """Waits until nothing of any job is left; what the daemon holds then."""
    def nothing():
        held = daemon.held()
        return held["processes"] == 2 and not held["actors"] and not held["functions"] and not held["children"]

    assert eventually(nothing), daemon.held()
    return daemon.held()


def comes_back_to(daemon, before):
    """Whether the daemon holds again what it held, but for what its jobs share: names of methods."""

    def again():
        now = daemon.held()
        return now["bytes"] < 100_000 and {**now, "bytes": 0} == {**before, "bytes": 0}

    assert eventually(again), (before, daemon.held())
    return True


# ---- attaching -----------------------------------------------------------------------------------------


def test_an_attached_driver_is_a_driver_like_any_other(daemon):
    with fastray.init(address=daemon.path, namespace="here") as context:
        assert context.address_info["node_pid"] == daemon.pid
        assert context.address_info["session_name"] == daemon.info["session"]
        assert context.address_info["address"] == f"unix:{daemon.path}/node.sock"

        @fastray.remote
        def where():
            context = fastray.get_runtime_context()
            return context.get_job_id(), context.get_node_id(), context.namespace, context.runtime_env

        here = fastray.get_runtime_context()
        expected = (here.get_job_id(), here.get_node_id(), "here", {})
        assert fastray.get(where.remote(), timeout=GET_S) == expected
        assert fastray.cluster_resources()["CPU"] == 2
        assert [node["NodeID"] for node in fastray.nodes()] == [here.get_node_id()]
        assert fastray.get([fastray.remote(lambda x: x * x).remote(i) for i in range(500)]) == [
            i * i for i in range(500)
        ]
        big = fastray.put(bytes(10 << 20))
        assert fastray.get(fastray.remote(len).remote(big), timeout=GET_S) == 10 << 20
    assert not fastray.is_initialized()


@pytest.mark.parametrize("form", ["socket", "unix", "session", "runtime", "variable"])
def test_every_form_of_address_finds_the_node(daemon, monkeypatch, form):
    addresses = {
        "socket": os.path.join(daemon.path, "node.sock"),
        "unix": "unix:" + os.path.join(daemon.path, "node.sock"),
        "session": daemon.path,
        "runtime": os.path.dirname(daemon.path),
    }
    if form == "variable":
        monkeypatch.setenv("FASTRAY_ADDRESS", daemon.path)
        for given in (None, "auto"):
            fastray.init(address=given)
            assert fastray.get_runtime_context().get_node_id() == fastray.nodes()[0]["NodeID"]
            assert fastray.util.state.list_nodes()[0].node_id.startswith(daemon.info["session"][8:])
            fastray.shutdown()
        context = fastray.init(address="local", num_cpus=1)
        assert context.address_info["address"] == "local"
    else:
        context = fastray.init(address=addresses[form])
        assert context.address_info["node_pid"] == daemon.pid


def test_auto_and_a_port_look_into_the_runtime_directory(daemon, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", os.path.dirname(daemon.path))
    for address in ("auto", "127.0.0.1:6379", "localhost:6379"):
        with fastray.init(address=address) as context:
            assert context.address_info["node_pid"] == daemon.pid
    with pytest.raises(ConnectionError, match="start --head"):
        fastray.init(address="127.0.0.1:6380")
    with pytest.raises(ConnectionError, match="this machine"):
        fastray.init(address="192.0.2.1:6379")


def test_where_no_node_is_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path / "none"))
    for address in ("auto", str(tmp_path), str(tmp_path / "session-1"), f"unix:{tmp_path}/session-1/node.sock"):
        with pytest.raises(ConnectionError, match="no fastray node"):
            fastray.init(address=address)
    assert not fastray.is_initialized()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "options",
    [{"num_cpus": 2}, {"num_gpus": 0}, {"resources": {"a": 1}}, {"labels": {"a": "b"}},
     {"object_store_memory": 100 << 20}, {"_memory": 1 << 30}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_what_the_node_decides_is_refused(daemon, options):
    with pytest.raises(InvalidOptionError, match=next(iter(options)).lstrip("_")) as caught:
        fastray.init(address=daemon.path, **options)
    assert isinstance(caught.value, ValueError)
    assert not fastray.is_initialized()


def hello(wire=None, python=None, magic=None, text=b"\0"):
    version = sys.version_info[0] << 8 | sys.version_info[1]
    real = control.WIRE
    return struct.pack(
        "<QIIII", magic or real[0], wire or real[1], python or version, 0, len(text)
    ) + text  # fmt: skip


@pytest.mark.parametrize(
    ("message", "why"),
    [(hello(wire=99), "version 99"), (hello(python=3 << 8 | 4), "Python 3.4")],
    ids=["wire version", "Python"],
)
def test_another_version_is_refused_and_told_why(daemon, monkeypatch, message, why):
    monkeypatch.setattr(control, "attach_message", lambda *_: message)
    with pytest.raises(ConnectionError, match=why):
        fastray.init(address=daemon.path)
    monkeypatch.undo()
    fastray.init(address=daemon.path)


@pytest.mark.parametrize(
    "message", [b"", b"x", hello(magic=1), hello()[:-1], hello() + b"y", os.urandom(4000)],
    ids=["empty", "short", "magic", "cut", "long", "noise"],
)  # fmt: skip
def test_nonsense_on_the_socket_is_hung_up_on(daemon, message):
    before = idle(daemon)
    with sessions.connect(daemon.path) as connection:
        connection.settimeout(GET_S)
        with contextlib.suppress(BrokenPipeError):
            connection.send(message)
        assert connection.recv(100) == b""
    assert comes_back_to(daemon, before)


def test_connections_that_say_nothing_are_dropped_when_there_are_many(daemon):
    before = idle(daemon)
    silent = [sessions.connect(daemon.path) for _ in range(100)]
    with fastray.init(address=daemon.path):
        assert fastray.get(fastray.remote(lambda: 1).remote(), timeout=GET_S) == 1
    silent[0].settimeout(GET_S)
    assert silent[0].recv(1) == b""
    for connection in silent:
        connection.close()
    assert comes_back_to(daemon, before)


# ---- several at once -----------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
import fastray
sys.path.insert(0, os.path.join(os.getcwd(), "lib"))
import which                      # a module of the same name in each folder

folder, mine = sys.argv[1:]
fastray.init(address=os.environ["DAEMON"], namespace=mine)
LOCAL = "main of " + mine

@fastray.remote
def look():
    print("printed by", mine)
    return which.NAME, os.getcwd(), os.environ["MINE"], LOCAL, fastray.get_runtime_context().namespace

@fastray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return mine, self.n, which.NAME

counter = Counter.options(name="counter").remote()
open(os.path.join(folder, mine + ".here"), "x").close()
while len([n for n in os.listdir(folder) if n.endswith(".here")]) < 3:
    time.sleep(0.003)
for round in range(30):
    expected = (mine, os.getcwd(), mine, "main of " + mine, mine)
    found = fastray.get([look.remote() for _ in range(20)], timeout=30)
    assert found == [expected] * 20, found
    assert fastray.get(fastray.get_actor("counter").add.remote(), timeout=30) == (mine, round + 1, mine)
print("right", flush=True)
"""


def test_three_drivers_at_once_see_only_their_own(daemon, tmp_path, start_program):
    programs = []
    for mine in ("one", "two", "three"):
        place = tmp_path / mine
        (place / "lib").mkdir(parents=True)
        (place / "lib" / "which.py").write_text(f"NAME = {mine!r}\n")
        env = {"DAEMON": daemon.path, "MINE": mine}
        programs.append((mine, start_program(PROGRAM, tmp_path, mine, env=env, cwd=place)))
    for mine, program in programs:
        out, err = program.communicate(timeout=120)
        assert program.returncode == 0, err
        assert "right" in out.splitlines(), (out, err)
        printed = [line for line in (out + err).splitlines() if "printed by" in line]
        assert printed
        assert {line.partition("printed by ")[2].split()[0] for line in printed} == {mine}
    idle(daemon)


HOG = """
import os, sys
import fastray
from integration_helpers import note
folder, mine = sys.argv[1:]
fastray.init(address=os.environ["DAEMON"])

@fastray.remote
def work(i):
    note(folder + "/events", "+" + mine)
    x = sum(range(20000))
    note(folder + "/events", "-" + mine)
    return i

refs = [work.remote(i) for i in range(300)]
open(os.path.join(folder, mine + ".here"), "x").close()
while len([n for n in os.listdir(folder) if n.endswith(".here")]) < 2:
    pass
refs += [work.remote(i) for i in range(300, 2000)]
assert fastray.get(refs, timeout=100) == list(range(2000))
print("right")
"""


def test_cpus_are_shared_and_never_over_committed(daemon, tmp_path, start_program):
    helpers = os.path.dirname(os.path.abspath(__file__))
    env = {"DAEMON": daemon.path, "PYTHONPATH": os.pathsep.join([os.path.dirname(fastray.__path__[0]), helpers])}
    programs = []
    for mine in "ab":
        (tmp_path / f"at-{mine}").mkdir()
        programs.append(start_program(HOG, tmp_path, mine, env=env))
    for program in programs:
        out, err = program.communicate(timeout=120)
        assert (program.returncode, out) == (0, "right\n"), err
    events = tally(tmp_path / "events")
    running = 0
    for event in events:
        running += 1 if event[0] == "+" else -1
        assert running <= 2, "more tasks ran than there are CPUs"
    ends = {mine: max(i for i, event in enumerate(events) if event == f"-{mine}") for mine in "ab"}
    first = min(ends, key=ends.get)
    other = "b" if first == "a" else "a"
    meanwhile = sum(event == f"-{other}" for event in events[: ends[first]])
    assert meanwhile >= 200, f"{other} got {meanwhile} tasks through while {first} did all of its 2,000"


# ---- the end of a driver -------------------------------------------------------------------------------

LEAVER = """
import os, signal, sys, time
import fastray
folder, how = sys.argv[1:]
fastray.init(address=os.environ["DAEMON"], namespace="shared")

@fastray.remote
class Keeper:
    def __init__(self):
        self.kept = []
    def keep(self, refs):
        self.kept += refs
    def give(self):
        return self.kept
    def pid(self):
        return os.getpid()
    def child(self):
        return fastray.get(fastray.remote(os.getpid).remote())

@fastray.remote
def stuck():
    open(folder + "/running", "x").close()
    time.sleep(600)

@fastray.remote
def queued():
    open(folder + "/queued-task-ran", "x").close()

keeper = Keeper.options(name="keeper", lifetime="detached").remote()
mortal = Keeper.options(name="mortal").remote()
done = fastray.put(b"x" * 3000000)
lost = fastray.put(b"y" * 3000000)
running = stuck.remote()
while not os.path.exists(folder + "/running"):
    time.sleep(0.003)
waiting = queued.options(num_cpus=2).remote()
fastray.get(keeper.keep.remote([done, running, waiting]))
with open(folder + "/pids.new", "w") as f:
    f.write(f"{fastray.get(keeper.pid.remote())} {fastray.get(mortal.pid.remote())}")
os.rename(folder + "/pids.new", folder + "/pids")
if how == "shutdown":
    fastray.shutdown()
    print("left", flush=True)
    time.sleep(600)
elif how == "exit":
    sys.exit(0)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["shutdown", "exit", "kill"])
def test_a_job_ends_with_its_driver_but_for_detached_actors(daemon, tmp_path, start_program, how):
    before = idle(daemon)
    leaver = start_program(LEAVER, tmp_path, how, env={"DAEMON": daemon.path})
    wait_for_gate(tmp_path / "pids")
    keeper_pid, mortal_pid = map(int, (tmp_path / "pids").read_text().split())
    if how == "kill":
        leaver.kill()
    if how == "shutdown":
        assert leaver.stdout.readline() == "left\n"
    assert eventually(lambda: not is_alive(mortal_pid))
    assert eventually(lambda: len(daemon.status()["drivers"]) == 0)
    assert is_alive(keeper_pid)
    fastray.init(address=daemon.path, namespace="shared")
    with pytest.raises(ValueError, match="keeper"):
        fastray.get_actor("mortal")
    keeper = fastray.get_actor("keeper")
    assert fastray.get(keeper.pid.remote(), timeout=GET_S) == keeper_pid
    done, running, waiting = fastray.get(keeper.give.remote(), timeout=GET_S)
    assert fastray.get(done, timeout=GET_S) == b"x" * 3000000  # lent: it stays
    for ref in (running, waiting):
        with pytest.raises(OwnerDiedError):
            fastray.get(ref, timeout=GET_S)
    assert not (tmp_path / "queued-task-ran").exists()
    assert eventually(lambda: 3_000_000 <= daemon.held()["bytes"] < 6_000_000), daemon.held()
    assert fastray.get(keeper.child.remote(), timeout=GET_S) != keeper_pid  # it has a job to work for still
    actors = {row.name: row for row in state.list_actors(filters=[("state", "!=", "DEAD")])}
    assert list(actors) == ["keeper"]
    assert actors["keeper"].is_detached
    fastray.kill(keeper)
    del keeper, done, running, waiting, ref
    gc.collect()
    fastray.shutdown()
    assert comes_back_to(daemon, before)


def test_an_actor_dies_with_the_driver_that_made_it(daemon, tmp_path, start_program):
    leaver = start_program(LEAVER, tmp_path, "wait", env={"DAEMON": daemon.path})
    wait_for_gate(tmp_path / "pids")
    fastray.init(address=daemon.path, namespace="shared")
    mortal = fastray.get_actor("mortal")  # somebody else's handle does not keep it
    leaver.send_signal(signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="driver that owned it ended"):
        while True:
            fastray.get(mortal.pid.remote(), timeout=GET_S)
    fastray.kill(fastray.get_actor("keeper"))


def test_the_work_of_others_goes_on_when_a_driver_leaves(daemon, tmp_path, start_program):
    leaver = start_program(LEAVER, tmp_path, "wait", env={"DAEMON": daemon.path})
    wait_for_gate(tmp_path / "pids")
    fastray.init(address=daemon.path, namespace="shared")

    @fastray.remote
    def square(x):
        return x * x

    refs = [square.remote(i) for i in range(20000)]
    leaver.kill()
    assert fastray.get(refs, timeout=GET_S) == [i * i for i in range(20000)]
    fastray.kill(fastray.get_actor("keeper"))


def test_arrays_outlive_the_session_they_are_from(daemon, run_program):
    pytest.importorskip("numpy")
    before = idle(daemon)
    run_program(
        """
        import os, fastray, numpy
        with fastray.init(address=os.environ["DAEMON"]):
            array = fastray.get(fastray.put(numpy.arange(1_000_000)))
        with fastray.init(address=os.environ["DAEMON"]):
            for i in range(20):
                fastray.put(numpy.full(1_000_000, i))
            assert array[123_456] == 123_456
            assert int(array.sum()) == 499_999_500_000
        """,
        env={"DAEMON": daemon.path},
    )
    assert comes_back_to(daemon, before)


def test_a_driver_that_keeps_an_array_keeps_nothing_else(daemon, tmp_path, start_program):
    pytest.importorskip("numpy")
    before = idle(daemon)
    keeper = start_program(
        """
        import os, sys, time, fastray, numpy
        folder = sys.argv[1]
        fastray.init(address=os.environ["DAEMON"])

        @fastray.remote
        def stuck(name):
            open(folder + "/" + name, "x").close()
            time.sleep(600)

        array = fastray.get(fastray.put(numpy.arange(1_000_000)))
        refs = [stuck.options(num_cpus=2).remote("first"), stuck.options(num_cpus=2).remote("second")]
        while not os.path.exists(folder + "/first"):
            time.sleep(0.003)
        fastray.shutdown()
        print("left", flush=True)
        sys.stdin.readline()
        time.sleep(600)
        """,
        tmp_path,
        env={"DAEMON": daemon.path},
    )
    assert keeper.stdout.readline() == "left\n", keeper.stderr.read()
    assert eventually(lambda: daemon.held()["children"] == 0)
    assert (daemon.status()["drivers"], daemon.held()["processes"]) == ([], 3)  # node, keeper, observer
    assert daemon.held()["bytes"] >= 8_000_000
    with fastray.init(address=daemon.path):
        assert fastray.get(fastray.remote(num_cpus=2)(lambda: 1).remote(), timeout=GET_S) == 1
    keeper.kill()
    assert comes_back_to(daemon, before)
    assert not (tmp_path / "second").exists()


def test_a_fork_of_a_driver_is_no_driver(daemon, tmp_path):
    before = idle(daemon)
    fastray.init(address=daemon.path)
    assert fastray.get(fastray.remote(lambda: 1).remote(), timeout=GET_S) == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert not fastray.is_initialized()
            with fastray.init(address=daemon.path):
                code = 0 if fastray.get(fastray.remote(lambda: 2).remote(), timeout=GET_S) == 2 else 1
            wait_for_gate(tmp_path / "gate")  # it lives on while its parent leaves
        finally:
            os._exit(code)
    try:
        assert fastray.get(fastray.remote(lambda: 3).remote(), timeout=GET_S) == 3
        fastray.shutdown()
        assert comes_back_to(daemon, before)
    finally:
        open_gate(tmp_path / "gate")
        assert os.waitpid(child, 0)[1] == 0


# ---- again and again -----------------------------------------------------------------------------------


def test_attaching_a_thousand_times_leaks_nothing(daemon):
    ours = len(os.listdir("/proc/self/fd"))
    for i in range(1000):
        fastray.init(address=daemon.path)
        if i % 10 == 0:
            assert fastray.get(fastray.remote(lambda i=i: i).remote(), timeout=GET_S) == i
        fastray.shutdown()
        if i == 100:
            before, memory = idle(daemon), daemon.memory()
    assert comes_back_to(daemon, before)
    assert daemon.memory() < memory + (2 << 20)
    assert len(os.listdir("/proc/self/fd")) == ours
    assert daemon.status()["drivers"] == []


def test_a_process_sees_its_jobs_as_different_ones(daemon):
    ids = set()

    @fastray.remote
    class Named:
        def job(self):
            return fastray.get_runtime_context().get_job_id()

    @fastray.remote
    def job():
        return fastray.get_runtime_context().get_job_id()

    for _ in range(3):
        with fastray.init(address=daemon.path):
            mine = fastray.get_runtime_context().get_job_id()
            ids.add(mine)
            actor = Named.remote()
            assert fastray.get([job.remote(), actor.job.remote()], timeout=GET_S) == [mine, mine]
            rows = state.list_jobs(filters=[("status", "=", "RUNNING")])
            assert [(row.job_id, row.pid) for row in rows] == [(mine, os.getpid())]
    assert len(ids) == 3


def test_the_path_of_a_socket_may_be_long(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    made = Daemon(deep)
    try:
        with fastray.init(address=made.path):
            assert fastray.get(fastray.remote(lambda: 7).remote(), timeout=GET_S) == 7
    finally:
        made.stop()


def test_nobody_else_may_attach(daemon):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    directory = os.stat(daemon.path)
    assert directory.st_mode & 0o777 == 0o700
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fd = os.open(daemon.path, os.O_PATH)  # past the directory's mode: the daemon looks too
            os.setresuid(65534, 65534, 65534)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(f"/proc/self/fd/{fd}/node.sock")
                connection.settimeout(GET_S)
                connection.send(hello())
                code = 0 if connection.recv(100) == b"" else 2
            except (PermissionError, BrokenPipeError, ConnectionResetError):
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

