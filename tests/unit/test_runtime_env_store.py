"""The store of runtime_envs: made once, never half, shared failures, what is removed and what stays."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from fastray.exceptions import RuntimeEnvSetupError
from fastray.runtime_envs.store import Store, session_store, user_store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def write(path, _lock):
    with open(os.path.join(path, "content"), "w") as file:
        file.write("all of it")


def use(store, name="entry", make=write, **more):
    path, lock = store.use(name, make, **more)
    os.close(lock)
    return path


def never(_path, _lock):
    raise AssertionError("it is made already")


def test_an_entry_is_made_once_and_found_again(store):
    waited = []
    path = use(store, wait=lambda: waited.append(1))
    with open(os.path.join(path, "content")) as file:
        assert file.read() == "all of it"
    assert use(store, make=never, wait=lambda: waited.append(2)) == path
    assert waited == [1]


def test_a_failure_leaves_nothing_and_the_next_one_tries_again(store):
    def fail(path, lock):
        write(path, lock)
        raise ValueError("no such thing")

    with pytest.raises(RuntimeEnvSetupError, match="ValueError: no such thing"):
        use(store, make=fail)
    assert not os.path.exists(store.path("entry"))
    assert os.path.exists(use(store))


def test_who_waits_for_an_attempt_fails_with_it(store):
    making, waiting, go = threading.Event(), threading.Event(), threading.Event()
    attempts, errors = [], []

    def fail(_path, _lock):
        attempts.append(1)
        making.set()
        assert go.wait(30)
        raise RuntimeEnvSetupError("it said: no")

    def want(**more):
        try:
            use(store, make=fail, **more)
        except RuntimeEnvSetupError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=want)]
    threads[0].start()
    assert making.wait(30)
    threads += [threading.Thread(target=want, kwargs={"wait": waiting.set}) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    assert waiting.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert errors == ["it said: no"] * 4
    assert len(attempts) <= 3  # one, and whoever had not begun to wait


MAKER = """
import os, sys, time
from fastray.runtime_envs.store import Store

def make(path, lock):
    open(os.path.join(path, "half"), "w").close()
    print("making", flush=True)
    time.sleep(60)

Store(sys.argv[1]).use("entry", make)
"""


def test_a_maker_that_is_killed_leaves_nothing_that_is_taken_for_done(store):
    maker = subprocess.Popen([sys.executable, "-c", MAKER, store.root], stdout=subprocess.PIPE, text=True)
    assert maker.stdout.readline() == "making\n"
    found = []
    waiter = threading.Thread(target=lambda: found.append(use(store)))
    waiter.start()
    assert not found
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    waiter.join(30)
    assert os.listdir(found[0]) == ["content"]


def test_what_a_maker_started_keeps_the_others_waiting(store):
    """A killed worker's pip may live a moment longer: nobody writes beside it."""
    ends = []

    def make(_path, lock):
        ends.append(subprocess.Popen(["sleep", "60"], pass_fds=(lock,)))
        raise SystemExit  # this process lets go without being done

    with pytest.raises(SystemExit):
        use(store, make=make)
    assert store.lock("entry", fcntl.LOCK_EX | fcntl.LOCK_NB) == -1
    ends[0].kill()
    ends[0].wait()
    assert os.path.exists(use(store))


def test_what_was_used_longest_ago_goes_but_nothing_in_use(tmp_path):
    store = Store(str(tmp_path), entries_max=4)
    _, held = store.use("held", write)
    for i, name in enumerate(("a", "b", "c")):
        use(store, name)
        os.utime(store.path(name) + ".done", (1000 + i, 1000 + i))
    os.utime(store.path("held") + ".done", (1, 1))
    use(store, "a", make=never)  # used again: now the youngest
    use(store, "d")
    assert sorted(name for name in os.listdir(store.root) if "." not in name) == ["a", "b", "c", "d", "held"]
    os.close(held)
    use(store, "e")
    assert sorted(name for name in os.listdir(store.root) if "." not in name) == ["a", "c", "d", "e"]


def test_pruning_removes_what_was_never_finished(tmp_path):
    store = Store(str(tmp_path), entries_max=10)
    os.mkdir(store.path("killed"))
    os.close(store.lock("killed", fcntl.LOCK_SH))
    use(store)
    assert not os.path.exists(store.path("killed"))
    assert not os.path.exists(store.path("killed") + ".lock")


def test_an_entry_in_use_is_removed_when_it_is_not_any_more(store):
    _, held = store.use("entry", write)
    assert not store.remove("entry")
    removed = []
    waiter = threading.Thread(target=lambda: removed.append(store.remove("entry", fcntl.LOCK_EX)))
    waiter.start()
    os.close(held)
    waiter.join(30)
    assert removed == [True]
    assert os.listdir(store.root) == []
    assert os.path.exists(use(store))


def test_many_processes_at_once_make_it_once(store, tmp_path):
    program = """
import os, sys, time
from fastray.runtime_envs.store import Store

def make(path, lock):
    with open(sys.argv[2], "a") as file:
        file.write("made\\n")
    open(os.path.join(path, "content"), "w").close()

path, _ = Store(sys.argv[1]).use("entry", make)
assert os.listdir(path) == ["content"]
"""
    made = tmp_path / "made"
    processes = [subprocess.Popen([sys.executable, "-c", program, store.root, str(made)]) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert made.read_text() == "made\n"


def test_where_stores_are(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTRAY_ENV_CACHE", raising=False)
    monkeypatch.setenv("FASTRAY_CACHE_DIR", str(tmp_path / "cache"))
    assert user_store().root == str(tmp_path / "cache" / "envs")
    monkeypatch.setenv("FASTRAY_ENV_CACHE", str(tmp_path / "mine"))
    assert user_store().root == str(tmp_path / "mine")
    assert session_store(str(tmp_path)).root == str(tmp_path / "env")
    assert os.path.isdir(tmp_path / "mine")
