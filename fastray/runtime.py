"""A process's part in a session: `Runtime`, and the one place where it is made and ended.

A driver's runtime starts a private node (`node_process.py`) or attaches to a daemon's (`attach.py`), shares a
segment with it, and prints what tasks print; a worker's is made by worker.py over the segment it was born with. It
is handed to whatever needs it; only the entry points of api.py and the slow start of a call ask for
`current_runtime()`.

    ensure_attached     the first use of the API starts a session
    start / stop        init and shutdown
    check_node          called by sleepers every half second: is the node still there?

After a fork() in the user's program the child has no session: it may start its own.
"""

from __future__ import annotations

import _pickle as pickle  # without pickle.py, which costs 8 ms to import
import atexit
import os
import sys
import time

from fastray._native.session import Attachment, create_segment
from fastray.config import (
    InitOptions,
    default_object_store_bytes,
    detect_cpus,
    detect_gpus,
    detect_memory_bytes,
    parse_init,
)
from fastray.feasibility import NODE_ID, missing, refuse_actor, refuse_task, wishes_of
from fastray.node_state import job_id_of, node_id_of
from fastray.options import TaskOptions, to_units
from fastray.runtime_env import GROUP, JOB, RuntimeEnv, parse_runtime_env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.object_ref import ObjectRef
    from fastray.actor_info import ActorTables
    from fastray.actor_options import ActorOptions
    from fastray.attach import AttachedNode
    from fastray.node_process import NodeProcess
    from fastray.placement_groups import Place
    from fastray.recovery.durable import DurablePath
    from fastray.recovery.failures import FailureRecorder

DRIVER = 1  # ProcKind
ACTOR_CLASS = 1024  # kActorClass: scheduling classes from here on belong to actors
OUTSIDE = (0, 0, 0)  # the place of what runs in no placement group

_current: Runtime | None = None
_forked = False


class Runtime:
    """What this process knows of its session. Made by `start` in drivers, by worker.main in workers."""

    def __init__(
        self, attachment: Attachment, node: NodeProcess | AttachedNode | None, options: InitOptions | None
    ) -> None:
        self.attachment = attachment
        self.node = node
        self.options = options
        self.control_fd = -1 if node is None else node.control_fd
        self.is_worker = False
        self.is_local = False
        self.durable: DurablePath | None = None  # the driver's
        self.recorder: FailureRecorder | None = None
        self.is_durable = attachment.durable_address() != 0
        self._actors: ActorTables | None = None
        self.driver_namespace = ""  # in a worker
        self.driver_labels: dict[str, str] = {}
        self.bell_fd = -1
        self._classes: dict[object, int] = {}
        self._groups: dict[int, tuple[int, int]] = {}  # of classes: entry and life of their placement group
        self.captured_group: bytes | None = None  # in a worker: where the children of its tasks run
        self.local_groups: dict[bytes, tuple[list[dict[str, float]], str, str]] = {}  # local mode
        self._totals = attachment.resources()
        self._environments: dict[object, int] = {}
        self.published: dict[object, str] = {}  # packages of this process's runtime_envs, see runtime_envs/publish.py
        self.job_environment: RuntimeEnv | None = None
        if options is not None and options.runtime_env:
            self.job_environment = parse_runtime_env(options.runtime_env)
        elif attachment.own_environment():
            self.job_environment = RuntimeEnv(
                _validate=False, **pickle.loads(attachment.function_blob(attachment.own_environment()))
            )
            captured = self.job_environment.pop(GROUP, None)
            self.captured_group = captured if isinstance(captured, bytes) else None

    @classmethod
    def for_worker(cls, attachment: Attachment, control_fd: int) -> Runtime:
        """The runtime of a worker process; becomes the current one."""
        global _current
        from fastray._native import worker as native

        native.forget_functions()
        runtime = cls(attachment, None, None)
        runtime.is_worker = True
        runtime.control_fd = control_fd
        attachment.activate()
        _current = runtime
        return runtime

    # ---- classes ------------------------------------------------------------------------------------

    def scheduling_class(self, options: TaskOptions) -> int:
        """Index of the scheduling class of tasks with these options.

        Raises TaskUnschedulableError when this node can never run them.
        """
        key = options.scheduling_key()
        index = self._classes.get(key)
        if index is not None:
            return index
        demand = options.demand()
        place, captured = self._place(options, demand, "task")
        problems = None if place[0] else missing(demand, options, self._totals, self.labels())
        wishes = wishes_of(self.attachment, demand, options, self.node_id(), bool(problems), bool(place[0]))
        if problems and not wishes:
            refuse_task(problems)
        environment = self._environment(options, captured)
        index = self.attachment.register_class(demand, environment, wishes, place=place)
        if place[0]:  # its number may be another's, when the group is gone
            self._groups[index] = place[:2]
        else:
            self._classes[key] = index
            self._groups.pop(index, None)
        return index

    def group_of_class(self, cls: int) -> tuple[int, int]:
        """Entry and life of the placement group of what `scheduling_class` returned last; zeros without one."""
        return self._groups.get(cls, (0, 0))

    def _place(
        self, options: TaskOptions | ActorOptions, demand: dict[str, int], what: str
    ) -> tuple[Place, bytes | None]:
        """(where in a placement group, group of its children), see placement_groups.place_of."""
        if self.captured_group is None and not hasattr(options.scheduling_strategy, "placement_group"):
            return OUTSIDE, None
        from fastray.placement_groups import place_of

        return place_of(self, options, demand, what) or (OUTSIDE, None)

    # ---- actors -------------------------------------------------------------------------------------

    @property
    def actors(self) -> ActorTables:
        """What this process knows of actors' classes."""
        if self._actors is None:
            from fastray.actor_info import ActorTables

            self._actors = ActorTables(self)
        return self._actors

    def actor_needs(self, options: ActorOptions, name: str) -> tuple[dict[str, int], list[str], int, int, Place]:
        """(demand, names of the node's resources, runtime_env, wishes, place) of an actor with these options.

        Raises ActorUnschedulableError when no node can ever run it.
        """
        demand = options.demand()
        place, captured = self._place(options, demand, "actor")
        problems = None if place[0] else missing(demand, options, self._totals, self.labels())
        wishes = wishes_of(self.attachment, demand, options, self.node_id(), bool(problems), bool(place[0]))
        if problems and not wishes:
            refuse_actor(name, problems)
        return demand, list(self._totals), self._environment(options, captured), wishes, place

    def export_class(
        self, data: bytes, references: list[ObjectRef[Any]], name: str, timeout_ms: int = 0
    ) -> int:
        """Function-table index of an actor's class; `timeout_ms`: limit of its constructor."""
        from _blake2 import blake2b

        handles = [self.attachment.handle_of(ref) for ref in references]
        blob = pickle.dumps((data, handles, False, f"{name}.__init__"), protocol=5)
        digest = blake2b(blob + timeout_ms.to_bytes(4, "little"), digest_size=16).digest()
        index: int = self.attachment.register_function(
            blob, digest, f"{name}.__init__", 0, 0, 1, 0, 0, timeout_ms
        )
        return index

    def use_job_environment(self, job: dict[str, object]) -> None:
        """All tasks and actors from here carry `job`: what their workers have to have in common with this driver."""
        self.job_environment = RuntimeEnv(_validate=False, **{**(self.job_environment or {}), JOB: job})
        self._publish(self.job_environment)

    def environment_of(self, options: TaskOptions) -> dict[str, object] | None:
        """What users gave as the runtime_env of a task: a part of what its result depends on."""
        environment = self._merged_environment(options)
        return environment.to_dict() or None if environment else None

    def _merged_environment(self, options: TaskOptions | ActorOptions) -> RuntimeEnv | None:
        """The runtime_env of the options over that of the job (in a task: of its parent)."""
        environment = options.runtime_env
        if self.job_environment:
            environment = (environment or RuntimeEnv()).merged_over(self.job_environment)
        return environment

    def _environment(self, options: TaskOptions | ActorOptions, captured: bytes | None) -> int:
        """Function-table index of that runtime_env, with the placement group of the task's children."""
        fields = dict(self._merged_environment(options) or {})
        if captured is not None:
            fields[GROUP] = captured
        if not fields:
            return 0
        self._publish(fields)
        blob = pickle.dumps(fields)
        index = self._environments.get(blob)
        if index is None:
            from _blake2 import blake2b

            digest = blake2b(blob, digest_size=16).digest()
            index = self.attachment.register_function(blob, digest, "runtime_env", 4, 0, 0, 0, 0)
            self._environments[blob] = index
        return index

    def _publish(self, fields: dict[str, Any]) -> None:
        """In a cluster, the files that a runtime_env names go where other nodes find them."""
        if self.session_path and ("working_dir" in fields or "py_modules" in fields):
            from fastray.runtime_envs.publish import publish

            publish(fields, self)

    # ---- cancelling ---------------------------------------------------------------------------------

    def cancel(self, handle_or_ref: ObjectRef[Any] | int, force: bool, recursive: bool) -> None:
        """Cancels a task by reference or handle, and with `recursive` the tasks it submitted."""
        if isinstance(handle_or_ref, int):
            _, running, handle = self.attachment.cancel_handle(handle_or_ref)
        else:
            _, running, handle = self.attachment.cancel(handle_or_ref)
        if running < 0:
            return
        if recursive:
            for child in self.attachment.children(running, handle):
                self.cancel(child, force, recursive)
        if self.control_fd >= 0:
            from fastray.control import cancel_message

            os.write(self.control_fd, cancel_message(running, handle, force))

    # ---- names --------------------------------------------------------------------------------------

    def node_id(self) -> str:
        """The id of the node: 56 hexadecimal digits, as Ray's."""
        return node_id_of(self.attachment)

    def labels(self) -> dict[str, str]:
        """Those that the node was started with, and its id."""
        job = self.job_environment.job() if self.job_environment else {}
        given = job.get("labels") if job else self.options.labels if self.options else self.driver_labels
        return {NODE_ID: self.node_id(), **(given if isinstance(given, dict) else {})}

    @property
    def session_path(self) -> str:
        """The session directory of the daemon whose node this is; "" of a private node."""
        job = self.job_environment.job() if self.job_environment else {}
        return str(getattr(self.node, "path", "") or job.get("session", ""))

    def address(self) -> str:
        """Where other drivers attach; "local" for a private node."""
        return str(getattr(self.node, "address", "local"))

    def job_id(self) -> str:
        """8 hexadecimal digits: the number of the driver's job in its session, as Ray writes it."""
        return job_id_of(self.attachment.job)

    def worker_id(self) -> str:
        return f"{self.attachment.session_id:016x}{self.attachment.incarnation:08x}".ljust(56, "0")

    @property
    def namespace(self) -> str:
        given = self.options.namespace if self.options else self.driver_namespace
        return given or f"anonymous-{self.job_id()}"


# ---- the current one ---------------------------------------------------------------------------------


def current_runtime() -> Runtime:
    """The runtime of this process. Raises RuntimeNotInitializedError when there is none."""
    if _current is None:
        from fastray.exceptions import RuntimeNotInitializedError

        raise RuntimeNotInitializedError("no fastray session here: call fastray.init() first")
    return _current


def is_running() -> bool:
    """True while this process is part of a session."""
    return _current is not None


def ensure_attached() -> None:
    """Starts a session with defaults when there is none (first use of the API)."""
    if _current is None:
        start(parse_init())


def check_node() -> None:
    """Raises LocalRayletDiedError, after ending the session here, when the node is gone."""
    runtime = _current
    if runtime is None or runtime.node is None or runtime.node.alive():
        return
    how = runtime.node.describe_death()
    stop(quickly=True)
    from fastray.exceptions import LocalRayletDiedError

    raise LocalRayletDiedError(
        f"the node process of this session died ({how}); its tasks and objects are lost. Call init() to start anew."
    )


def node_resources(given: dict[str, Any]) -> tuple[dict[str, int], int, int]:
    """(totals in 1/10000 of a unit by name, whole CPUs, bytes of the object store) of a daemon's node."""
    options = parse_init(
        **{name: given[name] for name in ("num_cpus", "num_gpus", "resources", "object_store_memory")}
    )
    totals, cpus = _resources(options)
    return totals, cpus, options.object_store_memory or default_object_store_bytes()


def _resources(options: InitOptions) -> tuple[dict[str, int], int]:
    cpus = detect_cpus() if options.num_cpus is None else options.num_cpus
    gpus = detect_gpus() if options.num_gpus is None else options.num_gpus
    memory = options.memory or detect_memory_bytes()
    totals: dict[str, float] = {"CPU": cpus, "GPU": gpus, "memory": memory, "node:127.0.0.1": 1}
    totals.update(options.resources or {})
    return {name: to_units(amount) for name, amount in totals.items()}, int(cpus)


def start(options: InitOptions) -> Runtime:
    """Attaches to the session at the address given, or makes one: segment, node process, attachment. The node boots
    while we go on.

    Raises ConnectionError when there is an address and no node, InvalidOptionError when the address does not go with
    other options.
    """
    global _current
    if options.record_failures is None:
        _current = _begin(options)
        return _current
    from fastray.recovery.failures import FailureRecorder, prepare_directory

    prepare_directory(options.record_failures)
    _current = _begin(options)
    _current.recorder = FailureRecorder(_current, options.record_failures)
    _current.recorder.start()
    return _current


def _begin(options: InitOptions) -> Runtime:
    address = options.address or os.environ.get("FASTRAY_ADDRESS")
    if address not in (None, "", "local") and not options.local_mode:
        return _attach(address, options)
    if options.durable is None:
        return _start(options, None)
    from fastray.recovery.durable import DurablePath, name_classes

    durable = DurablePath.open(options.durable)
    try:
        name_classes()
        return _start(options, durable)
    except BaseException:
        durable.close()
        raise


def _start(options: InitOptions, durable: DurablePath | None) -> Runtime:
    store_bytes = options.object_store_memory or default_object_store_bytes()
    totals, cpus = _resources(options)
    segment_fd = create_segment(store_bytes, totals, cpus, durable.logs.area_bytes if durable else 0)
    bell_fd = -1 if options.local_mode else os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    attachment = Attachment(segment_fd, DRIVER, 1, bell_fd)
    attachment.begin_private_job(options.namespace or "", " ".join(sys.argv), time.time_ns())
    if durable is not None:
        durable.logs.fill(attachment.durable_address())
    begin = _start_local if options.local_mode else _start_node
    runtime = begin(attachment, segment_fd, bell_fd, cpus, options)
    runtime.durable = durable
    runtime.bell_fd = bell_fd
    return runtime


def _start_node(
    attachment: Attachment, segment_fd: int, bell_fd: int, cpus: int, options: InitOptions
) -> Runtime:
    from fastray.node_process import NodeProcess

    node = NodeProcess(
        segment_fd, bell_fd, cpus, bool(options.log_to_driver), options.namespace or "", options.record_failures,
        options.labels,
    )  # fmt: skip
    attachment.activate()
    return Runtime(attachment, node, options)


def _attach(address: str, options: InitOptions) -> Runtime:
    """As a driver of a daemon's node, with a job of its own."""
    global _current
    from fastray import attach

    options.check_attaching(address)
    node = attach.AttachedNode(attach.find(address), bool(options.log_to_driver), options.namespace or "")
    try:
        attachment = Attachment(node.segment_fd, DRIVER, node.slot, node.bell_fd)
    except BaseException:
        node.stop(quickly=True)
        os.close(node.bell_fd)
        raise
    finally:
        os.close(node.segment_fd)
    attachment.activate()
    runtime = Runtime(attachment, node, options)
    runtime.bell_fd = node.bell_fd
    try:
        runtime.use_job_environment(attach.job_environment(node, options))
    except BaseException:  # its files are too large
        _current = runtime
        stop(quickly=True)
        raise
    node.preload()
    return runtime


def _start_local(
    attachment: Attachment, segment_fd: int, _bell_fd: int, _cpus: int, options: InitOptions
) -> Runtime:
    """local_mode: no node; each task runs in this process while `.remote` is called."""
    attachment.activate(True)
    from fastray._native import worker as native

    native.forget_functions()
    if attachment.durable_address():
        from fastray.recovery.durable import open_log_here

        open_log_here()
    os.close(segment_fd)
    runtime = Runtime(attachment, None, options)
    runtime.is_local = True
    return runtime


def stop(quickly: bool = False) -> None:
    """Ends the session of this process: the node and its workers are gone when this returns."""
    global _current
    runtime = _current
    if runtime is None or runtime.is_worker:
        return
    _current = None
    if runtime.recorder is not None:
        runtime.recorder.stop()
    _close_log(forked=False)
    unmapped = runtime.attachment.deactivate()
    if runtime.node is not None:
        runtime.node.stop(quickly, not unmapped)
    if runtime.durable is not None:
        runtime.durable.close()
    if runtime.bell_fd >= 0:
        os.close(runtime.bell_fd)
    futures = sys.modules.get("fastray.futures")
    if futures is not None:
        futures.forget()


def _close_log(forked: bool) -> None:
    """Where tasks run here (a worker, local mode), the log of a durable session is no longer ours."""
    durable = sys.modules.get("fastray._native.durable")
    if durable is not None:
        durable.close_log(forked)


def _after_fork_in_child() -> None:
    global _current, _forked
    if _current is None:
        return
    if _current.is_worker or _current.attachment.pid != os.getpid():
        _close_log(forked=True)
        if _current.durable is not None:
            _current.durable.close()
        _current.attachment.abandon()
        if _current.node is not None:
            _current.node.abandon()
        _current = None
        _forked = True


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(stop)
