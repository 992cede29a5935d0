"""Actors: their names, states, restarts, and where they are.

    PENDING_CREATION --started--> ALIVE --failed--> RESTARTING --started--> ALIVE ...
           any of these --no restarts left, killed, its job ended--> DEAD

    life    the actor's `restarts` so far; a report of another life is refused, so that a late word of a dead
            process changes nothing

A name is unique within its namespace among actors that are not DEAD. The DEAD_MAX youngest dead ones are
kept. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.node_table import NodeTable
from fastray.gcs.records import ALIVE, DEAD, PENDING_CREATION, RESTARTING, Actor
from fastray.gcs.table import Changes, Refused, Table

DEAD_MAX = 10_000


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
        if actor.actor_id in self.rows:
            raise Refused("exists", f"actor {actor.actor_id.hex()} is registered")
        holder = self._names.get((actor.namespace, actor.name)) if actor.name else None
        if holder is not None:
            if command.get_if_exists:
                return self.rows[holder]
            raise Refused("exists", f"namespace {actor.namespace!r} has an actor {actor.name!r}")
        actor.state, actor.restarts, actor.epoch = PENDING_CREATION, 0, 0
        actor.created_at, actor.ended_at, actor.reason = now, 0.0, ""
        if actor.name:
            self._names[actor.namespace, actor.name] = actor.actor_id
        self.put(changes, actor.actor_id, actor)
        return actor

    def _life(self, key: bytes, restarts: int) -> Actor:
        actor = self.require(key, "actor")
        if actor.state == DEAD or actor.restarts != restarts:
            raise Refused("stale", f"actor {key.hex()} is {actor.state} in life {actor.restarts}")
        return actor

    def started(self, command: commands.ActorStarted, changes: Changes) -> Actor:
        self._nodes.alive(command.epoch)
        actor = self._life(command.actor_id, command.restarts)
        if actor.state == ALIVE and actor.epoch != command.epoch:
            raise Refused("stale", f"actor {command.actor_id.hex()} runs elsewhere")
        actor.state, actor.epoch, actor.worker = ALIVE, command.epoch, command.worker
        self.put(changes, command.actor_id, actor)
        return actor

    def failed(self, command: commands.ActorFailed, now: float, changes: Changes) -> Actor:
        self._nodes.alive(command.epoch)
        actor = self._life(command.actor_id, command.restarts)
        if actor.state == ALIVE and actor.epoch != command.epoch:
            raise Refused("stale", f"actor {command.actor_id.hex()} runs elsewhere")
        self._end_life(actor, command.reason, command.restart, now, changes)
        return actor

    def kill(self, command: commands.ActorKill, now: float, changes: Changes) -> Actor:
        actor = self.require(command.actor_id, "actor")
        if actor.state != DEAD and (command.no_restart or actor.state != RESTARTING):
            self._end_life(actor, command.reason, not command.no_restart, now, changes)
        return actor

    def _end_life(self, actor: Actor, reason: str, restart: bool, now: float, changes: Changes) -> None:
        changes.urgent = True
        actor.reason, actor.epoch, actor.worker = reason, 0, 0
        if restart and (actor.max_restarts < 0 or actor.restarts < actor.max_restarts):
            actor.state = RESTARTING
            actor.restarts += 1
            self.put(changes, actor.actor_id, actor)
            return
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

    def node_died(self, epoch: int, reason: str, now: float, changes: Changes) -> None:
        for actor in [a for a in self.rows.values() if a.epoch == epoch and a.state == ALIVE]:
            self._end_life(actor, f"node died: {reason}", True, now, changes)

    def job_ended(self, job: int, now: float, changes: Changes) -> None:
        for actor in [a for a in self.rows.values() if a.job == job and not a.detached and a.state != DEAD]:
            self._end_life(actor, "its job ended", False, now, changes)

    def classes_in_use(self) -> set[bytes]:
        return {actor.class_hash for actor in self.rows.values() if actor.state != DEAD}

    def is_valid(self) -> bool:
        named = [a for a in self.rows.values() if a.name and a.state != DEAD]
        names: list[bytes] = [a.actor_id for a in named]
        return (
            super().is_valid()
            and sorted(names) == sorted(self._names.values())
            and set(self._dead) == {key for key, a in self.rows.items() if a.state == DEAD}
            and all((a.epoch != 0) == (a.state == ALIVE) for a in self.rows.values())
        )
