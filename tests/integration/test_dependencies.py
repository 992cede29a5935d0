"""References as arguments: chains, diamonds, fan-in; dependencies that are late, fail or are cancelled."""

from __future__ import annotations

import numpy as np
import pytest
from integration_helpers import note, open_gate, tally, wait_for_gate

import fastray

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def echo(value):
    return value


@fastray.remote
def increment(x):
    return x + 1


@fastray.remote
def add(*numbers):
    return sum(numbers)


@fastray.remote
def after(gate, value):
    wait_for_gate(gate)
    return value


@fastray.remote
def fail(_=None):
    raise ZeroDivisionError("upstream")


@pytest.fixture
def gate(tmp_path):
    return str(tmp_path / "gate")


def test_a_reference_at_top_level_is_its_value_in_the_task():
    ref = fastray.put(5)
    assert fastray.get(echo.remote(ref), timeout=GET_S) == 5
    assert fastray.get(echo.remote(value=ref), timeout=GET_S) == 5
    assert fastray.get(echo.remote(echo.remote(echo.remote(7))), timeout=GET_S) == 7


def test_a_reference_in_a_container_is_passed_through():
    @fastray.remote
    def kinds(box):
        return [type(item).__name__ for item in box]

    ref = fastray.put(1)
    assert fastray.get(kinds.remote([ref, (ref,), {"k": ref}]), timeout=GET_S) == [
        "ObjectRef",
        "tuple",
        "dict",
    ]


def test_a_reference_inside_a_users_object_is_passed_through():
    class Box:
        def __init__(self, ref):
            self.ref = ref

    @fastray.remote
    def open_box(box):
        return fastray.get(box.ref)

    assert fastray.get(open_box.remote(Box(fastray.put("inside"))), timeout=GET_S) == "inside"


@pytest.mark.parametrize("n", [1, 2, 4, 5, 16, 17, 255, 256, 300, 1000, 5000])
def test_any_number_of_dependencies_is_resolved_in_order(n):
    refs = [increment.remote(i) for i in range(n)]

    @fastray.remote
    def collect(*values):
        return values

    assert fastray.get(collect.remote(*refs), timeout=GET_S) == tuple(range(1, n + 1))


def test_dependencies_mix_with_values_and_keywords():
    @fastray.remote
    def f(a, b, *rest, k=None, **more):
        return a, b, rest, k, more

    one, two = fastray.put(1), increment.remote(1)
    ref = f.remote(one, "b", two, 3.5, k=two, z=one, y=None)
    assert fastray.get(ref, timeout=GET_S) == (1, "b", (2, 3.5), 2, {"z": 1, "y": None})


def test_one_reference_may_be_several_arguments():
    ref = increment.remote(1)
    assert fastray.get(add.remote(ref, ref, ref), timeout=GET_S) == 6


def test_large_dependencies_arrive_as_views():
    @fastray.remote
    def look(a, b):
        return float(a.sum() + b.sum()), a.flags.writeable

    refs = [fastray.put(np.ones(300_000)) for _ in range(2)]
    assert fastray.get(look.remote(*refs), timeout=GET_S) == (600_000.0, False)


def test_a_chain_gives_its_end():
    ref = fastray.put(0)
    for _ in range(10_000):
        ref = increment.remote(ref)
    assert fastray.get(ref, timeout=GET_S) == 10_000


def test_a_chain_of_a_hundred_thousand_whose_start_is_late(gate):
    ref = after.remote(gate, 0)
    for _ in range(100_000):
        ref = increment.remote(ref)
    open_gate(gate)
    assert fastray.get(ref, timeout=GET_S) == 100_000


def test_a_diamond_is_resolved():
    for i in range(100):
        top = increment.remote(i)
        left, right = increment.remote(top), add.remote(top, 10)
        assert fastray.get(add.remote(left, right), timeout=GET_S) == 2 * i + 13


def test_a_wide_fan_out_of_one_late_task(gate):
    first = after.remote(gate, 100)
    refs = [add.remote(first, i) for i in range(5000)]
    open_gate(gate)
    assert fastray.get(refs, timeout=GET_S) == [100 + i for i in range(5000)]


def test_a_fan_in_of_a_thousand_late_tasks(gate):
    first = after.remote(gate, 1)
    parts = [add.remote(first, i) for i in range(1000)]
    end = add.remote(*parts)
    open_gate(gate)
    assert fastray.get(end, timeout=GET_S) == 1000 + sum(range(1000))


def test_layers_of_tasks_with_many_dependencies_each(gate):
    layer = [after.remote(gate, i) for i in range(1)] * 8
    for _ in range(50):
        layer = [add.remote(*layer[i:], *layer[:i]) for i in range(4)]
    open_gate(gate)
    values = fastray.get(layer, timeout=GET_S)
    assert values == [0] * 4
    layer = [increment.remote(0) for _ in range(4)]
    for _ in range(20):
        layer = [add.remote(*layer) for _ in range(4)]
    assert fastray.get(layer, timeout=GET_S) == [4**20] * 4


def test_a_task_does_not_start_before_its_dependency_is_done(gate, tmp_path):
    path = str(tmp_path / "order")

    @fastray.remote
    def first():
        wait_for_gate(gate)
        note(path, "first")

    @fastray.remote
    def second(_):
        note(path, "second")

    ref = second.remote(first.remote())
    other = [increment.remote(i) for i in range(100)]
    fastray.get(other, timeout=GET_S)
    assert tally(path) == []
    open_gate(gate)
    fastray.get(ref, timeout=GET_S)
    assert tally(path) == ["first", "second"]


def test_waiting_tasks_take_no_worker(gate):
    """Many more tasks than workers wait for one that has not run yet."""
    blocked = [increment.remote(after.remote(gate, i)) for i in range(1)]
    blocked += [increment.remote(blocked[0]) for _ in range(100)]
    assert fastray.get(increment.remote(1), timeout=GET_S) == 2
    open_gate(gate)
    assert fastray.get(blocked[-1], timeout=GET_S) == 2


# ---- failures ------------------------------------------------------------------------------------------


def test_a_dependent_of_a_failed_task_fails_with_its_error_and_does_not_run(tmp_path):
    path = str(tmp_path / "ran")

    @fastray.remote
    def dependent(_):
        note(path)

    failed = fail.remote()
    chain = dependent.remote(dependent.remote(failed))
    with pytest.raises(ZeroDivisionError, match="upstream"):
        fastray.get(chain, timeout=GET_S)
    assert tally(path) == []


def test_one_failed_dependency_of_many_fails_the_task(gate):
    refs = [increment.remote(i) for i in range(50)]
    refs.insert(25, fail.remote(after.remote(gate, 0)))
    ref = add.remote(*refs)
    open_gate(gate)
    with pytest.raises(ZeroDivisionError):
        fastray.get(ref, timeout=GET_S)


def test_a_failed_reference_in_a_container_fails_only_when_it_is_got():
    @fastray.remote
    def careful(box):
        try:
            return fastray.get(box[0])
        except ZeroDivisionError as error:
            return f"caught {type(error.__cause__ or error).__name__}"

    assert "ZeroDivisionError" in fastray.get(careful.remote([fail.remote()]), timeout=GET_S)


def test_the_error_goes_through_a_long_chain(gate):
    ref = fail.remote(after.remote(gate, 0))
    for _ in range(20_000):
        ref = increment.remote(ref)
    open_gate(gate)
    with pytest.raises(ZeroDivisionError):
        fastray.get(ref, timeout=GET_S)


def test_a_cancelled_dependency_cancels_the_dependent(gate):
    blocked = after.remote(gate, 1)
    ref = increment.remote(blocked)
    fastray.cancel(blocked)
    with pytest.raises(fastray.exceptions.TaskCancelledError):
        fastray.get(ref, timeout=GET_S)


def test_an_error_of_a_dependency_is_no_retry_of_the_dependent(tmp_path):
    path = str(tmp_path / "ran")

    @fastray.remote
    def failing():
        note(path)
        raise ValueError("x")

    ref = increment.options(retry_exceptions=True, max_retries=5).remote(failing.remote())
    with pytest.raises(ValueError, match="x"):
        fastray.get(ref, timeout=GET_S)
    assert tally(path) == ["x"]


def test_dropping_every_reference_of_a_waiting_graph_still_runs_it(gate, tmp_path):
    path = str(tmp_path / "ran")

    @fastray.remote
    def mark(value):
        note(path, value)
        return value

    ref = mark.remote(increment.remote(after.remote(gate, 1)))
    del ref
    open_gate(gate)
    from integration_helpers import eventually

    assert eventually(lambda: tally(path) == ["2"])
