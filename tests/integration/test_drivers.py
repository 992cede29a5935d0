"""Drivers of a daemon: several at once, each with its own environment and logs, and what stays when one goes.

    daemon    one node for the module (tests/conftest.py); each test's drivers come and go
"""

from __future__ import annotations

import gc
import os
import signal

import pytest
from daemon_helpers import comes_back_to, idle
from integration_helpers import eventually, is_alive, open_gate, tally, wait_for_gate

import fastray
from fastray.exceptions import ActorDiedError, OwnerDiedError
from fastray.util import state

GET_S = 30.0


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
sys.stdout.write("right\\n")  # one write: lines of tasks may come between two
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
    here = os.path.dirname(os.path.abspath(__file__))
    folders = [os.path.dirname(fastray.__path__[0]), here, os.path.dirname(here)]  # fastray, and the tests' helpers
    env = {"DAEMON": daemon.path, "PYTHONPATH": os.pathsep.join(folders)}
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
