"""Random commands, deaths and restarts from a seed: invariants hold, a restart loses nothing, a command is done
or refused, and never a bug of the store. FASTRAY_GCS_SEEDS runs more seeds.
"""

from __future__ import annotations

import os
import random

import pytest
from gcs_transcripts import World, kind

from fastray.gcs import commands as c
from fastray.gcs.records import Actor, Node, PlacementGroup, Task

SEEDS = int(os.environ.get("FASTRAY_GCS_SEEDS", "40"))
STEPS = 150


class Chance(random.Random):
    def id(self) -> bytes:
        return b"%d" % self.randint(0, 4)

    def ids(self) -> list[bytes]:
        return [self.id() for _ in range(self.randint(0, 3))]

    def epoch(self) -> int:
        return self.randint(0, 12)

    def name(self) -> str:
        return self.choice(["", "x", "y"])

    def task(self) -> Task:
        state = self.choice(["RUNNING", "RUNNING", "FINISHED", "FAILED"])
        return Task(self.id(), self.choice("fg"), self.randint(0, 1), self.randint(0, 3), state=state)

    def actor(self) -> Actor:
        return Actor(
            self.id(), "K", self.randint(0, 3), "n", self.name(), self.random() < 0.3, self.randint(-1, 2), self.id(),
            home=self.choice([b"", self.id()]),
        )

    def actor_state(self) -> c.ActorState:
        state = self.choice(["ALIVE", "RESTARTING", "DEAD"])
        return c.ActorState(self.id(), state, self.randint(0, 2), self.epoch())

    def group(self) -> PlacementGroup:
        bundles = [{"CPU": 1.0}] * self.randint(0, 2)
        return PlacementGroup(self.id(), bundles, self.choice(["PACK", "NONE"]), self.randint(0, 3), name=self.name())

    def command(self) -> c.Command:
        made = [
            lambda: c.NodeRegister(Node(self.id(), "h:1", {"CPU": 1.0})),
            lambda: c.NodeDrain(self.epoch()),
            lambda: c.NodeDied(self.epoch(), "x"),
            lambda: c.JobStart("n"),
            lambda: c.JobEnd(self.randint(0, 5)),
            lambda: c.ObjectsAdd(self.epoch(), [(key, 1, b"") for key in self.ids()]),
            lambda: c.ObjectsEvict(self.epoch(), self.ids()),
            lambda: c.ObjectsDelete(self.ids()),
            lambda: c.ObjectsLocate(self.ids()),
            lambda: c.ObjectsAdd(self.epoch(), [(key, 1, b"") for key in self.ids()], self.epoch()),
            lambda: c.ObjectsList(),
            lambda: c.ObjectsWatch(self.ids()),
            lambda: c.ObjectsUnwatch(self.ids()),
            lambda: c.TasksReport(self.epoch(), [self.task(), self.task()]),
            lambda: c.TasksReport(self.epoch(), [self.task()], survived=[(self.id(), self.randint(0, 1))]),
            lambda: c.TasksList(state="FAILED"),
            lambda: c.TasksSummary(),
            lambda: c.FunctionPut(self.id(), b"code", self.randint(0, 3)),
            lambda: c.FunctionGet(self.id()),
            lambda: c.KvPut("n", self.id(), self.id(), self.random() < 0.5),
            lambda: c.KvDelete("n", self.id(), self.random() < 0.5),
            lambda: c.KvKeys("n"),
            lambda: c.Publish("x", b"m"),
            lambda: c.ActorRegister(self.actor(), self.random() < 0.5),
            lambda: c.ActorsReport(self.epoch(), [self.actor_state(), self.actor_state()]),
            lambda: c.ActorNames(),
            lambda: c.ActorGet(self.id()),
            lambda: c.ActorByName("n", self.name()),
            lambda: c.GroupCreate(self.group()),
            lambda: c.GroupPropose(self.id(), self.randint(0, 3), [self.epoch()] * self.randint(0, 2)),
            lambda: c.GroupAgree(self.id(), self.randint(0, 3), self.epoch()),
            lambda: c.GroupRemove(self.id()),
            lambda: c.GroupGet(self.id()),
            lambda: c.GroupByName("", self.name()),
            lambda: c.TableRead(self.choice(["node", "actor", "kv"])),
            lambda: c.TableSince("node", self.randint(0, 100)),
        ]
        return self.choice(made)()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_commands_and_restarts(seed):
    chance, world = Chance(seed), World()
    for _ in range(STEPS):
        world.now += chance.random()
        event = chance.random()
        if event < 0.02:
            before = world.contents()
            world.restart()
            assert world.contents() == before
        elif event < 0.04:
            world.gone(chance.id())
        elif event < 0.06:
            world.state.client_closed(chance.id())
        elif event < 0.08:
            world._persist(world.state.tick())
        else:
            given = chance.command()
            result = world.say(given, chance.id())
            assert kind(result) != "internal", (given, result)
    assert {(t, k): v for t, rows in world.contents().items() for k, v in rows.items()} == {
        at: value for at, value in world.rows.items() if at[0] != "meta"
    }
