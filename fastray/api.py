"""The functions a user calls: init, remote, cancel, nodes, runtime context. Names and semantics of Ray Core.

`get`, `wait`, `put` and `empty` are C (fastray/_native); the rest is here. Each function attaches the process
to a session first when there is none.
"""

from __future__ import annotations

import os

from fastray import runtime as _runtime
from fastray._native.object_ref import ObjectRef
from fastray._native.streams import ObjectRefGenerator
from fastray.config import parse_init
from fastray.node_state import available_resources as free_resources
from fastray.node_state import total_resources
from fastray.remote_function import RemoteFunction, remote_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray.actor import ActorClass, ActorHandle
    from fastray.runtime import Runtime


class Context(dict[str, object]):
    """What `init` returns: the address and ids of the session; usable in `with`, which ends it."""

    @property
    def address_info(self) -> dict[str, Any]:
        return dict(self)

    @property
    def dashboard_url(self) -> str:
        return ""

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_exc: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        shutdown()


def init(address: str | None = None, **options: Any) -> Context:
    """Starts a session on this machine: a node with `num_cpus` workers and a shared object store. With `address` (or
    FASTRAY_ADDRESS) this process attaches as a driver to a node that `fastray start` made: "auto" is the latest one.

    Takes the arguments of Ray's `init`. Returns at once; a private node boots in the background. In a task the
    session of the worker is used and `init` only says so.

    Raises:
        RuntimeError: a session runs already and `ignore_reinit_error` is not set.
        ConnectionError: `address` names a node of which there is none.
        InvalidOptionError (a ValueError), OptionTypeError, UnknownInitOptionError: an argument is wrong, or is the
            node's to decide (num_cpus, ...) and there is an address.
    """
    checked = parse_init(address=address, **options)
    if _runtime.is_running():
        if not checked.ignore_reinit_error and not _runtime.current_runtime().is_worker:
            raise RuntimeError(
                "fastray.init() was called twice: a session runs already. Call shutdown() first, or pass "
                "ignore_reinit_error=True."
            )
        return _context(_runtime.current_runtime())
    return _context(_runtime.start(checked))


def _context(runtime: Runtime) -> Context:
    info = getattr(runtime.node, "info", None)  # of a daemon's
    return Context(
        node_id=runtime.node_id(),
        address=runtime.address(),
        node_ip_address=str(info().get("host")) if info else "127.0.0.1",
        session_name=f"session_{runtime.attachment.session_id:016x}",
        job_id=runtime.job_id(),
        namespace=runtime.namespace,
        node_pid=runtime.node.pid if runtime.node else os.getpid(),
    )


def shutdown(_exiting_interpreter: bool = False) -> None:
    """Ends the session: workers are gone and memory is given back when this returns. Without one, does nothing."""
    _runtime.stop()


def is_initialized() -> bool:
    """True when this process is part of a session."""
    return _runtime.is_running()


def remote(*args: Any, **options: Any) -> Any:
    """Decorator: makes a function remote. `@remote` or `@remote(num_cpus=2, ...)`; matches Ray's.

    Options of functions that Ray does not have: timeout_s (seconds; a task that runs longer takes its worker with it
    and runs again while max_retries lasts, then it is a TaskTimeoutError; no effect in local mode), seed, cache.
    Raises InvalidOptionError, OptionTypeError for options; TypeError for what cannot be decorated.
    """
    if len(args) == 1 and not options and (callable(args[0])):
        return _make_remote(args[0], {})
    if args or not options:
        raise TypeError(
            "@fastray.remote takes either no arguments and no parentheses, or only keyword options: "
            "@remote or @remote(num_cpus=2)"
        )

    def decorate(target: Callable[..., Any]) -> Any:
        return _make_remote(target, options)

    return decorate


def _make_remote(target: Any, options: dict[str, Any]) -> RemoteFunction | ActorClass:
    if isinstance(target, RemoteFunction) or type(target).__name__ == "ActorClass":
        raise TypeError(f"{target!r} is remote already")
    if isinstance(target, type):
        from fastray.actor import make_actor_class

        return make_actor_class(target, options)
    if not callable(target) or not hasattr(target, "__name__"):
        raise TypeError(f"@remote is for functions and classes, got {type(target).__name__}")
    return remote_function(target, options)


def cancel(ref: ObjectRef[Any] | ObjectRefGenerator, *, force: bool = False, recursive: bool = True) -> None:
    """Cancels the task that makes `ref`: not started, it never runs; running, KeyboardInterrupt is raised in it
    (`force`: its worker is killed). `get` raises TaskCancelledError. A finished task is left alone.

    So is an object made by `put`, as in Ray. Raises TypeError when `ref` is no reference.
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel() takes an ObjectRef or ObjectRefGenerator, got {type(ref).__name__}")
    _runtime.ensure_attached()
    _runtime.current_runtime().cancel(ref, force, recursive)


def evict(refs: ObjectRef[Any] | list[ObjectRef[Any]], *, also_lost: bool = False) -> int:
    """Gives the memory of results back to the object store, and keeps the references: `get` computes a result again,
    by its task and what that needs. Returns how many were given back (paper, section 4.2.3).

    Left alone is what is in use (other references, arrays of it, tasks that wait for it, borrowers), what is small
    enough to stand in its record, and what no task can make again: objects of `put`, items of generators, results of
    actors and of functions with `max_retries=0`. With `also_lost` those go too, and `get` then raises
    ObjectReconstructionFailedError. Raises TypeError for what is no reference.
    """
    from fastray._native.lineage import evict as evict_one

    chosen = [refs] if isinstance(refs, ObjectRef) else refs
    for ref in chosen:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"evict() takes ObjectRefs, got {type(ref).__name__}: {ref!r:.100}")
    return sum(evict_one(ref, also_lost) for ref in chosen)


def kill(actor: Any, *, no_restart: bool = True) -> None:
    """Kills an actor at once, see `fastray.actor.kill`. Raises ValueError for anything else."""
    from fastray.actor import kill as kill_actor

    kill_actor(actor, no_restart=no_restart)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor, see `fastray.actor.get_actor`. Raises ValueError when there is none."""
    from fastray.actor import get_actor as find

    return find(name, namespace)


def method(*args: Any, **options: Any) -> Any:
    """Decorator: options of an actor's method, see `fastray.actor.method`."""
    from fastray.actor import method as decorator

    return decorator(*args, **options)


def replay(ref: ObjectRef[Any] | ObjectRefGenerator, *, pdb: bool = False, from_constructor: bool = False) -> Any:
    """Runs the task that makes `ref` again, in this process and with `pdb` in the debugger.

    See `fastray.recovery.replay.replay`. Raises what the task raises, and ReplayError when it cannot be run again.
    """
    from fastray.recovery.replay import replay as run_again

    return run_again(ref, pdb=pdb, from_constructor=from_constructor)


def cluster_resources() -> dict[str, float]:
    """Total resources of the session, of all nodes of a cluster, by name; bytes for memory.

    Raises GcsUnavailableError when the node's agent does not answer.
    """
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    if runtime.session_path:
        from fastray.cluster import members

        return members.total_resources(runtime.session_path)
    return total_resources(runtime.attachment)


def available_resources() -> dict[str, float]:
    """Resources that no running task holds, by name; names that are used up are left out, as in Ray."""
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    if runtime.session_path:
        from fastray.cluster import members

        return members.available_resources(runtime.session_path, runtime.attachment)
    return free_resources(runtime.attachment)


def nodes() -> list[dict[str, Any]]:
    """One dictionary per node of the session, in a cluster those that have died too; the keys are Ray's.

    Raises GcsUnavailableError when the node's agent does not answer.
    """
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    if runtime.session_path:
        from fastray.cluster import members

        return members.nodes(runtime.session_path)
    resources = total_resources(runtime.attachment)
    return [
        {
            "NodeID": runtime.node_id(),
            "Alive": True,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerHostname": os.uname().nodename,
            "NodeName": "127.0.0.1",
            "alive": True,
            "Resources": resources,
            "Labels": runtime.labels(),
        }
    ]


def get_gpu_ids() -> list[int]:
    """Indices of the GPUs leased to the running task; [] in a driver."""
    if not _runtime.is_running():
        return []
    mask = _runtime.current_runtime().attachment.own_gpus()
    return [i for i in range(32) if mask >> i & 1]
