"""What a client may ask of the store: one class a command, and the replies. The protocol's vocabulary.

A batch holds commands of one client in order; each has one result: `Done` with a value, or `Failure` with a
kind and a sentence. Messages are msgpack arrays with the command's name first, decoded into these classes and
checked on the way: an unknown name or a wrong type refuses the whole batch. Append fields only, with defaults.

Failure kinds: "missing" (no such thing), "exists" (the name is taken), "stale" (from a life that is over: a
fenced node, an actor that restarted, an older search), "invalid" (makes no sense), "internal" (a bug of the store).
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

from fastray.gcs.records import Actor, Node, PlacementGroup, Task


class Command(msgspec.Struct, array_like=True, gc=False):
    """Base of all commands."""


# ---- nodes and jobs -----------------------------------------------------------------------------------


class NodeRegister(Command, tag="node.register"):
    """Joins, or joins again: the reply is the new epoch. The sender's connection becomes the node's pulse."""

    node: Node


class NodeDrain(Command, tag="node.drain"):
    """The node leaves by itself; no failure, but what was on it is gone."""

    epoch: int
    reason: str = "left"


class NodeDied(Command, tag="node.died"):
    """Someone saw the node die (or the failure detector did)."""

    epoch: int
    reason: str


class JobsReserve(Command, tag="job.reserve"):
    """The reply is the first of `count` numbers for jobs, which nobody else gets."""

    count: int


class JobStart(Command, tag="job.start"):
    """A driver attaches: the reply is the job's number. The sender's connection is the job's pulse.

    `job_id` is a number that was reserved, 0 for the next one. A job that runs, or that ended with its pulse, goes
    on under the sender's: its node's agent died, and this is the next one.
    """

    namespace: str
    entrypoint: str = ""
    node: bytes = b""
    metadata: dict[str, str] = {}
    job_id: int = 0


class JobEnd(Command, tag="job.end"):
    job_id: int
    failed: bool = False
    reason: str = ""


# ---- objects and tasks --------------------------------------------------------------------------------


class ObjectsAdd(Command, tag="object.add"):
    """Copies on the node of `epoch`: (object id, bytes, id of the task that makes it). `owner`: epoch of the node that
    owns them, with which their rows end.
    """

    epoch: int
    objects: list[tuple[bytes, int, bytes]]
    owner: int = 0


class ObjectsEvict(Command, tag="object.evict"):
    """The node no longer has copies of these."""

    epoch: int
    ids: list[bytes]


class ObjectsDelete(Command, tag="object.delete"):
    """Nobody will ask for these again."""

    ids: list[bytes]


class ObjectsLocate(Command, tag="object.locate"):
    """For each id (bytes, [ids of nodes that have it], task), or nil when it was never there."""

    ids: list[bytes]


class ObjectsWatch(Command, tag="object.watch"):
    """As ObjectsLocate; for an id without a copy a callback is left: one event "object" to this client."""

    ids: list[bytes]


class ObjectsList(Command, tag="object.list"):
    """[(object id, bytes, [ids of nodes that have it], task)], at most `limit`, the largest first."""

    limit: int = 100


class ObjectsUnwatch(Command, tag="object.unwatch"):
    ids: list[bytes]


class TasksReport(Command, tag="task.report"):
    """Tasks that started, ended or failed on the node of `epoch`. An end needs no start before it.

    `counts` are finished tasks without a row: (function, how many, how many of these are an estimate, sum and maximum
    of seconds). `unseen`: how many failed of which nobody knows more. `survived`: (task, attempt) of those that failed
    with an earlier epoch of this node, and did not: they run, unless `tasks` says more.
    """

    epoch: int
    tasks: list[Task]
    counts: list[tuple[str, int, int, float, float]] = []
    unseen: int = 0
    survived: list[tuple[bytes, int]] = []


class TasksList(Command, tag="task.list"):
    """Tasks that run, those that failed, and samples of those that finished; running ones first, each newest first.

    Empty filters match everything; `task` is the beginning of an id.
    """

    function: str = ""
    state: str = ""
    job: int = 0
    limit: int = 1000
    task: bytes = b""
    error_type: str = ""
    node: bytes = b""


class TasksSummary(Command, tag="task.summary"):
    """[(function, running, finished, failed, sum and maximum of seconds, how many of the finished are an estimate, is
    it a method of an actor)] of each function."""


# ---- functions, keys and values, messages -------------------------------------------------------------


class FunctionPut(Command, tag="function.put"):
    """The reply says whether it is new."""

    digest: bytes
    blob: bytes
    job: int


class FunctionGet(Command, tag="function.get"):
    digest: bytes


class KvPut(Command, tag="kv.put"):
    """The reply says whether the key was not there. Without `overwrite` an existing value stays."""

    namespace: str
    key: bytes
    value: bytes
    overwrite: bool = True


class KvGet(Command, tag="kv.get"):
    """[value or nil] of each key."""

    namespace: str
    keys: list[bytes]


class KvDelete(Command, tag="kv.delete"):
    """The reply is how many were there; with `prefix`, everything that starts with the key."""

    namespace: str
    key: bytes
    prefix: bool = False


class KvKeys(Command, tag="kv.keys"):
    namespace: str
    prefix: bytes = b""


class Publish(Command, tag="publish"):
    """A message to all who are subscribed to "channel:" + `channel` now. It is not kept."""

    channel: str
    message: bytes


# ---- actors and placement groups ----------------------------------------------------------------------


class ActorRegister(Command, tag="actor.register"):
    """The reply is the row; with `get_if_exists` that of the actor that has the name.

    A node that joined again registers what it has: a row that ended with it lives on.
    """

    actor: Actor
    get_if_exists: bool = False


class ActorState(Command, tag="actor.state"):
    """Part of ActorsReport: `epoch` is of the node where it runs, 0 when it runs nowhere."""

    actor_id: bytes
    state: str
    restarts: int = 0
    epoch: int = 0
    worker: int = 0  # pid
    reason: str = ""


class ActorsReport(Command, tag="actor.report"):
    """What became of actors whose home is the node of `epoch`. The reply is how many of them it has."""

    epoch: int
    actors: list[ActorState]


class ActorGet(Command, tag="actor.get"):
    actor_id: bytes


class ActorByName(Command, tag="actor.by_name"):
    namespace: str
    name: str


class ActorNames(Command, tag="actor.names"):
    """[(namespace, name)] of all that live."""


class GroupCreate(Command, tag="group.create"):
    group: PlacementGroup


class GroupPropose(Command, tag="group.propose"):
    """A node for each bundle: those that do not have it yet are to reserve it, and say so by GroupAgree. Without
    epochs: what was proposed is not wanted any more. `attempt` is that of the row it follows from.
    """

    group_id: bytes
    attempt: int
    epochs: list[int]


class GroupAgree(Command, tag="group.agree"):
    """The node has reserved all that is proposed for it in `attempt`. The last one to say so places the group."""

    group_id: bytes
    attempt: int
    epoch: int


class GroupRemove(Command, tag="group.remove"):
    group_id: bytes
    reason: str = "removed"


class GroupGet(Command, tag="group.get"):
    group_id: bytes


class GroupByName(Command, tag="group.by_name"):
    namespace: str
    name: str


# ---- all tables ---------------------------------------------------------------------------------------


class TableRead(Command, tag="table.read"):
    """(version, rows) of a published table: node, load, actor, job, placement_group."""

    table: str


class TableSince(Command, tag="table.since"):
    """(version, [events] since `version`, or nil when it has to be read anew)."""

    table: str
    version: int


class Goodbye(Command, tag="goodbye"):
    """The client ends and repeats nothing: its session is forgotten."""


AnyCommand = Union[
    NodeRegister,
    NodeDrain,
    NodeDied,
    JobsReserve,
    JobStart,
    JobEnd,
    ObjectsAdd,
    ObjectsEvict,
    ObjectsDelete,
    ObjectsLocate,
    ObjectsList,
    ObjectsWatch,
    ObjectsUnwatch,
    TasksReport,
    TasksList,
    TasksSummary,
    FunctionPut,
    FunctionGet,
    KvPut,
    KvGet,
    KvDelete,
    KvKeys,
    Publish,
    ActorRegister,
    ActorsReport,
    ActorGet,
    ActorByName,
    ActorNames,
    GroupCreate,
    GroupPropose,
    GroupAgree,
    GroupRemove,
    GroupGet,
    GroupByName,
    TableRead,
    TableSince,
    Goodbye,
]


class Batch(msgspec.Struct, array_like=True, gc=False):
    """Commands of one client. `seq` grows from batch to batch; a repeated one is applied once."""

    client: bytes
    seq: int
    commands: list[AnyCommand]


class Beat(msgspec.Struct, array_like=True, gc=False):
    """A heartbeat: what changed of a node's load since `version - 1`; all of it when `full`."""

    client: bytes
    epoch: int
    version: int
    full: bool
    available: dict[str, float] = {}
    queues: dict[str, list[float]] = {}  # an empty list: the class is gone


class History(msgspec.Struct, array_like=True, gc=False):
    """Ended tasks on disk, newest first; those of `task_id` only, if given."""

    task_id: bytes = b""
    limit: int = 100


class BeatReply(msgspec.Struct, array_like=True, gc=False):
    fenced: bool  # the epoch is over: stop, and start anew
    resync: bool  # the store does not have the version before this one: send all


class Done(msgspec.Struct, array_like=True, gc=False, tag=0):
    value: Any = None


class Failure(msgspec.Struct, array_like=True, gc=False, tag=1):
    kind: str
    message: str


Result = Union[Done, Failure]
