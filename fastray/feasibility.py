"""Whether this node can ever run a task or an actor: its resources, its id, its labels.

    labels   of a node: what it was started with, and `ray.io/node-id`
    wishes   what the node agent of a cluster has to know to place a task that is not for workers here

Called by runtime.py, before a scheduling class is made.
"""

from __future__ import annotations

import _pickle as pickle  # without pickle.py, which costs 8 ms to import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from fastray._native.session import Attachment
    from fastray.actor_options import ActorOptions
    from fastray.options import TaskOptions


NODE_ID = "ray.io/node-id"


def missing(
    demand: Mapping[str, int], options: TaskOptions | ActorOptions, totals: Mapping[str, int], labels: Mapping[str, str]
) -> list[str]:
    """What a node with `totals` and `labels` can never give to a task that needs `demand` and has these options."""
    problems = [
        f"{name}: asks for {units / 10000:g}, the node has {totals.get(name, 0) / 10000:g}"
        for name, units in demand.items()
        if units > totals.get(name, 0)
    ]
    strategy = options.scheduling_strategy
    node_id = getattr(strategy, "node_id", None)
    if node_id is not None and not getattr(strategy, "soft", False) and node_id != labels[NODE_ID]:
        problems.append(f"node {node_id} is not in this session (its only node is {labels[NODE_ID]})")
    hard = getattr(strategy, "hard", None)
    if not hard and not options.label_selector:
        return problems
    from fastray.scheduling.labels import conditions, describe, meets

    selectors = [options.label_selector, *_fallbacks(options.fallback_strategy)]
    if not any(meets(labels, conditions(selector)) for selector in selectors):
        problems.append(f"label_selector: no node has the labels {describe(conditions(options.label_selector))}")
    if hard and not meets(labels, hard):
        problems.append(f"scheduling_strategy: no node has the labels {describe(hard)}")
    return problems


def _fallbacks(given: object) -> list[dict[str, str]]:
    """Selectors of a `fallback_strategy`: any of them will do."""
    from fastray.option_checks import check_label_selector

    rows = given if isinstance(given, list) else []
    return [
        check_label_selector("fallback_strategy", row["label_selector"])
        for row in rows
        if isinstance(row, dict) and row.get("label_selector")
    ]


def wishes_of(
    attachment: Attachment, demand: Mapping[str, int], options: TaskOptions | ActorOptions, node_id: str,
    elsewhere: bool, in_group: bool,
) -> int:
    """Function-table index of such tasks' wishes; 0 when workers here take them. `elsewhere`: this node cannot;
    `in_group`: they run in a placement group."""
    if in_group:
        return wishes_in_group(attachment, demand) if attachment.clustered else 0
    strategy, labels = options.scheduling_strategy, options.label_selector
    if not attachment.clustered or not (elsewhere or labels or not _is_local(strategy, node_id)):
        return 0
    from _blake2 import blake2b

    blob = pickle.dumps((dict(demand), strategy or "DEFAULT", dict(labels or {})))
    digest = blake2b(blob, digest_size=16, person=b"placement").digest()
    index: int = attachment.register_function(blob, digest, "placement", 4, 0, 0, 0, 0)
    return index


def wishes_in_group(attachment: Attachment, demand: Mapping[str, int], job: int | None = None) -> int:
    """The same for tasks in a placement group of a cluster: they run where its bundles are."""
    from _blake2 import blake2b

    blob = pickle.dumps((dict(demand), "DEFAULT", {}))
    digest = blake2b(blob, digest_size=16, person=b"group").digest()
    index: int = attachment.register_function(blob, digest, "placement", 4, 0, 0, 0, 0, owner_job=job)
    return index


def _is_local(strategy: object, node_id: str) -> bool:
    """Whether tasks with this strategy run on the node where they are submitted, if it can run them."""
    if strategy in (None, "DEFAULT") or hasattr(strategy, "placement_group"):
        return True
    return getattr(strategy, "node_id", None) == node_id


def refuse_task(problems: list[str]) -> NoReturn:
    """Raises TaskUnschedulableError."""
    from fastray.exceptions import TaskUnschedulableError

    raise TaskUnschedulableError(_describe("task", problems))


def refuse_actor(name: str, problems: list[str]) -> NoReturn:
    """Raises ActorUnschedulableError."""
    from fastray.exceptions import ActorUnschedulableError

    raise ActorUnschedulableError(_describe(f"actor {name}", problems), actor_name=name)


def _describe(what: str, problems: list[str]) -> str:
    return (
        f"this {what} can never run here: " + "; ".join(problems) + ". Ask for less, or start with more: "
        "init(num_cpus=..., num_gpus=..., resources={...}, labels={...})."
    )
