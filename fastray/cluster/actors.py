"""Actors of a node in the cluster's table. Called by agent.py, and by fastray/transfer/names.py for their names.

    report     the node's own table is compared with what the store was told: what began, changed or ended is told now
    reserved   a name that a process here is about to give an actor: the actor is registered while its entry is being
               written. One that never comes (its process died) is told to be dead

What was not told is kept, and told later; an agent that follows a dead one tells everything anew.
"""

from __future__ import annotations

import threading

from fastray.actor_errors import why_text
from fastray.exceptions import GcsRequestError
from fastray.gcs import commands
from fastray.gcs.records import ALIVE, DEAD, RESTARTING, Actor
from fastray.node_state import ACTOR_STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray._native.load import ActorWatch
    from fastray.gcs.client import GcsClient

    About = tuple[str, str, str, bool, int, int, int]  # of ActorWatch.describe

LOOKS = 2  # without finding an actor whose entry is not being written any more: it is gone
STARTING = 3  # ActorState


class ActorReporter:
    """`epoch_of(creation)`: of the node where an actor of ours runs that has no process here, 0 when nobody knows."""

    def __init__(self, gcs: GcsClient, session: int, node_id: bytes, watch: ActorWatch) -> None:
        self._gcs = gcs
        self._session = session
        self._node_id = node_id
        self._watch = watch
        self._told: set[int] = set()  # record ids of actors that are registered and not dead
        self._rows: list[tuple[int, int, int, int, int, bool]] = []  # to be told
        self._reserved: dict[int, list[int]] = {}  # record id -> entry, looks that did not find it
        self._lock = threading.Lock()
        self.epoch_of: Callable[[int], int] = lambda creation: 0

    def key(self, record: int) -> bytes:
        """The id of the actor with this creation record."""
        return self._session.to_bytes(8, "big") + record.to_bytes(8, "big")

    def begin(self, epoch: int) -> None:
        """What the store believes to live here, from an agent before this one, and what does not."""
        self.look(epoch)
        mine = [row for row in self._gcs.read("actor") if row.home == self._node_id and row.state != DEAD]
        with self._lock:
            known = self._told | self._reserved.keys()
        gone = [row.actor_id for row in mine if int.from_bytes(row.actor_id[8:], "big") not in known]
        self._tell(epoch, [commands.ActorState(key, DEAD, reason="it ended") for key in gone])

    def reserve(self, actor: Actor, entry: int) -> Actor:
        """Registers an actor that is to be made in this entry; the row of the one that has the name, if another has."""
        record = int.from_bytes(actor.actor_id[8:], "big")
        with self._lock:
            self._reserved[record] = [entry, 0]
        row = self._gcs.call(commands.ActorRegister(actor, True))
        found: Actor = Actor(*row)
        with self._lock:
            if found.actor_id != actor.actor_id:
                self._reserved.pop(record, None)
            elif record not in self._reserved and record not in self._told:
                self._reserved[record] = [entry, 0]  # given up while it was registered
        return found

    def is_reserved(self, key: bytes) -> bool:
        """It is being made."""
        with self._lock:
            entry, _ = self._reserved.get(int.from_bytes(key[8:], "big"), (-1, 0))
        return entry >= 0 and self._watch.is_written(entry)

    def ended(self, epoch: int, key: bytes) -> None:
        """It is over, though `look` has not come by."""
        self._tell(epoch, [commands.ActorState(key, DEAD, reason="it ended")])

    def look(self, epoch: int) -> None:
        """Tells the store what has changed. Raises GcsUnavailableError: look again later."""
        self._rows += self._watch.changed()
        states = [state for row in self._rows if (state := self._state_of(*row)) is not None]
        states += self._given_up()
        self._tell(epoch, states)
        self._told -= {row[0] for row in self._rows if ACTOR_STATES[row[2]] == DEAD}
        self._rows.clear()

    def _state_of(
        self, record: int, creation: int, state: int, restarts: int, pid: int, foreign: bool
    ) -> commands.ActorState | None:
        about = self._watch.describe(creation)
        if ACTOR_STATES[state] == DEAD and record not in self._told:
            with self._lock:
                if self._reserved.pop(record, None) is None:
                    return None
            self._told.add(record)
        if record not in self._told:
            if about is None:  # it has ended meanwhile: the next look would say so
                return None
            class_name, own_name, namespace, detached, job, max_restarts, _ = about
            actor = Actor(
                self.key(record), class_name, job, namespace, own_name, detached, max_restarts, home=self._node_id
            )
            try:
                self._gcs.call(commands.ActorRegister(actor))
            except GcsRequestError as error:  # of an agent that came back late: another has the name
                print(f"actor {actor.actor_id.hex()} is not in the cluster's table: {error}", flush=True)
                return None
            self._told.add(record)
            with self._lock:
                self._reserved.pop(record, None)
        name = ACTOR_STATES[state] if state != STARTING or not restarts else RESTARTING
        if name == DEAD:
            return self._dead(record, restarts, about)
        epoch = self.epoch_of(creation) if name == ALIVE and foreign else 0
        return commands.ActorState(self.key(record), name, restarts, epoch, pid)

    def _dead(self, record: int, restarts: int, about: About | None) -> commands.ActorState:
        return commands.ActorState(self.key(record), DEAD, restarts, reason=why_text(about[6] if about else 0))

    def _given_up(self) -> list[commands.ActorState]:
        with self._lock:
            for state in self._reserved.values():
                state[1] = 0 if self._watch.is_written(state[0]) else state[1] + 1
            gone = [record for record, (_, looks) in self._reserved.items() if looks >= LOOKS]
            for record in gone:
                del self._reserved[record]
        return [commands.ActorState(self.key(record), DEAD, reason="it was never made") for record in gone]

    def _tell(self, epoch: int, states: list[commands.ActorState]) -> None:
        for state in states:
            if state.state == ALIVE and not state.epoch:
                state.epoch = epoch
        if states:
            self._gcs.call(commands.ActorsReport(epoch, states))
