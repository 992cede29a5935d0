"""The rows of the tables, as they are in memory, on disk and on the wire (msgpack arrays).

    epoch     a number that the node table gives a node when it registers, never twice. It names the node in
              one life: what a dead life did is recognized by its epoch, everywhere
    client    the random id of a process that talks to the store
    times     seconds since 1970 by the server's clock, 0 for "not yet"

A field may be appended with a default; it may never be removed or moved: old stores must load. Made and
changed by the tables only. Ids are bytes of any length.
"""

from __future__ import annotations

import msgspec

ALIVE, DEAD = "ALIVE", "DEAD"  # nodes and actors
RUNNING, FINISHED, FAILED = "RUNNING", "FINISHED", "FAILED"  # tasks and jobs
PENDING_CREATION, RESTARTING = "PENDING_CREATION", "RESTARTING"  # actors
PENDING, PLACED, RESCHEDULING, REMOVED = "PENDING", "PLACED", "RESCHEDULING", "REMOVED"  # placement groups
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class Row(msgspec.Struct, array_like=True, gc=False):
    """Base of all rows. No row is part of a reference cycle."""


class Node(Row):
    """A machine's daemon. `client` is whose connection is this node's pulse."""

    node_id: bytes
    address: str  # host:port of the daemon
    resources: dict[str, float]  # in total; GPUs and custom ones too
    labels: dict[str, str] = {}
    data_address: str = ""  # host:port of its bulk transfers
    info: dict[str, str] = {}  # host name, pid, Python version: for people
    epoch: int = 0
    client: bytes = b""
    state: str = ALIVE
    registered_at: float = 0.0
    died_at: float = 0.0
    reason: str = ""


class Load(Row):
    """What a node has left and what waits there: from heartbeats, never persisted."""

    epoch: int
    available: dict[str, float]
    queues: dict[str, list[float]]  # scheduling class -> [tasks that wait, mean seconds of one]
    version: int  # of the node's own counting; a delta applies to the version before it


class Object(Row):
    """Where an object is. Locations are epochs: those of dead nodes no longer count, without a write."""

    size: int
    locations: list[int]
    task: bytes = b""  # the task that makes it: its lineage
    owner: int = 0  # epoch of the node that owns it: the row ends with that


class Task(Row):
    """One attempt of a task: what ran, where, how long, why it failed."""

    task_id: bytes
    function: str
    attempt: int = 0
    job: int = 0
    parent: bytes = b""
    worker: int = 0  # pid
    state: str = RUNNING
    started_at: float = 0.0
    ended_at: float = 0.0
    error: str = ""
    spec: bytes = b""  # as the node encodes it: enough to run it again
    epoch: int = 0  # of the node that ran it
    node: bytes = b""  # its id
    error_type: str = ""  # as Ray's: TASK_EXECUTION_EXCEPTION, WORKER_DIED, NODE_DIED, ...
    actor: bool = False  # a call of an actor


class FunctionStats(Row):
    """All ended tasks of a function: counts in full, tasks as samples."""

    function: str
    finished: int = 0
    failed: int = 0
    seconds_sum: float = 0.0
    seconds_max: float = 0.0
    recent: list[Task] = []
    slowest: list[Task] = []
    estimated: int = 0  # of `finished`: nobody saw them one by one
    actor: bool = False  # a method of an actor


class Function(Row):
    """The pickle of a function or class, by the hash of its content. The store never looks inside."""

    blob: bytes
    jobs: list[int]  # who exported it


class Actor(Row):
    actor_id: bytes
    class_name: str
    job: int = 0
    namespace: str = ""
    name: str = ""
    detached: bool = False
    max_restarts: int = 0  # -1: without end
    class_hash: bytes = b""  # in the function table
    spec: bytes = b""  # how to create it, as the node encodes it
    resources: dict[str, float] = {}
    state: str = PENDING_CREATION
    restarts: int = 0  # how often so far: names the life
    epoch: int = 0  # of the node that it is on
    worker: int = 0  # pid
    created_at: float = 0.0
    ended_at: float = 0.0
    reason: str = ""
    home: bytes = b""  # node that owns its entry, and says what becomes of it


class Job(Row):
    """A driver's program, while it is attached."""

    job_id: int
    namespace: str
    client: bytes
    entrypoint: str = ""
    node: bytes = b""
    state: str = RUNNING
    started_at: float = 0.0
    ended_at: float = 0.0
    reason: str = ""
    metadata: dict[str, str] = {}


class PlacementGroup(Row):
    """Bundles of resources that are reserved together. `epochs[i]` is where bundle i is, 0 for nowhere.

    While nodes are asked whether they have room, `proposed` says which, for each bundle, and `agreed` who has it.
    """

    group_id: bytes
    bundles: list[dict[str, float]]
    strategy: str = "PACK"
    job: int = 0
    namespace: str = ""
    name: str = ""
    detached: bool = False
    state: str = PENDING
    attempt: int = 0  # grows with each proposal and each loss: an answer to an older one is refused
    epochs: list[int] = []
    created_at: float = 0.0
    reason: str = ""
    selectors: list[dict[str, str]] = []  # labels that the node of each bundle has; empty: any
    node: bytes = b""  # where it was made
    in_actor: bool = False  # by an actor: that node ends it with the actor
    proposed: list[int] = []
    agreed: list[int] = []
    lost: list[bytes] = []  # where bundles were whose node is dead: it may come back; b"" otherwise
    placed_at: float = 0.0


class Session(Row):
    """The last batch of a client that changed something, and its reply: a retry gets the reply only."""

    seq: int
    reply: bytes
    at: float
