"""Tables of a session: `list_actors`, `list_jobs`, `list_nodes`, `list_workers`. Matches `ray.util.state`.

Each returns rows (dictionaries whose fields are attributes too), at most `limit`; `filters` is a list of (field,
"=" or "!=", value) that all must hold. A process that is no part of a session attaches first, as the rest of the API
does.
"""

from __future__ import annotations

from fastray import node_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastray._native.session import Attachment
    from fastray.node_state import Row

    Filter = tuple[str, str, object]

LIMIT = 100  # as Ray's


def _list(
    table: Callable[[Attachment], list[Row]], filters: Sequence[Filter] | None, limit: int
) -> list[Row]:
    from fastray import runtime

    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a positive number, got {limit!r}")
    runtime.ensure_attached()
    current = runtime.current_runtime()
    rows = table(current.attachment)
    if current.session_path:
        from fastray.cluster import members

        if table.__name__ in members.TABLES:
            rows = members.TABLES[table.__name__](current.session_path, current.attachment)
    for field, relation, value in filters or ():
        if relation not in ("=", "!="):
            raise ValueError(f"a filter compares with '=' or '!=', got {relation!r}")
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


__all__ = ["list_actors", "list_jobs", "list_nodes", "list_workers"]
