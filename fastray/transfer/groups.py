"""Tasks and actors of placement groups, on their way to the nodes that have the bundles.

    local    a class whose tasks can run here only: every bundle that would do is on this node. Workers take them, as on
             a private node, and the agent has nothing to do with it
    routed   any other class of a group: the agent sends its tasks where the bundles are, or gives them to a class of
             this node's bundles (kBundleHere)

A class is routed when it is made, as its group may not be placed yet, and changes when the group does. Of several nodes
the one with the fewest tasks of the class for what it can run gets the next. Called by router.py, with the agent's lock
held.
"""

from __future__ import annotations

import threading
import time

from fastray._native import groups as native
from fastray._native import link
from fastray.placement_groups import HERE
from fastray.runtime import ACTOR_CLASS
from fastray.scheduling.resources import fits, units
from fastray.transfer.group_keeper import GroupKeeper
from fastray.transfer.peer import BATCH_MAX, DECISIONS_MAX, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray.cluster.agent import Agent
    from fastray.gcs.records import PlacementGroup
    from fastray.placement_groups import Place
    from fastray.transfer.functions import Functions
    from fastray.transfer.peer import Peer

PENDING, RESTARTING = 2, 5  # ActorState
FULL_WAIT_S = 5.0
REMOVED_ERROR = bytes([11])  # kErrorGroupRemoved


class _Later:
    """A class of this node's bundles, made when it is needed."""

    def __init__(
        self, functions: Functions, demand: dict[str, int], environment: int, job: int, place: Place
    ) -> None:
        self._functions = functions
        self._needs = demand, environment, job, place
        self._made = -1

    def cls(self) -> int:
        if self._made < 0:
            self._made = self._functions.class_here(*self._needs)
        return self._made


class Groups:
    def __init__(
        self, agent: Agent, lock: threading.RLock, functions: Functions, peers: dict[int, Peer],
        say: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        self._agent, self._functions, self._peers = agent, functions, peers
        self.keeper = GroupKeeper(agent, lock, say)
        self._self = agent.node_id
        self._version = -1
        self.held_back = False  # tasks could not be sent at the last look
        self._full: dict[int, float] = {}  # creations of actors that wait for room, and since when

    def step(self) -> list[int]:
        """One look around; the classes to wake up for."""
        self.keeper.step()
        changed, self._version = self.keeper.version != self._version, self.keeper.version
        self.held_back = False
        classes = []
        for cls, entry, life, bundle, routed, placement, environment, job, waiting in native.group_classes():
            if not (changed or routed):
                continue
            row = self.keeper.row_of(entry, life)
            if row is None:
                continue  # the node fails what is in a group that is removed
            demand = self._functions.wishes(placement).demand
            room = self._room(row, bundle, demand)
            is_local = self._is_local(row, bundle, demand, room)
            if is_local == routed:
                native.set_routed(cls, not is_local)
            if is_local:
                continue
            here = (entry, life, HERE if bundle < 0 else bundle)
            later = _Later(self._functions, demand, environment, job, here)
            if not waiting or self._send(cls, waiting, room, later):
                classes.append(cls)
            else:  # until it is placed, or there is room again
                self.held_back = True
        if changed:
            self._review_actors()
        return classes

    # ---- where the bundles are ------------------------------------------------------------------------

    def _room(self, row: PlacementGroup, bundle: int, demand: dict[str, int]) -> dict[bytes, float]:
        """Node -> how many such tasks run there at a time, of the nodes with a bundle that will do."""
        asked = {name: amount for name, amount in demand.items() if amount}
        room: dict[bytes, float] = {}
        for index, (given, epoch) in enumerate(zip(row.bundles, row.epochs)):
            there = units(given)
            if not epoch or (bundle >= 0 and index != bundle) or not fits(asked, there):
                continue
            node_id = self._self if epoch == self._agent.epoch else self.keeper.node_of(epoch)
            if node_id:
                most = min((there[name] // amount for name, amount in asked.items()), default=1)
                room[node_id] = room.get(node_id, 0.0) + most
        return room

    def _is_local(self, row: PlacementGroup, bundle: int, demand: dict[str, int], room: dict[bytes, float]) -> bool:
        """No bundle that would do is elsewhere, or lost."""
        if bundle == HERE:
            return self._self in room
        asked = {name: amount for name, amount in demand.items() if amount}
        return set(room) == {self._self} and all(
            epoch == self._agent.epoch
            for index, (given, epoch) in enumerate(zip(row.bundles, row.epochs))
            if bundle in (-1, index) and fits(asked, units(given))
        )

    # ---- tasks ----------------------------------------------------------------------------------------

    def _send(self, cls: int, waiting: int, room: dict[bytes, float], here: _Later) -> int:
        """How many left the queue."""
        sent = 0
        for node_id, count in self._shares(cls, min(waiting, BATCH_MAX), room, here).items():
            if node_id == self._self:
                local = here.cls()
                for handle, _ in link.claim(cls, count):
                    link.put_back(handle, local)
                    sent += 1
            elif (peer := self._peer(node_id)) is not None:
                sent += peer.link.claim(cls, min(count, peer.room()))
                peer.send_staged()
        return sent

    def _shares(
        self, cls: int, count: int, room: dict[bytes, float], here: _Later
    ) -> dict[bytes, int]:
        """How many tasks each node gets: the least loaded first, in portions."""
        reachable = [node_id for node_id in room if node_id == self._self or self._peer(node_id) is not None]
        if len(reachable) < 2:
            return dict.fromkeys(reachable, count)
        load = {node_id: self._load(cls, node_id, here) for node_id in reachable}
        shares = dict.fromkeys(reachable, 0)
        portion = -(-count // DECISIONS_MAX)
        while count > 0:
            node_id = min(reachable, key=lambda n: (load[n] + shares[n]) / room[n])
            shares[node_id] += min(portion, count)
            count -= portion
        return shares

    def _load(self, cls: int, node_id: bytes, here: _Later) -> int:
        """Tasks of the class that are there and not done, as far as they come from here."""
        peer = self._peer(node_id)
        if node_id == self._self or peer is None:
            return native.tasks_in(here.cls())
        return peer.link.outstanding_in(cls)

    def _peer(self, node_id: bytes) -> Peer | None:
        return self._peers.get(number_of(node_id))

    def place_one(self, handle: int, cls: int, unplaced: list[tuple[int, int]]) -> bool:
        """A claimed task with arguments on other nodes; one that has to wait goes into `unplaced`. False: it is in no
        group."""
        entry, life, bundle = native.place_of_class(cls)
        if entry == 0:
            return False
        if not self._place_in(handle, cls, entry, life, bundle):
            unplaced.append((handle, cls))
        return True

    def _place_in(self, handle: int, cls: int, entry: int, life: int, bundle: int) -> bool:
        row = self.keeper.row_of(entry, life)
        if row is None:
            link.fail(handle, REMOVED_ERROR)
            return True
        demand, environment, job = self._functions.demand(cls)
        room = self._room(row, bundle, demand)
        peers = [peer for node_id in room if (peer := self._peer(node_id)) is not None]
        if self._self in room and not any(peer.link.bytes_there(handle) for peer in peers):
            here = (entry, life, HERE if bundle < 0 else bundle)
            return link.put_back(handle, self._functions.class_here(demand, environment, job, here))
        if not peers:
            return False
        peer = max(peers, key=lambda p: (p.link.bytes_there(handle), -p.link.outstanding_in(cls)))
        peer.link.stage(handle)
        peer.send_staged()
        return True

    # ---- actors ---------------------------------------------------------------------------------------

    def place_actor(self, actor: int, creation: int, placement: int) -> bool:
        """Where the fewest actors are that this node made in the group; it waits as long as no bundle would do. False:
        it is in no group."""
        entry, life, _ = native.place_of_class(ACTOR_CLASS + actor)
        row = self.keeper.row_of(entry, life)
        if row is not None:
            self._place_actor_in(row, actor, creation, placement)
        return entry != 0

    def _place_actor_in(self, row: PlacementGroup, actor: int, creation: int, placement: int) -> None:
        entry, life, bundle = native.place_of_class(ACTOR_CLASS + actor)
        demand = self._functions.wishes(placement).demand
        room = self._room(row, bundle, demand)
        reachable = [node_id for node_id in room if node_id == self._self or self._peer(node_id) is not None]
        if not reachable:
            return
        hosts = native.hosts_of_group(entry, life)
        there = dict.fromkeys(reachable, 0)
        for other in hosts:
            host = next((peer.node_id for peer in self._peers.values() if peer.link.hosts(other)), self._self)
            if host in there:
                there[host] += 1
        best = min(reachable, key=lambda n: (there[n] / room[n], n != self._self))
        if bundle < 0 and any(demand.values()) and there[best] >= room[best] and self._may_wait(creation):
            return  # one of them may be ending
        self._full.pop(creation, None)
        peer = self._peer(best)
        if best == self._self:
            link.keep_actor_here(actor)
        elif peer is not None:
            peer.send_actor(actor, creation, link.describe_actor(actor)[4])

    def _may_wait(self, creation: int) -> bool:
        """All bundles look full: for a while, as actors may be smaller than this one or end."""
        now = time.monotonic()
        self._full = {other: since for other, since in self._full.items() if now - since < 2 * FULL_WAIT_S}
        return now - self._full.setdefault(creation, now) < FULL_WAIT_S

    def _review_actors(self) -> None:
        """Those that were to run in a bundle that this node does not have any more."""
        for cls, entry, life, bundle, routed, placement, state in native.group_actors():
            row = self.keeper.row_of(entry, life)
            if row is None or routed or state not in (PENDING, RESTARTING):
                continue
            if self._self not in self._room(row, bundle, self._functions.wishes(placement).demand):
                native.set_routed(cls, True)
