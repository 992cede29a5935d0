"""What the agent of a node knows of its cluster, as rows. Called by api.py, util/state.py, node_commands.py and
cluster_utils.py, in drivers, workers and commands.

`path` is the session directory of a node of the cluster on this machine. What concerns this node itself is read from
its shared memory, when the caller is attached to it: it is newer. All functions raise GcsUnavailableError when the
agent does not answer.
"""

from __future__ import annotations

import os

from fastray import node_state, node_tasks, sessions
from fastray.cluster import inquiry
from fastray.node_state import Row, job_id_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fastray._native.session import Attachment

ALIVE = "ALIVE"
LEFT, DIED = 1, 2  # Ray's reasons of a node's death: expected, not expected
GOODBYE = "it left"  # the store's words for the first


def _rows(path: str, attachment: Attachment | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = inquiry.ask(path, "nodes")
    for row in rows:
        if row["state"] != ALIVE:
            row["resources"] = row["available"] = {}
        elif row["is_self"] and attachment is not None:
            row["available"] = node_state.available_resources(attachment)
        else:
            row["available"] = {name: amount for name, amount in row["available"].items() if amount > 0}
    return rows


def living(path: str) -> list[dict[str, Any]]:
    """Of the nodes that are alive: "node_id", "resources", "labels" and others."""
    return [row for row in _rows(path) if row["state"] == ALIVE]


def _host(address: str) -> str:
    return address.rpartition(":")[0] or address


def _port(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if ":" in address and port.isdigit() else 0


def nodes(path: str) -> list[dict[str, Any]]:
    """As `fastray.nodes()` returns them, dead ones too; keys as Ray's."""
    return [
        {
            "NodeID": row["node_id"],
            "Alive": row["state"] == ALIVE,
            "NodeManagerAddress": _host(row["address"]),
            "NodeManagerHostname": row["info"]["hostname"],
            "NodeManagerPort": _port(row["address"]),
            "ObjectManagerPort": _port(row["data_address"]),
            "RayletSocketName": os.path.join(row["info"]["path"], sessions.SOCKET),
            "NodeName": _host(row["address"]),
            "DeathReason": 0 if row["state"] == ALIVE else LEFT if row["reason"] == GOODBYE else DIED,
            "DeathReasonMessage": row["reason"],
            "alive": row["state"] == ALIVE,
            "Resources": row["resources"],
            "Labels": row["labels"],
        }
        for row in _rows(path)
    ]


def _sum(amounts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in amounts:
        for name, amount in one.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def total_resources(path: str) -> dict[str, float]:
    """Of all nodes alive, by name; bytes for memory."""
    return _sum([row["resources"] for row in _rows(path)])


def available_resources(path: str, attachment: Attachment) -> dict[str, float]:
    """What no running task holds, as their last heartbeats told; names that are used up everywhere are left out."""
    return _sum([row["available"] for row in _rows(path, attachment)])


def node_table(path: str, attachment: Attachment | None = None) -> list[Row]:
    """As `list_nodes`: heads first, then in the order of their joining."""
    rows = _rows(path, attachment)
    rows.sort(key=lambda row: (row["state"] != ALIVE, not row["info"]["head"], row["epoch"]))
    return [
        Row(
            node_id=row["node_id"], node_ip=_host(row["address"]), node_name=_host(row["address"]),
            is_head_node=bool(row["info"]["head"]), state=row["state"], state_message=row["reason"] or None,
            resources_total=row["resources"], resources_available=row["available"], labels=row["labels"],
            start_time_ms=int(1000 * row["registered_at"]), end_time_ms=int(1000 * row["died_at"]) or None,
            pid=int(row["info"]["pid"]), path=row["info"]["path"],
        )
        for row in rows
    ]  # fmt: skip


def actor_table(path: str, attachment: Attachment) -> list[Row]:
    """As `list_actors`: of all nodes, in the order of their making. What runs here is read from this node's memory."""
    own = f"{attachment.session_id:016x}"
    here = {row.actor_id: row for row in node_state.actors(attachment)}
    found = []
    for row in inquiry.ask(path, "actors", {}):
        mine = here.pop(row["actor_id"], None)
        if mine is None or not mine.actor_id.startswith(own) or (mine.state == ALIVE and not mine.pid):
            mine = Row(row)
        found.append(mine)
    return [*found, *[row for row in here.values() if row.actor_id.startswith(own)]]


def job_table(path: str, attachment: Attachment) -> list[Row]:
    """As `list_jobs`: of all nodes, the latest last."""
    here = {row.job_id: row for row in node_state.jobs(attachment)}
    known = [
        Row(
            job_id=job_id_of(row["job_id"]), type="DRIVER",
            status="RUNNING" if row["state"] == "RUNNING" else "SUCCEEDED",
            pid=int(row["metadata"].get("pid", 0)), namespace=row["namespace"], entrypoint=row["entrypoint"],
            start_time=int(1000 * row["started_at"]), end_time=int(1000 * row["ended_at"]) or None,
        )
        for row in inquiry.ask(path, "jobs")
    ]  # fmt: skip
    return sorted([*[row for row in known if row.job_id not in here], *here.values()], key=lambda row: row.start_time)


TABLES = {"nodes": node_table, "jobs": job_table, "actors": actor_table}  # of the whole cluster
# Fields of list_tasks that the store can filter by, and what it calls them.
TASK_FILTERS = {
    "name": "function", "func_or_class_name": "function", "state": "state", "job_id": "job", "node_id": "node",
    "error_type": "error_type", "task_id": "task",
}  # fmt: skip
TASKS_MAX = 100_000


def task_table(path: str, filters: Sequence[tuple[str, str, object]] = (), limit: int = TASKS_MAX) -> list[Row]:
    """As `list_tasks`: of all nodes, running ones first, each kind the latest first. At least those that match, and
    `limit` of them."""
    asked: dict[str, Any] = {}
    for field, relation, value in filters:
        name = TASK_FILTERS.get(field)
        if name is None or relation != "=" or asked.get(name, value) != value:
            limit = TASKS_MAX
            continue
        asked[name] = value
    try:
        if "job" in asked:
            asked["job"] = int.from_bytes(bytes.fromhex(str(asked["job"])), "little")
        for name in ("task", "node"):
            bytes.fromhex(str(asked.get(name, "")))
    except ValueError:
        return []  # no such id
    return [node_tasks.row_of(row) for row in inquiry.ask(path, "tasks", {**asked, "limit": limit})]


def task_attempts(path: str, task_id: str) -> list[Row]:
    """The attempts of a task that are known, the latest first; ended ones from the store's history."""
    asked = {"task": task_id, "limit": TASKS_MAX, "history": True}
    return [node_tasks.row_of(row) for row in inquiry.ask(path, "tasks", asked)]


def task_summary(path: str) -> dict[str, Any]:
    """As Ray's summarize_tasks; with seconds, and how many of the finished tasks are an estimate."""
    found = inquiry.ask(path, "task_summary", {})  # with an argument it holds nobody up
    made = node_tasks.summary(
        [
            (name, actor, {s: n for s, n in (("RUNNING", running), ("FINISHED", finished), ("FAILED", failed)) if n})
            for name, running, finished, failed, _, _, _, actor in found
        ]
    )
    for name, _, _, _, seconds_sum, seconds_max, estimated, _ in found:
        more = {"seconds_sum": seconds_sum, "seconds_max": seconds_max, "finished_estimated": estimated}
        made["cluster"]["summary"][name].update(more)
    return made
