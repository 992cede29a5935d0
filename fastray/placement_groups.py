"""Placement groups inside this process: their ids, making one, and where a task or an actor in one runs.

    PlacementGroup   what users hold: an id, and the bundles it was made of
    spec             bundles and strategy, as their creator wrote them into the node's table
    place            (entry of the group in that table, its life, bundle or -1): part of a scheduling class
    captured         the group whose worker this is, when its tasks' children are to run in it too

The node decides when a group is reserved (csrc/local_scheduler_groups.cpp). Called by runtime.py and
util/placement_group.py; docs/internals/placement_groups.md has the whole.
"""

from __future__ import annotations

import marshal
import os
import struct

from fastray._native import groups as _native
from fastray.exceptions import (
    ActorPlacementGroupRemoved,
    InvalidOptionError,
    OptionTypeError,
    PlacementGroupExistsError,
    RuntimeSystemError,
    TaskPlacementGroupRemoved,
)
from fastray.options import to_units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

    from fastray._native.groups import GroupRow
    from fastray._native.object_ref import ObjectRef
    from fastray.actor_options import ActorOptions
    from fastray.options import TaskOptions
    from fastray.runtime import Runtime

    Bundles = list[dict[str, float]]
    Place = tuple[int, int, int]

REFUSED, PENDING, READY, REMOVED, MOVING, ASKED = 1, 2, 3, 4, 5, 6  # GroupState
DETACHED, FOREIGN, SHARED, MIRROR = 1, 2, 4, 8  # GroupFlag
LIVING = (PENDING, READY, MOVING)
HERE = -2  # kBundleHere
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_REQUEST = struct.Struct("<24sIIQIIQ96s64sII")  # GroupRequest
_REQUEST_BYTES_MAX = 65_000  # of a message to the node
_OPTION = "scheduling_strategy"
_WAIT_S = 0.5  # between two looks whether the node lives
_ANSWER_S = 30  # a node that stands still so long is broken


class PlacementGroupID(bytes):
    """18 bytes: 14 drawn at random, 4 of the job. Matches Ray's."""

    def __repr__(self) -> str:
        return f"PlacementGroupID({self.hex()})"

    def binary(self) -> bytes:
        return bytes(self)

    def is_nil(self) -> bool:
        return self == self.nil()

    @classmethod
    def nil(cls) -> PlacementGroupID:
        """The id of no group."""
        return cls(b"\xff" * _native.ID_BYTES)


class PlacementGroup:
    """Bundles of resources that are reserved together. Made by `placement_group`; can be passed to tasks and actors.

    Matches Ray's PlacementGroup: equal when the ids are.
    """

    def __init__(self, id: PlacementGroupID, bundle_cache: Bundles | None = None) -> None:
        self.id = PlacementGroupID(id)
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """What stands for no group."""
        return PlacementGroup(PlacementGroupID.nil())

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> Bundles:
        """The bundles: amounts by resource. Raises TaskPlacementGroupRemoved when the node has forgotten the group."""
        if self.bundle_cache is None:
            self.bundle_cache = spec_of(require_row(self.id))[0]
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A reference whose value, this group, is there when all bundles are reserved.

        `get` raises TaskPlacementGroupRemoved when the group is removed before.
        """
        from fastray.util.placement_group import ready_reference

        return ready_reference(self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Sleeps until all bundles are reserved; False after `timeout_seconds`.

        Raises TaskPlacementGroupRemoved when the group was removed, OptionTypeError for what is no number.
        """
        if not isinstance(timeout_seconds, (int, float)):
            raise OptionTypeError(
                f"timeout_seconds must be a number, not {timeout_seconds!r}", option="timeout_seconds"
            )
        return wait_until_ready(self.id, timeout_seconds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[object, ...]:
        return PlacementGroup, (self.id, self.bundle_cache)


# ---- the table -----------------------------------------------------------------------------------------


def find_row(group_id: bytes) -> GroupRow | None:
    """What the node's table says of the group; None when it has forgotten it."""
    entry = find_entry(group_id)
    row = _native.group_row(entry) if entry else None
    return row if row is not None and row[0] == group_id else None


def find_entry(group_id: bytes) -> int:
    """Its number in the node's table; 0 when it is not there. A group of another node may be known to the cluster, and
    not to this node yet: then it is waited for."""
    from fastray.runtime import current_runtime

    entry = _native.find_group(group_id)
    runtime = current_runtime()
    if entry or not runtime.attachment.clustered:
        return entry
    known = any(row["state"] != REMOVED for row in ask_groups(runtime, group_id))
    return _wait(group_id, (*LIVING, REMOVED), _ANSWER_S) if known else 0


def ask_groups(runtime: Runtime, group_id: bytes = b"") -> list[dict[str, Any]]:
    """All groups of the cluster, or this one, as the control store has them: see transfer/group_keeper.py for the
    fields."""
    from fastray.cluster import inquiry

    rows: list[dict[str, Any]] = inquiry.ask(runtime.session_path, "groups", group_id.hex())
    return rows


def require_row(group_id: bytes) -> GroupRow:
    """The same. Raises TaskPlacementGroupRemoved when it is not there."""
    row = find_row(group_id)
    if row is None:
        _removed(group_id)
    return row


def spec_of(row: GroupRow) -> tuple[Bundles, str]:
    """Bundles and strategy."""
    bundles, strategy, _ = marshal.loads(row[7])
    return bundles, strategy


def _removed(group_id: bytes) -> NoReturn:
    raise TaskPlacementGroupRemoved(f"placement group {group_id.hex()} has been removed.")


# ---- making and removing -------------------------------------------------------------------------------


def create(
    runtime: Runtime, bundles: Bundles, strategy: str, selectors: list[dict[str, str]], name: str, detached: bool,
    never_fits: bool,
) -> PlacementGroup:  # fmt: skip
    """Asks the node for a group, and waits until it stands in the table.

    Raises PlacementGroupExistsError when a group in this namespace has the name, InvalidOptionError when there are too
    many bundles.
    """
    job = runtime.attachment.job
    group_id = PlacementGroupID(os.urandom(_native.ID_BYTES - 4) + job.to_bytes(4, "little"))
    if runtime.is_local:
        runtime.local_groups[group_id] = (bundles, strategy, name)
        return PlacementGroup(group_id, bundles)
    names = list(runtime.attachment.resources())
    spec = marshal.dumps((bundles, strategy, selectors))
    flags = (DETACHED if detached else 0) | (FOREIGN if never_fits else 0)
    creator = _native.own_creation() if runtime.is_worker and runtime.attachment.is_actor() else 0
    text = group_request(
        names, group_id, job, flags, creator, list(enumerate(bundles)), spec, name, runtime.namespace, 0, 0
    )
    if len(text) > _REQUEST_BYTES_MAX:
        raise InvalidOptionError(
            f"a placement group of {len(bundles)} bundles is too large to be described: make several", option="bundles"
        )
    _send(runtime, group_id, text)
    return PlacementGroup(group_id, bundles)


def group_request(
    names: list[str], group_id: bytes, job: int, flags: int, creator: int, bundles: list[tuple[int, dict[str, float]]],
    spec: bytes, name: str, namespace: str, state: int, attempt: int,
) -> bytes:  # fmt: skip
    """A GroupRequest and what belongs to it: `bundles` by number, amounts of the node's resources `names`."""
    rows = b"".join(
        struct.pack(f"<{1 + len(names)}Q", number, *[to_units(bundle.get(name, 0)) for name in names])
        for number, bundle in bundles
    )
    return _REQUEST.pack(
        group_id, job, flags, creator, len(bundles), len(names), len(spec), _cut(name, 95), _cut(namespace, 63), state,
        attempt,
    ) + rows + spec  # fmt: skip


def _send(runtime: Runtime, group_id: bytes, text: bytes) -> None:
    from fastray.control import create_group_message, remove_group_message

    os.write(runtime.control_fd, create_group_message(text))
    entry = _wait(group_id, (REFUSED, *LIVING, REMOVED), _ANSWER_S)
    if not entry:
        os.write(runtime.control_fd, remove_group_message(group_id))  # in case it comes to it yet
        raise RuntimeSystemError(
            f"the node did not make the placement group: it has room for {_native.GROUPS_MAX - 1:,}, removed ones "
            "that tasks still name included; in a cluster the control store has to be there too"
        )
    row = _native.group_row(entry)
    if row is not None and row[1] == REFUSED:
        raise PlacementGroupExistsError(
            f"a placement group named {row[5]!r} exists in namespace {row[6]!r}: use get_placement_group({row[5]!r}), "
            "or another name"
        )


def _cut(text: str, most: int) -> bytes:
    return text.encode("utf-8", "replace")[:most]


def remove(runtime: Runtime, group_id: bytes) -> None:
    """What runs in it is killed, what waits fails; its resources are the node's again. Waits until that has begun."""
    if runtime.is_local:
        runtime.local_groups.pop(group_id, None)
        return
    row = find_row(group_id)
    if row is None or row[1] == REMOVED:
        return
    from fastray.control import remove_group_message

    os.write(runtime.control_fd, remove_group_message(group_id))
    _wait(group_id, (REMOVED,), _ANSWER_S)


def _wait(group_id: bytes, states: tuple[int, ...], timeout_s: float) -> int:
    """The group's entry, once it is in one of `states`; 0: not in time. Raises LocalRayletDiedError without a node."""
    from fastray.runtime import check_node

    while timeout_s > _WAIT_S:
        entry = _native.wait_for_group(group_id, states, int(_WAIT_S * 1e9))
        if entry:
            return entry
        check_node()
        timeout_s -= _WAIT_S
    return _native.wait_for_group(group_id, states, int(max(0.0, timeout_s) * 1e9))


def wait_until_ready(group_id: bytes, timeout_s: float) -> bool:
    """See `PlacementGroup.wait`."""
    from fastray.runtime import current_runtime

    if current_runtime().is_local:
        return group_id in current_runtime().local_groups or _removed(group_id)
    row = require_row(group_id)
    if row[1] in (PENDING, MOVING, ASKED):
        entry = _wait(group_id, (READY, REMOVED), timeout_s)
        row = require_row(group_id) if entry else row
    if row[1] == REMOVED:
        _removed(group_id)
    return row[1] == READY


# ---- where a task runs ---------------------------------------------------------------------------------


def place_of(
    runtime: Runtime, options: TaskOptions | ActorOptions, demand: Mapping[str, int], what: str
) -> tuple[Place, bytes | None] | None:
    """(place, group that the children of the task are to run in) of a task or actor with these options; None when it
    runs outside of any group.

    Raises InvalidOptionError (a ValueError) when the group has no such bundle, or none that is large enough;
    TaskPlacementGroupRemoved, ActorPlacementGroupRemoved.
    """
    from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy, captured = options.scheduling_strategy, runtime.captured_group
    group: object
    if strategy is None:
        group, index, capture = None if captured is None else PlacementGroup(PlacementGroupID(captured)), -1, True
    elif isinstance(strategy, PlacementGroupSchedulingStrategy):
        group, index = strategy.placement_group, strategy.placement_group_bundle_index
        wanted = strategy.placement_group_capture_child_tasks
        capture = captured is not None if wanted is None else wanted
    else:
        return None
    if group is None or runtime.is_local:
        return None
    if not isinstance(group, PlacementGroup):
        raise OptionTypeError(f"placement_group must be a PlacementGroup, not {group!r}", option=_OPTION)
    if group.is_empty:
        return None
    entry = find_entry(group.id)
    row = _native.group_row(entry) if entry else None
    if row is None or row[0] != group.id or row[1] == REMOVED:
        if what == "actor":
            raise ActorPlacementGroupRemoved(f"placement group {group.id.hex()} has been removed.")
        _removed(group.id)
    _check_bundle(spec_of(row)[0], index, demand, what)
    return (entry, row[2], index), bytes(group.id) if capture else None


def _check_bundle(bundles: Bundles, index: int, demand: Mapping[str, int], what: str) -> None:
    if index >= len(bundles):
        raise InvalidOptionError(
            f"placement_group_bundle_index={index} is invalid: the placement group has the bundles 0 to "
            f"{len(bundles) - 1}",
            option=_OPTION,
        )
    asked = bundles if index < 0 else [bundles[index]]
    if any(all(to_units(bundle.get(name, 0)) >= units for name, units in demand.items()) for bundle in asked):
        return
    amounts = {name: units / 10000 for name, units in demand.items()}
    where = f"any bundle of its placement group: {bundles}" if index < 0 else f"bundle {index}: {bundles[index]}"
    raise InvalidOptionError(f"this {what} asks for {amounts}, which does not fit into {where}", option=_OPTION)
