"""Actors: making them, calling them, what methods may look like, handles wherever they go, order."""

from __future__ import annotations

import abc
import os
from typing import Generic, TypeVar

import numpy
import pytest
from integration_helpers import open_gate, wait_for_gate

import fastray
from fastray.exceptions import (
    ActorUnschedulableError,
    InvalidOptionError,
    PendingCallsLimitExceeded,
    UnknownOptionError,
)

GET_S = 30
T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("node")


class Base:
    def inherited(self):
        return "inherited", self.value


class Counter(Base, Generic[T]):
    label = "counter"

    def __init__(self, value=0, *, step=1):
        self.value = value
        self.step = step

    def add(self, n=None):
        self.value += self.step if n is None else n
        return self.value

    def pair(self, a, b=2, *rest, c=3, **more):
        return a, b, rest, c, more

    @fastray.method(num_returns=2)
    def two(self):
        return self.value, -self.value

    @staticmethod
    def static(x):
        return ["static", x]

    @classmethod
    def kind(cls, x):
        return [cls.label, x]

    def items(self, n):
        for i in range(n):
            yield self.value + i

    def __call__(self, x):
        return "called", x

    def fail(self):
        raise KeyError("no such thing")

    def identity(self, x):
        return x

    def pid(self):
        return os.getpid()

    def hold(self, gate):
        wait_for_gate(gate)
        return self.value


Remote = fastray.remote(Counter)


@fastray.remote
class Journal:
    """Remembers what it was told, in order."""

    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)

    def read(self):
        return self.lines


@fastray.remote
def after(gate, value):
    wait_for_gate(gate)
    return value


def get(ref):
    return fastray.get(ref, timeout=GET_S)


# ---- making and calling --------------------------------------------------------------------------------


def test_state_is_kept_between_calls():
    counter = Remote.remote(5)
    assert get([counter.add.remote() for _ in range(100)]) == list(range(6, 106))


def test_each_actor_is_a_process_of_its_own():
    actors = [Remote.remote() for _ in range(3)]
    assert len({os.getpid(), *get([actor.pid.remote() for actor in actors])}) == 4


def test_arguments_of_every_kind_arrive():
    counter = Remote.remote(value=1, step=10)
    assert get(counter.add.remote()) == 11
    assert get(counter.pair.remote(1)) == (1, 2, (), 3, {})
    assert get(counter.pair.remote(1, 5, 6, 7, c=8, d=9)) == (1, 5, (6, 7), 8, {"d": 9})
    array = numpy.arange(200_000)
    assert (get(counter.identity.remote(array)) == array).all()


def test_references_are_resolved_at_top_level_only():
    counter = Remote.remote(fastray.put(7))
    inner = fastray.put("x")
    assert get(counter.identity.remote(inner)) == "x"
    assert get(counter.identity.remote([inner])) == [inner]
    assert get(counter.add.remote()) == 8


@pytest.mark.parametrize("spelling", ["ray", "fastray"])
def test_special_methods_in_both_spellings(spelling):
    counter = Remote.remote(3)
    assert get(getattr(counter, f"__{spelling}_ready__").remote()) is True
    assert get(getattr(counter, f"__{spelling}_call__").remote(lambda self, x: self.value + x, 4)) == 7
    with pytest.raises(fastray.exceptions.ActorDiedError):
        get(getattr(counter, f"__{spelling}_terminate__").remote())


def test_methods_of_every_kind():
    counter = Remote.remote(4)
    assert get(counter.inherited.remote()) == ("inherited", 4)
    assert get(counter.static.remote(1)) == ["static", 1]
    assert get(counter.kind.remote(2)) == ["counter", 2]
    assert get(counter.__call__.remote(3)) == ("called", 3)
    assert get(counter.two.remote()) == [4, -4]
    assert get(counter.two.options(num_returns=1).remote()) == (4, -4)
    assert [get(ref) for ref in counter.items.remote(3)] == [4, 5, 6]


def test_decorating_with_and_without_options():
    @fastray.remote
    class Plain:
        def get(self):
            return 1

    @fastray.remote(num_cpus=0, max_restarts=1)
    class WithOptions(Counter):
        pass

    assert get(Plain.remote().get.remote()) == 1
    assert get(fastray.remote(num_cpus=1)(Counter).remote(2).add.remote()) == 3
    assert get(WithOptions.options(resources={}).remote(1).add.remote()) == 2


def test_an_exception_leaves_the_actor_alive():
    counter = Remote.remote(1)
    with pytest.raises(KeyError) as caught:
        get(counter.fail.remote())
    assert isinstance(caught.value, fastray.exceptions.TaskError)
    assert "Counter.fail" in str(caught.value)
    assert get(counter.add.remote()) == 2


# ---- what is refused -------------------------------------------------------------------------------------


def test_classes_and_methods_are_not_called_directly():
    counter = Remote.remote()
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Remote()
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        counter.add()
    with pytest.raises(TypeError, match="inherit"):

        class Sub(Remote):
            pass


def test_a_missing_method_is_said_with_what_is_near():
    counter = Remote.remote()
    with pytest.raises(AttributeError, match=r"'ad'; did you mean add"):
        counter.ad.remote()
    with pytest.raises(AttributeError, match="has no method 'value'"):
        _ = counter.value
    assert not hasattr(counter, "__array__")


@pytest.mark.parametrize(
    "call", [lambda c: c.add.remote(1, 2), lambda c: c.add.remote(m=1), lambda c: c.identity.remote()]
)
def test_wrong_arguments_are_said_at_the_call(call):
    with pytest.raises(TypeError, match=r"Counter\."):
        call(Remote.remote())


def test_wrong_arguments_of_the_constructor_are_said_at_once():
    with pytest.raises(TypeError, match="Counter"):
        Remote.remote(1, 2, 3)
    with pytest.raises(TypeError, match="Counter"):
        Remote.remote(stop=1)
    with pytest.raises(TypeError, match="takes no arguments"):
        Journal.__wrapped__ and fastray.remote(Base).remote(1)


def test_wrong_options_are_said_at_once():
    with pytest.raises(UnknownOptionError, match="max_restarts"):
        Remote.options(max_restart=1)
    with pytest.raises(UnknownOptionError, match="of the actor"):
        Remote.options(max_retries=1)
    with pytest.raises(InvalidOptionError, match="get_if_exists needs a name"):
        Remote.options(get_if_exists=True)
    with pytest.raises(ValueError, match="concurrency group 'io'"):
        Remote.remote().add.options(concurrency_group="io")
    with pytest.raises(TypeError, match="keyword options"):
        fastray.method(lambda self: None)


def test_what_can_never_run_is_said_at_once():
    with pytest.raises(ActorUnschedulableError, match="CPU: asks for 64, the node has 2"):
        Remote.options(num_cpus=64).remote()


def test_an_abstract_class_fails_in_its_constructor():
    class Abstract(abc.ABC):
        @abc.abstractmethod
        def f(self): ...

    with pytest.raises(fastray.exceptions.ActorDiedError, match="abstract"):
        get(fastray.remote(Abstract).remote().f.remote())


# ---- handles ---------------------------------------------------------------------------------------------


@fastray.remote
def call_through(handle, n):
    return fastray.get(handle.add.remote(n))


@fastray.remote
def return_it(box):
    return box["handle"]


@fastray.remote
class Boss:
    def __init__(self):
        self.worker = Remote.remote(100)

    def work(self, n):
        return fastray.get(self.worker.add.remote(n))

    def lend(self):
        return self.worker


def test_handles_go_to_tasks_actors_objects_and_closures():
    counter = Remote.remote(0)
    assert get(call_through.remote(counter, 1)) == 1
    assert get(return_it.remote({"handle": counter})) == counter
    assert get(get(fastray.put([counter]))[0].add.remote()) == 2
    assert get(Remote.remote().identity.remote(counter)) == counter

    @fastray.remote
    def closure():
        return fastray.get(counter.add.remote())

    assert get(closure.remote()) == 3


def test_an_actor_makes_actors_and_lends_them():
    boss = Boss.remote()
    assert get(boss.work.remote(1)) == 101
    worker = get(boss.lend.remote())
    assert get(worker.add.remote()) == 102


def test_methods_travel_too():
    counter = Remote.remote(0)

    @fastray.remote
    def use(method):
        return fastray.get(method.remote(5))

    assert get(use.remote(counter.add)) == 5


def test_handles_compare_hash_and_show_themselves():
    a, b = Remote.remote(), Remote.remote()
    assert a == get(return_it.remote({"handle": a}))
    assert len({a, b, get(fastray.put(a))}) == 2
    assert a != b
    assert repr(a).startswith("Actor(Counter, ")
    assert a._actor_id.hex() in repr(a)
    assert "add" in dir(a)


def test_the_runtime_context_knows_the_actor():
    @fastray.remote
    class Who:
        def ids(self):
            context = fastray.get_runtime_context()
            return context.get_actor_id(), context.get_actor_name(), context.current_actor, context.get_task_name()

        def again(self):
            return fastray.get_runtime_context().was_current_actor_reconstructed

    who = Who.options(name="who").remote()
    assert get(who.ids.remote()) == (who._actor_id.hex(), "who", who, "Who.ids")
    assert get(who.again.remote()) is False
    assert fastray.get_runtime_context().get_actor_id() is None
    with pytest.raises(RuntimeError):
        _ = fastray.get_runtime_context().current_actor


# ---- order -----------------------------------------------------------------------------------------------


def test_calls_of_one_caller_run_in_their_order():
    journal = Journal.remote()
    for i in range(10_000):
        journal.write.remote(i)
    assert get(journal.read.remote()) == list(range(10_000))


def test_a_call_that_waits_holds_up_those_behind_it_but_not_other_callers(tmp_path):
    gate = str(tmp_path / "gate")
    journal = Journal.remote()
    get(journal.write.remote(1))
    journal.write.remote(after.remote(gate, "waited"))
    last = journal.write.remote(2)

    @fastray.remote
    def other(journal):
        return fastray.get([journal.write.remote("other"), journal.read.remote()])[1]

    assert get(other.options(num_cpus=0).remote(journal)) == [1, "other"]
    assert fastray.wait([last], timeout=0) == ([], [last])
    open_gate(gate)
    assert get(journal.read.remote()) == [1, "other", "waited", 2]


def test_out_of_order_execution_lets_others_pass(tmp_path):
    gate = str(tmp_path / "gate")
    journal = Journal.options(allow_out_of_order_execution=True).remote()
    late = journal.write.remote(after.remote(gate, "late"))
    assert get(journal.write.remote("early")) is None
    open_gate(gate)
    get(late)
    assert get(journal.read.remote()) == ["early", "late"]


def test_several_callers_each_in_order():
    journal = Journal.remote()

    @fastray.remote(num_cpus=0)
    def caller(journal, name):
        for i in range(500):
            journal.write.remote((name, i))
        return len(fastray.get(journal.read.remote()))

    get([caller.remote(journal, name) for name in range(4)])
    lines = get(journal.read.remote())
    assert len(lines) == 2000
    for name in range(4):
        assert [i for who, i in lines if who == name] == list(range(500))


def test_a_limit_on_pending_calls(tmp_path):
    gate = str(tmp_path / "gate")
    counter = Remote.options(max_pending_calls=3).remote()
    held = [counter.hold.remote(gate) for _ in range(3)]
    with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls is 3"):
        counter.add.remote()
    open_gate(gate)
    assert get(held) == [0, 0, 0]
    assert get(counter.add.remote()) == 1


# ---- local mode ------------------------------------------------------------------------------------------


def test_actors_in_local_mode(run_program):
    out = run_program(
        """
        import os
        import fastray

        fastray.init(local_mode=True)

        @fastray.remote
        class Counter:
            def __init__(self, n):
                self.n = n
            def add(self, k=1):
                self.n += k
                return self.n
            async def later(self):
                return os.getpid()
            def leave(self):
                fastray.actor.exit_actor()

        a, b = Counter.remote(1), Counter.remote(10)
        print(fastray.get([a.add.remote(), b.add.remote(5), a.add.remote(fastray.put(3))]))
        print(fastray.get(a.later.remote()) == os.getpid())
        for end in (lambda: fastray.kill(a), lambda: fastray.get(b.leave.remote())):
            try:
                end()
            except fastray.exceptions.ActorDiedError:
                pass
        for actor in (a, b):
            try:
                fastray.get(actor.add.remote())
            except fastray.exceptions.ActorDiedError:
                print("dead")
        """
    ).stdout
    assert out.split("\n")[:4] == ["[2, 15, 5]", "True", "dead", "dead"]
