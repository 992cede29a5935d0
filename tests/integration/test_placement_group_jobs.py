"""Placement groups of a daemon's jobs: they go with their driver, unless they are detached; names belong to namespaces.

    daemon    one node of 2 CPUs for the module; each test's drivers come and go
"""

from __future__ import annotations

import pytest
from daemon_helpers import idle
from integration_helpers import eventually

import fastray
from fastray.exceptions import PlacementGroupExistsError
from fastray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside

GET_S = 30.0

VICTIM = """
import sys, time, fastray
from fastray.util.placement_group import placement_group
from fastray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside

fastray.init(address=sys.argv[1], namespace="victim")

@fastray.remote(num_cpus=1)
class Actor:
    def ping(self): return 1

@fastray.remote
def hang(): time.sleep(1000)

pg = placement_group([{"CPU": 1}, {"CPU": 1}], name="mine")
actor = Actor.options(scheduling_strategy=Inside(pg, 0)).remote()
fastray.get(actor.ping.remote())
tasks = [hang.options(scheduling_strategy=Inside(pg, 1)).remote() for _ in range(3)]
print("ready", flush=True)
time.sleep(1000)
"""


@fastray.remote
def f(x):
    return x


def states():
    return sorted(row["state"] for row in placement_group_table().values())


def test_a_group_goes_with_its_job(daemon):
    before = idle(daemon)
    with fastray.init(address=daemon.path, namespace="here"):
        pg = placement_group([{"CPU": 2}], name="ours")
        assert fastray.get(f.options(scheduling_strategy=Inside(pg)).remote(1), timeout=GET_S) == 1
        waits = placement_group([{"CPU": 1}])
        assert not waits.wait(0.02)
    with fastray.init(address=daemon.path, namespace="here"):
        assert eventually(lambda: fastray.available_resources().get("CPU") == 2)
        assert states() == ["REMOVED", "REMOVED"]
        with pytest.raises(ValueError, match="no placement group named 'ours'"):
            get_placement_group("ours")
        assert placement_group([{"CPU": 2}], name="ours").wait(GET_S)
    assert idle(daemon)["functions"] == before["functions"]


def test_a_detached_group_outlives_its_job(daemon):
    with fastray.init(address=daemon.path, namespace="here"):
        pg = placement_group([{"CPU": 1}], name="kept", lifetime="detached")
        assert pg.wait(GET_S)
    with fastray.init(address=daemon.path, namespace="there"):
        with pytest.raises(ValueError, match="no placement group"):
            get_placement_group("kept")
        other = placement_group([{"CPU": 1}], name="kept")
        assert other.wait(GET_S)
    with fastray.init(address=daemon.path, namespace="here"):
        found = get_placement_group("kept")
        assert found.id == pg.id
        assert placement_group_table(found)["is_detached"]
        assert fastray.get(f.options(scheduling_strategy=Inside(found)).remote(2), timeout=GET_S) == 2
        with pytest.raises(PlacementGroupExistsError):
            placement_group([{"CPU": 1}], name="kept")
        remove_placement_group(found)
        assert eventually(lambda: fastray.available_resources()["CPU"] == 2)
    idle(daemon)


def test_a_group_of_a_detached_actor_goes_with_the_actor(daemon):
    @fastray.remote
    class Maker:
        def make(self):
            self.pg = placement_group([{"CPU": 1}])
            return self.pg.wait(GET_S), self.pg

    with fastray.init(address=daemon.path, namespace="here"):
        maker = Maker.options(name="maker", lifetime="detached").remote()
        ready, pg = fastray.get(maker.make.remote(), timeout=GET_S)
        assert ready
    with fastray.init(address=daemon.path, namespace="here"):
        assert placement_group_table(pg)["state"] == "CREATED"
        assert fastray.available_resources()["CPU"] == 1
        fastray.kill(fastray.get_actor("maker"))
        assert eventually(lambda: placement_group_table(pg)["state"] == "REMOVED")
        assert eventually(lambda: fastray.available_resources()["CPU"] == 2)
    idle(daemon)


def test_a_killed_driver_s_group_is_removed(daemon, start_program):
    victim = start_program(VICTIM, daemon.path)
    assert victim.stdout.readline() == "ready\n"
    with fastray.init(address=daemon.path, namespace="here"):
        assert "CPU" not in fastray.available_resources()
        waits = placement_group([{"CPU": 2}])
        assert not waits.wait(0.02)
        victim.kill()
        assert waits.wait(GET_S)
        remove_placement_group(waits)
        assert fastray.get([f.remote(i) for i in range(100)], timeout=GET_S) == list(range(100))
    idle(daemon)
