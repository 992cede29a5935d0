"""Beginning and end of sessions: init and shutdown in every order, forks, threads, signals, sudden deaths."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import uuid

import pytest
from integration_helpers import (
    GONE_S,
    comes_to_rest,
    eventually,
    files_of_fastray,
    is_alive,
    marked_pids,
    open_gate,
    wait_for_gate,
    worker_pids,
)

import fastray

GET_S = 30


@fastray.remote
def square(x):
    return x * x


@fastray.remote
def pid():
    return os.getpid()


# ---- init and shutdown -----------------------------------------------------------------------------------


def test_init_twice_is_an_error_that_says_what_to_do():
    fastray.init(num_cpus=1)
    with pytest.raises(RuntimeError, match=r"shutdown\(\).*ignore_reinit_error"):
        fastray.init(num_cpus=1)
    assert fastray.is_initialized()
    assert fastray.get(square.remote(3), timeout=GET_S) == 9


def test_ignore_reinit_error_leaves_the_session_as_it_is():
    first = fastray.init(num_cpus=1)
    again = fastray.init(num_cpus=7, ignore_reinit_error=True)
    assert again.address_info == first.address_info
    assert fastray.cluster_resources()["CPU"] == 1


def test_shutdown_without_a_session_does_nothing():
    fastray.shutdown()
    fastray.shutdown()
    assert not fastray.is_initialized()


def test_sessions_follow_each_other_and_leave_nothing_open():
    def open_things():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    nodes = set()
    before = None
    for i in range(10):
        nodes.add(fastray.init(num_cpus=1)["node_pid"])
        if i % 2:
            assert fastray.get([square.remote(k) for k in range(100)], timeout=GET_S) == [
                k * k for k in range(100)
            ]
        fastray.shutdown()
        assert not fastray.is_initialized()
        if i == 1:
            before = open_things()
    assert len(nodes) == 10
    assert not any(map(is_alive, nodes))
    assert open_things() == before


def test_shutdown_gives_the_memory_of_objects_back(run_program):
    run_program(
        """
        import fastray, numpy as np

        def shared_mb():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) // 1024 for line in file if line.startswith("RssShmem"))

        for i in range(3):
            fastray.init(num_cpus=1, object_store_memory=200_000_000)
            refs = [fastray.put(np.full(1_000_000, i)) for _ in range(10)]
            assert fastray.get(refs[5])[-1] == i
            fastray.shutdown()
            assert shared_mb() < 40, shared_mb()
        fastray.init(num_cpus=1)
        kept = fastray.get(fastray.put(np.full(1_000_000, 7)))
        fastray.shutdown()
        assert int(kept[-1]) == 7  # an array outlives its session
        """
    )


def test_shutdown_waits_for_its_processes_and_drops_what_runs(tmp_path):
    @fastray.remote
    def stay(path):
        open_gate(path)
        time.sleep(600)

    fastray.init(num_cpus=2)
    refs = [stay.remote(str(tmp_path / str(i))) for i in range(2)]
    for i in range(2):
        wait_for_gate(str(tmp_path / str(i)))
    pids = worker_pids()
    started = time.monotonic()
    fastray.shutdown()
    assert time.monotonic() - started < 2
    assert not any(map(is_alive, pids))
    fastray.init(num_cpus=1)
    for ref in refs:
        with pytest.raises(fastray.exceptions.StaleReferenceError):
            fastray.get(ref, timeout=GET_S)


def test_the_context_of_init_ends_the_session():
    with fastray.init(num_cpus=1) as context:
        assert fastray.get(square.remote(2), timeout=GET_S) == 4
        assert {"node_id", "session_name", "node_ip_address"} <= set(context.address_info)
        assert context["node_id"] == fastray.get_runtime_context().get_node_id()
    assert not fastray.is_initialized()
    with pytest.raises(KeyError), fastray.init(num_cpus=1):
        raise KeyError
    assert not fastray.is_initialized()


def test_arrays_of_an_ended_session_are_no_reason_to_crash(run_program):
    run_program(
        """
        import fastray, numpy as np
        fastray.init(num_cpus=1)
        array = fastray.get(fastray.put(np.ones(1_000_000)))
        ref = fastray.put(1)
        fastray.shutdown()
        fastray.init(num_cpus=1)
        new = [fastray.put(np.zeros(1_000_000)) for _ in range(5)]
        assert array.sum() == 1_000_000
        del array, ref
        assert fastray.get(new[0]).sum() == 0
        """
    )


@pytest.mark.parametrize(
    "use",
    [
        "fastray.put(1)",
        "fastray.get([])",
        "fastray.wait([f.remote()])",
        "f.remote()",
        "f.options(num_cpus=0).remote()",
        "next(g.remote())",
        "list(f1.map([1, 2]))",
        "fastray.cluster_resources()",
        "fastray.nodes()",
        "fastray.get_runtime_context()",
        "fastray.empty(3)",
    ],
)
def test_the_first_use_starts_a_session(run_program, use):
    run_program(
        f"""
        import fastray
        f = fastray.remote(lambda: 1)
        f1 = fastray.remote(lambda x: x)
        @fastray.remote
        def g():
            yield 1
        assert not fastray.is_initialized()
        {use}
        assert fastray.is_initialized()
        assert fastray.get(f.remote()) == 1
        """
    )


def test_init_says_what_it_was_given_and_counts_what_is_there():
    fastray.init(num_cpus=3, num_gpus=2, resources={"lab": 5}, object_store_memory=100_000_000, namespace="n")
    there = fastray.cluster_resources()
    assert (there["CPU"], there["GPU"], there["lab"]) == (3, 2, 5)
    assert there["object_store_memory"] >= 100_000_000
    assert fastray.get_runtime_context().namespace == "n"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"num_cpu": 1}, RuntimeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": "two"}, TypeError),
        ({"num_gpus": -1}, ValueError),
        ({"resources": {"a": -1}}, ValueError),
        ({"resources": ["a"]}, TypeError),
        ({"object_store_memory": -5}, ValueError),
        ({"namespace": 3}, TypeError),
        ({"namespace": ""}, ValueError),
        ({"address": "127.0.0.1:1"}, ConnectionError),
        ({"address": "auto"}, ConnectionError),
    ],
)
def test_wrong_arguments_of_init_start_nothing(options, kind):
    with pytest.raises(kind):
        fastray.init(**options)
    assert not fastray.is_initialized()


def test_a_worker_says_that_it_is_part_of_a_session(fresh_node):
    @fastray.remote
    def look():
        before = fastray.is_initialized()
        fastray.init(num_cpus=5)
        fastray.shutdown()
        return (
            before,
            fastray.is_initialized(),
            fastray.get(square.remote(4)),
            fastray.cluster_resources()["CPU"],
        )

    assert fastray.get(look.remote(), timeout=GET_S) == (True, True, 16, 2)


# ---- local mode --------------------------------------------------------------------------------------------


@pytest.fixture
def local():
    fastray.init(local_mode=True)
    yield
    fastray.shutdown()


@pytest.mark.usefixtures("local")
class TestLocalMode:
    def test_tasks_run_here_while_they_are_submitted(self):
        seen = []

        @fastray.remote
        def visit(i):
            seen.append((i, os.getpid()))
            return i

        ref = visit.remote(7)
        assert len(seen) in (0, 1)  # a closure may be copied
        assert fastray.get(ref) == 7
        assert fastray.get(pid.remote()) == os.getpid()

    def test_nested_tasks_dependencies_and_objects(self):
        @fastray.remote
        def fib(n):
            return n if n < 2 else sum(fastray.get([fib.remote(n - 1), fib.remote(n - 2)]))

        assert fastray.get(fib.remote(10)) == 55
        ref = fastray.put(2)
        for _ in range(5):
            ref = square.remote(ref)
        assert fastray.get(ref) == 2**32
        assert fastray.wait([ref]) == ([ref], [])

    def test_errors_have_their_types(self):
        @fastray.remote
        def fail():
            raise KeyError("k")

        with pytest.raises(KeyError):
            fastray.get(fail.remote())
        with pytest.raises(KeyError):
            fastray.get(square.remote(fail.remote()))

    def test_several_returns_and_streams(self):
        @fastray.remote(num_returns=2)
        def two():
            return 1, 2

        @fastray.remote
        def count(n):
            yield from range(n)

        assert fastray.get(two.remote()) == [1, 2]
        assert [fastray.get(ref) for ref in count.remote(5)] == [0, 1, 2, 3, 4]

    def test_map_and_context(self):
        @fastray.remote
        def name():
            return fastray.get_runtime_context().get_task_name()

        assert list(square.map(range(50))) == [i * i for i in range(50)]
        assert "name" in fastray.get(name.remote())


# ---- forks, threads ------------------------------------------------------------------------------


def test_a_forked_child_has_no_session_and_its_end_does_not_end_ours(run_program):
    run_program(
        """
        import os, sys, fastray
        fastray.init(num_cpus=2)
        f = fastray.remote(lambda x: x + 1)
        ref = f.remote(1)
        refs = [f.remote(i) for i in range(100)]
        for way in ("_exit", "exit", "raise"):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                assert not fastray.is_initialized()
                try:
                    fastray.get(ref, timeout=5)
                except fastray.exceptions.RayError as e:
                    assert "fork" in str(e) or "session" in str(e), str(e)
                else:
                    os._exit(9)
                del refs
                if way == "_exit":
                    os._exit(7)
                if way == "exit":
                    sys.exit(7)
                sys.excepthook = lambda *a: os._exit(7)
                raise KeyError
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert fastray.get(ref) == 2
            assert fastray.get([f.remote(i) for i in range(1000)]) == list(range(1, 1001))
        assert fastray.get(refs) == list(range(1, 101))
        """
    )


def test_a_forked_child_may_start_a_session_of_its_own(run_program):
    run_program(
        """
        import os, fastray
        fastray.init(num_cpus=2)
        f = fastray.remote(lambda x: x + 1)
        assert fastray.get(f.remote(1)) == 2
        child = os.fork()
        if child == 0:
            fastray.init(num_cpus=1)
            assert fastray.get([f.remote(i) for i in range(100)]) == list(range(1, 101))
            assert fastray.cluster_resources()["CPU"] == 1
            fastray.shutdown()
            os._exit(5)
        assert fastray.get([f.remote(i) for i in range(1000)]) == list(range(1, 1001))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert fastray.get(f.remote(1)) == 2
        assert fastray.cluster_resources()["CPU"] == 2
        """
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_beside_a_session(run_program, method):
    run_program(
        f"""
        import multiprocessing, fastray

        def work(x):
            return x * 2

        f = fastray.remote(work)
        if __name__ == "__main__":
            fastray.init(num_cpus=2)
            refs = [f.remote(i) for i in range(100)]
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert pool.map(work, range(100)) == [2 * i for i in range(100)]
                assert fastray.get([f.remote(i) for i in range(100)]) == [2 * i for i in range(100)]
                assert pool.map(work, range(10)) == [2 * i for i in range(10)]
            assert fastray.get(refs) == [2 * i for i in range(100)]
        """
    )


def test_multiprocessing_works_in_a_task(fresh_node):
    @fastray.remote
    def parent():
        import multiprocessing

        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda: queue.put(os.getpid()))
        child.start()
        child.join(20)
        return os.getpid(), queue.get(), child.exitcode, fastray.get(square.remote(5))

    mine, childs, code, value = fastray.get(parent.remote(), timeout=GET_S)
    assert mine != childs
    assert (code, value) == (0, 25)


def test_a_process_pool_executor_started_before_init_works(run_program):
    run_program(
        """
        import concurrent.futures, multiprocessing, fastray
        if __name__ == "__main__":
            with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
                first = pool.submit(abs, -1)
                fastray.init(num_cpus=1)
                f = fastray.remote(abs)  if False else fastray.remote(lambda x: abs(x))
                second = pool.submit(abs, -2)
                assert fastray.get(f.remote(-3)) == 3
                assert (first.result(20), second.result(20)) == (1, 2)
        """
    )


def test_threads_all_submit_and_get(fresh_node):
    outcomes, problems = [], []

    def work(k):
        try:
            for _ in range(20):
                refs = [square.remote(k + i) for i in range(50)]
                assert fastray.get(refs, timeout=GET_S) == [(k + i) ** 2 for i in range(50)]
                ready, rest = fastray.wait([square.remote(k), square.remote(0)], num_returns=2, timeout=GET_S)
                assert (len(ready), len(rest)) == (2, 0)
                assert fastray.get(fastray.put([k])) == [k]
            outcomes.append(k)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_S)
    assert not problems
    assert sorted(outcomes) == list(range(8))


def test_shutdown_wakes_threads_that_wait(fresh_node, tmp_path):
    @fastray.remote
    def stay(path):
        wait_for_gate(path, 600)

    errors = []
    begun = threading.Barrier(3)

    def wait_for(call):
        begun.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    ref = stay.remote(str(tmp_path / "never"))
    calls = [lambda: fastray.get(ref), lambda: fastray.wait([ref])]
    threads = [threading.Thread(target=wait_for, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait()
    fastray.shutdown()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(errors) == 2
    assert all(isinstance(error, fastray.exceptions.RayError) for error in errors)
    assert not fastray.is_initialized()


# ---- signals and exits ---------------------------------------------------------------------------

BUSY = """
import os, signal, subprocess, sys, threading, time
import fastray

@fastray.remote
def stay(path, seconds=600):
    open(path, "x").close()
    time.sleep(seconds)

def begin(folder, n=2):
    refs = [stay.remote(os.path.join(folder, f"started{i}")) for i in range(n)]
    while not all(os.path.exists(os.path.join(folder, f"started{i}")) for i in range(n)):
        time.sleep(0.003)
    return refs

folder = sys.argv[1]
fastray.init(num_cpus=2)
from fastray.runtime import current_runtime
"""


class Program:
    """A program with a folder for its temporary files, and a mark that its processes inherit."""

    def __init__(self, start_program, tmp_path, body):
        self.mark = uuid.uuid4().hex
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        self.files = files_of_fastray()
        environment = {"PROGRAM_MARK": self.mark, "TMPDIR": str(self.temporary)}
        self.process = start_program(BUSY + body, str(tmp_path), env=environment)

    def line(self):
        text = self.process.stdout.readline()
        assert text, self.process.stderr.read()
        return text.strip()

    def roles(self):
        """Reads a line of pids: {"driver", "node", "workers"}."""
        driver, node, *workers = map(int, self.line().split())
        return {"driver": [driver], "node": [node], "workers": workers}

    def ended(self, seconds=20):
        self.process.wait(seconds)
        return self.process.returncode

    def what_is_left(self, seconds=GONE_S):
        eventually(lambda: not marked_pids(self.mark), seconds)
        return marked_pids(self.mark), files_of_fastray() - self.files, list(self.temporary.iterdir())


NOTHING = ([], set(), [])
SAY_PIDS = """
runtime = current_runtime()
workers = [row[2] for row in runtime.attachment.processes() if row[1] == 2]
print(os.getpid(), runtime.node.pid, *workers, flush=True)
"""


@pytest.fixture
def program(start_program, tmp_path):
    def make(body):
        return Program(start_program, tmp_path, body)

    return make


BODIES = {
    "busy": "refs = begin(folder)\n" + SAY_PIDS + "fastray.get(refs)\n",
    "idle": "fastray.get(begin.__globals__['stay'].remote(folder + '/x', 0))\n"
    + SAY_PIDS
    + "time.sleep(600)\n",
    "booting": "workers = []\nprint(os.getpid(), current_runtime().node.pid, flush=True)\ntime.sleep(600)\n",
    "submitting": SAY_PIDS
    + "f = fastray.remote(lambda x: bytes(x))\n"
    + "while True: fastray.get([f.remote(5000) for _ in range(500)])\n",
    "subprocess": """
@fastray.remote
def spawn(path):
    child = subprocess.Popen(["sleep", "600"])
    open(path, "x").close()
    child.wait()
refs = [spawn.remote(folder + "/spawned")]
while not os.path.exists(folder + "/spawned"):
    time.sleep(0.003)
"""
    + SAY_PIDS
    + "fastray.get(refs)\n",
    "many workers": """
@fastray.remote
def deep(n):
    if n:
        return fastray.get(deep.remote(n - 1))
    open(folder + "/deep", "x").close()
    time.sleep(600)
ref = deep.remote(12)
while not os.path.exists(folder + "/deep"):
    time.sleep(0.003)
"""
    + SAY_PIDS
    + "fastray.get(ref)\n",
}


@pytest.mark.parametrize("state", list(BODIES))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_leaves_nothing_behind(program, state, number):
    running = program(BODIES[state])
    roles = running.roles()
    assert len(marked_pids(running.mark)) >= 2
    os.kill(roles["driver"][0], number)
    running.ended()
    assert running.what_is_left() == NOTHING


ROLES = ("driver", "node", "workers")
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(ROLES, n)]


@pytest.mark.crash
@pytest.mark.parametrize("killed", SUBSETS, ids="+".join)
def test_any_of_its_processes_may_be_killed_and_nothing_is_left(program, killed):
    running = program(
        "refs = begin(folder)\n"
        + SAY_PIDS
        + """
try:
    fastray.get(refs, timeout=5)
except fastray.exceptions.LocalRayletDiedError:
    print("node died", flush=True)
except fastray.exceptions.RayError as error:
    print(type(error).__name__, flush=True)
assert fastray.get(fastray.remote(lambda: 5).remote(), timeout=20) == 5
"""
    )
    roles = running.roles()
    assert len(roles["workers"]) >= 2
    for role in killed:
        for number in roles[role]:
            os.kill(number, signal.SIGKILL)
    if "driver" not in killed:
        said = running.line()
        if "node" in killed:
            assert said == "node died"
        else:  # `begin` makes its files with "x": the second try of a task fails
            assert said == "TaskError(FileExistsError)"
        assert running.ended() == 0, running.process.stderr.read()
    else:
        running.ended()
    assert running.what_is_left() == NOTHING


def test_a_killed_node_is_a_typed_error_and_init_starts_anew(program):
    running = program(
        """
refs = begin(folder)
other = fastray.put(1)
os.kill(current_runtime().node.pid, signal.SIGKILL)
started = time.monotonic()
for call in (lambda: fastray.get(refs), lambda: fastray.get(refs[0])):
    try:
        call()
    except fastray.exceptions.RayError as error:
        print(type(error).__name__, "signal 9" in str(error), flush=True)
print(time.monotonic() - started < 5, flush=True)
fastray.shutdown()
fastray.init(num_cpus=1)
print(fastray.get(fastray.remote(lambda: 5).remote()), flush=True)
"""
    )
    assert running.line() in ("LocalNodeDiedError True", "LocalRayletDiedError True")
    running.line()
    assert running.line() == "True"
    assert running.line() == "5"
    assert running.ended() == 0
    assert running.what_is_left() == NOTHING


@pytest.mark.parametrize("how", ["get", "get list", "wait", "stream", "future", "timeout", "map", "aio"])
def test_control_c_interrupts_every_wait_and_the_session_goes_on(program, how):
    running = program(
        f"""
@fastray.remote
def stream(path):
    open(path, "x").close()
    time.sleep(600)
    yield 1

def wait(how):
    if how == "stream":
        next(stream.remote(folder + "/started0"))
        return
    if how == "map":
        list(fastray.remote(lambda x: stay.__wrapped__(folder + "/started0")).map([1]))
        return
    (ref,) = begin(folder, 1)
    if how == "get": fastray.get(ref)
    if how == "get list": fastray.get([fastray.put(1), ref, ref])
    if how == "wait": fastray.wait([fastray.put(1), ref], num_returns=2)
    if how == "timeout": fastray.get(ref, timeout=600)
    if how == "future": ref.future().result()
    if how == "aio":
        import asyncio
        async def main():
            await ref
        asyncio.run(main())

try:
    wait({how!r})
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(fastray.get(fastray.remote(lambda: 5).remote(), timeout=20), flush=True)
"""
    )
    wait_for_gate(os.path.join(os.path.dirname(running.temporary), "started0"))
    assert comes_to_rest(running.process.pid)
    os.kill(running.process.pid, signal.SIGINT)
    assert running.line() == "interrupted"
    assert running.line() == "5"
    assert running.ended() == 0
    assert running.what_is_left() == NOTHING


def test_control_c_at_a_terminal_reaches_the_driver_only(start_program, tmp_path):
    """The kernel sends SIGINT to the whole foreground group: tasks go on."""
    process = start_program(
        BUSY
        + """
ref = stay.remote(folder + "/started", 0.5)
print("go", flush=True)
try:
    fastray.get(ref); time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", fastray.get(ref), flush=True)
""",
        str(tmp_path),
        start_new_session=True,
    )
    assert process.stdout.readline() == "go\n"
    wait_for_gate(str(tmp_path / "started"))
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "interrupted None\n"
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyError('x')", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.execv('/bin/true', ['true'])", 0),
        ("fastray.shutdown()", 0),
    ],
)
def test_a_program_that_ends_without_shutdown_leaves_nothing(program, end, code):
    running = program("refs = begin(folder)\n" + end + "\n")
    assert running.ended() == code
    assert running.what_is_left() == NOTHING


def test_a_program_ends_although_daemon_threads_submit_and_wait(program):
    running = program(
        """
f = fastray.remote(lambda x: x)
going = threading.Event()
def submit():
    while True:
        fastray.get([f.remote(i) for i in range(50)])
        going.set()
def wait():
    fastray.get(stay.remote(folder + "/forever"))
for target in (submit, submit, wait):
    threading.Thread(target=target, daemon=True).start()
going.wait()
print("end", flush=True)
"""
    )
    assert running.line() == "end"
    assert running.ended() == 0
    assert "Fatal" not in running.process.stderr.read()
    assert running.what_is_left() == NOTHING


def test_a_program_that_stops_listening_to_its_output_does_not_hang_its_tasks(program):
    running = program(
        """
@fastray.remote
def talk():
    for i in range(20000):
        print("line", i)
    return 1
os.close(1)
sys.stdout = open(os.devnull, "w")
fastray.get(talk.remote(), timeout=20)
"""
    )
    assert running.ended() == 0, running.process.stderr.read()
    assert running.what_is_left() == NOTHING


def test_two_programs_at_once_do_not_see_each_other(start_program, tmp_path):
    body = "f = fastray.remote(lambda x: x)\n"
    body += "print(fastray.get([f.remote(i) for i in range(1000)])[-1], flush=True)\n"
    programs = [start_program(BUSY + body, str(tmp_path)) for _ in range(3)]
    for process in programs:
        assert process.stdout.readline() == "999\n", process.stderr.read()
        assert process.wait(20) == 0
