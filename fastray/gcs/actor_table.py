"""Actors: their names, states, restarts, and where they are.

    PENDING_CREATION, RESTARTING <--> ALIVE    as their home says
           any of these --it ended, its job or its home did--> DEAD

    home    the node whose table has the actor's entry: where it was created. It owns the actor, wherever that
            runs; what it says is so, and the actor ends with it

A name is unique within its namespace among actors that are not DEAD. The DEAD_MAX youngest dead ones are
kept. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.node_table import NodeTable
from fastray.gcs.records import ALIVE, DEAD, PENDING_CREATION, RESTARTING, Actor
from fastray.gcs.table import Changes, Refused, Table

DEAD_MAX = 10_000
HOME_DIED = "its node died"  # how the reason of those begins that ended with their home
STATES = (PENDING_CREATION, ALIVE, RESTARTING, DEAD)


class ActorTable(Table[Actor]):
    name, row = "actor", Actor

    def __init__(self, nodes: NodeTable) -> None:
        super().__init__()
        self._nodes = nodes
        self._names: dict[tuple[str, str], bytes] = {}
        self._dead: dict[bytes, None] = {}  # oldest first

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        for key, row in sorted(self.rows.items(), key=lambda item: item[1].ended_at):
            if row.state == DEAD:
                self._dead[key] = None
            elif row.name:
                self._names[row.namespace, row.name] = key

    def register(self, command: commands.ActorRegister, now: float, changes: Changes) -> Actor:
        actor = command.actor
        if not actor.actor_id:
            raise Refused("invalid", "an actor needs an id")
        if actor.home:
            self._nodes.require_alive(actor.home)
        known = self.rows.get(actor.actor_id)
        if known is not None and known.home != actor.home:
            raise Refused("exists", f"actor {actor.actor_id.hex()} is registered")
        if known is not None and known.state != DEAD:
            return known
        holder = self._names.get((actor.namespace, actor.name)) if actor.name else None
        if holder is not None:
            if command.get_if_exists:
                return self.rows[holder]
            raise Refused("exists", f"namespace {actor.namespace!r} has an actor {actor.name!r}")
        actor.state, actor.restarts, actor.epoch = PENDING_CREATION, 0, 0
        actor.created_at, actor.ended_at, actor.reason = now, 0.0, ""
        if actor.name:
            self._names[actor.namespace, actor.name] = actor.actor_id
        self._dead.pop(actor.actor_id, None)
        self.put(changes, actor.actor_id, actor)
        return actor

    def report(self, command: commands.ActorsReport, now: float, changes: Changes) -> int:
        home = self._nodes.alive(command.epoch).node_id
        for said in command.actors:
            if said.state not in STATES:
                raise Refused("invalid", f"an actor cannot be {said.state!r}")
        known = 0
        for said in command.actors:
            actor = self.rows.get(said.actor_id)
            if actor is None or actor.home != home or actor.state == DEAD:
                continue
            known += 1
            if said.state == DEAD:
                self._end(actor, said.reason, now, changes)
                continue
            actor.state, actor.restarts, actor.reason = said.state, said.restarts, said.reason
            runs = said.state == ALIVE
            actor.epoch, actor.worker = (said.epoch, said.worker) if runs else (0, 0)
            self.put(changes, said.actor_id, actor)
        return known

    def _end(self, actor: Actor, reason: str, now: float, changes: Changes) -> None:
        changes.urgent = True
        actor.reason, actor.epoch, actor.worker = reason, 0, 0
        actor.state, actor.ended_at = DEAD, now
        if actor.name:
            self._names.pop((actor.namespace, actor.name), None)
        self.put(changes, actor.actor_id, actor)
        self._dead[actor.actor_id] = None
        while len(self._dead) > DEAD_MAX:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            self.drop(changes, oldest)

    def by_name(self, namespace: str, name: str) -> Actor:
        key = self._names.get((namespace, name))
        if key is None:
            raise Refused("missing", f"namespace {namespace!r} has no actor {name!r}")
        return self.rows[key]

    def names(self) -> list[tuple[str, str]]:
        return sorted(self._names)

    def node_died(self, node_id: bytes, reason: str, now: float, changes: Changes) -> None:
        for actor in [a for a in self.rows.values() if a.home == node_id and a.state != DEAD]:
            self._end(actor, f"{HOME_DIED}: {reason}", now, changes)

    def job_ended(self, job: int, now: float, changes: Changes) -> None:
        for actor in [a for a in self.rows.values() if a.job == job and not a.detached and a.state != DEAD]:
            self._end(actor, "its job ended", now, changes)

    def classes_in_use(self) -> set[bytes]:
        return {actor.class_hash for actor in self.rows.values() if actor.state != DEAD}

    def is_valid(self) -> bool:
        named = [a for a in self.rows.values() if a.name and a.state != DEAD]
        names: list[bytes] = [a.actor_id for a in named]
        return (
            super().is_valid()
            and sorted(names) == sorted(self._names.values())
            and set(self._dead) == {key for key, a in self.rows.items() if a.state == DEAD}
            and all(a.epoch == 0 or a.state == ALIVE for a in self.rows.values())
        )
