"""Names of actors, as a process of a session sees them: of this node, and of all nodes of a cluster.

On one node a name stands in the actor's entry, in shared memory. In a cluster the store gives it (fastray/transfer/
names.py): a process asks its node's agent. Called by actor.py.
"""

from __future__ import annotations

from fastray._native import actors as _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray._native.object_ref import ObjectRef
    from fastray.actor_options import ActorOptions
    from fastray.runtime import Runtime

TRIES = 20  # an actor may end between the agent's answer and our look


def find(runtime: Runtime, namespace: str, name: str) -> tuple[ObjectRef[Any], int] | None:
    """(reference to the creation record, info) of the actor of this name; None when there is none.

    Raises GcsUnavailableError when the agent of a clustered node does not answer.
    """
    found = _native.find_actor(namespace, name)
    if found is not None or not _in_cluster(runtime):
        return found
    from fastray.cluster import inquiry
    from fastray.transfer.questions import FIND

    for _ in range(TRIES):
        handle = inquiry.ask(runtime.session_path, FIND, (namespace, name))
        if not handle:
            return None
        found = _native.hold_actor(handle)
        if found is not None:
            return found
    return None


def names(runtime: Runtime) -> list[tuple[str, str]]:
    """(namespace, name) of all that live. Raises as `find`."""
    if not _in_cluster(runtime):
        return _native.named_actors()
    from fastray.cluster import inquiry
    from fastray.transfer.questions import NAMES

    return [(namespace, name) for namespace, name in inquiry.ask(runtime.session_path, NAMES, {})]


def reserve(
    runtime: Runtime, options: ActorOptions, namespace: str, class_name: str, entry: int, recipe: Callable[[], bytes]
) -> int | None:
    """The id for the creation record of the actor in this entry of the table, 0 for any; None: another actor of the
    cluster has the name. Raises as `find`. `recipe()`: what it takes to make a detached one anew (cluster/adoption.py).
    """
    if not options.name or not _in_cluster(runtime):
        return 0
    from fastray.cluster import inquiry
    from fastray.transfer.questions import RESERVE

    record = _native.next_id()
    detached = options.lifetime == "detached"
    about = {
        "actor_id": f"{runtime.attachment.session_id:016x}{record:016x}",
        "entry": entry,
        "class_name": class_name,
        "job": runtime.attachment.job,
        "namespace": namespace,
        "name": options.name,
        "detached": detached,
        "spec": recipe().hex() if detached and options.max_restarts else "",
        "max_restarts": options.max_restarts,
    }
    return record if inquiry.ask(runtime.session_path, RESERVE, about) else None


def _in_cluster(runtime: Runtime) -> bool:
    return runtime.attachment.clustered and bool(runtime.session_path)
