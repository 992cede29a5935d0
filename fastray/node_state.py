"""What a node says about itself, as plain rows: its resources, jobs, actors, workers, store.

    Row    a dictionary whose fields are attributes too, as those of Ray's state API

Everything is read from shared memory, so it asks nobody and costs the node nothing; it is a picture of one moment,
its rows may be from neighbouring ones. Called by util/state.py and node_commands.py.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.session import Attachment

UNIT = 10000
NODE, DRIVER, WORKER = 0, 1, 2  # ProcKind
JOB_RUNNING = 1  # JobState
ACTOR_STATES = ("", "", "PENDING_CREATION", "PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD")  # ActorState


class Row(dict[str, "Any"]):
    """One row of a table."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this row has no field {name!r}; it has {', '.join(self)}") from None

    def asdict(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dict(self)


def node_id_of(attachment: Attachment) -> str:
    """56 hexadecimal digits, as Ray's."""
    return f"{attachment.session_id:016x}".ljust(56, "0")


def job_id_of(number: int) -> str:
    """8 hexadecimal digits: the number of the job in its session, as Ray writes it."""
    return number.to_bytes(4, "little").hex()


def total_resources(attachment: Attachment) -> dict[str, float]:
    """What the node has, by name; bytes for memory."""
    totals = {name: units / UNIT for name, units in attachment.resources().items() if units}
    totals["object_store_memory"] = float(attachment.store_usage()["capacity_bytes"])
    return totals


def available_resources(attachment: Attachment) -> dict[str, float]:
    """What no running task holds, by name; names that are used up are left out, as in Ray."""
    from fastray._native.groups import leased

    used = {name: units / UNIT for name, units in leased(attachment).items()}
    used["object_store_memory"] = float(attachment.store_usage()["object_bytes"])
    left = {name: total - used.get(name, 0) for name, total in total_resources(attachment).items()}
    return {name: amount for name, amount in left.items() if amount > 0}


def nodes(attachment: Attachment) -> list[Row]:
    """The nodes of the session: this one."""
    return [
        Row(
            node_id=node_id_of(attachment), node_ip="127.0.0.1", node_name="127.0.0.1", is_head_node=True,
            state="ALIVE", resources_total=total_resources(attachment),
            resources_available=available_resources(attachment),
        )
    ]  # fmt: skip


def jobs(attachment: Attachment) -> list[Row]:
    """The jobs the node remembers, the latest last. A job has SUCCEEDED when its driver is gone, however it ended."""
    return [
        Row(
            job_id=job_id_of(number), type="DRIVER", status="RUNNING" if state == JOB_RUNNING else "SUCCEEDED",
            pid=pid, namespace=namespace or f"anonymous-{job_id_of(number)}", entrypoint=entrypoint,
            start_time=start_ns // 1_000_000, end_time=end_ns // 1_000_000 or None,
        )
        for number, state, pid, start_ns, end_ns, namespace, entrypoint in attachment.jobs()
    ]  # fmt: skip


def actors(attachment: Attachment) -> list[Row]:
    """The actors that live, and dead ones of which there are handles."""
    node_id = node_id_of(attachment)
    return [
        Row(
            actor_id=f"{identity[0]:016x}{identity[1]:016x}", class_name=class_name,
            state=ACTOR_STATES[state], job_id=job_id_of(job), name=name, ray_namespace=namespace, node_id=node_id,
            pid=pid, is_detached=detached, num_restarts=restarts,
        )
        for identity, state, pid, class_name, name, namespace, detached, restarts, job, _ in attachment.actors()
    ]  # fmt: skip


def workers(attachment: Attachment) -> list[Row]:
    """The processes of the node that are alive: workers and drivers."""
    node_id = node_id_of(attachment)
    return [
        Row(
            worker_id=f"{attachment.session_id:016x}{incarnation:08x}".ljust(56, "0"), pid=pid, node_id=node_id,
            worker_type="DRIVER" if kind == DRIVER else "WORKER", job_id=job_id_of(job), is_alive=True, ip="127.0.0.1",
            is_running_task=bool(claim),
        )
        for _, kind, pid, incarnation, _, claim, job in attachment.processes()
        if kind == WORKER or (kind == DRIVER and job)
    ]  # fmt: skip


def status(attachment: Attachment, info: dict[str, object]) -> dict[str, Any]:
    """All of it in one dictionary, for `fastray status`; `info` is what the daemon wrote about itself."""
    started = info.get("started")
    rows = workers(attachment)
    return {
        "session": f"session_{attachment.session_id:016x}",
        "pid": info.get("pid"),
        "path": info.get("path"),
        "port": info.get("port"),
        "python": info.get("python"),
        "uptime_s": round(time.time() - started, 3) if isinstance(started, float) else None,
        "nodes": [{**row, "labels": info.get("labels") or {}} for row in nodes(attachment)],
        "drivers": [row for row in jobs(attachment) if row["status"] == "RUNNING"],
        "actors": [row for row in actors(attachment) if row["state"] != "DEAD"],
        "workers": sum(row["worker_type"] == "WORKER" for row in rows),
        "running_tasks": sum(row["is_running_task"] for row in rows),
        "store": attachment.store_usage(),
    }
