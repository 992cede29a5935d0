"""Lineage as a pure graph: which tasks have to run again so that a result is there, and why it may be impossible.

    Node     a record: its kind, state, arguments, and how often its task may still run
    Graph    nodes by key; made by `snapshot` from the records of this session, or by hand
    Plan     `runs`: keys of the tasks that run again, arguments before what needs them; `missing`: keys of what
             cannot be made, each with the reason and the chain of names that needs it

`plan` takes the smallest set: what is there is used, what is not is made again, and so on down to what has no
arguments. The node core does the same record by record (csrc/process_lineage.cpp); here it is in one piece, for
`explain`, for the simulation and as the oracle of the tests.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import Any

    from fastray._native.object_ref import ObjectRef

THERE = ("done", "failed")
UNDER_WAY = ("waiting", "ready", "running")
NO_TASK, NO_LINEAGE, NO_ATTEMPTS = "no task makes it", "its arguments are gone", "its task may not run again"


class Node:
    """A record of the lineage. `arguments` are keys of other nodes, None when they were let go of."""

    __slots__ = ("arguments", "attempts", "bytes", "kind", "max_retries", "name", "state")

    def __init__(
        self,
        kind: str,
        state: str,
        name: str = "",
        arguments: list[Hashable] | None = None,
        attempts: int = 0,
        max_retries: int = 3,
        size: int = 0,
    ) -> None:
        self.kind, self.state, self.name, self.bytes = kind, state, name, size
        self.arguments, self.attempts, self.max_retries = arguments, attempts, max_retries

    def title(self) -> str:
        return "put()" if self.kind == "put" else f"{self.name}()"


class Missing:
    """What cannot be made again: its key, the reason, and the names of what needs it, itself first."""

    __slots__ = ("chain", "key", "reason")

    def __init__(self, key: Hashable, reason: str, chain: tuple[str, ...]) -> None:
        self.key, self.reason, self.chain = key, reason, chain

    def __repr__(self) -> str:
        return f"Missing({' <- '.join(self.chain)}: {self.reason})"


class Plan:
    """What `plan` found."""

    __slots__ = ("missing", "runs")

    def __init__(self, runs: list[Hashable], missing: list[Missing]) -> None:
        self.runs, self.missing = runs, missing

    @property
    def possible(self) -> bool:
        return not self.missing


def plan(graph: Mapping[Any, Node], wanted: Hashable) -> Plan:
    """The smallest set of tasks to run so that `wanted` is there. Not recursive: chains may be long."""
    runs: list[Hashable] = []
    missing: list[Missing] = []
    needed_by: dict[Hashable, Hashable | None] = {wanted: None}
    seen: set[Hashable] = set()
    running: set[Hashable] = set()
    stack: list[tuple[Hashable, bool]] = [(wanted, False)]
    while stack:
        key, arguments_done = stack.pop()
        if arguments_done:
            runs.append(key)
            continue
        node = graph[key]
        if key in seen or node.state in THERE or node.state in UNDER_WAY:
            continue
        seen.add(key)
        task_key = node.arguments[0] if node.kind == "return" and node.arguments else key
        task = graph[task_key]
        if task.state in UNDER_WAY or task_key in running:
            continue
        reason = _why_not(task)
        if reason:
            missing.append(Missing(key, reason, _chain(graph, key, needed_by)))
            continue
        running.add(task_key)
        stack.append((task_key, True))
        for argument in task.arguments or []:
            needed_by.setdefault(argument, key)
            stack.append((argument, False))
    return Plan(runs, missing)


def _why_not(task: Node) -> str:
    if task.kind != "task":
        return NO_TASK
    if task.arguments is None:
        return NO_LINEAGE
    if 0 <= task.max_retries <= task.attempts:
        return NO_ATTEMPTS
    return ""


def _chain(graph: Mapping[Any, Node], key: Hashable, needed_by: Mapping[Any, Any]) -> tuple[str, ...]:
    names = []
    at: Hashable | None = key
    while at is not None:
        names.append(graph[at].title())
        at = needed_by.get(at)
    return tuple(names)


# ---- this session's records ----------------------------------------------------------------------------------


def snapshot(ref: ObjectRef[Any]) -> tuple[dict[Hashable, Node], Hashable]:
    """(graph, key of `ref`): the records behind a reference, as far as they are kept. Keys are handles.

    Raises StaleReferenceError for a reference of an earlier session.
    """
    from fastray._native import lineage as native

    root = native.handle_of(ref)
    graph: dict[Hashable, Node] = {}
    todo = [root]
    while todo:
        handle = todo.pop()
        if handle in graph:
            continue
        kind, state, name, size, attempts, max_retries, arguments = native.row(handle)
        graph[handle] = Node(
            kind, state, name, None if arguments is None else list(arguments), attempts, max_retries, size
        )
        todo.extend(arguments or [])
    return graph, root


def explain(ref: ObjectRef[Any]) -> Plan:
    """What would run if the value of `ref` were asked for now; nothing when it is there."""
    graph, root = snapshot(ref)
    return plan(graph, root)
