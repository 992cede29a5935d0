"""Placement groups: bundles of resources that are reserved together, all or none. Matches `ray.util.placement_group`.

The module can be called as the function `placement_group` of the same name: both `fastray.util.placement_group(...)`
and `from fastray.util.placement_group import placement_group` work, as in Ray.
"""

from __future__ import annotations

import sys
import types

from fastray import placement_groups as _groups
from fastray import runtime as _runtime
from fastray._native import groups as _native
from fastray.exceptions import InvalidOptionError, OptionTypeError, TaskPlacementGroupRemoved
from fastray.option_checks import check_label_selector
from fastray.options import to_units
from fastray.placement_groups import (
    ASKED,
    LIVING,
    MOVING,
    PENDING,
    READY,
    REMOVED,
    PlacementGroup,
    PlacementGroupID,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.groups import GroupRow
    from fastray._native.object_ref import ObjectRef
    from fastray.placement_groups import Bundles
    from fastray.remote_function import RemoteFunction
    from fastray.runtime import Runtime
    from fastray.scheduling.view import Infeasible

STATES = {ASKED: "PENDING", PENDING: "PENDING", READY: "CREATED", MOVING: "RESCHEDULING", REMOVED: "REMOVED"}
SCHEDULING = {READY: "FINISHED", REMOVED: "REMOVED"}  # of those that wait: why

_ready: RemoteFunction | None = None  # made on first use


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
) -> PlacementGroup:
    """Asks for `bundles` (amounts by resource: "CPU", "GPU", "memory" in bytes, custom ones) to be reserved together.

    Returns at once: `ready()` and `wait()` of the group say when they are. `strategy` is "PACK" (the default),
    "SPREAD", "STRICT_PACK" or "STRICT_SPREAD". The group ends with `remove_placement_group`, or with its job unless
    `lifetime="detached"`. `name` finds it in its namespace (`get_placement_group`).

    Raises:
        InvalidOptionError (a ValueError), OptionTypeError (a TypeError): an argument is wrong.
        PlacementGroupExistsError: the name is taken.

    Warns when no node can ever hold it; it waits then, as in Ray. Matches `ray.util.placement_group`.
    """
    checked = _check_bundles(bundles)
    strategy = "PACK" if strategy is None else strategy
    if strategy not in _groups.STRATEGIES:
        raise InvalidOptionError(
            f"strategy={strategy!r} must be one of {', '.join(_groups.STRATEGIES)}", option="strategy"
        )
    if not isinstance(name, str):
        raise OptionTypeError(f"name must be a string, not {name!r}", option="name")
    if lifetime not in (None, "detached"):
        raise InvalidOptionError(f'lifetime={lifetime!r} must be None or "detached"', option="lifetime")
    if _soft_target_node_id is not None and strategy != "STRICT_PACK":
        raise InvalidOptionError("_soft_target_node_id needs STRICT_PACK", option="_soft_target_node_id")
    selectors = _check_selectors(bundle_label_selector, len(checked))
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    problem = _why_never(runtime, checked, strategy, selectors)
    group = _groups.create(
        runtime, checked, strategy, selectors, name, lifetime == "detached", problem is not None
    )
    if problem is not None:
        import warnings

        warnings.warn(
            f"this placement group never fits: {problem.reason}{_lacks(problem)}. It waits until the cluster changes.",
            stacklevel=2,
        )
    return group


def _wrong(message: str) -> InvalidOptionError:
    return InvalidOptionError(message, option="bundles")


def _check_bundles(bundles: object) -> Bundles:
    if not isinstance(bundles, list):
        raise _wrong(f"bundles must be a list, got {type(bundles).__name__}")
    example = 'for example [{"CPU": 1}, {"GPU": 1}]'
    if not bundles:
        raise _wrong(f"bundles must not be empty: {example}")
    checked = []
    for bundle in bundles:
        if not isinstance(bundle, dict) or not all(
            isinstance(name, str) and isinstance(amount, (int, float)) for name, amount in bundle.items()
        ):
            raise _wrong(f"a bundle is a dict of names to amounts, {example}; got {bundle!r}")
        for name, amount in bundle.items():
            if not 0 <= amount < 2**63 // 10_000:
                raise _wrong(f"bundle {bundle}: {name} has an amount that cannot be reserved")
            if name == "GPU" and amount > 1 and int(amount) != amount:
                raise _wrong(f"bundle {bundle}: GPU must be whole when it is more than 1")
        if not any(to_units(amount) for amount in bundle.values()):
            raise _wrong(f"bundle {bundle} asks for nothing: {example}")
        checked.append({name: float(amount) for name, amount in bundle.items() if to_units(amount)})
    return checked


def _check_selectors(given: object, bundles: int) -> list[dict[str, str]]:
    if given is None:
        return [{}] * bundles
    if not isinstance(given, list):
        raise OptionTypeError("bundle_label_selector must be a list of dicts", option="bundle_label_selector")
    if given and len(given) != bundles:
        raise InvalidOptionError(
            f"bundle_label_selector has {len(given)} entries for {bundles} bundles", option="bundle_label_selector"
        )
    return [check_label_selector("bundle_label_selector", selector) for selector in given or [{}] * bundles]


def _why_never(
    runtime: Runtime, bundles: Bundles, strategy: str, selectors: list[dict[str, str]]
) -> Infeasible | None:
    """Why the nodes there are can never hold the bundles; None when they can."""
    from fastray.scheduling.group_placer import Wanted, place
    from fastray.scheduling.resources import units
    from fastray.scheduling.view import Infeasible, NodeView

    if runtime.attachment.clustered:
        from fastray.cluster.members import living

        nodes = [
            NodeView(bytes.fromhex(row["node_id"]), units(row["resources"]), None, row["labels"])
            for row in living(runtime.session_path)
        ]
    else:
        own = bytes.fromhex(runtime.node_id())
        nodes = [NodeView(own, runtime.attachment.resources(), None, runtime.labels())]
    found = place(Wanted(b"", 0, bundles, strategy, selectors, {}, [], False), nodes)
    return found if isinstance(found, Infeasible) else None


def _lacks(problem: Infeasible) -> str:
    lacks = problem.missing.items()
    return "".join(f"; {name}: asks for {asked:g}, there is {most:g}" for name, (asked, most) in lacks)


def ready_reference(group: PlacementGroup) -> ObjectRef[PlacementGroup]:
    """See `PlacementGroup.ready`: a task in the group that needs nothing but the group."""
    global _ready
    from fastray.remote_function import remote_function
    from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    _runtime.ensure_attached()
    if _runtime.current_runtime().is_local:
        group.wait()
    if _ready is None:
        _ready = remote_function(_itself, {"num_cpus": 0, "name": "placement_group_ready", "max_retries": -1})
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=False)
    try:
        reference: ObjectRef[PlacementGroup] = _ready.options(scheduling_strategy=inside).remote(group)
        return reference
    except TaskPlacementGroupRemoved:
        return _native.removed_reference()  # type: ignore[return-value]


def _itself(group: PlacementGroup) -> PlacementGroup:
    return group


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Kills the tasks and actors that run in the group, fails what waits in it, and frees its resources.

    Tasks fail with TaskPlacementGroupRemoved, calls of actors with ActorDiedError. A group that was removed already is
    left alone. Raises OptionTypeError for what is no group. Matches Ray's.
    """
    if not isinstance(placement_group, PlacementGroup):
        raise OptionTypeError(f"expected a PlacementGroup, got {placement_group!r}", option="placement_group")
    _runtime.ensure_attached()
    _groups.remove(_runtime.current_runtime(), placement_group.id)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name in this namespace. Raises InvalidOptionError (a ValueError) when there is none."""
    if not isinstance(placement_group_name, str):
        raise OptionTypeError(f"the name must be a string, not {placement_group_name!r}", option="placement_group_name")
    if not placement_group_name:
        raise InvalidOptionError("the name must not be empty", option="placement_group_name")
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    for group_id, (bundles, _, name) in runtime.local_groups.items():
        if name == placement_group_name:
            return PlacementGroup(PlacementGroupID(group_id), bundles)
    wanted = (placement_group_name.encode()[:95].decode(), runtime.namespace.encode()[:63].decode())
    for row in _native.group_rows():
        if row[1] in LIVING and (row[5], row[6]) == wanted:
            return PlacementGroup(PlacementGroupID(row[0]), _groups.spec_of(row)[0])
    for there in _groups.ask_groups(runtime) if runtime.attachment.clustered else []:
        if there["state"] in LIVING and (there["name"], there["namespace"]) == wanted:
            return PlacementGroup(PlacementGroupID(bytes.fromhex(there["id"])), there["bundles"])
    raise InvalidOptionError(
        f"namespace {runtime.namespace!r} has no placement group named {placement_group_name!r}",
        option="placement_group_name",
    )


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the calling task or actor runs; None outside of one, and in a driver. Matches Ray's."""
    _runtime.ensure_attached()
    row = _native.group_row(_native.own_group()) if _native.own_group() else None
    return None if row is None else PlacementGroup(PlacementGroupID(row[0]), _groups.spec_of(row)[0])


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of a group; of all groups of the node or cluster, by id in hexadecimal, without one. {} for one
    that is forgotten.

    Fields as in Ray; times in milliseconds.
    """
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    if not runtime.attachment.clustered and placement_group is not None:
        row = _groups.find_row(placement_group.id)
        return {} if row is None else _describe_own(runtime, row)
    rows = {row[0].hex(): _describe_own(runtime, row) for row in _native.group_rows() if row[1] in STATES}
    if runtime.attachment.clustered:
        only = b"" if placement_group is None else placement_group.id
        shared = {row["id"]: _describe_shared(row) for row in _groups.ask_groups(runtime, only)}
        for group_id in shared.keys() & rows.keys():
            if rows[group_id]["state"] == "REMOVED":  # the store may not have heard of it
                shared[group_id]["state"] = shared[group_id]["stats"]["scheduling_state"] = "REMOVED"
        rows = {**rows, **shared}
    return rows if placement_group is None else rows.get(placement_group.id.hex(), {})


def _describe_own(runtime: Runtime, row: GroupRow) -> dict[str, Any]:
    group_id, state, _, _, flags, name, _, _, waited_ns = row
    bundles, strategy = _groups.spec_of(row)
    node = runtime.node_id() if state != PENDING and not runtime.attachment.clustered else ""
    waiting = "INFEASIBLE" if flags & _groups.FOREIGN else "QUEUED"
    nodes, detached = [node] * len(bundles), bool(flags & _groups.DETACHED)
    return _describe(group_id.hex(), name, bundles, nodes, strategy, state, detached, waited_ns / 1e6, waiting)


def _describe_shared(row: dict[str, Any]) -> dict[str, Any]:
    return _describe(
        row["id"], row["name"], row["bundles"], row["nodes"], row["strategy"], row["state"], row["detached"],
        1000 * row["waited_s"], "INFEASIBLE" if row["never_fits"] else "QUEUED",
    )  # fmt: skip


def _describe(
    group_id: str, name: str, bundles: Bundles, nodes: list[str], strategy: str, state: int, detached: bool,
    waited_ms: float, waiting: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "placement_group_id": group_id,
        "name": name,
        "bundles": dict(enumerate(bundles)),
        "bundles_to_node_id": dict(enumerate(nodes)),
        "strategy": strategy,
        "state": STATES[state],
        "is_detached": detached,
        "stats": {
            "end_to_end_creation_latency_ms": waited_ms,
            "scheduling_state": SCHEDULING.get(state, waiting),
        },
    }


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> PlacementGroup:
        return placement_group(*args, **options)


sys.modules[__name__].__class__ = _Callable

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]
