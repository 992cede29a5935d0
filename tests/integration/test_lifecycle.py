"""Sessions of a program: init and shutdown in every order, local mode, forks, threads."""

from __future__ import annotations

import os
import threading
import time

import pytest
from integration_helpers import (
    is_alive,
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
            assert fastray.get([square.remote(k) for k in range(100)], timeout=GET_S) == [k * k for k in range(100)]
        fastray.shutdown()
        assert not fastray.is_initialized()
        if i == 1:
            before = open_things()
    assert len(nodes) == 10
    assert not any(map(is_alive, nodes))
    assert all(now <= then for now, then in zip(open_things(), before))  # an earlier test's may have gone meanwhile


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
