"""The placement groups of the cluster, as the agent of one node keeps them: between the control store and the node.

    row        of the store: where each bundle is, or is proposed. Every change of it is told to the node, whole
               (csrc/local_scheduler_bundles.cpp)
    entry      of the node's table, which its processes read. What they want stands there too: a group that is made, or
               removed
    agree      the node holds all that is proposed for it: the store is told, and places the group when all have agreed
    placer     the agent with the lowest epoch among the living proposes, for all groups. No other has a say, so no two
               groups wait for each other for long; whoever it is, the store refuses what is stale. So nothing has to be
               handed over when it dies
    jobless    a group whose job is over, or whose driver's agent is gone: it ends when that does not come back

Nothing here waits for the store: what it answers comes by a callback. Everything runs with the agent's lock held.
Called by router.py and groups.py.
"""

from __future__ import annotations

import marshal
import threading
import time
from concurrent import futures

import msgspec

from fastray._native import groups as native
from fastray._native.link import wake
from fastray.control import set_group_message
from fastray.exceptions import GcsRequestError, GcsUnavailableError
from fastray.gcs import commands
from fastray.gcs.records import PENDING, PLACED, REMOVED, RESCHEDULING, PlacementGroup
from fastray.placement_groups import (
    ASKED,
    DETACHED,
    MIRROR,
    MOVING,
    READY,
    REFUSED,
    group_request,
)
from fastray.placement_groups import PENDING as WAITS
from fastray.placement_groups import REMOVED as OVER
from fastray.scheduling.group_placer import GroupPlacer, Wanted, place
from fastray.scheduling.resources import add, units
from fastray.scheduling.view import Infeasible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

    from fastray.cluster.agent import Agent
    from fastray.scheduling.resources import Units

TOPIC = "placement_group"
QUESTION = "groups"
STATES = {PENDING: WAITS, PLACED: READY, RESCHEDULING: MOVING, REMOVED: OVER}
JOB_RETURN_S = 5.0  # for the agent of a driver's node to come back
ANSWER_S = 5.0  # for the store, when somebody asks for all groups
OPEN = 1 << 32  # kBundleOpen


def _age(row: PlacementGroup) -> tuple[int, int, int]:
    """Grows with each change of a row."""
    return row.attempt, (PENDING, RESCHEDULING, PLACED, REMOVED).index(row.state), len(row.agreed)


class GroupKeeper:
    """`rows`: of the store, by id. `version` grows with each change of them or of the node's table."""

    def __init__(self, agent: Agent, lock: threading.RLock, say: Callable[[bytes], None]) -> None:
        self._agent, self._lock, self._say = agent, lock, say
        self.rows: dict[bytes, PlacementGroup] = {}
        self.version = 0
        self._entries: dict[int, tuple[bytes, int]] = {}  # id and life
        self._seen = -1
        self._under_way: dict[object, list[bytes]] = {}  # commands; of a proposal: the nodes
        self._placer = GroupPlacer()
        self._looked_at: object = None
        self._jobless: dict[bytes, float] = {}
        agent.topics[TOPIC] = self._on_row
        agent.answers[QUESTION] = self._answer

    # ---- rows and entries -----------------------------------------------------------------------------

    def _on_row(self, group_id: bytes, row: PlacementGroup | None) -> None:
        with self._lock:
            if row is None:
                self.rows.pop(group_id, None)
                return
            known = self.rows.get(group_id)
            if known is not None and _age(known) >= _age(row):
                return  # an answer may be older than what was heard since
            self.rows[group_id] = row
            self.version += 1
            self._say(self._message(row, STATES[row.state]))
            self._seen = -1
        wake()

    def _message(self, row: PlacementGroup, state: int) -> bytes:
        epoch = self._agent.epoch
        proposed = row.proposed or [0] * len(row.bundles)
        here = [
            (index | (OPEN if placed == epoch else 0), bundle)
            for index, (bundle, placed, maybe) in enumerate(zip(row.bundles, row.epochs, proposed))
            if epoch in (placed, maybe)
        ]
        names = list(self._agent.attachment.resources())
        spec = marshal.dumps((row.bundles, row.strategy, row.selectors))
        flags = DETACHED if row.detached else 0
        request = group_request(
            names, row.group_id, row.job, flags, 0, here, spec, row.name, row.namespace, state, row.attempt
        )
        return set_group_message(request)

    def row_of(self, entry: int, life: int) -> PlacementGroup | None:
        """Of the group that has, or had, this entry of the node's table; None when it is not there, or removed."""
        group_id, current = self._entries.get(entry, (b"", 0))
        row = self.rows.get(group_id) if current == life else None
        return None if row is None or row.state == REMOVED else row

    def node_of(self, epoch: int) -> bytes:
        """The living node with this epoch; b"" when it is not known."""
        with self._agent.lock:
            return next((node.node_id for node in self._agent.nodes.values() if node.epoch == epoch), b"")

    def step(self) -> None:
        """What the node's processes want, and what the node holds, goes to the store; the placer proposes."""
        changes = native.changes()
        if changes != self._seen:
            self._seen = changes
            self.version += 1
            rows = native.shared_rows()
            self._entries = {row[0]: (row[1], row[3]) for row in rows}
            for row in sorted(rows, key=lambda row: row[2] != OVER):  # the name of one that is removed is free
                self._report(row)
        with self._agent.lock:
            nodes = {node.node_id: node.epoch for node in self._agent.nodes.values()}
        if nodes and self._agent.epoch == min(nodes.values()):
            self._place(time.monotonic(), nodes)

    def _report(self, entry: tuple[int, bytes, int, int, int, int, str, str, bytes, bool, int]) -> None:
        _, group_id, state, _, job, flags, name, namespace, spec, in_actor, held = entry
        row = self.rows.get(group_id)
        if row is None:
            if state in (WAITS, ASKED) and not flags & MIRROR:
                bundles, strategy, selectors = marshal.loads(spec)
                made = PlacementGroup(
                    group_id, bundles, strategy, job, namespace, name, bool(flags & DETACHED), selectors=selectors,
                    node=self._agent.node_id, in_actor=in_actor,
                )  # fmt: skip
                self._submit(("create", group_id), commands.GroupCreate(made))
        elif state == OVER and row.state != REMOVED:
            self._submit(("remove", group_id), commands.GroupRemove(group_id))
        elif row.proposed and held == row.attempt:
            epoch = self._agent.epoch
            asked = any(maybe == epoch and not placed for maybe, placed in zip(row.proposed, row.epochs))
            if asked and epoch not in row.agreed:
                self._submit(("agree", group_id), commands.GroupAgree(group_id, row.attempt, epoch))

    # ---- the store ------------------------------------------------------------------------------------

    def _submit(self, key: tuple[str, bytes], command: commands.Command, nodes: list[bytes] | None = None) -> None:
        if key in self._under_way:
            return
        self._under_way[key] = nodes or []
        try:
            future = self._agent.gcs.submit(command)
        except GcsUnavailableError:
            del self._under_way[key]
            return
        future.add_done_callback(lambda done: self._answered(key, done))

    def _answered(self, key: tuple[str, bytes], done: Future[Any]) -> None:
        what, group_id = key
        with self._lock:
            del self._under_way[key]
            try:
                self._on_row(group_id, msgspec.convert(done.result(), PlacementGroup))
            except GcsUnavailableError:
                self._seen = -1  # at the next look
            except GcsRequestError as error:
                if what == "create" and error.kind in ("exists", "invalid"):
                    self._say(self._message(PlacementGroup(group_id, []), REFUSED))
        wake()

    # ---- placing --------------------------------------------------------------------------------------

    def _place(self, now: float, nodes: dict[bytes, int]) -> None:
        searched = [row for row in self.rows.values() if row.state in (PENDING, RESCHEDULING)]
        self._end_jobless(now, nodes)
        if not searched:
            return
        searched.sort(key=lambda row: (row.created_at, row.group_id))
        node_of = {epoch: node_id for node_id, epoch in nodes.items()}
        held: dict[bytes, Units] = {}
        for row in self.rows.values():
            for bundle, epoch in zip(row.bundles, row.epochs):
                if epoch in node_of:
                    add(held.setdefault(node_of[epoch], {}), units(bundle))
        wanted = [self._wanted(row, node_of) for row in searched if set(row.epochs) <= {0, *node_of}]
        views = [view for view in self._agent.node_views() if view.node_id in nodes]
        for proposal in self._placer.decide(now, wanted, views, held):
            epochs = [nodes[node_id] for node_id in proposal.nodes]
            command = commands.GroupPropose(proposal.group_id, proposal.attempt, epochs)
            self._submit(("propose", proposal.group_id), command, proposal.nodes)

    def _wanted(self, row: PlacementGroup, node_of: dict[int, bytes]) -> Wanted:
        kept = {index: node_of[epoch] for index, epoch in enumerate(row.epochs) if epoch}
        proposed = self._under_way.get(("propose", row.group_id)) or [node_of.get(epoch, b"") for epoch in row.proposed]
        return Wanted(
            row.group_id, row.attempt, row.bundles, row.strategy, row.selectors, kept, proposed, any(row.lost), row.node
        )

    def _end_jobless(self, now: float, nodes: dict[bytes, int]) -> None:
        ended, known = self._agent.ended_jobs(), self._agent.known_jobs()
        jobless = {
            row.group_id
            for row in self.rows.values()
            if row.state != REMOVED and not row.detached
            if row.job in ended or (row.job not in known and row.node not in nodes)  # it died before it was told of
            if not (row.in_actor and row.node in nodes)
        }
        self._jobless = {group_id: self._jobless.get(group_id, now) for group_id in jobless}
        for group_id, since in self._jobless.items():
            if now - since >= JOB_RETURN_S:
                self._submit(("remove", group_id), commands.GroupRemove(group_id, "its job ended"))

    # ---- inquiries ------------------------------------------------------------------------------------

    def _answer(self, only: str) -> list[dict[str, Any]]:
        """All groups, or the one with this id, as the store has them now: whoever asks may know of one that this agent
        has not heard of."""
        try:
            _, rows = self._agent.gcs.submit(commands.TableRead(TOPIC)).result(ANSWER_S)
            for row in rows:
                group = msgspec.convert(row, PlacementGroup)
                self._on_row(group.group_id, group)
        except (GcsUnavailableError, TimeoutError, futures.TimeoutError):
            pass  # then as this agent knows them
        with self._lock:
            return [
                {
                    "id": row.group_id.hex(), "state": STATES[row.state], "bundles": row.bundles,
                    "strategy": row.strategy, "name": row.name, "namespace": row.namespace, "detached": row.detached,
                    "nodes": [self.node_of(epoch).hex() if epoch else "" for epoch in row.epochs],
                    "waited_s": max(0.0, row.placed_at - row.created_at), "never_fits": self._never_fits(row),
                }
                for row in self.rows.values()
                if only in ("", row.group_id.hex())
            ]  # fmt: skip

    def _never_fits(self, row: PlacementGroup) -> bool:
        """As the cluster is now."""
        if row.state not in (PENDING, RESCHEDULING):
            return False
        wanted = self._wanted(row, {epoch: self.node_of(epoch) for epoch in row.epochs})
        return isinstance(place(wanted, self._agent.node_views()), Infeasible)
