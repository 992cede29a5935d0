"""`fastray.replay(ref)`: a task, or an actor's call, again in this process."""

from __future__ import annotations

import os
import random
import signal
import traceback

import numpy as np
import pytest
from integration_helpers import eventually, store_bytes

import fastray
from fastray.exceptions import ActorDiedError, ReplayError, TaskError, WorkerCrashedError

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


def get(ref):
    return fastray.get(ref, timeout=GET_S)


def failure_of(ref):
    """Waits for the failure; a plain look, so that no test depends on the error's class."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        get(ref)
    return caught.value


@fastray.remote
def divide(a, b, *, scale=1):
    quotient = a / b  # the line
    return quotient * scale


def test_it_returns_what_the_task_returned():
    ref = divide.remote(6, 3, scale=5)
    assert get(ref) == fastray.replay(ref) == 10
    assert fastray.replay(divide.remote(1, 1)) == 1  # whether it is done or not


def test_it_raises_the_plain_exception_where_it_happens():
    ref = divide.remote(1, 0)
    assert isinstance(failure_of(ref), TaskError)
    with pytest.raises(ZeroDivisionError) as caught:
        fastray.replay(ref)
    assert type(caught.value) is ZeroDivisionError
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.name, last.line) == ("divide", "quotient = a / b  # the line")
    assert os.path.samefile(last.filename, __file__)


def test_the_remote_traceback_shows_source_lines_too():
    assert "quotient = a / b  # the line" in str(failure_of(divide.remote(1, 0)))


def test_source_lines_are_there_in_a_durable_session_too(run_program, tmp_path):
    program = f"""
        import fastray
        fastray.init(durable={str(tmp_path / "d")!r})

        @fastray.remote
        def fail():
            return 1 / 0  # the line

        try:
            fastray.get(fail.remote())
        except ZeroDivisionError as error:
            print(error)
    """
    assert "return 1 / 0  # the line" in run_program(program).stdout


def test_errors_name_the_task():
    ref = divide.remote(1, 0)
    error = failure_of(ref)
    assert error.task_id == ref.task_id()
    assert f"task_id={ref.task_id()}" in str(error)


def test_arguments_come_as_the_task_had_them():
    captured = fastray.put(100)

    @fastray.remote
    def total(array, small, nested, extra=None):
        assert isinstance(small, int)
        found = float(array.sum()) + small + fastray.get(nested["ref"]) + fastray.get(captured)
        if extra is not None:
            raise ValueError(found, extra)
        return found

    array, small, nested = fastray.put(np.ones(100_000)), divide.remote(4, 2), {"ref": fastray.put(7)}
    small = fastray.remote(lambda x: int(x)).remote(small)
    ref = total.remote(array, small, nested)
    assert get(ref) == 100_109
    failed = total.remote(array, small, nested, extra="x")
    failure_of(failed)
    for _ in range(10):  # finished tasks let go of large arguments; failed ones do not
        get(divide.remote(1, 1))
    with pytest.raises(ValueError, match="100109"):
        fastray.replay(failed)


def test_only_the_last_failures_keep_large_arguments():
    @fastray.remote
    def fail(array):
        raise ValueError(len(array))

    refs = []
    for i in range(20):
        refs.append(fail.remote(fastray.put(np.zeros(1000 + i))))
        failure_of(refs[-1])

    def is_gone(ref):
        store_bytes()  # sweeps; the worker lets go when it looks around
        try:  # pytest.raises would keep this frame, and with it the arguments, until the garbage collector comes
            fastray.replay(ref)
        except ReplayError as error:
            return "arguments are gone" in str(error)
        except ValueError:
            return False

    assert eventually(lambda: is_gone(refs[0]))
    with pytest.raises(ValueError, match="1019"):
        fastray.replay(refs[-1])


def test_environment_and_directory_are_there_and_go(tmp_path):
    @fastray.remote(runtime_env={"env_vars": {"REPLAY_ME": "yes"}, "working_dir": str(tmp_path)})
    def where():
        return os.environ["REPLAY_ME"], os.getcwd()

    before = os.getcwd()
    ref = where.remote()
    assert get(ref) == fastray.replay(ref) == ("yes", str(tmp_path))
    assert "REPLAY_ME" not in os.environ
    assert os.getcwd() == before


def draw():
    return random.random(), float(np.random.rand())


@pytest.mark.parametrize("seed", [True, 0, 7])
def test_seeded_tasks_draw_the_same_numbers_again(seed):
    seeded = fastray.remote(seed=seed)(draw)
    refs = [seeded.remote() for _ in range(4)]
    drawn = get(refs)
    assert len(set(drawn)) == 4
    random.seed(5)
    np.random.seed(5)
    mine = draw()
    random.seed(5)
    np.random.seed(5)
    assert [fastray.replay(ref) for ref in refs] == drawn
    assert draw() == mine


def test_the_seed_decides():
    variants = [fastray.remote(seed=seed)(draw) for seed in (True, 1, 2)]
    assert len(set(get([variant.remote() for variant in variants]))) == 3
    plain = fastray.remote(num_cpus=2)(draw)
    numbers = get([plain.remote() for _ in range(3)])
    assert len(set(numbers)) == 3
    with pytest.raises(ValueError, match="seed"):
        fastray.remote(seed=-1)(draw)
    with pytest.raises(TypeError, match="seed"):
        fastray.remote(seed="1")(draw)
    assert fastray.remote(seed=False)(draw)._options == fastray.remote(draw)._options


def test_a_program_draws_the_same_numbers_in_each_run(run_program):
    program = """
        import random, fastray
        f = fastray.remote(seed=3)(lambda i: random.random())
        print(fastray.get([f.remote(i) for i in range(3)]))
    """
    assert run_program(program).stdout == run_program(program).stdout


def test_several_returns_and_streams():
    @fastray.remote(num_returns=2)
    def two(fail):
        if fail:
            raise ValueError("two")
        return 1, 2

    a, b = two.remote(False)
    assert get([a, b]) == [1, 2]
    assert fastray.replay(b) == (1, 2)
    c, _ = two.remote(True)
    failure_of(c)
    with pytest.raises(ValueError, match="two"):
        fastray.replay(c)

    @fastray.remote
    def items(n):
        for i in range(n):
            if i == 3:
                raise ValueError(i)
            yield i

    stream = items.remote(3)
    first = next(stream)
    assert get(first) == 0
    assert fastray.replay(stream) == fastray.replay(first) == [0, 1, 2]
    stream = items.remote(5)
    failure_of(list(stream)[-1])
    with pytest.raises(ValueError, match="3"):
        fastray.replay(stream)


def test_a_task_that_never_ran_names_the_one_that_failed():
    failed = divide.remote(1, 0)
    dependent = divide.remote(failed, 1)
    failure_of(dependent)
    with pytest.raises(ReplayError, match=failed.task_id()) as caught:
        fastray.replay(dependent)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_cannot_be_replayed_says_why():
    with pytest.raises(ReplayError, match=r"put\(\)"):
        fastray.replay(fastray.put(1))
    with pytest.raises(TypeError, match="int"):
        fastray.replay(1)
    blocker = fastray.remote(num_cpus=0)(lambda: signal.pause()).remote()
    waiting = divide.remote(blocker, 1)
    with pytest.raises(ReplayError, match="waits for an argument"):
        fastray.replay(waiting)
    fastray.cancel(blocker, force=True)


def test_a_crash_can_be_looked_at(tmp_path):
    @fastray.remote(max_retries=0)
    def crash(keep):
        if os.getpid() != keep:
            os._exit(3)
        return "survived"

    ref = crash.remote(os.getpid())
    assert isinstance(failure_of(ref), WorkerCrashedError)
    assert fastray.replay(ref) == "survived"


def test_the_debugger_starts_at_the_line_that_raised(monkeypatch):
    import pdb

    seen = []

    def look(tb):
        while tb.tb_next is not None:
            tb = tb.tb_next
        seen.append((tb.tb_frame.f_code.co_name, tb.tb_frame.f_locals["a"], tb.tb_lineno))

    monkeypatch.setattr(pdb, "post_mortem", look)
    ref = divide.remote(5, 0)
    failure_of(ref)
    with pytest.raises(ZeroDivisionError):
        fastray.replay(ref, pdb=True)
    assert seen == [("divide", 5, divide.__wrapped__.__code__.co_firstlineno + 2)]
    assert fastray.replay(divide.remote(4, 2), pdb=True) == 2
    assert len(seen) == 1


# ---- actors --------------------------------------------------------------------------------------------


@fastray.remote
class Account:
    """Keeps a log; `built` counts constructions in this process."""

    built = 0

    def __init__(self, balance):
        type(self).built += 1
        self.balance = balance

    def __fastray_save__(self):
        return self.balance

    def __fastray_restore__(self, state):
        self.balance = state

    def pay(self, amount):
        if amount > self.balance:
            raise ValueError(self.balance, amount)
        self.balance -= amount
        return self.balance

    @fastray.method(read_only=True)
    def look(self):
        return self.balance

    @fastray.method(seed=True)
    def lottery(self):
        self.balance += random.random()
        return self.balance

    def crash(self, keep):
        if os.getpid() != keep:
            os._exit(3)
        return self.balance


def test_a_call_is_run_on_a_copy_in_the_state_it_began_in():
    account = Account.options(checkpoint_calls=1000).remote(10)
    refs = [account.pay.remote(3) for _ in range(4)]
    look = account.look.remote()
    after = account.pay.remote(1)
    assert isinstance(failure_of(refs[3]), ValueError)
    assert get(after) == 0
    assert [fastray.replay(ref) for ref in refs[:3]] == [7, 4, 1]
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        fastray.replay(refs[3])
    assert fastray.replay(look) == 1
    assert fastray.replay(after) == 0
    assert get(account.look.remote()) == 0  # the real one noticed nothing


def test_after_a_checkpoint_the_calls_before_it_are_gone():
    account = Account.options(checkpoint_calls=2).remote(10)
    refs = [account.pay.remote(1) for _ in range(5)]
    assert get(refs) == [9, 8, 7, 6, 5]
    assert get(account.look.remote()) == 5  # the checkpoint after the fourth call is made
    assert fastray.replay(refs[4]) == 5
    with pytest.raises(ReplayError, match="checkpoint_calls"):
        fastray.replay(refs[1])


def test_calls_with_random_numbers_lead_to_the_same_state():
    account = Account.options(checkpoint_calls=1000).remote(0)
    refs = [account.lottery.remote() for _ in range(3)]
    drawn = get(refs)
    assert [fastray.replay(ref) for ref in refs] == drawn


def test_the_call_that_killed_its_actor_for_good():
    account = Account.options(checkpoint_calls=2).remote(10)
    paid = [account.pay.remote(1) for _ in range(5)]
    last = account.crash.remote(os.getpid())
    assert isinstance(failure_of(last), ActorDiedError)
    assert fastray.replay(last) == 5
    assert fastray.replay(paid[-1]) == 5


def test_an_actor_without_checkpoints_keeps_no_log():
    @fastray.remote
    class Plain:
        def __init__(self, n):
            self.n = n

        async def add(self, k):
            self.n += k
            return self.n

    actor = Plain.remote(1)
    refs = [actor.add.remote(1) for _ in range(2)]
    assert get(refs) == [2, 3]
    with pytest.raises(ReplayError, match="from_constructor=True"):
        fastray.replay(refs[1])
    assert fastray.replay(refs[1], from_constructor=True) == 2


def test_a_call_of_an_actor_that_is_gone():
    account = Account.remote(10)
    ref = account.pay.remote(1)
    assert get(ref) == 9
    del account

    def gone():
        try:
            fastray.replay(ref)
        except ReplayError as error:
            return "its actor is gone" in str(error)
        get(divide.remote(1, 1))
        return False

    assert eventually(gone)
