"""What of this node's work goes where: the loop of the node agent.

    routed      tasks that no worker here may run as they stand: their resources are elsewhere, their strategy names
                nodes, or values they need are away. The global scheduler places them, this node among others
    asked       values of other nodes that somebody here waits for
    spilled     tasks of this node that would wait long while another has what they need free
    down        a node that is gone, or the way to it: its tasks run again, what only it had is computed again

The loop sleeps in shared memory (a futex) until there is something to do; what comes from other nodes is applied by
the threads of their streams. All of it holds `lock`, so that frames leave in the order they are written.

The global scheduler is the policy of fastray/scheduling over what the GCS says of all nodes: every agent has a replica
of it, as the paper suggests (section 4.2.2) where one would be too slow. Called by transfer.start.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
import time
import traceback

from fastray._native import link as native
from fastray._native.bulk import BulkValue
from fastray._native.groups import routed_classes
from fastray.cluster.adoption import RETURN_WAIT_S
from fastray.control import (
    CANCEL,
    KILL_ACTOR,
    actor_ended_message,
    cancel_message,
    job_over_message,
    print_message,
)
from fastray.exceptions import NodeDiedError
from fastray.gcs import auth, commands
from fastray.scheduling.labels import conditions
from fastray.scheduling.resources import fits
from fastray.scheduling.view import Argument, Infeasible, Placed, Request
from fastray.transfer import trace
from fastray.transfer.bulk import Bulk
from fastray.transfer.copies import Copies
from fastray.transfer.functions import Definition, Functions, Wishes
from fastray.transfer.groups import Groups
from fastray.transfer.hosted_actors import HostedActors
from fastray.transfer.locations import Locations
from fastray.transfer.names import Names
from fastray.transfer.packages import Packages
from fastray.transfer.peer import BATCH_MAX, DECISIONS_MAX, Peer, error_of, number_of, unschedulable
from fastray.transfer.remote_logs import LogForwarder
from fastray.transfer.stream import Server, Stream, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.cluster.agent import Agent
    from fastray.gcs.records import Node

LOOK_S = 0.1  # without an event: loads change, mirrors fall idle
SPILL_WAIT_S, SPILL_TASK_S = 0.1, 0.001  # a queue as long as this, of tasks as long as that, is shared
SWITCH_S = 0.0005  # a thread with a batch in hand does not wait long for one that computes
NEWS_WAIT_S = 5.0  # for the store's word of a node that calls
DIAL_WAIT_S = 0.2  # before a node that did not answer is called again


class Router:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.lock = threading.RLock()
        self.number = number_of(agent.node_id)
        self.peers: dict[int, Peer] = {}
        self._rows: dict[bytes, Node] = {}
        self._news = threading.Condition(self.lock)  # of them, and of peers
        self._closed = False
        sys.setswitchinterval(SWITCH_S)
        self._swept = 0.0
        self.held_back = False  # some class has tasks that could not be placed
        self._last_gone = -RETURN_WAIT_S
        self._known: set[bytes] = set()  # nodes, at the last placement
        self._unplaced: list[tuple[int, int]] = []  # claimed tasks, and their classes, that a node may come back for
        self._tls = auth.load_tls()
        self._server = Server(agent.token, self._accept)
        self._bulk = Bulk(agent, self._tls, self._bulk_done)
        self._packages = Packages(agent, self._bulk, self._peers_with)
        self._flight_address = ""
        agent.attachment.activate()
        self.functions = Functions(agent.attachment, agent.path)
        self.actors = HostedActors(self)
        self._names = Names(self)
        self._locations = Locations(agent)
        self._copies = Copies(self.peers, self._locations)
        self.groups = Groups(agent, self.lock, self.functions, self.peers, self.say)
        self._trace = trace.from_environment()
        agent.answers[trace.QUESTION] = lambda: None if self._trace is None else self._trace.rows()

    # ---- beginning and end ----------------------------------------------------------------------------

    def listen(self) -> None:
        """Serves; `join` may follow. The loop runs from the first node on."""
        port = self._server.listen(self.agent.host, self._tls)
        self.agent.addresses["node"] = f"{self.agent.host}:{port}"
        native.join_cluster(self.number)
        self.agent.demands.answered = native.wake
        self.agent.forwarded, self.agent.job_ended = self._forwarded, self._job_ended
        LogForwarder(self.agent.node.log_socket, self.agent.attachment, self._forward_log)
        self.agent.on_node_joined(self._joined)
        self.agent.on_node_gone(self._gone)
        threading.Thread(target=self._run, name="fastray-router", daemon=True).start()
        self._bulk.serve(self._flight_ready)

    def close(self) -> None:
        self._closed = True
        with self._news:
            self._news.notify_all()
        native.wake()
        self._server.close()
        self._bulk.close()

    def _run(self) -> None:
        while not self._closed:
            seen = native.wake_word()
            with self.lock:
                try:
                    classes = self._step()
                except Exception:  # one step's trouble is not the end of all: said, and tried again
                    traceback.print_exc()
                    classes = [native.ROUTE_CLASS, native.FETCH_CLASS]
            native.wait(classes, seen, LOOK_S)

    # ---- other nodes ----------------------------------------------------------------------------------

    def _joined(self, row: Node) -> None:
        if row.node_id == self.agent.node_id:
            return
        with self.lock:
            self._rows[row.node_id] = row
            self._news.notify_all()
            if self.number < number_of(row.node_id):
                threading.Thread(target=self._dial, args=(row,), name="fastray-dial", daemon=True).start()

    def _gone(self, node_id: bytes, reason: str) -> None:
        with self.lock:
            self._rows.pop(node_id, None)
            self._news.notify_all()
            peer = self.peers.get(number_of(node_id))
        if peer is not None:
            peer.stream.end(f"the node is dead: {reason}")

    def _dial(self, row: Node) -> None:
        """Opens the stream, and again until the node is gone."""
        while not self._closed and self._rows.get(row.node_id) is row:
            try:
                stream = connect(row.address, self.agent.token, self._tls, self.agent.node_id, self.agent.epoch)
            except OSError:  # it is not there, or does not know us yet
                pass
            else:
                ended = threading.Event()
                self._connect(row, stream, ended)
                stream.begin()
                ended.wait()
            time.sleep(DIAL_WAIT_S)

    def _accept(self, node_id: bytes, epoch: int, stream: Stream) -> str:
        def known() -> bool:
            row = self._rows.get(node_id)
            return self._closed or (row is not None and row.epoch >= epoch)

        with self._news:
            self._news.wait_for(known, NEWS_WAIT_S)
            row = self._rows.get(node_id)
        if row is None or row.epoch < epoch or self._closed:
            return "the cluster knows no such node"
        if row.epoch > epoch:
            return f"epoch {epoch} of that node is over"
        self._connect(row, stream, threading.Event())
        return ""

    def _connect(self, row: Node, stream: Stream, ended: threading.Event) -> None:
        peer = Peer(self.number, row, stream, self.functions, self._publish, self._trace)
        peer.names = self._names
        host = row.address.rpartition(":")[0]
        host = "" if host == self.agent.host else host
        peer.on_log = lambda job, pid, out, text: self.say(print_message(job, pid, out, text, host))

        def on_batch(batch: bytes) -> None:
            with self.lock:
                if not peer.ended:
                    peer.receive(batch)
                    self._after(peer)
                    if self.held_back or self.groups.held_back:
                        native.wake()

        def on_end(reason: str) -> None:
            self._disconnect(peer, reason)
            ended.set()

        with self.lock:
            before = self.peers.get(peer.number)
            stream.on_batch, stream.on_end, stream.on_drained = on_batch, on_end, native.wake
            self.peers[peer.number] = peer
            self._news.notify_all()
            if self._flight_address:
                peer.send_message("flight", self._flight_address)
        if before is not None:
            before.stream.end("the node connected again")
        native.wake()

    def _peers_with(self, number: int, wait_s: float) -> list[Peer]:
        """All, as soon as the node with this number is among them, or is known to be none of the cluster."""

        def known() -> bool:
            nodes = self.agent.nodes
            gone = self.agent.node_id in nodes and number not in map(number_of, list(nodes))
            return number in self.peers or gone or self._closed

        with self._news:
            self._news.wait_for(known, wait_s)
            return sorted(self.peers.values(), key=lambda peer: peer.number != number)

    def _disconnect(self, peer: Peer, reason: str) -> None:
        with self.lock:
            if self.peers.get(peer.number) is peer:
                del self.peers[peer.number]
            if peer.ended:
                return
            error = NodeDiedError(f"node {peer.node_id.hex()}, where the task ran, is gone: {reason}")
            self._copies.leaving(peer)
            peer.down(error_of(native.AGENT_ERROR, error))
            self._copies.after(peer)
            self._locations.look(peer)
            for creation, why in peer.link.take_ended():
                self.say(actor_ended_message(creation, why))
        native.wake()

    def _flight_ready(self, address: str) -> None:
        with self.lock:
            self._flight_address = address
            for peer in self.peers.values():
                peer.send_message("flight", address)
                peer.flush()

    def _publish(self, definition: Definition) -> None:
        """The global function table gets it too; nobody waits for that."""
        if self._trace is not None:
            self._trace.note("function_put", name=definition.name, digest=definition.digest.hex())
        self.agent.gcs.submit(commands.FunctionPut(definition.digest, definition.pickled, definition.job))

    # ---- the loop -------------------------------------------------------------------------------------

    def _step(self) -> list[int]:
        """One look around; the classes to wake up for."""
        self.held_back = False
        self.agent.demands.begin_round()
        for handle, number in native.take_asked():
            peer = self.peers.get(number)
            if any(other.link.is_fetching(handle) for other in self.peers.values()):
                continue  # asked for twice
            if peer is None:
                native.give_up_asked(handle)
            else:
                if self._trace is not None:
                    self._trace.note("asked", value=trace.name(handle), node=peer.node_id.hex())
                peer.link.fetch(handle)
        classes = [native.ROUTE_CLASS, native.FETCH_CLASS]
        unplaced, self._unplaced = self._unplaced, []
        for handle, cls in unplaced + native.claim(native.ROUTE_CLASS, BATCH_MAX):
            self._place_one(handle, cls)
        for cls, waiting, job, placement, environment in routed_classes():
            wishes = self.functions.wishes(placement) if waiting else None
            if wishes is None or self._place_class(cls, waiting, job, wishes, environment):
                classes.append(cls)
            else:  # until there is room again, or another node
                self.held_back = True
        classes += self.actors.step() + self.groups.step()
        sweep = time.monotonic() - self._swept >= LOOK_S
        if sweep:
            self._swept = time.monotonic()
            self._spill()
            self._copies.sweep()
            self.agent.demands.tell()
            self._packages.look()
        for peer in list(self.peers.values()):
            if sweep:
                peer.link.sweep()
                self._locations.look(peer)
            self._after(peer)
        if sweep:
            self._locations.tell()
        return classes

    def _after(self, peer: Peer) -> None:
        """What has come of what happened: results, cancellations, buffers to fetch; then all of it goes out."""
        peer.link.collect()
        if peer.introduce_actors():
            peer.link.collect()
        if peer.link.has_staged():
            peer.send_staged()
        for handle, force in peer.link.take_cancels():
            self._cancel(handle, force)
        for creation, why in peer.link.take_ended():
            self.say(actor_ended_message(creation, why))
        self.actors.kill(peer)
        self._copies.after(peer)
        for value in peer.link.take_bulk():
            self._bulk.fetch(peer, value)
        peer.flush()

    def _bulk_done(self, peer: Peer, value: BulkValue, complete: bool) -> None:
        if self._trace is not None:
            size = sum(part.nbytes for part in value.parts())
            about = {"value": trace.name(value.local), "remote": trace.name(value.remote)}
            self._trace.note("replicated", **about, bytes=size, complete=complete)
        with self.lock:
            if peer.link.finish_bulk(value, complete):
                self._copies.arrived(value.local)
                self._locations.has(value.local, self.agent.epoch)
            self._copies.after(peer)
            peer.flush()

    def _cancel(self, handle: int, force: bool) -> None:
        _, running, task = self.agent.attachment.cancel_handle(handle)
        if running >= 0:
            self.say(cancel_message(running, task, force))

    def _forwarded(self, kind: int, handle: int, force: bool) -> None:
        """What a process here wants of a task or actor that runs elsewhere."""
        with self.lock:
            for peer in self.peers.values():
                if kind == CANCEL:
                    peer.link.send_cancel(handle, force)
                elif kind == KILL_ACTOR and peer.link.hosts(handle):
                    peer.link.send_actor_stop(handle, native.RESTART)
                peer.flush()

    def _job_ended(self, job: int) -> None:
        """Its driver, on another node, is gone: what works for it here ends."""
        if self.agent.node_of_job(job) != self.agent.node_id:
            self.say(job_over_message(job))
        with self.lock:
            self.functions.job_ended(job)
        self._packages.job_ended()

    def _forward_log(self, job: int, pid: int, stream: int, text: bytes) -> None:
        with self.lock:
            peer = self.peers.get(number_of(self.agent.node_of_job(job)))
            if peer is not None:
                peer.send_message("log", (job, pid, stream, text))
                peer.flush()

    def say(self, message: bytes) -> None:
        os.write(self.agent.node.control_fd, message)

    # ---- placing --------------------------------------------------------------------------------------

    def _place_class(self, cls: int, waiting: int, job: int, wishes: Wishes, environment: int) -> int:
        """How many left the queue. Many at once are placed in portions: a decision costs more than to send a task."""
        left = 0
        portion = -(-min(waiting, BATCH_MAX) // DECISIONS_MAX)
        if self._trace is not None:
            self._trace.note("class_routed", cls=cls, waiting=waiting)
        with self.agent.lock:
            self.look_at_nodes()
            outcomes = self.agent.scheduler.submit_many(self.request(wishes), min(waiting, DECISIONS_MAX))
        counts = collections.Counter(outcome.node_id for outcome in outcomes if isinstance(outcome, Placed))
        for node_id, decisions in counts.items():
            count = portion * decisions
            if self._trace is not None:
                self._trace.note("class_placed", cls=cls, node=node_id.hex(), count=count)
            if node_id == self.agent.node_id:
                local = self.functions.local_class(wishes.demand, environment, job)
                for handle, _ in native.claim(cls, count):
                    native.put_back(handle, local)
                    left += 1
                continue
            peer = self.peers.get(number_of(node_id))
            if peer is not None:
                left += peer.link.claim(cls, min(count, peer.room()))
                peer.send_staged()
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Infeasible)]
        if refusals and self.is_final(wishes, waiting):
            for handle, _ in native.claim(cls, portion * len(refusals)):
                native.fail(handle, unschedulable(refusals[0]))
                left += 1
        return left

    def _spill(self) -> None:
        """Tasks that would wait here for long go where there is room for them now (paper, section 4.2.2)."""
        queues, self.agent.queues = self.agent.queues, {}
        for name, (waiting, seconds) in queues.items():
            cls = int(name)
            if waiting * seconds < SPILL_WAIT_S or seconds < SPILL_TASK_S:
                continue
            demand, _, placement, _ = native.describe_class(cls)
            if placement or not demand:
                continue
            request = self._request_of(demand)._replace(seconds=seconds)
            with self.agent.lock:
                own = self.agent.scheduler.nodes.get(self.agent.node_id)
                if own is None or fits(request.resources, own.available):  # a worker here is on its way
                    continue
                outcomes = self.agent.scheduler.submit_many(request, min(int(waiting), BATCH_MAX))
            counts = collections.Counter(
                outcome.node_id for outcome in outcomes if isinstance(outcome, Placed) and outcome.now
            )
            for node_id, count in counts.items():
                peer = self.peers.get(number_of(node_id))
                if peer is not None and (sent := peer.link.claim(cls, min(count, peer.room()))):
                    if self._trace is not None:
                        self._trace.note("class_spilled", cls=cls, node=node_id.hex(), count=sent)
                    peer.send_staged()

    def _place_one(self, handle: int, cls: int) -> None:
        """A task with arguments on other nodes: there, or here once they have come."""
        if self.groups.place_one(handle, cls, self._unplaced):
            return
        if self._trace is not None:
            self._trace.note("routed", task=trace.name(handle))
        demand, environment, job = self.functions.demand(cls)
        _, _, placement, _ = native.describe_class(cls)
        wishes = self.functions.wishes(placement) if placement else Wishes(demand)
        request = self.request(wishes)
        arguments = self._locate(handle)
        if self._trace is not None:
            found = [[argument.size, node.hex()] for argument in arguments for node in argument.nodes]
            self._trace.note("located", task=trace.name(handle), arguments=found)
        with self.agent.lock:
            self.look_at_nodes()
            outcome = self.agent.scheduler.submit(request._replace(arguments=arguments))
        if self._trace is not None and isinstance(outcome, Placed):
            self._trace.note("placed", task=trace.name(handle), node=outcome.node_id.hex())
        peer = self.peers.get(number_of(outcome.node_id)) if isinstance(outcome, Placed) else None
        if peer is not None:
            peer.link.stage(handle)
            peer.send_staged()
        elif isinstance(outcome, Infeasible):
            if not self.is_final(wishes, 1):
                self._unplaced.append((handle, cls))
                return
            native.fail(handle, unschedulable(outcome))
        else:
            local = self.functions.local_class(demand, environment, job) if placement else cls
            native.put_back(handle, local)

    def _locate(self, handle: int) -> list[Argument]:
        """Where the arguments of a task are, as far as this node knows."""
        found = []
        for argument, size, here in native.arguments_of(handle):
            nodes = [peer.node_id for peer in self.peers.values() if peer.link.holds(argument)]
            found.append(Argument(size, frozenset([*nodes, self.agent.node_id] if here else nodes)))
        return found

    def look_at_nodes(self) -> None:
        """With the scheduler's lock held: notes when one of them is gone, and which have no stream to here."""
        nodes = set(self.agent.scheduler.nodes)
        self.agent.scheduler.unreachable = nodes - {self.agent.node_id, *(p.node_id for p in self.peers.values())}
        if self._known - nodes:
            self._last_gone = time.monotonic()
        self._known = nodes

    def is_final(self, wishes: Wishes, count: int) -> bool:
        """What no node can run is not waited for: the nodes are known, none went a moment ago, and nobody adds some."""
        if self.agent.node_id not in self.agent.nodes or time.monotonic() - self._last_gone < RETURN_WAIT_S:
            return False
        if hasattr(wishes.strategy, "node_id") or not self.agent.demands.may_come():
            return True
        self.agent.demands.note(wishes.demand, wishes.labels or {}, count)
        return False

    def request(self, wishes: Wishes) -> Request:
        request = self._request_of(wishes.demand)
        return request._replace(strategy=wishes.strategy, labels=conditions(wishes.labels or {}))

    def _request_of(self, demand: dict[str, int]) -> Request:
        return Request({name: units for name, units in demand.items() if units}, origin=self.agent.node_id)
