"""`init(record_failures=DIR)` and `fastray replay`: failed tasks on disk, run again in another process."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from integration_helpers import eventually

import fastray
from fastray.exceptions import ReplayError, WorkerCrashedError
from fastray.recovery import failures, replay
from fastray.recovery.failures import SUFFIX, VARIABLE, list_failures, read_failure, trim
from fastray.runtime import current_runtime

GET_S = 30


@pytest.fixture
def directory(tmp_path):
    """A session that records its failures there."""
    path = tmp_path / "failures"
    fastray.init(num_cpus=2, record_failures=path)
    yield str(path)
    fastray.shutdown()


def fail(ref):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        fastray.get(ref, timeout=GET_S)
    return caught.value


def command(*arguments, directory=None, stdin=""):
    """`fastray replay ...` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastray.__file__).parent.parent)}
    environment.pop(VARIABLE, None)
    if directory is not None:
        environment[VARIABLE] = directory
    return subprocess.run(
        [sys.executable, "-m", "fastray", "replay", *arguments],
        capture_output=True, text=True, timeout=60, env=environment, input=stdin,
    )  # fmt: skip


@fastray.remote
def divide(a, b):
    return a / b  # the line


def test_a_failed_task_is_run_again_by_its_id(directory):
    ref = divide.remote(1, 0)
    task = ref.task_id()
    assert task in str(fail(ref))
    fastray.shutdown()
    (path,) = Path(directory).iterdir()
    assert path.name == task + SUFFIX
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(directory).stat().st_mode) == 0o700

    listed = command(directory=directory)
    assert listed.returncode == 0
    assert listed.stdout.split()[0] == task
    assert listed.stdout.rstrip().endswith("divide  ZeroDivisionError: division by zero")

    done = command(task, directory=directory)
    assert done.returncode == 1
    assert "return a / b  # the line" in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "fastray/recovery" not in done.stderr
    assert command(task[-8:], "--from", directory).returncode == 1  # the end of the id is enough


def test_the_debugger_of_the_command(directory):
    ref = divide.remote(35, 0)
    task = ref.task_id()
    fail(ref)
    done = command(task, "--pdb", directory=directory, stdin="p a + 7\nq\n")
    assert done.returncode == 1
    assert "return a / b  # the line" in done.stdout
    assert "42" in done.stdout


def test_wrong_ids_and_directories(directory, tmp_path):
    for _ in range(2):
        ref = divide.remote(1, 0)
        fail(ref)
    task = ref.task_id()
    wrong = task[:-1] + ("0" if task[-1] != "0" else "1")
    done = command(task[:10] + "x" + task[11:], directory=directory)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"did you mean {task}" in done.stderr or task in done.stderr
    assert command(wrong, directory=directory).returncode in (1, 2)
    unknown = command("zzz", directory=directory)
    assert unknown.returncode == 2
    assert "2 others" in unknown.stderr
    several = command("", directory=directory)
    assert several.returncode == 2
    assert "the end of 2 ids" in several.stderr
    assert "FASTRAY_RECORD_FAILURES" in command().stderr
    assert command("--from", str(tmp_path / "none")).returncode == 2
    (tmp_path / "empty").mkdir()
    assert "no recorded failures" in command("--from", str(tmp_path / "empty")).stdout


def test_values_of_references_are_in_the_file(directory):
    captured = fastray.put(1000)

    @fastray.remote
    def total(array, small, nested):
        raise ValueError(float(array.sum()) + small + fastray.get(nested["ref"]) + fastray.get(captured))

    ref = total.remote(fastray.put(np.ones(10_000)), divide.remote(4, 2), {"ref": fastray.put(7)})
    fail(ref)
    done = command(ref.task_id(), directory=directory)
    assert done.stderr.rstrip().endswith("ValueError: 11009.0")


def test_environment_and_seed_are_in_the_file(directory, tmp_path):
    work = tmp_path / "work"
    work.mkdir()

    @fastray.remote(seed=True, runtime_env={"env_vars": {"WHO": "me"}, "working_dir": str(work)})
    def draw():
        import random

        raise ValueError(random.random(), os.environ["WHO"], os.getcwd())

    refs = [draw.remote() for _ in range(2)]
    for ref in refs:
        error = fail(ref)
        assert command(ref.task_id(), directory=directory).stderr.rstrip().endswith(f"ValueError: {error.cause}")
        assert str(work) in str(error.cause)


def test_a_crash_is_recorded_when_somebody_asks(directory):
    keep = os.getpid()

    @fastray.remote(max_retries=1)
    def crash(value):
        if os.getppid() != keep and not os.environ.get(VARIABLE):
            os._exit(3)
        return value * 2

    ref = crash.remote(divide.remote(42, 1))
    error = fail(ref)
    (found,) = list_failures(directory)
    assert found.task_id == ref.task_id()
    assert found.header["error"] == str(error).split("\n")[0]
    assert "Attempt 1:" in found.header["text"]
    assert found.header["attempts"] == 2
    written = os.stat(found.path).st_mtime_ns
    fail(ref)  # asked once more: written once
    fail(divide.remote(ref, 1))  # and not for a task that only depends on it
    assert [f.task_id for f in list_failures(directory)] == [ref.task_id()]
    assert os.stat(found.path).st_mtime_ns == written
    done = command(ref.task_id(), directory=directory)
    assert done.returncode == 0
    assert "returned 84.0" in done.stdout


def test_crashes_that_nobody_asks_about_are_recorded(directory):
    @fastray.remote(max_retries=0)
    def crash(value):
        os._exit(3)

    @fastray.remote(max_retries=0)
    def stream():
        yield 1
        os._exit(3)

    @fastray.remote
    def parent():
        child = crash.remote(3)
        fastray.wait([child], fetch_local=False)
        return child.task_id()

    kept = crash.remote(divide.remote(42, 1))
    crash.remote(1)  # nobody holds it
    two, _ = crash.options(num_returns=2).remote(2)
    items = stream.remote()
    child = fastray.get(parent.remote(), timeout=GET_S)
    assert eventually(lambda: len(list_failures(directory)) == 5)
    found = {failure.task_id: failure for failure in list_failures(directory)}
    assert {kept.task_id(), two.task_id(), child} < set(found)
    assert "exited with code 3" in found[kept.task_id()].header["error"]
    assert found[kept.task_id()].lineage().step.args == (42.0,)
    assert sum(failure.header["name"] == "stream" for failure in found.values()) == 1
    with pytest.raises(WorkerCrashedError):
        list(items)
    assert eventually(lambda: current_runtime().attachment.counters()["lent"] == 0)  # the node has let go


def test_arguments_that_kill_who_reads_them_are_not_tried_again(directory):
    class Bomb:
        def __reduce__(self):
            return os._exit, (7,)

    ref = divide.options(max_retries=0).remote(Bomb(), 1)
    fastray.wait([ref], timeout=GET_S)
    assert fastray.get([divide.remote(i, 1) for i in range(100)], timeout=GET_S) == list(range(100))
    assert eventually(lambda: current_runtime().attachment.counters()["lent"] == 0)
    assert list_failures(directory) == []


def test_streams_and_several_returns(directory):
    @fastray.remote
    def items():
        yield 1
        raise ValueError("stream")

    @fastray.remote(num_returns=2)
    def two():
        raise ValueError("two")

    stream = items.remote()
    fail(list(stream)[-1])
    a, _ = two.remote()
    fail(a)
    assert {f.header["error"] for f in list_failures(directory)} == {"ValueError: stream", "ValueError: two"}
    assert command(a.task_id(), directory=directory).stderr.rstrip().endswith("ValueError: two")


def test_what_is_retried_or_cancelled_is_not_recorded(directory, tmp_path):
    @fastray.remote(max_retries=1, retry_exceptions=True)
    def once(path):
        if not os.path.exists(path):
            Path(path).touch()
            raise ValueError("once")
        return 1

    assert fastray.get(once.remote(str(tmp_path / "mark")), timeout=GET_S) == 1
    blocked = fastray.remote(lambda: __import__("signal").pause()).remote()
    fastray.cancel(blocked)
    fail(blocked)
    assert list_failures(directory) == []


def test_an_actors_call_has_its_state_with_it(directory):
    @fastray.remote(checkpoint_calls=2)
    class Account:
        def __init__(self, balance, friend=None):
            self.balance = balance
            self.friend = friend

        def __fastray_save__(self):
            return self.balance

        def __fastray_restore__(self, state):
            self.balance = state

        def pay(self, amount):
            if amount > self.balance:
                raise ValueError(self.balance, amount)
            self.balance -= amount

        def ask(self):
            self.friend.pay.remote(1)

    @fastray.remote
    class Plain:
        def fail(self):
            raise ValueError("plain")

    account = Account.remote(10)
    refs = [account.pay.remote(3) for _ in range(4)]
    fail(refs[3])
    done = command(refs[3].task_id(), directory=directory)
    assert done.stderr.rstrip().endswith("ValueError: (1, 3)")
    plain = Plain.remote().fail.remote()
    fail(plain)
    refused = command(plain.task_id(), directory=directory)
    assert refused.returncode == 2
    assert "--from-constructor" in refused.stderr
    done = command(plain.task_id(), "--from-constructor", directory=directory)
    assert done.stderr.rstrip().endswith("ValueError: plain")


def test_handles_of_actors_are_gone(directory):
    @fastray.remote
    class Friend:
        def hello(self):
            return "hello"

    @fastray.remote
    def greet(friend):
        raise ValueError(fastray.get(friend.hello.remote()))

    ref = greet.remote(Friend.remote())
    fail(ref)
    done = command(ref.task_id(), directory=directory)
    assert done.returncode == 2
    assert ".hello cannot be used in a replay" in done.stderr


def test_arguments_that_are_too_large_are_left_out(directory):
    ref = fastray.remote(lambda array: 1 / 0).remote(np.zeros(failures.RECORD_BYTES_MAX // 8 + 1))
    fail(ref)
    (found,) = list_failures(directory)
    assert os.stat(found.path).st_size < 100_000
    assert "larger than 67,108,864 bytes" in command(ref.task_id(), directory=directory).stderr


def test_local_mode_records_too(tmp_path):
    fastray.init(local_mode=True, record_failures=str(tmp_path / "f"))
    ref = divide.remote(1, 0)
    fail(ref)
    task = ref.task_id()
    fastray.shutdown()
    assert [f.task_id for f in list_failures(str(tmp_path / "f"))] == [task]


def test_the_environment_variable_switches_it_on(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "f"))
    fastray.init(num_cpus=1)
    fail(divide.remote(1, 0))
    fastray.shutdown()
    monkeypatch.delenv(VARIABLE)
    fastray.init(num_cpus=1)
    fail(divide.remote(1, 0))
    assert len(list_failures(str(tmp_path / "f"))) == 1
    fastray.shutdown()
    with pytest.raises(TypeError, match="record_failures"):
        fastray.init(record_failures=1)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        fastray.init(record_failures=tmp_path / "file" / "d")
    assert not fastray.is_initialized()


# ---- files ----------------------------------------------------------------------------------------------


def failure_file(path, **changes):
    header = {"format": 1, "task_id": "ab" * 16, "time": 1.0, "python": failures._python(), "omitted": None}
    path.write_bytes(pickle.dumps({**header, **changes}) + pickle.dumps("body"))
    path.chmod(0o600)
    return str(path)


def test_only_files_that_nobody_else_may_write_are_read(tmp_path):
    path = failure_file(tmp_path / ("a" + SUFFIX))
    assert read_failure(path).lineage() == "body"
    os.chmod(path, 0o660)
    with pytest.raises(ReplayError, match="others may write it"):
        read_failure(path)
    assert list_failures(str(tmp_path)) == []
    (tmp_path / ("b" + SUFFIX)).write_bytes(b"junk")
    with pytest.raises(ReplayError, match="not a recorded failure"):
        read_failure(str(tmp_path / ("b" + SUFFIX)))
    with pytest.raises(ReplayError, match="format 2"):
        read_failure(failure_file(tmp_path / ("c" + SUFFIX), format=2))
    with pytest.raises(ReplayError, match=r"recorded by Python 2\.7"):
        read_failure(failure_file(tmp_path / ("d" + SUFFIX), python="2.7")).lineage()


def test_the_oldest_files_go(tmp_path, monkeypatch):
    for i in range(10):
        path = tmp_path / f"{i}{SUFFIX}"
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 + i, 1000 + i))
    (tmp_path / ".left.1.tmp").write_bytes(b"")
    os.utime(tmp_path / ".left.1.tmp", (1000, 1000))
    (tmp_path / ".now.1.tmp").write_bytes(b"")
    monkeypatch.setattr(failures, "FILES_MAX", 7)
    trim(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".now.1.tmp", *(f"{i}{SUFFIX}" for i in range(3, 10))]
    monkeypatch.setattr(failures, "BYTES_MAX", 250)
    trim(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".now.1.tmp", f"8{SUFFIX}", f"9{SUFFIX}"]


def test_a_recorder_that_cannot_write_does_not_hurt_the_task(directory):
    os.rmdir(directory)
    assert isinstance(fail(divide.remote(1, 0)), ZeroDivisionError)


def test_a_lost_working_directory_is_named(directory, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    ref = divide.options(runtime_env={"working_dir": str(work)}).remote(1, 0)
    fail(ref)
    work.rmdir()
    with pytest.raises(ReplayError, match="working_dir"):
        fastray.replay(ref)
    (found,) = list_failures(directory)
    with pytest.raises(ReplayError, match="working_dir"):
        replay.run(found.lineage())
