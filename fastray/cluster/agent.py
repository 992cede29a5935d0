"""The agent of a node: the process that joins it to a cluster, and knows the other nodes. Started by supervisor.py.

    services     what else lives in this process and has an address: they put it into `addresses` before the node
                 is registered (fastray/transfer, when it is there)
    epoch        the node's life in the cluster; a new one with each registration
    fenced       the cluster has declared the node dead. The daemon is told, and begins anew with another id
    beat         each 100 ms: what is free, what waits. None while the node's process is stopped: it looks dead then

Threads: this one (beats, jobs, the daemon's word), one that settles, two of the store's client, one for inquiries, one
that reports actors. Callbacks of `on_node_joined` and `on_node_gone` run on the client's listening thread, one after
the other, without `lock`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import socket
import sys
import threading
import time
import traceback

from fastray import control, node_state, sessions
from fastray._native.load import ActorWatch, class_queues
from fastray._native.session import WIRE, Attachment
from fastray.attach import AttachedNode
from fastray.cluster import inquiry
from fastray.cluster.actors import ActorReporter
from fastray.cluster.adoption import RETURN_WAIT_S, Adopter
from fastray.cluster.demands import CHANNEL, Demands
from fastray.cluster.jobs import JobReporter
from fastray.cluster.launch import find_token
from fastray.cluster.load import Differences, QueueMeter, Queues, free_resources, without_short
from fastray.cluster.supervisor import CHANNEL_FD
from fastray.cluster.tasks import TaskWatcher
from fastray.exceptions import (
    AuthenticationError,
    FastrayError,
    GcsRequestError,
    GcsUnavailableError,
    NodeFencedError,
    VersionMismatchError,
)
from fastray.gcs import auth, commands
from fastray.gcs.client import WINDOW_S, GcsClient
from fastray.gcs.records import ALIVE, FINISHED, RUNNING, Job, Load, Node
from fastray.scheduling.global_scheduler import GlobalScheduler
from fastray.scheduling.resources import units
from fastray.scheduling.view import NodeView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

BEAT_S = 0.1
QUIET_S = 0.5  # between beats that have nothing to say
REFUSALS = (GcsRequestError, AuthenticationError, VersionMismatchError)  # the store is there, but not for this node
NODE_LABEL = "ray.io/node-id"  # as Ray has it


class Agent:
    """Attaches to its node; `connect` to the store; `join` registers the node, `run` keeps it there.

    Attributes for services: `attachment` to the node's segment (not activated), `bell_fd`, `gcs`, `node_id`, `epoch` (0
    before `join`), `host` (of this node, as others reach it), `token` of the cluster, `addresses`, `scheduler` and
    `nodes` (alive ones, by id), both guarded by `lock`; `answers` to inquiries, until `settle`; `wake` makes `run`
    look now.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.path: str = settings["path"]
        self.host: str = settings["host"]
        self.token = ""
        self.gcs: GcsClient  # from `connect` on
        self.node = AttachedNode(self.path, role=control.AS_AGENT)
        self.bell_fd = self.node.bell_fd
        self.attachment = Attachment(self.node.segment_fd, node_state.DRIVER, self.node.slot, self.bell_fd)
        self.node_id = bytes.fromhex(node_state.node_id_of(self.attachment))
        self.epoch = 0
        self.addresses: dict[str, str] = {}  # "node": its server; "data": bulk transfers; others are passed on too
        self.answers: dict[str, Callable[..., Any]] = {"nodes": self._node_rows, "jobs": self._job_rows}
        self.answers["actors"] = self._actor_rows
        self.lock = threading.Lock()
        self.scheduler = GlobalScheduler()
        self.nodes: dict[bytes, Node] = {}
        self._rows: dict[bytes, Node] = {}  # dead ones too
        self._loads: dict[bytes, Load] = {}
        self.topics: dict[str, Callable[[bytes, Any], None]] = {}  # tables that services subscribe to, until `settle`
        self.job_ended: Callable[[int], None] | None = None
        self.forwarded: Callable[[int, int, bool], None] | None = None  # (kind, handle, force) of a control message
        self._job_table: dict[bytes, Job] = {}
        self._job_news = threading.Condition(self.lock)  # of it
        self._events = threading.RLock()  # held while callbacks run: they see one event after the other
        self._joined: list[Callable[[Node], None]] = []
        self._gone: list[Callable[[bytes, str], None]] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._differences = Differences()
        self._meter = QueueMeter()
        self.queues: Queues = {}  # what waited here at the last beat
        self._jobs_changed = False
        self._settled = threading.Event()
        self._refusal: FastrayError | None = None  # of what `settle` asked the store for
        self._jobs: JobReporter
        self.actors: ActorReporter
        self._beats = threading.Event()
        self._heard = -QUIET_S  # when the store last answered one
        self.demands: Demands
        self._tasks: TaskWatcher
        self._inquiries: socket.socket | None = None

    # ---- joining --------------------------------------------------------------------------------------

    def connect(self, address: str) -> None:
        """To the store at `address`. Raises what its client raises, NodeFencedError when it is another than before."""
        self.token = find_token(address, self.path)
        self.gcs = GcsClient(address, self.token, window_s=self.settings["wait_s"], tls=auth.load_tls())
        if self.settings.get("cluster", self.gcs.cluster) != self.gcs.cluster:
            raise NodeFencedError(f"the store at {address} is not the one that this node joined")
        self._jobs = JobReporter(self.gcs, self.node_id, self._give_numbers)
        watch = ActorWatch(self.attachment)
        self.demands = Demands(self)
        self.actors = ActorReporter(self.gcs, self.attachment.session_id, self.node_id, watch)
        self._tasks = TaskWatcher(self.attachment, self.gcs)
        self.answers.update(self._tasks.answers)

    def join(self) -> None:
        """Registers the node. Raises what the store's client raises."""
        self._save_token()
        self.epoch = self.gcs.call(commands.NodeRegister(self._own_row()))

    def settle(self) -> None:
        """On a thread of its own: whatever holds up the store now, the node beats, or it would be declared dead."""
        try:
            self._settle()
            self._settled.set()
        except REFUSALS as error:
            self._refusal = error
            self.wake()
        except Exception:  # the next agent tries again
            traceback.print_exc()
            os._exit(1)

    def _settle(self) -> None:
        """What drivers and commands may have to wait for: numbers of jobs, the tables, answers to inquiries."""
        self.gcs.subscribe_all({
            "node": self._node_changed, "load": self._load_changed, "job": self._job_changed,
            f"channel:{CHANNEL}": self.demands.heard, **self.topics,
        })  # fmt: skip
        Adopter(self)
        self._inquiries = inquiry.serve(self.path, self.answers)  # before drivers come, who need a number
        self._jobs.begin(self.attachment.jobs())
        threading.Thread(target=self._report_actors, name="actors", daemon=True).start()
        self._tasks.begin()
        self.gcs.window_s = WINDOW_S

    def _own_row(self) -> Node:
        labels: dict[str, str] = self.settings["labels"] or {}
        info = {
            "hostname": os.uname().nodename,
            "pid": str(self.node.pid),
            "path": self.path,
            "head": "1" if self.settings["head"] else "",
            "python": ".".join(map(str, sys.version_info[:3])),
            "wire": str(WIRE[1]),
            **{f"address.{name}": address for name, address in self.addresses.items()},
        }
        return Node(
            self.node_id, self.addresses.get("node", self.host), node_state.total_resources(self.attachment),
            {NODE_LABEL: self.node_id.hex(), **labels}, self.addresses.get("data", ""), info,
        )  # fmt: skip

    def _save_token(self) -> None:
        """For commands and drivers of this node, whichever way it was found."""
        if not self.token:
            return
        name = os.path.join(self.path, sessions.TOKEN)
        fd = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(self.token + "\n")
        os.rename(f"{name}.new", name)

    def _give_numbers(self, first: int, count: int) -> None:
        os.write(self.node.control_fd, control.job_numbers_message(first, count))

    # ---- other nodes ----------------------------------------------------------------------------------

    def on_node_joined(self, callback: Callable[[Node], None]) -> None:
        """callback(row) for each node that is there (this one too) and each that joins, again with each new epoch."""
        with self._events:
            self._joined.append(callback)
            for row in list(self.nodes.values()):
                callback(row)

    def on_node_gone(self, callback: Callable[[bytes, str], None]) -> None:
        """callback(node_id, reason) for each life of a node that ends from now on."""
        with self._events:
            self._gone.append(callback)

    def _node_changed(self, node_id: bytes, row: Any) -> None:
        with self._events:
            with self.lock:
                if row is None:
                    self._rows.pop(node_id, None)
                else:
                    self._rows[node_id] = row
                known = self.nodes.get(node_id)
                lives = row is not None and row.state == ALIVE
                same = known is not None and lives and known.epoch == row.epoch
                if known is not None and not same:
                    del self.nodes[node_id]
                    self.scheduler.gone(node_id)
                if lives and not same:
                    self.nodes[node_id] = row
                    self.scheduler.joined(node_id, row.resources, row.labels)
                    self._apply_load(node_id)
            if known is not None and not same:
                reason = row.reason if row is not None and not lives else "it joined again"
                for gone in self._gone:
                    gone(node_id, reason)
            if lives and not same:
                for joined in self._joined:
                    joined(row)

    def _load_changed(self, node_id: bytes, row: Any) -> None:
        with self.lock:
            if row is None:
                self._loads.pop(node_id, None)
            else:
                self._loads[node_id] = row
                self._apply_load(node_id)

    def _job_changed(self, key: bytes, row: Any) -> None:
        with self.lock:
            if row is None:
                self._job_table.pop(key, None)
            else:
                self._job_table[key] = row
            self._job_news.notify_all()
        if row is None or row.state == RUNNING:
            return
        if row.state == FINISHED:
            self._end_job(row.job_id)
        else:  # its agent may have died alone: then the next one goes on with the job
            timer = threading.Timer(RETURN_WAIT_S, self._end_job, (row.job_id,))
            timer.daemon = True
            timer.start()

    def _end_job(self, job: int) -> None:
        if self.job_ended is not None and not self.runs_job(job):
            self.job_ended(job)

    def ended_jobs(self) -> set[int]:
        """Numbers of those that the store remembers."""
        with self.lock:
            return {row.job_id for row in self._job_table.values() if row.state != RUNNING}

    def known_jobs(self) -> set[int]:
        """Of those, and those that run."""
        with self.lock:
            return {row.job_id for row in self._job_table.values()}

    def node_views(self) -> list[NodeView]:
        """The nodes that are alive, with what they last said is free, and nothing assumed."""
        with self.lock:
            return [
                NodeView(node_id, dict(node.total), units(load.available), node.labels)
                for node_id, node in self.scheduler.nodes.items()
                if (load := self._loads.get(node_id)) is not None and load.epoch == self.nodes[node_id].epoch
            ]

    def node_of_job(self, job: int) -> bytes:
        """The node where its driver is; b"" when nobody knows."""
        with self.lock:
            return next((row.node for row in self._job_table.values() if row.job_id == job), b"")

    def _report_actors(self) -> None:
        """With each beat, on a thread of its own: the store may let it wait."""
        begun = False
        while self._beats.wait():
            self._beats.clear()
            try:
                if not begun:
                    self.actors.begin(self.epoch)
                begun = True
                self.actors.look(self.epoch)
            except (GcsUnavailableError, GcsRequestError):  # the next look tells it; the beat hears if it is fenced
                pass

    def runs_job(self, job: int) -> bool:
        """Its driver is attached, to whichever node."""
        return self.wait_for_job(job, 0.0)

    def wait_for_job(self, job: int, wait_s: float) -> bool:
        """The same, as soon as it does."""
        with self._job_news:
            return self._job_news.wait_for(
                lambda: any(row.job_id == job and row.state == RUNNING for row in self._job_table.values()), wait_s
            )

    def _apply_load(self, node_id: bytes) -> None:
        node, load = self.nodes.get(node_id), self._loads.get(node_id)
        if node is not None and load is not None and load.epoch == node.epoch:
            self.scheduler.said(node_id, load.available, load.queues)

    # ---- inquiries ------------------------------------------------------------------------------------

    def _node_rows(self) -> list[dict[str, Any]]:
        with self.lock:
            rows, loads = list(self._rows.values()), dict(self._loads)
        return [
            {
                "node_id": row.node_id.hex(), "state": row.state, "address": row.address,
                "data_address": row.data_address, "resources": row.resources, "labels": row.labels, "info": row.info,
                "epoch": row.epoch, "registered_at": row.registered_at, "died_at": row.died_at, "reason": row.reason,
                "available": loads[row.node_id].available if row.node_id in loads else {},
                "queues": loads[row.node_id].queues if row.node_id in loads else {},
                "is_self": row.node_id == self.node_id,
            }
            for row in rows
        ]  # fmt: skip

    def _job_rows(self) -> list[dict[str, Any]]:
        with self.lock:
            rows = list(self._job_table.values())
        names = ("job_id", "namespace", "entrypoint", "state", "started_at", "ended_at", "reason", "metadata")
        return [{**{name: getattr(row, name) for name in names}, "node_id": row.node.hex()} for row in rows]

    def _actor_rows(self, _: object) -> list[dict[str, Any]]:
        rows = self.gcs.read("actor")
        with self.lock:
            nodes = {row.epoch: row.node_id.hex() for row in self._rows.values()}
        return [
            {
                "actor_id": row.actor_id.hex(), "class_name": row.class_name,
                "state": row.state, "job_id": node_state.job_id_of(row.job),
                "name": row.name, "ray_namespace": row.namespace, "node_id": nodes.get(row.epoch, ""),
                "pid": row.worker, "is_detached": row.detached, "num_restarts": row.restarts,
            }
            for row in sorted(rows, key=lambda row: row.created_at)
        ]  # fmt: skip

    # ---- staying --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """`run` looks at once."""
        os.eventfd_write(self._wake, 1)

    def run(self, channel: socket.socket) -> None:
        """Beats until the daemon says something on `channel`, or dies. Raises one of REFUSALS when the cluster has
        fenced this node.
        """
        poll = select.poll()
        for fd in (channel.fileno(), self.node.control_fd, self._wake):
            poll.register(fd, select.POLLIN)
        next_beat = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = max(next_beat + BEAT_S, now)
                self._tasks.beat(now, self.epoch)
                self._beats.set()
                try:
                    self._beat(now)
                    if self._jobs_changed and self._settled.is_set():
                        self._jobs.look(self.attachment.jobs())
                        self._jobs_changed = False
                except GcsUnavailableError:
                    pass  # the node goes on without it; the next beat tells it all
            ready = {fd for fd, _ in poll.poll(max(0.0, 1000 * (next_beat - time.monotonic())))}
            if channel.fileno() in ready or (self.node.control_fd in ready and not self._node_said()):
                return
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._refusal is not None:
                raise self._refusal
            if ready:
                next_beat = min(next_beat, time.monotonic())

    def _node_said(self) -> bool:
        """Its table of jobs has changed, or it has something for `forwarded`. False when it is gone."""
        data = os.read(self.node.control_fd, 4096)
        self._jobs_changed = True
        kind, handle, force = control.read_forwarded(data) if data else (0, 0, False)
        if self.forwarded is not None and kind in (control.CANCEL, control.KILL_ACTOR):
            self.forwarded(kind, handle, force)
        return bool(data)

    def _beat(self, now: float) -> None:
        if _is_stopped(self.node.pid):
            return
        self.queues = self._meter.look(class_queues(self.attachment), now)
        free, queues = free_resources(self.attachment), without_short(self.queues)
        if now - self._heard < QUIET_S and self._differences.are_none(free, queues):
            return
        difference = self._differences.next(free, queues)
        reply = self.gcs.beat(
            self.epoch, difference.version, difference.available, difference.queues, full=difference.full
        )
        if reply.fenced:
            raise NodeFencedError("the cluster has declared it dead")
        self._differences.acknowledged(resync=reply.resync)
        self._heard = now

    def close(self, *, goodbye: bool = True) -> None:
        """Leaves the cluster: with a goodbye, which others see at once."""
        if self._inquiries is not None:
            self._inquiries.shutdown(socket.SHUT_RDWR)
            self._inquiries.close()
        self.gcs.close(goodbye=goodbye)


def _is_stopped(pid: int) -> bool:
    """By SIGSTOP or a debugger."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(512).rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return True


# ---- the process ---------------------------------------------------------------------------------------


def main() -> None:
    """The agent's program. Does not return."""
    channel = socket.socket(fileno=CHANNEL_FD)
    channel.set_inheritable(False)
    messages = _messages(channel)
    try:
        agent = Agent(next(messages))  # while the store starts
        services = importlib.util.find_spec("fastray.transfer") and importlib.import_module("fastray.transfer")
        gcs = next(messages)["gcs"]
        agent.connect(gcs)
        if services:
            services.start(agent)
        agent.join()
    except StopIteration:
        os._exit(0)
    except (FastrayError, OSError) as error:
        _say(channel, {"failed": str(error), "refused": isinstance(error, REFUSALS)})
        os._exit(1)
    _say(channel, {"joined": agent.epoch, "node_id": agent.node_id.hex(), "gcs": gcs, "cluster": agent.gcs.cluster})
    threading.Thread(target=agent.settle, name="settle", daemon=True).start()
    try:
        agent.run(channel)
    except REFUSALS as error:
        _say(channel, {"fenced": str(error)})
    last = next(messages, None)  # the daemon ends the node's workers before; nothing when it was killed
    agent.close(goodbye=bool(last and last["leave"]))
    os._exit(0)


def _messages(channel: socket.socket) -> Iterator[dict[str, Any]]:
    """What the daemon says, until it closes the channel: it is dead."""
    with channel.makefile("rb", buffering=0) as lines:  # what is not read yet has to wake `run`
        for line in lines:
            yield json.loads(line)


def _say(channel: socket.socket, message: dict[str, Any]) -> None:
    try:
        channel.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # the daemon died, and this process with it
