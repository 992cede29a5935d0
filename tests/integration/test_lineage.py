"""Results whose data is gone are computed again: the smallest set of tasks, for all who hold a reference."""

from __future__ import annotations

import numpy as np
import pytest
from integration_helpers import eventually, kill_self, note, open_gate, store_bytes, tally, wait_for_gate

import fastray
from fastray.exceptions import ObjectLostError, ObjectReconstructionFailedError
from fastray.recovery.lineage import NO_ATTEMPTS, NO_LINEAGE, NO_TASK, explain, snapshot

pytestmark = pytest.mark.usefixtures("node")

N = 100_000  # doubles of an array: too big for a record
GET_S = 30


def get(refs):
    return fastray.get(refs, timeout=GET_S)


@fastray.remote
def load(path, name, k=0):
    note(path, name)
    return np.full(N, float(k))


@fastray.remote
def add(path, name, *arrays):
    note(path, name)
    return sum(arrays) + 1


@fastray.remote(num_returns=3)
def split(path, array):
    note(path, "split")
    return array + 1, 7, array + 2


@fastray.remote(num_returns=3)
def split_first(path, k):
    note(path, "split")
    return np.full(N, k), 7, np.full(N, k + 1)


@fastray.remote(num_cpus=0)
def total(refs):
    return float(fastray.get(refs[0]).sum())


@pytest.fixture
def log(tmp_path):
    return str(tmp_path / "log")


def evicted(*refs):
    """Gives the data of all of them back; a borrower may still be about to let go."""
    left = list(refs)

    def all_gone():
        left[:] = [ref for ref in left if not fastray.evict(ref)]
        return not left

    assert eventually(all_gone)


def names_of_runs(ref):
    graph, _ = snapshot(ref)
    return [graph[key].name for key in explain(ref).runs]


def lost(ref):
    """How many of the results behind `ref` have given their memory back."""
    store_bytes()  # sweeps
    return [node.state for node in snapshot(ref)[0].values()].count("lost")


# ---- evict and compute again ---------------------------------------------------------------------------------


def test_an_evicted_result_is_computed_again(log):
    ref = load.remote(log, "load", 3)
    before = get(ref).copy()
    evicted(ref)
    assert names_of_runs(ref) == ["load"]
    assert np.array_equal(get(ref), before)
    assert tally(log) == ["load", "load"]
    assert names_of_runs(ref) == []


def test_eviction_gives_the_memory_back(log):
    refs = [load.remote(log, "load", k) for k in range(8)]
    get(refs)
    full = store_bytes()
    evicted(*refs)
    assert eventually(lambda: store_bytes() <= full - 6 * 8 * N)  # makers of less than 1 MB are not woken


def test_only_what_is_lost_runs_again(log):
    a = load.remote(log, "a")
    b = add.remote(log, "b", a)
    c = add.remote(log, "c", b)
    assert get(c)[0] == 2
    evicted(c)
    assert get(c)[0] == 2
    assert tally(log)[3:] == ["c"]
    evicted(b, c)
    assert get(c)[0] == 2
    assert tally(log)[4:] == ["b", "c"]


def test_what_lineage_alone_holds_gives_its_memory_back_and_is_computed_again_when_needed(log):
    a = load.remote(log, "a")
    b = add.remote(log, "b", a)
    c = add.remote(log, "c", b, a)
    get(c)
    del a, b
    assert eventually(lambda: lost(c) == 2)
    assert tally(log) == ["a", "b", "c"]
    evicted(c)
    assert sorted(names_of_runs(c)) == ["add", "add", "load"]
    assert get(c)[0] == 2
    assert tally(log)[3:] == ["a", "b", "c"]


def test_a_long_chain_is_replayed_from_its_beginning(log):
    x = load.remote(log, "x")
    for _ in range(300):
        x = add.options(max_retries=5).remote(log, "x", x)
    assert get(x)[0] == 300
    assert eventually(lambda: store_bytes() < 20 * 8 * N)
    evicted(x)
    assert get(x)[0] == 300
    assert len(tally(log)) == 602


def test_a_tree_is_replayed(log):
    leaves = [load.remote(log, "leaf", k) for k in range(16)]
    level = leaves
    while len(level) > 1:
        level = [add.remote(log, "node", a, b) for a, b in zip(level[::2], level[1::2])]
    root = level[0]
    value = get(root)[0]
    assert value == sum(range(16)) + 15
    del leaves, level
    assert eventually(lambda: lost(root) == 30)
    evicted(root)
    assert get(root)[0] == value
    assert len(tally(log)) == 62


# ---- who asks ------------------------------------------------------------------------------------------------


def test_wait_asks_for_it(log):
    ref = load.remote(log, "load")
    get(ref)
    evicted(ref)
    assert fastray.wait([ref], timeout=GET_S) == ([ref], [])
    assert tally(log) == ["load", "load"]


def test_a_new_task_asks_for_its_argument(log):
    ref = load.remote(log, "load")
    get(ref)
    evicted(ref)
    assert get(add.remote(log, "add", ref))[0] == 1
    assert tally(log) == ["load", "load", "add"]


def test_a_borrower_asks_for_it(log):
    ref = load.remote(log, "load", 2)
    get(ref)
    evicted(ref)
    assert get(total.remote([ref])) == 2.0 * N
    assert tally(log) == ["load", "load"]
    assert get(ref)[0] == 2


def test_everybody_who_holds_it_sees_the_same_object(log, tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote(num_cpus=0)
    def look(refs):
        wait_for_gate(gate)
        return float(fastray.get(refs[0])[0])

    ref = load.remote(log, "load", 5)
    name = ref.hex()
    get(ref)
    evicted(ref)
    lookers = [look.remote([ref]) for _ in range(3)]
    open_gate(gate)
    assert get(lookers) == [5.0, 5.0, 5.0]
    assert get(ref)[0] == 5
    assert ref.hex() == name
    assert tally(log) == ["load", "load"]


def test_a_nested_task_s_result_is_computed_again_for_the_driver(log):
    @fastray.remote
    def outer():
        inner = load.remote(log, "inner", 4)
        fastray.get(inner)
        fastray.evict(inner)
        return [inner]

    (inner,) = get(outer.remote())
    assert get(inner)[0] == 4
    assert set(tally(log)) == {"inner"}


def test_futures_and_await_ask_for_it(log):
    import asyncio

    ref = load.remote(log, "load", 1)
    get(ref)
    evicted(ref)
    assert ref.future().result(GET_S)[0] == 1
    evicted(ref)

    async def value():
        return (await ref)[0]

    assert asyncio.run(value()) == 1
    assert len(tally(log)) == 3


# ---- several returns -----------------------------------------------------------------------------------------


def test_one_of_several_returns_is_computed_again(log):
    first, second, third = split_first.remote(log, 3)
    assert (get(first)[0], get(second), get(third)[0]) == (3, 7, 4)
    evicted(third)
    assert get(third)[0] == 4
    assert get(first)[0] == 3
    assert tally(log) == ["split", "split"]


def test_two_lost_returns_need_one_run(log):
    first, _, third = split_first.remote(log, 3)
    get([first, third])
    evicted(first, third)
    assert [array[0] for array in get([first, third])] == [3, 4]
    assert len(tally(log)) in (2, 3)  # the second may be asked for when its turn has passed


def test_returns_of_a_task_with_arguments(log):
    a = load.remote(log, "a", 1)
    first, _, third = split.remote(log, a)
    get([first, third])
    evicted(a, first)
    assert get(first)[0] == 2
    assert tally(log)[2:] == ["a", "split"]


# ---- what is in use ------------------------------------------------------------------------------------------


def test_what_is_in_use_is_left_alone(log, tmp_path):
    gate = str(tmp_path / "gate")

    @fastray.remote(num_cpus=0)
    def later(array, _after):
        return float(array[0])

    @fastray.remote(num_cpus=0)
    def after():
        wait_for_gate(gate)

    ref = load.remote(log, "load", 1)
    array = get(ref)
    assert fastray.evict(ref) == 0  # an array of it
    del array
    pending = later.remote(ref, after.remote())
    assert fastray.evict(ref) == 0  # a task that waits for something else
    open_gate(gate)
    assert get(pending) == 1
    evicted(ref)
    assert tally(log) == ["load"]


def test_what_cannot_be_made_again_is_left_alone(log):
    assert fastray.evict(fastray.put(np.zeros(N))) == 0
    small = fastray.remote(lambda: 1).remote()
    get(small)
    assert fastray.evict(small) == 0
    once = load.options(max_retries=0).remote(log, "once")
    get(once)
    assert fastray.evict(once) == 0

    @fastray.remote
    class Maker:
        def make(self):
            return np.zeros(N)

    made = Maker.remote().make.remote()
    get(made)
    assert fastray.evict(made) == 0


@pytest.mark.parametrize("what", [3, [None], "ref"])
def test_evict_takes_references(what):
    with pytest.raises(TypeError):
        fastray.evict(what)


# ---- when it is impossible -----------------------------------------------------------------------------------


def lost_for_good(ref):
    assert eventually(lambda: fastray.evict(ref, also_lost=True))


def test_an_object_of_put_cannot_be_made_again():
    ref = fastray.put(np.zeros(N))
    lost_for_good(ref)
    assert explain(ref).missing[0].reason == NO_TASK
    with pytest.raises(ObjectReconstructionFailedError, match=r"no task makes it.*put\(\)") as caught:
        get(ref)
    assert caught.value.object_ref_hex == ref.hex()
    assert isinstance(caught.value, ObjectLostError)


def test_the_error_names_the_chain_and_reaches_the_end_of_it(log):
    source = fastray.put(np.zeros(N))
    a = add.remote(log, "a", source)
    b = add.remote(log, "b", a)
    get(b)
    for ref in (b, a, source):
        lost_for_good(ref)
    (missing,) = explain(b).missing
    assert missing.chain == ("add()",)  # what others hold of its arguments is found when it is tried
    with pytest.raises(ObjectReconstructionFailedError, match=r"put\(\) <- add\(\) <- add\(\)") as caught:
        get(b)
    assert caught.value.object_ref_hex == source.hex()
    with pytest.raises(ObjectReconstructionFailedError):
        get(a)
    assert tally(log) == ["a", "b"]


def test_a_task_that_let_go_of_its_arguments(log):
    before = store_bytes()
    b = add.remote(log, "b", fastray.put(np.zeros(N)))
    get(b)
    assert eventually(lambda: store_bytes() < before + 12 * N)  # the argument's memory is back
    assert fastray.evict(b) == 0
    lost_for_good(b)
    assert explain(b).missing[0].reason == NO_LINEAGE
    with pytest.raises(ObjectReconstructionFailedError, match=r"arguments of its task are gone too .*: add\(\)"):
        get(b)


def test_an_argument_that_somebody_still_holds_is_used(log):
    source = fastray.put(np.zeros(N))
    b = add.remote(log, "b", source)
    get(b)
    store_bytes()  # the finished task lets go of it, the driver does not
    lost_for_good(b)
    assert get(b)[0] == 1
    assert tally(log) == ["b", "b"]


def test_attempts_are_counted(log):
    ref = load.options(max_retries=1).remote(log, "load")
    get(ref)
    evicted(ref)
    get(ref)
    assert fastray.evict(ref) == 0
    lost_for_good(ref)
    assert explain(ref).missing[0].reason == NO_ATTEMPTS
    with pytest.raises(ObjectReconstructionFailedError, match="may not run again"):
        get(ref)


def test_a_replay_that_fails_is_an_error_of_the_task(log):
    @fastray.remote
    def twice(path):
        note(path, "run")
        if len(tally(path)) > 1:
            raise ValueError("not again")
        return np.zeros(N)

    ref = twice.remote(log)
    get(ref)
    evicted(ref)
    with pytest.raises(ValueError, match="not again"):
        get(ref)


# ---- with deaths ---------------------------------------------------------------------------------------------


def test_a_replay_survives_the_death_of_its_worker(log):
    @fastray.remote(max_retries=3)
    def fragile(path):
        note(path, "run")
        if len(tally(path)) == 2:
            kill_self()
        return np.full(N, 9.0)

    ref = fragile.remote(log)
    get(ref)
    evicted(ref)
    assert get(ref)[0] == 9
    assert len(tally(log)) == 3


def test_results_of_a_dead_owner_are_computed_again(log):
    @fastray.remote(num_cpus=0)
    class Owner:
        def make(self):
            self.ref = load.remote(log, "load", 6)
            fastray.get(self.ref)
            assert fastray.evict(self.ref) == 1
            return [self.ref]

    owner = Owner.remote()
    (ref,) = get(owner.make.remote())
    fastray.kill(owner)
    assert get(ref)[0] == 6
    assert tally(log) == ["load", "load"]
