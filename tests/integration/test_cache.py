"""`@remote(cache=True)`: results by content, in one session, in another, in another program; eviction; damage."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from integration_helpers import note, tally

import fastray
from fastray.exceptions import InvalidOptionError, OptionTypeError
from fastray.recovery.cache import CacheStore, Missing


@pytest.fixture
def runs(tmp_path):
    return str(tmp_path / "runs")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def node(place):
    with fastray.init(num_cpus=2):
        yield fastray


def entries(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@dataclasses.dataclass
class Point:
    x: int


def test_the_same_call_runs_once(node, runs):
    @fastray.remote(cache=True)
    def double(x, *, by=2):
        note(runs)
        return x * by

    values = [0, 1.5, "text", b"b" * 1000, (1, [2, {"three": 4}])]
    for _ in range(3):
        assert fastray.get([double.remote(v) for v in values]) == [v * 2 for v in values]
        assert fastray.get([double.remote(v, by=3) for v in values]) == [v * 3 for v in values]
    assert len(tally(runs)) == 10


def test_a_hit_needs_no_worker(place, runs):
    @fastray.remote(cache=True, num_cpus=1)
    def f(x):
        note(runs)
        return x

    @fastray.remote(num_cpus=1)
    def busy(gate):
        while not os.path.exists(gate):
            time.sleep(0.001)

    with fastray.init(num_cpus=1):
        assert fastray.get(f.remote(1)) == 1
        gate = str(place / "gate")
        blocked = busy.remote(gate)
        assert fastray.get(f.remote(1), timeout=30) == 1
        Path(gate).touch()
        fastray.get(blocked)


def test_another_session_finds_it(place, runs):
    @fastray.remote(cache=True)
    def f(p):
        note(runs)
        return Point(p.x + 1)

    for _ in range(2):
        with fastray.init(num_cpus=1):
            result = fastray.get(f.remote(Point(1)))
            assert result == Point(2)
            assert type(result) is Point
    assert len(tally(runs)) == 1


PROGRAM = """
import dataclasses, os, sys
import fastray
{lines}
@dataclasses.dataclass
class Item:
    name: str
    tags: frozenset

def helper(x):
    return x + {constant}

@fastray.remote(cache=True)
def work(item, x):
    with open(sys.argv[1] if len(sys.argv) > 1 else os.environ["RUNS"], "a") as file:
        file.write("x")
    return Item(item.name * 2, item.tags), helper(x)

fastray.init(num_cpus=1)
item, y = fastray.get(work.remote(Item("a", frozenset(["x", "y", "z"])), 1))
assert type(item) is Item and item == Item("aa", frozenset(["x", "y", "z"])), item
print(y)
"""


def test_another_run_of_the_program_finds_it(run_program, place, tmp_path):
    runs = tmp_path / "runs"
    for seed, lines, constant, expected in ((1, "", 1, 1), (2, "", 1, 1), (3, "\n# moved\n\n", 1, 1), (4, "", 7, 2)):
        environment = {"RUNS": str(runs), "PYTHONHASHSEED": str(seed)}
        done = run_program(PROGRAM.format(lines=lines, constant=constant), env=environment)
        assert done.stdout.strip() == str(1 + constant)
        assert len(runs.read_text()) == expected


def test_references_count_by_their_values(node, runs):
    @fastray.remote
    def make(n):
        return np.arange(n)

    @fastray.remote(cache=True)
    def total(a, b=0):
        note(runs)
        return int(a.sum()) + b

    for _ in range(2):
        refs = [total.remote(make.remote(1000)), total.remote(fastray.put(np.arange(1000)))]
        refs += [total.remote(make.remote(1000), b=fastray.put(1)), total.remote(make.remote(10))]
        assert fastray.get(refs) == [499500, 499500, 499501, 45]
    # the first two may have run side by side
    assert 3 <= len(tally(runs)) <= 4


def test_references_inside_arguments_run_each_time(node, runs):
    @fastray.remote(cache=True)
    def total(refs):
        note(runs)
        return sum(fastray.get(refs))

    for _ in range(2):
        assert fastray.get(total.remote([fastray.put(1), fastray.put(2)])) == 3
    assert len(tally(runs)) == 2


def test_large_arrays_come_back(node, runs):
    @fastray.remote(cache=True)
    def make(n, order):
        note(runs)
        return {"a": np.arange(n).reshape(10, -1), "b": np.ones(n, order=order), "empty": np.zeros(0)}

    for _ in range(2):
        value = fastray.get(make.remote(1_000_000, "F"))
        assert value["a"].shape == (10, 100_000)
        assert value["a"][9, -1] == 999_999
        assert value["b"].sum() == 1_000_000
        assert value["empty"].size == 0
    assert len(tally(runs)) == 1


def test_arrays_as_arguments_count_by_content(node, runs):
    @fastray.remote(cache=True)
    def f(a):
        note(runs)
        return float(a.sum())

    a = np.arange(10_000.0)
    for array in (a, a.copy(), a.reshape(100, 100), a.reshape(100, 100).T, a.astype("f4"), a + 1, a[::-1]):
        fastray.get(f.remote(array))
    assert len(tally(runs)) == 6


def test_several_returns_and_none(node, runs):
    @fastray.remote(cache=True, num_returns=2)
    def pair(x):
        note(runs)
        return x, -x

    @fastray.remote(cache=True, num_returns=2)
    def pair_of_generator(x):
        note(runs)
        yield x
        yield -x

    @fastray.remote(cache=True, num_returns=0)
    def nothing(x):
        note(runs)

    for _ in range(2):
        assert fastray.get(pair.remote(1)) == [1, -1]
        assert fastray.get(pair_of_generator.remote(2)) == [2, -2]
    assert len(tally(runs)) == 2
    assert nothing.remote(1) is None


def test_exceptions_and_references_are_not_stored(node, runs):
    @fastray.remote(cache=True, max_retries=0)
    def fails():
        note(runs)
        raise ValueError("no")

    @fastray.remote(cache=True)
    def refers():
        note(runs)
        return [fastray.put(1)]

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            fastray.get(fails.remote())
        assert fastray.get(fastray.get(refers.remote())) == [1]
    assert len(tally(runs)) == 4


def test_options_and_map(node, runs, tmp_path):
    @fastray.remote
    def f(x):
        note(runs)
        return x * x

    cached = f.options(cache={"path": tmp_path / "own", "max_bytes": 1 << 20})
    for _ in range(2):
        assert fastray.get(cached.remote(2)) == 4
        assert fastray.get(f.remote(2)) == 4
    assert len(tally(runs)) == 3
    assert entries(tmp_path / "own")
    assert fastray.get(cached.options(cache=False).remote(2)) == 4
    assert len(tally(runs)) == 4
    for _ in range(2):
        assert list(cached.map(range(20))) == [x * x for x in range(20)]
    assert len(tally(runs)) == 4 + 19


def test_a_changed_function_or_environment_runs_again(node, runs):
    def run(function, **options):
        return fastray.get(fastray.remote(cache=True, **options)(function).remote(1))

    def f(x, y=1):
        note(runs)
        return x + y

    def changed(x, y=2):
        note(runs)
        return x + y

    assert [run(f), run(f), run(changed), run(f)] == [2, 2, 3, 2]
    assert run(f, runtime_env={"env_vars": {"A": "1"}}) == 2
    assert len(tally(runs)) == 3


def test_wrong_options_and_functions(node):
    for value in ("yes", 3, ["path"]):
        with pytest.raises(OptionTypeError, match="cache"):
            fastray.remote(cache=value)(len)
    for value in ({"bytes": 1}, {"max_bytes": 0}, {"max_bytes": "1"}, {"path": 7}):
        with pytest.raises(InvalidOptionError, match="cache"):
            fastray.remote(cache=value)(len)
    ref = fastray.put(1)

    @fastray.remote(cache=True)
    def refers():
        return fastray.get(ref)

    with pytest.raises(InvalidOptionError, match="refers to an ObjectRef"):
        refers.remote()

    @fastray.remote(cache=True)
    def stream():
        yield 1

    with pytest.raises(InvalidOptionError, match="generator"):
        stream.remote()

    @fastray.remote(cache=True)
    def f(x):
        return x

    with pytest.raises(TypeError, match="missing a required argument"):
        f.remote()
    with pytest.raises(TypeError, match="cannot be pickled"):
        f.remote(threading.Lock())


def test_a_damaged_entry_is_computed_again(node, place, runs):
    @fastray.remote(cache=True)
    def f(x):
        note(runs)
        return "x" * 1000

    fastray.get(f.remote(1))
    (entry,) = entries(place)
    whole = entry.read_bytes()
    for data in (b"", whole[:30], whole[:-1], whole[:-500] + b"y" + whole[-499:], whole + b"z"):
        entry.write_bytes(data)
        before = len(tally(runs))
        assert fastray.get(f.remote(1)) == "x" * 1000
        assert len(tally(runs)) == before + 1
        assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_written(node, tmp_path, runs):
    (tmp_path / "file").write_text("")

    @fastray.remote(cache={"path": tmp_path / "file"})
    def f(x):
        note(runs)
        return x

    assert fastray.get([f.remote(1), f.remote(1)]) == [1, 1]


# ---- the store -------------------------------------------------------------------------------------------


def key(n):
    return n.to_bytes(16, "little")


def test_what_was_used_longest_ago_is_evicted(tmp_path):
    store = CacheStore(str(tmp_path), 100_000)
    for n in range(10):
        store.save(key(n), bytes(9_000))
        os.utime(store.file_of(key(n)), (n, n))
    assert store.load(key(0)) == bytes(9_000)  # its last use is now
    for n in range(10, 14):
        store.save(key(n), bytes(9_000))
    store.evict()
    left = {n for n in range(14) if os.path.exists(store.file_of(key(n)))}
    assert {0, 10, 11, 12, 13} <= left
    assert not left & {1, 2, 3}
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 100_000
    store.save(key(99), bytes(200_000))  # larger than all
    with pytest.raises(Missing):
        store.load(key(99))


def test_the_bound_holds_while_it_is_filled(tmp_path):
    store = CacheStore(str(tmp_path), 1 << 20)
    for n in range(500):
        store.save(key(n), random.randbytes(10_000))
        if n % 50 == 0:
            assert sum(path.stat().st_size for path in entries(tmp_path)) <= (1 << 20) * 17 // 16 + 20_000
    assert store.load(key(499))


def _hammer(folder, seed, errors):
    store, choice = CacheStore(folder, 300_000), random.Random(seed)
    try:
        for _ in range(600):
            n = choice.randrange(60)
            try:
                if store.load(key(n)) != bytes([n]) * 10_000:
                    errors.put(f"{n} is wrong")
            except Missing:
                store.save(key(n), bytes([n]) * 10_000)
    except BaseException as error:
        errors.put(repr(error))


def test_many_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    errors = context.SimpleQueue()
    processes = [context.Process(target=_hammer, args=(str(tmp_path), seed, errors)) for seed in range(4)]
    for process in processes:
        process.start()
    processes[0].join(0.05)
    processes[0].kill()  # in the middle of anything
    for process in processes:
        process.join(60)
        assert process.exitcode in (0, -9)
    assert errors.empty(), errors.get()
    store = CacheStore(str(tmp_path), 300_000)
    store.evict()
    for n in range(60):
        try:
            assert store.load(key(n)) == bytes([n]) * 10_000
        except Missing:
            continue
    unfinished = [path for path in entries(tmp_path) if path.suffix == ".tmp"]
    for path in unfinished:
        os.utime(path, (0, 0))
    store.evict()
    assert not [path for path in entries(tmp_path) if path.suffix == ".tmp"]
