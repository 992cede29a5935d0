"""What a node's workers do and did, as rows: for `list_tasks` where there is no cluster, and for its agent's reports.

    running    each process's claim, and an actor's calls in flight
    failed     the last ones of the node (csrc/failure_log.h)
    finished   what still stands in the flight recorders: the last few of each process that lives

Read from shared memory, a picture of one moment. Called by util/state.py, cluster/tasks.py, cluster/members.py.
"""

from __future__ import annotations

import re

from fastray.node_state import Row, job_id_of, node_id_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.session import Attachment

FAILURES_MAX = 4096
# ErrorCode -> (Ray's name of it, what it says when there is no text)
ERRORS = {
    1: ("TASK_EXECUTION_EXCEPTION", "it raised"),
    2: ("WORKER_DIED", "its worker died"),
    3: ("TASK_CANCELLED", "it was cancelled"),
    4: ("OUT_OF_MEMORY", "the object store is full"),
    5: ("OWNER_DIED", "the process that submitted it is gone"),
    6: ("TASK_EXECUTION_EXCEPTION", "it could not be run"),
    7: ("ACTOR_DIED", "the actor is dead"),
    8: ("ACTOR_UNAVAILABLE", "the actor's process died, and it starts again"),
    9: ("OBJECT_LOST", "a value is lost"),
    11: ("TASK_PLACEMENT_GROUP_REMOVED", "its placement group was removed"),
}
AGENT_ERROR = 10  # its text is a pickled exception, which may be cut: only its message is looked for
CRASHED = 2


def error_of(code: int, text: str) -> tuple[str, str]:
    """(Ray's name of the kind, message) of a failure."""
    if code == AGENT_ERROR:
        message = max(re.findall(r"[ -~]{8,}", text), key=len, default="no node can run it")
        return ("NODE_DIED" if "NodeDiedError" in text else "TASK_UNSCHEDULABLE_ERROR"), message
    name, otherwise = ERRORS.get(code, ("TASK_EXECUTION_EXCEPTION", "it failed"))
    if code == CRASHED and text and not text.startswith("an argument"):
        text = f"{otherwise}: {text}"
    return name, text or otherwise


def task_id(session: int, record: int | None = None) -> bytes:
    """The id of the task; without a record, what all ids of the session begin with."""
    begin = session.to_bytes(8, "big")
    return begin if record is None else begin + record.to_bytes(8, "big")


def row_of(task: dict[str, Any]) -> Row:
    """As Ray's TaskState, of a task's fields (gcs.records.Task); ids are hexadecimal there."""
    began, ended = task["started_at"], task["ended_at"]
    return Row(
        task_id=task["task_id"], attempt_number=task["attempt"], name=task["function"], state=task["state"],
        job_id=job_id_of(task["job"]), type="ACTOR_TASK" if task["actor"] else "NORMAL_TASK",
        func_or_class_name=task["function"], parent_task_id=task["parent"] or None, node_id=task["node"],
        worker_pid=task["worker"] or None, error_type=task["error_type"] or None,
        start_time_ms=int(1000 * began) or None, end_time_ms=int(1000 * ended) or None,
        error_message=task["error"] or None,
    )  # fmt: skip


def tasks(attachment: Attachment) -> list[Row]:
    """Those of this node alone: running ones first, each kind the latest first."""
    from fastray._native import tasks as native

    session, node = attachment.session_id, node_id_of(attachment)
    running, ended = [], []

    def row(record: int, name: str, state: str, job: int, pid: int, began_ns: int, ended_ns: int, **more: Any) -> Row:
        blank = {"attempt": 0, "parent": "", "actor": False, "error": "", "error_type": ""}
        return row_of({
            **blank, "task_id": task_id(session, record).hex(), "function": name, "state": state, "job": job,
            "worker": pid, "node": node, "started_at": began_ns / 1e9, "ended_at": ended_ns / 1e9, **more,
        })  # fmt: skip

    def above(parent: int) -> str:
        return task_id(session, parent).hex() if parent else ""

    _, workers = native.look(attachment, {})
    first = max(0, native.failures_written(attachment) - FAILURES_MAX)
    failures = [failure for failure in native.failures(attachment, first, FAILURES_MAX)[1] if failure is not None]
    for record, parent, name, attempt, job, pid, actor, began, end, code, text in failures:
        kind, message = error_of(code, text)
        more = {"attempt": attempt, "parent": above(parent), "actor": actor, "error": message, "error_type": kind}
        ended.append(row(record, name, "FAILED", job, pid, began, end, **more))
    attempts = {failure[0]: failure[3] for failure in failures}
    for _, _, pid, job, _, _, _, held, events, is_actor in workers:
        begun = {record: began for _, _, record, began, end, _ in events if not end}
        for record, _, name, attempt, actor, parent, of_job, waits in held:
            if not waits:
                more = {"attempt": attempt, "parent": above(parent), "actor": actor}
                running.append(row(record, name, "RUNNING", of_job, pid, begun.get(record, 0), 0, **more))
        for _, name, record, began, end, raised in events:
            if end and not raised:
                more = {"attempt": attempts.get(record, -1) + 1, "actor": is_actor}
                ended.append(row(record, name, "FINISHED", job, pid, began, end, **more))
    running.sort(key=lambda r: -(r["start_time_ms"] or 0))
    ended.sort(key=lambda r: -(r["end_time_ms"] or 0))
    return [*running, *ended]


def summary(rows: list[tuple[str, bool, dict[str, int]]], node: str = "cluster") -> dict[str, Any]:
    """As Ray's summarize_tasks, of (function, whether it is an actor's, state -> count)."""
    functions = {
        name: {"func_or_class_name": name, "type": "ACTOR_TASK" if actor else "NORMAL_TASK", "state_counts": counts}
        for name, actor, counts in rows
    }
    total = {actor: sum(sum(counts.values()) for _, of, counts in rows if of == actor) for actor in (False, True)}
    return {
        node: {
            "summary": functions, "total_tasks": total[False], "total_actor_tasks": total[True],
            "total_actor_scheduled": 0, "summary_by": "func_name",
        }
    }  # fmt: skip


def summary_of_rows(rows: list[Row]) -> dict[str, Any]:
    """The same of one node's rows: only what can still be seen."""
    found: dict[str, tuple[str, bool, dict[str, int]]] = {}
    for row in rows:
        name = row["func_or_class_name"]
        _, _, counts = found.setdefault(name, (name, row["type"] == "ACTOR_TASK", {}))
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return summary([found[name] for name in sorted(found)])
