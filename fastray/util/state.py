"""Tables of a session: `list_actors`, `list_jobs`, `list_nodes`, `list_tasks`, `list_workers`; `get_task` and
`summarize_tasks`. Matches `ray.util.state`.

Each returns rows (dictionaries whose fields are attributes too), at most `limit`; `filters` is a list of (field,
"=" or "!=", value) that all must hold. A process that is no part of a session attaches first, as the rest of the API
does.
"""

from __future__ import annotations

from fastray import node_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from fastray._native.object_ref import ObjectRef
    from fastray._native.session import Attachment
    from fastray.node_state import Row
    from fastray.runtime import Runtime

    Filter = tuple[str, str, object]

LIMIT = 100  # as Ray's


def _runtime() -> Runtime:
    from fastray import runtime

    runtime.ensure_attached()
    return runtime.current_runtime()


def _list(
    table: Callable[[Attachment], list[Row]], filters: Sequence[Filter] | None, limit: int
) -> list[Row]:
    _check(filters, limit)
    current = _runtime()
    rows = table(current.attachment)
    if current.session_path:
        from fastray.cluster import members

        if table.__name__ in members.TABLES:
            rows = members.TABLES[table.__name__](current.session_path, current.attachment)
    return select(rows, filters, limit)


def _check(filters: Sequence[Filter] | None, limit: int) -> None:
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a positive number, got {limit!r}")
    for _, relation, _ in filters or ():
        if relation not in ("=", "!="):
            raise ValueError(f"a filter compares with '=' or '!=', got {relation!r}")


def select(rows: list[Row], filters: Sequence[Filter] | None, limit: int) -> list[Row]:
    """Those that match all filters. Raises ValueError for a wrong filter or limit."""
    _check(filters, limit)
    for field, relation, value in filters or ():
        if rows and field not in rows[0]:
            raise ValueError(f"no field {field!r} to filter by; there are {', '.join(rows[0])}")
        rows = [row for row in rows if (str(row[field]) == str(value)) == (relation == "=")]
    return rows[:limit]


def list_actors(*, filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[Row]:
    """Actors that live, and dead ones of which there are handles; in a cluster of all nodes, and the last that died.

    Raises ValueError for a wrong filter or limit.
    """
    return _list(node_state.actors, filters, limit)


def list_jobs(*, filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[Row]:
    """Jobs, of all nodes of a cluster: each driver has one. Raises ValueError for a wrong filter or limit."""
    return _list(node_state.jobs, filters, limit)


def list_nodes(*, filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[Row]:
    """Nodes of the session, in a cluster those that have died too. Raises ValueError for a wrong filter or limit."""
    return _list(node_state.nodes, filters, limit)


def list_workers(*, filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[Row]:
    """Processes that are alive: workers and drivers. Raises ValueError for a wrong filter or limit."""
    return _list(node_state.workers, filters, limit)


def list_tasks(*, filters: Sequence[Filter] | None = None, limit: int = LIMIT) -> list[Row]:
    """Attempts of tasks: all that run and those that failed of late, samples of those that finished; of all nodes of a
    cluster. Running ones first, each kind the latest first. Raises ValueError for a wrong filter or limit.

    A task that runs for less than 0.1 s is listed when it has ended. What a node tells is seen within a second.
    """
    from fastray import node_tasks

    _check(filters, limit)
    current = _runtime()
    if current.session_path:
        from fastray.cluster import members

        return select(members.task_table(current.session_path, filters or (), limit), filters, limit)
    return select(node_tasks.tasks(current.attachment), filters, limit)


def get_task(id: str | ObjectRef[Any]) -> Row | list[Row] | None:
    """The attempt of the task with this id, or that makes this object; a list when several are known, None for none.

    A task that ran on another node has an id there that is not the reference's: that of `list_tasks`, and of errors.
    """
    from fastray import node_tasks

    asked = id if isinstance(id, str) else id.task_id()
    current = _runtime()
    if current.session_path:
        from fastray.cluster import members

        rows = members.task_attempts(current.session_path, asked)
    else:
        rows = [row for row in node_tasks.tasks(current.attachment) if row["task_id"] == asked]
    return rows[0] if len(rows) == 1 else rows or None


def summarize_tasks() -> dict[str, Any]:
    """Counts by function and state, of all nodes of a cluster; of one node alone, what it still shows."""
    from fastray import node_tasks

    current = _runtime()
    if current.session_path:
        from fastray.cluster import members

        return members.task_summary(current.session_path)
    return node_tasks.summary_of_rows(node_tasks.tasks(current.attachment))


__all__ = [
    "get_task", "list_actors", "list_jobs", "list_nodes", "list_tasks", "list_workers", "summarize_tasks",
]  # fmt: skip
