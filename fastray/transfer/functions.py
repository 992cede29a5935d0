"""Functions and scheduling classes of one node, as they are made on another.

A function goes to a node once, before the first task that needs it: the pickled function, its options, the demand
and runtime_env of its class, the number of its job. The node makes entries of its own tables from that; they go with
the job. What the closure holds travels as references (csrc/link.h). The global function table (GCS) gets the pickle
too, by its digest, for whoever looks.

Called by peer.py, with the agent's lock held.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import msgspec

from fastray._native import groups
from fastray._native import link as native
from fastray._native.actors import register_actor, release_actor
from fastray.feasibility import wishes_in_group
from fastray.placement_groups import HERE
from fastray.placement_groups import REMOVED as GROUP_REMOVED
from fastray.runtime import OUTSIDE
from fastray.runtime_env import JOB, PACKAGES
from fastray.runtime_envs.publish import name_it
from fastray.runtime_envs.store import session_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray._native.link import Link
    from fastray._native.object_ref import ObjectRef
    from fastray._native.session import Attachment
    from fastray.placement_groups import Place

NO_PLACEMENT = 0xFFFFFFFF  # of an entry that stands for another node's actor
FLAG_ENVIRONMENT = 4  # kBlobIsRuntimeEnv
REMOVED = (1, 0xFFFFFFFF, -1)  # a place in a group that is over: no entry had so many lives


class Definition(msgspec.Struct, array_like=True):
    number: int  # of the sender's table
    name: str
    digest: bytes
    pickled: bytes
    rest: bytes  # what the blob holds besides, pickled
    references: list[bytes]
    flags: int
    max_retries: int
    returns: int
    max_calls: int
    timeout_ms: int
    demand: dict[str, int]
    environment: bytes
    job: int


class ActorDefinition(msgspec.Struct, array_like=True):
    """What the entry of an actor holds that runs elsewhere; the creation itself follows, with the arguments."""

    wire: int
    class_name: str
    flags: int
    max_restarts: int
    info: bytes  # pickled ActorInfo
    demand: dict[str, int]
    environment: bytes
    job: int
    identity: tuple[int, int]
    group: bytes = b""  # its placement group
    bundle: int = -1


class ClassDefinition(msgspec.Struct, array_like=True):
    """A class of a placement group: its tasks run in the bundle, or in any that the receiver has."""

    number: int  # of the sender's table, + 1
    demand: dict[str, int]
    environment: bytes
    job: int
    group: bytes
    bundle: int


class Wishes(msgspec.Struct, array_like=True):
    """What Class::placement stands for: where the tasks of a routed class may run."""

    demand: dict[str, int]
    strategy: Any = "DEFAULT"
    labels: dict[str, str] = {}


class Functions:
    """Both directions, for one node's tables."""

    def __init__(self, attachment: Attachment, path: str) -> None:
        self._attachment = attachment
        self._path = path  # the session directory of this node
        self._wishes: dict[int, tuple[bytes, Wishes]] = {}
        self._kept: dict[int, list[ObjectRef[Any]]] = {}  # job -> what closures of its functions, made elsewhere, hold

    def wishes(self, placement: int) -> Wishes:
        blob = self._attachment.function_blob(placement)
        known = self._wishes.get(placement)
        if known is None or known[0] != blob:
            known = self._wishes[placement] = (blob, Wishes(*pickle.loads(blob)))
        return known[1]

    def job_ended(self, job: int) -> None:
        """Nobody calls its functions any more."""
        self._kept.pop(job, None)

    def demand(self, cls: int) -> tuple[dict[str, int], int, int]:
        """(demand by name, runtime_env, job) of a class."""
        demand, environment, placement, job = native.describe_class(cls)
        return (self.wishes(placement).demand if placement else demand), environment, job

    def describe(self, link: Link, function: int) -> Definition:
        name, cls, flags, max_retries, returns, max_calls, timeout_ms, digest = native.describe_function(function)
        data, handles, *rest = pickle.loads(self._attachment.function_blob(function))
        demand, environment, job = self.demand(cls)
        return Definition(
            function, name, digest, data, pickle.dumps(rest), [link.export_ref(handle) for handle in handles],
            flags, max_retries, returns, max_calls, timeout_ms, demand,
            self._attachment.function_blob(environment) if environment else b"", job,
        )  # fmt: skip

    def make(self, link: Link, given: Definition) -> None:
        """Entries of this node for it; from now on the link knows the function."""
        handles = [link.import_ref(reference) for reference in given.references]
        self._kept.setdefault(given.job, []).extend(self._attachment.borrow(handle) for handle in handles)
        cls = self.local_class(given.demand, self._environment(given.environment, given.job), given.job)
        blob = pickle.dumps((given.pickled, handles, *pickle.loads(given.rest)), protocol=5)
        digest = _digest(blob, repr((given.digest, cls, given.flags, given.max_retries, given.returns)).encode())
        function = self._attachment.register_function(
            blob, digest, given.name, given.flags, given.max_retries, given.returns, given.max_calls, cls,
            given.timeout_ms, owner_job=given.job,
        )  # fmt: skip
        link.know(given.number, function, cls)

    def describe_actor(self, actor: int, creation: int) -> ActorDefinition:
        class_name, flags, max_restarts, info, _, cls, identity = native.describe_actor(actor)
        demand, environment, job = self.demand(cls)
        blobs = self._attachment.function_blob
        pickled = blobs(environment) if environment else b""
        group, bundle = _group_of_class(cls)
        return ActorDefinition(
            creation, class_name, flags, max_restarts, blobs(info), demand, pickled, job, identity, group, bundle
        )

    def make_handle(self, link: Link, reference: bytes, given: ActorDefinition) -> None:
        """An entry for an actor of the other node, that a handle names here."""
        actor = self._entry(given, NO_PLACEMENT)
        if not link.import_actor(reference, actor):
            release_actor(actor)

    def make_actor(self, link: Link, given: ActorDefinition) -> None:
        """An entry for it; the creation that follows fills it."""
        link.prepare_actor(given.wire, self._entry(given, 0))

    def _entry(self, given: ActorDefinition, placement: int) -> int:
        info = self._attachment.register_function(
            given.info, _digest(given.info, b"(0, 0, 0, 0)"), given.class_name, 0, 0, 0, 0, 0, shared=True
        )
        environment = self._environment(given.environment, given.job)
        place = _place_of(given.group, given.bundle) if given.group and placement != NO_PLACEMENT else OUTSIDE
        return register_actor(
            given.demand, list(self._attachment.resources()), environment, given.flags, given.max_restarts, info,
            given.class_name, "", "", placement, given.job, place, identity=given.identity,
        )  # fmt: skip

    # ---- classes of placement groups ------------------------------------------------------------------

    def describe_class(self, cls: int) -> ClassDefinition:
        demand, environment, job = self.demand(cls)
        pickled = self._attachment.function_blob(environment) if environment else b""
        return ClassDefinition(cls + 1, demand, pickled, job, *_group_of_class(cls))

    def make_class(self, link: Link, given: ClassDefinition) -> None:
        place = _place_of(given.group, given.bundle)
        if place == REMOVED:
            return link.know_class(given.number, None)
        environment = self._environment(given.environment, given.job)
        return link.know_class(given.number, self.class_here(given.demand, environment, given.job, place))

    def class_here(self, demand: dict[str, int], environment: int, job: int, place: Place) -> int:
        """A class for workers of this node, in a bundle that it has."""
        placement = wishes_in_group(self._attachment, demand, job)
        return self._attachment.register_class(demand, environment, placement, job, place, here=True)

    def local_class(self, demand: dict[str, int], environment: int, job: int) -> int:
        return self._attachment.register_class(demand, environment, 0, job)

    def _environment(self, pickled: bytes, job: int) -> int:
        """The runtime_env of another node's driver here: its variables are this node's, but for `env_vars`."""
        if not pickled:
            return 0
        environment = pickle.loads(pickled)
        if environment.get(JOB):
            environment[JOB] = {**environment[JOB], "environ": dict(os.environ), "labels": {}, "session": self._path}
        for digest, _ in environment.get(PACKAGES, {}).values():
            name_it(session_store(self._path), digest, job)
        blob = pickle.dumps(environment)
        return self._attachment.register_function(
            blob, _digest(blob), "runtime_env", FLAG_ENVIRONMENT, 0, 0, 0, 0, owner_job=job
        )


def _group_of_class(cls: int) -> tuple[bytes, int]:
    """Id of its placement group, b"" for none, and its bundle."""
    entry, life, bundle = groups.place_of_class(cls)
    row = groups.group_row(entry) if entry else None
    return (row[0] if row is not None and row[2] == life else b"", bundle)


def _place_of(group_id: bytes, bundle: int) -> Place:
    """Where a task of another node's group runs here; REMOVED when that is not there any more."""
    entry = groups.find_group(group_id)
    row = groups.group_row(entry) if entry else None
    if row is None or row[0] != group_id or row[1] == GROUP_REMOVED:
        return REMOVED
    return entry, row[2], HERE if bundle < 0 else bundle


def _digest(blob: bytes, more: bytes = b"") -> bytes:
    from _blake2 import blake2b

    return blake2b(blob + more, digest_size=16).digest()
