"""The rows of the kill matrix: which process is killed, at which moment, and what has to come out.

    run       one kill: waits until somebody has come to the moment, kills, notes when the user had an answer
    row       a function that makes one run in a session; `sees` says what the user gets
    "any"     of a moment: nobody says where the victim is; the kill comes within MOMENT_S of the point named

A row fails by raising, or by a value that is not what it would be without the kill (`Run.same`). Rows whose
victim is the driver are programs that are killed from outside; kill_matrix.py does that.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import fastray
from fastray._native.actors import actor_state
from fastray.exceptions import ActorDiedError, ActorUnavailableError, LocalRayletDiedError, WorkerCrashedError
from fastray.runtime import current_runtime
from fastray.sim import kill_tasks as tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random

GET_S = 60.0  # more than any recovery takes on a loaded machine
MOMENT_S = 0.004
WORKER = 2  # ProcKind
CPUS = 2
LENT = b"y" * 200_000


class Row(NamedTuple):
    component: str
    moment: str
    sees: str
    body: Callable[..., None]
    is_driver: bool = False  # `body` is a whole program, see driver_row

    @property
    def name(self) -> str:
        return self.body.__name__


ROWS: dict[str, Row] = {}


def row(component: str, moment: str, sees: str) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Registers a function that makes one run."""

    def register(body: Callable[[Run], None]) -> Callable[[Run], None]:
        ROWS[body.__name__] = Row(component, moment, sees, body)
        return body

    return register


def driver_row(moment: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers body(folder, ready): a program that calls `ready` and is killed within MOMENT_S after that."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        ROWS[body.__name__] = Row("driver", moment, "its session ends; started again, it works", body, True)
        return body

    return register


class Place:
    """A folder with the FIFOs by which tasks say that they are at the moment, and wait."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.mkdir(folder)
        for name in (tasks.DOOR, "gate"):
            os.mkfifo(os.path.join(folder, name))
        self._door, self._gate = (os.open(os.path.join(folder, name), os.O_RDWR) for name in (tasks.DOOR, "gate"))

    def close(self) -> None:
        os.close(self._door)
        os.close(self._gate)

    def entered(self) -> int:
        """Pid of the process that has come to the moment. Raises TimeoutError."""
        if not select.select([self._door], [], [], GET_S)[0]:
            raise TimeoutError("nobody came to the moment to be killed")
        pid = b""
        while not pid.endswith(b"\n"):
            pid += os.read(self._door, 1)
        return int(pid)

    def open_gate(self, n: int) -> None:
        """Lets `n` tasks through."""
        os.write(self._gate, b"x" * n)


class Run(Place):
    """One kill in a session."""

    def __init__(self, folder: str, number: int, rng: random.Random) -> None:
        super().__init__(folder)
        self.number, self.random = number, rng
        self.right = True
        self.recovery_s = -1.0
        self._killed_at = 0.0

    def kill(self, pid: int, wait: bool = False) -> bool:
        """SIGKILL at a random moment from now; `wait`: returns when the process is dead. False when it was dead."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            time.sleep(self.random.random() * MOMENT_S)
            self._killed_at = time.monotonic()
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if wait and not select.select([pidfd], [], [], GET_S)[0]:
                raise TimeoutError(f"process {pid} survives SIGKILL")
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def kill_a_worker(self, wait: bool = False) -> None:
        """One that is drawn. Raises TimeoutError when there is none."""
        deadline = time.monotonic() + GET_S
        while time.monotonic() < deadline:
            pids = [entry[2] for entry in current_runtime().attachment.processes() if entry[1] == WORKER]
            if pids and self.kill(self.random.choice(pids), wait):
                return
        raise TimeoutError("the session has no worker")

    def same(self, value: object, expected: object) -> None:
        """The user has `value`."""
        self._answered()
        self.right = self.right and value == expected

    def fails(self, ref: Any, error: type[Exception]) -> None:
        """The user gets `error`, and nothing else. Raises what else comes out."""
        try:
            value = fastray.get(ref, timeout=GET_S)
        except error:
            return self._answered()
        raise AssertionError(f"{value!r} came instead of {error.__name__}")

    def _answered(self) -> None:
        if self.recovery_s < 0:
            self.recovery_s = time.monotonic() - self._killed_at


def get(ref: Any) -> Any:
    return fastray.get(ref, timeout=GET_S)


# ---- workers -------------------------------------------------------------------------------------------


@row("worker", "runs a task", "the value: the task runs again")
def worker_runs(run: Run) -> None:
    ref = tasks.stay_once.remote(run.folder, run.number)
    run.kill(run.entered())
    run.same(get(ref), run.number)


@row("worker", "runs a task, `max_retries=0`", "`WorkerCrashedError`")
def worker_runs_without_retries(run: Run) -> None:
    ref = tasks.stay_for_ever.options(max_retries=0).remote(run.folder)
    run.kill(run.entered())
    run.fails(ref, WorkerCrashedError)


@row("worker", "any, in 1,000 short tasks", "all values")
def worker_any(run: Run) -> None:
    refs = [tasks.spin_task.remote(i) for i in range(1000)]
    run.kill_a_worker()
    run.same(get(refs), list(range(1000)))


@row("worker", "any, in tasks that return 1 MB", "all values")
def worker_any_large(run: Run) -> None:
    refs = [tasks.large.remote(i, 1_000_000) for i in range(20)]
    run.kill_a_worker()
    run.same(get(refs), [bytes([i]) * 1_000_000 for i in range(20)])


@row("worker", "any, in a chain of 500 tasks", "the value at its end")
def worker_any_chain(run: Run) -> None:
    ref = fastray.put(1)
    for _ in range(500):
        ref = tasks.spin_task.remote(ref)
    run.kill_a_worker()
    run.same(get(ref), 1)


@row("worker", "blocked in `get`", "the value: the task runs again")
def worker_in_get(run: Run) -> None:
    ref = tasks.parent.remote(run.folder, run.number)
    run.kill(run.entered())
    run.same(get(ref), run.number**2)
    run.open_gate(1)  # the child of the first attempt may still wait


@row("worker", "between two items of a stream", "all items, once each")
def worker_in_stream(run: Run) -> None:
    stay_at = run.random.randrange(20)
    items = tasks.numbers.remote(run.folder, 20, stay_at)
    got = [get(next(items)) for _ in range(stay_at)]
    run.kill(run.entered())
    run.same(got + [get(ref) for ref in items], list(range(20)))


@row("worker", "asleep, without work", "nothing: another takes its place")
def worker_sleeps(run: Run) -> None:
    get(tasks.square.remote(3))
    run.kill_a_worker(wait=True)
    refs = [tasks.square.remote(i) for i in range(10)]
    run.same(get(refs), [i * i for i in range(10)])


@row("worker", "any, while it starts", "nothing: another takes its place")
def worker_starts(run: Run) -> None:
    get(tasks.square.remote(3))
    node = current_runtime().node
    assert node is not None
    before = children(node.pid)
    run.kill_a_worker()
    deadline = time.monotonic() + GET_S
    while not (born := children(node.pid) - before):
        if time.monotonic() > deadline:
            raise TimeoutError("the node forks no worker")
    run.kill(born.pop())
    refs = [tasks.square.remote(i) for i in range(10)]
    run.same(get(refs), [i * i for i in range(10)])


def children(pid: int) -> set[int]:
    """Pids of the children of a process of one thread."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


# ---- owners and borrowers ------------------------------------------------------------------------------


@row("owner (a worker)", "others hold its results", "the values: they are kept")
def owner_of_results(run: Run) -> None:
    refs = get(tasks.owner.remote(run.folder, 10, True))
    run.kill(run.entered(), wait=True)
    run.same(get(refs), [*[i * i for i in range(10)], b"x" * tasks.OWNED_BYTES])


@row("owner (a worker)", "others hold its tasks, which run or wait", "the values: its tasks go on")
def owner_of_tasks(run: Run) -> None:
    refs = get(tasks.owner.options(num_cpus=0).remote(run.folder, 10, False))
    run.kill(run.entered(), wait=True)
    run.open_gate(10)
    run.same(get(refs), [*range(10), b"x" * tasks.OWNED_BYTES])


@row("borrower (a worker)", "holds what the driver put", "the value: it is kept, and freed when dropped")
def borrower(run: Run) -> None:
    ref = fastray.put(LENT)
    get(tasks.keep.remote(run.folder, [ref]))
    run.kill(run.entered(), wait=True)
    run.same(get(ref), LENT)


# ---- actors --------------------------------------------------------------------------------------------


def counter(**options: Any) -> Any:
    return fastray.remote(num_cpus=0, **options)(tasks.Counter)


def saved(**options: Any) -> Any:
    return fastray.remote(num_cpus=0, max_restarts=-1, **options)(tasks.Saved)


def pid_of(actor: Any) -> int:
    return int(actor_state(actor._fastray_ref)[1])


@row("actor", "in its constructor", "the values: it starts again")
def actor_constructs(run: Run) -> None:
    actor = counter(max_restarts=1).remote(run.folder, (1,))
    ref = actor.add.remote(5)
    run.kill(run.entered())
    run.same(get(ref), 5)


@row("actor", "in a call, `max_task_retries=1`", "the value: the call runs again")
def actor_in_call_with_retries(run: Run) -> None:
    actor = counter(max_restarts=1, max_task_retries=1).remote(run.folder)
    refs = [actor.add_and_stay.remote(5), *[actor.add.remote(1) for _ in range(5)]]
    run.kill(run.entered())
    run.same(get(refs), [5, 6, 7, 8, 9, 10])


@row("actor", "in a call, `max_restarts=1`", "`ActorUnavailableError` for it, values for the next")
def actor_in_call(run: Run) -> None:
    actor = counter(max_restarts=1).remote(run.folder)
    refs = [actor.add_and_stay.remote(5), *[actor.add.remote(1) for _ in range(5)]]
    run.kill(run.entered())
    run.fails(refs[0], ActorUnavailableError)
    run.same(get(refs[1:]), [1, 2, 3, 4, 5])


@row("actor", "in a call, no restarts", "`ActorDiedError`, also for later calls")
def actor_in_last_call(run: Run) -> None:
    actor = counter().remote(run.folder)
    refs = [actor.add_and_stay.remote(5), actor.add.remote(1)]
    run.kill(run.entered())
    for ref in (*refs, actor.add.remote(2)):
        run.fails(ref, ActorDiedError)


@row("actor", "between calls", "values of an instance made anew")
def actor_between_calls(run: Run) -> None:
    actor = counter(max_restarts=1).remote(run.folder)
    get(actor.add.remote(5))
    run.kill(pid_of(actor), wait=True)
    run.same(get(actor.add.remote(1)), 1)


@row("actor", "any, in 1,000 calls, with retries", "all values")
def actor_any(run: Run) -> None:
    actor = counter(max_restarts=-1, max_task_retries=-1).remote(run.folder)
    get(actor.echo.remote(0))
    refs = [actor.spin.remote(i) for i in range(1000)]
    run.kill(pid_of(actor))
    run.same(get(refs), list(range(1000)))


@row("actor", "while it restarts", "the values: it starts once more")
def actor_restarts(run: Run) -> None:
    actor = counter(max_restarts=-1).remote(run.folder, (2,))
    get(actor.add.remote(5))
    os.kill(pid_of(actor), signal.SIGKILL)
    run.kill(run.entered())
    run.same(get(actor.add.remote(1)), 1)


@row("actor with checkpoints", "between calls", "the values: its state is kept")
def actor_with_state(run: Run) -> None:
    actor = saved(checkpoint_calls=7).remote(run.folder)
    calls = run.random.randrange(1, 30)
    get([actor.add.remote(1) for _ in range(calls)])
    run.kill(pid_of(actor), wait=True)
    run.same(get(actor.add.remote(1)), calls + 1)


@row("actor with checkpoints", "in a call", "the values, each call counted once")
def actor_in_call_with_state(run: Run) -> None:
    actor = saved(checkpoint_calls=7).remote(run.folder)
    calls = run.random.randrange(1, 30)
    refs = [actor.add.remote(1) for _ in range(calls)]
    refs += [actor.add_and_stay.remote(5), actor.add.remote(1)]
    run.kill(run.entered())
    run.same(get(refs), [*range(1, calls + 1), calls + 5, calls + 6])


@row("actor with checkpoints", "while it saves", "the values, each call counted once")
def actor_saves(run: Run) -> None:
    actor = saved(checkpoint_calls=7).remote(run.folder, save_at=run.random.randrange(1, 4))
    refs = [actor.add.remote(1) for _ in range(40)]
    run.kill(run.entered())
    run.same(get(refs), list(range(1, 41)))


@row("actor with checkpoints", "while it restores", "the values, each call counted once")
def actor_restores(run: Run) -> None:
    actor = saved(checkpoint_calls=7).remote(run.folder, in_restore=True)
    get([actor.add.remote(1) for _ in range(20)])
    os.kill(pid_of(actor), signal.SIGKILL)
    run.kill(run.entered())
    run.same(get(actor.add.remote(1)), 21)


@row("actor with checkpoints", "any, in 1,000 calls", "the values, each call counted once")
def actor_any_with_state(run: Run) -> None:
    actor = saved(checkpoint_calls=100).remote(run.folder)
    get(actor.add.remote(1))
    refs = [actor.spin_and_add.remote(1) for _ in range(1000)]
    run.kill(pid_of(actor))
    run.same(get(refs), list(range(2, 1002)))


@row("caller of an actor", "with 200 calls under way", "the values: the caller's task runs again")
def actor_caller(run: Run) -> None:
    actor = counter().remote(run.folder)
    ref = tasks.caller.remote(run.folder, actor, 200)
    run.kill(run.entered())
    run.same(get(ref), 200)
    run.same(get(actor.add.remote(1)), 1)


# ---- the node ------------------------------------------------------------------------------------------


def node_dies(run: Run, ref: Any) -> None:
    """Kills the node; the user sees it at `ref`, and begins again."""
    node = current_runtime().node
    assert node is not None
    run.kill(node.pid)
    run.fails(ref, LocalRayletDiedError)
    fastray.init(num_cpus=CPUS)
    run.same(get([tasks.square.remote(i) for i in range(10)]), [i * i for i in range(10)])


@row("node process", "tasks run", "`LocalRayletDiedError`; `init()` again works")
def node_while_tasks_run(run: Run) -> None:
    ref = tasks.stay_for_ever.remote(run.folder)
    run.entered()
    node_dies(run, ref)


@row("node process", "as template: any, while it forks", "`LocalRayletDiedError`; `init()` again works")
def node_while_it_forks(run: Run) -> None:
    environment = {"env_vars": {"RUN": str(run.number)}}
    ref = tasks.stay_for_ever.options(runtime_env=environment).remote(run.folder)
    node_dies(run, ref)


@row("node process", "any, while it restarts an actor", "`LocalRayletDiedError`; `init()` again works")
def node_while_an_actor_restarts(run: Run) -> None:
    actor = counter(max_restarts=-1).remote(run.folder)
    get(actor.add.remote(1))
    os.kill(pid_of(actor), signal.SIGKILL)
    node_dies(run, tasks.stay_for_ever.remote(run.folder))


# ---- the driver ----------------------------------------------------------------------------------------


@driver_row("any, while its session starts")
def driver_starts(_folder: str, ready: Callable[[], None]) -> None:
    ready()
    fastray.init(num_cpus=CPUS)
    get([tasks.square.remote(i) for i in range(100_000)])


@driver_row("waits in `get`, tasks run")
def driver_waits(folder: str, ready: Callable[[], None]) -> None:
    fastray.init(num_cpus=CPUS)
    place = Place(folder)
    refs = [tasks.stay_for_ever.remote(folder) for _ in range(CPUS)]
    for _ in refs:
        place.entered()
    ready()
    fastray.get(refs)


@driver_row("any, while it submits")
def driver_submits(_folder: str, ready: Callable[[], None]) -> None:
    fastray.init(num_cpus=CPUS)
    ready()
    while True:
        get([tasks.large.remote(i, 2000) for i in range(1000)])


@driver_row("holds an actor, which works")
def driver_with_actor(folder: str, ready: Callable[[], None]) -> None:
    fastray.init(num_cpus=CPUS)
    place = Place(folder)
    actor = counter(max_restarts=-1).remote(folder)
    ref = actor.add_and_stay.remote(1)
    place.entered()
    ready()
    fastray.get(ref)
