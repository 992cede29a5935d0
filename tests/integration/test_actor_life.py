"""How actors end, what their calls say then, names, detached actors; nothing is left behind."""

from __future__ import annotations

import os
import select

import pytest
from integration_helpers import eventually, note, open_gate, processes, store_bytes, tally, wait_for_gate

import fastray
from fastray.exceptions import ActorDiedError, TaskError
from fastray.runtime import ACTOR_CLASS

GET_S = 30
pytestmark = pytest.mark.usefixtures("node")


class Worker:
    def __init__(self, end=None):
        self.end = end

    def pid(self):
        return os.getpid()

    def value(self, x=1):
        return x

    def hold(self, gate):
        wait_for_gate(gate)
        return "held"

    def leave(self):
        fastray.actor.exit_actor()

    def system_exit(self, code):
        raise SystemExit(code)

    def say(self, text):
        import sys

        print(text, file=sys.stderr, flush=True)

    def __ray_shutdown__(self):
        if self.end:
            note(self.end, "shutdown")


Remote = fastray.remote(Worker)


def get(ref):
    return fastray.get(ref, timeout=GET_S)


def ended(pid, seconds=GET_S):
    """Waits for the end of the process: an event, from its pidfd."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def death_of(ref):
    """The error, without the frames: they would keep the handles of the test."""
    try:
        get(ref)
    except ActorDiedError as error:
        return error.with_traceback(None)
    raise AssertionError("the call did not fail")


# ---- the last handle -------------------------------------------------------------------------------------


def test_an_actor_ends_with_its_last_handle():
    actor = Remote.remote()
    pid = get(actor.pid.remote())
    again = get(fastray.put([actor]))[0]
    del actor
    assert get(again.pid.remote()) == pid
    del again
    assert ended(pid)


def test_it_finishes_what_was_submitted(tmp_path):
    gate, end = str(tmp_path / "gate"), str(tmp_path / "end")
    actor = Remote.remote(end)
    pid = get(actor.pid.remote())
    refs = [actor.hold.remote(gate)] + [actor.value.remote(i) for i in range(100)]
    del actor
    open_gate(gate)
    assert get(refs) == ["held", *range(100)]
    assert ended(pid)
    assert tally(end) == ["shutdown"]


def test_a_call_on_a_handle_that_is_gone_at_once():
    assert get(Remote.remote().value.remote(5)) == 5


def test_a_handle_in_an_object_keeps_the_actor():
    actor = Remote.remote()
    pid = get(actor.pid.remote())
    box = fastray.put({"actor": actor})
    del actor
    assert get(get(box)["actor"].pid.remote()) == pid
    del box
    assert ended(pid)


def test_a_handle_that_a_task_returned_keeps_the_actor():
    @fastray.remote
    def make():
        return Remote.remote()

    actor = get(make.remote())
    assert get(actor.value.remote(3)) == 3


# ---- by will ---------------------------------------------------------------------------------------------


def test_exit_actor(tmp_path):
    end = str(tmp_path / "end")
    actor = Remote.options(max_restarts=5).remote(end)
    error = death_of(actor.leave.remote())
    assert "exit_actor" in str(error)
    assert "exit_actor" in str(death_of(actor.value.remote()))
    assert tally(end) == ["shutdown"]
    with pytest.raises(TypeError, match="methods of actors"):
        fastray.actor.exit_actor()


def test_sys_exit_ends_the_actor():
    actor = Remote.options(max_restarts=5).remote()
    assert "exit code 3" in str(death_of(actor.system_exit.remote(3)))


def test_kill(tmp_path):
    gate = str(tmp_path / "gate")
    actor = Remote.remote()
    pid = get(actor.pid.remote())
    held = actor.hold.remote(gate)
    fastray.kill(actor)
    error = death_of(held)
    assert "fastray.kill()" in str(error)
    assert ended(pid)
    fastray.kill(actor)  # a dead one is left alone
    assert "did not run" in str(death_of(actor.value.remote()))
    with pytest.raises(ValueError, match="actor handle"):
        fastray.kill(held)


def test_kill_with_restart():
    actor = Remote.options(max_restarts=1).remote()
    pid = get(actor.pid.remote())
    fastray.kill(actor, no_restart=False)
    assert eventually(lambda: get(actor.pid.remote()) != pid)


def test_an_actor_is_killed_before_it_has_a_process(tmp_path):
    holder = fastray.remote(num_cpus=2)(Worker).remote()
    get(holder.value.remote())
    waiting = fastray.remote(num_cpus=2)(Worker).remote()
    ref = waiting.value.remote()
    fastray.kill(waiting)
    assert "killed" in str(death_of(ref))
    assert get(holder.value.remote(2)) == 2


# ---- what the error says -----------------------------------------------------------------------------------


def test_the_error_says_why_where_when_and_what_it_did_last():
    actor = Remote.options(name="teller").remote()
    pid = get(actor.pid.remote())
    get(actor.say.remote("the last words"))
    fastray.kill(actor)
    error = death_of(actor.value.remote())
    for part in ("Worker 'teller'", actor._actor_id.hex(), f"pid {pid}", "SIGKILL", "Worker.say", "the last words"):
        assert part in str(error)
    assert error.actor_id == actor._actor_id.hex()
    assert error.report.method == "Worker.value"


def test_a_constructor_that_raises():
    class Broken:
        def __init__(self):
            raise KeyError("no constructor")

        def f(self):
            return 1

    error = death_of(fastray.remote(Broken).remote().f.remote())
    assert isinstance(error.cause, TaskError)
    assert isinstance(error.cause, KeyError)
    assert error.actor_init_failed
    assert "no constructor" in str(error)


def test_a_dependency_of_the_constructor_that_failed():
    @fastray.remote
    def fail():
        raise OSError("no argument")

    error = death_of(Remote.remote(fail.remote()).value.remote())
    assert "no argument" in str(error)


def test_a_class_that_cannot_be_loaded_in_the_worker():
    def refuse():
        raise ImportError("not in this process")

    class Unloadable:
        def __reduce__(self):
            return refuse, ()

    thing = Unloadable()

    class Holder:
        def f(self):
            return thing

    error = death_of(fastray.remote(Holder).remote().f.remote())
    assert "not in this process" in str(error)


def test_errors_of_actors_are_pickled_whole():
    import pickle

    actor = Remote.remote()
    fastray.kill(actor)
    error = death_of(actor.value.remote())
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.actor_id, again.report) == (str(error), error.actor_id, error.report)


# ---- names -------------------------------------------------------------------------------------------------


def test_a_named_actor_is_found_and_its_name_is_taken():
    actor = Remote.options(name="one").remote()
    assert fastray.get_actor("one") == actor
    with pytest.raises(ValueError, match="named 'one' exists"):
        Remote.options(name="one").remote()
    assert Remote.options(name="one", get_if_exists=True).remote() == actor
    assert fastray.util.list_named_actors() == ["one"]
    fastray.kill(actor)
    other = Remote.options(name="one").remote()
    assert other != actor
    assert get(other.value.remote(4)) == 4


def test_names_stand_in_namespaces():
    mine = fastray.get_runtime_context().namespace
    here, there = Remote.options(name="two").remote(), Remote.options(name="two", namespace="far").remote()
    assert fastray.get_actor("two", namespace="far") == there
    assert fastray.get_actor("two") == here
    rows = fastray.util.list_named_actors(all_namespaces=True)
    assert {"namespace": "far", "name": "two"} in rows
    assert {"namespace": mine, "name": "two"} in rows


@pytest.mark.parametrize("name", ["nobody", "", None, 3])
def test_a_name_that_is_not_there(name):
    with pytest.raises(ValueError, match="name"):
        fastray.get_actor(name)


def test_tasks_find_named_actors():
    actor = Remote.options(name="found").remote()

    @fastray.remote
    def find():
        return fastray.get(fastray.get_actor("found").value.remote(6))

    assert get(find.remote()) == 6
    del actor


def test_get_if_exists_from_many_at_once():
    @fastray.remote(num_cpus=0)
    def get_or_make():
        actor = Remote.options(name="race", get_if_exists=True, lifetime="detached").remote()
        return fastray.get(actor.pid.remote())

    assert len(set(get([get_or_make.remote() for _ in range(8)]))) == 1
    fastray.kill(fastray.get_actor("race"))


def test_a_detached_actor_lives_without_handles():
    actor = Remote.options(name="alone", lifetime="detached").remote()
    pid = get(actor.pid.remote())
    del actor
    get(Remote.remote().value.remote())  # others come and go
    assert get(fastray.get_actor("alone").pid.remote()) == pid
    fastray.kill(fastray.get_actor("alone"))
    assert ended(pid)


def test_the_name_of_an_actor_without_handles_is_free():
    pids = []
    for _ in range(3):
        actor = Remote.options(name="again").remote()
        pids.append(get(actor.pid.remote()))
        del actor
        assert ended(pids[-1])
    assert len(set(pids)) == 3


# ---- resources ---------------------------------------------------------------------------------------------


def test_actors_hold_what_they_ask_for():
    first, second = (Remote.options(num_cpus=1).remote() for _ in range(2))
    get([first.value.remote(), second.value.remote()])
    third = Remote.options(num_cpus=1).remote()
    waiting = third.value.remote(3)
    assert fastray.wait([waiting], timeout=0.2) == ([], [waiting])
    del first
    assert get(waiting) == 3


def test_tasks_run_beside_actors_that_hold_nothing():
    actors = [Remote.remote() for _ in range(4)]
    get([actor.value.remote() for actor in actors])

    @fastray.remote
    def square(x):
        return x * x

    assert get([square.remote(i) for i in range(100)]) == [i * i for i in range(100)]
    assert eventually(lambda: fastray.available_resources()["CPU"] == 2)  # others are still on their way out


# ---- nothing is left -----------------------------------------------------------------------------------------


def test_three_hundred_actors_leave_nothing_behind():
    def living():
        return [row for row in processes() if row[4] is not None and row[4] >= ACTOR_CLASS]

    get(Remote.remote().value.remote())
    assert eventually(lambda: not living())
    before = store_bytes()
    for _ in range(10):
        actors = [Remote.remote() for _ in range(30)]
        assert get([actor.value.remote(i) for i, actor in enumerate(actors)]) == list(range(30))
        del actors
    assert eventually(lambda: not living())
    assert eventually(lambda: store_bytes() - before < 100_000)


def test_the_drivers_end_is_the_end_of_all_actors(run_program):
    out = run_program(
        """
        import os
        import fastray

        @fastray.remote
        class Worker:
            def pid(self):
                return os.getpid()

        actors = [Worker.options(lifetime="detached", name=str(i)).remote() for i in range(3)]
        print(*fastray.get([actor.pid.remote() for actor in actors]))
        """
    ).stdout
    assert all(ended(int(pid), 5) for pid in out.split())
