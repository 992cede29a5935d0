"""Placement groups in the tables: proposed, agreed to, placed; what deaths and returns of nodes make of them."""

from __future__ import annotations

import pytest
from gcs_transcripts import World, kind

from fastray.gcs import commands as c
from fastray.gcs.records import PlacementGroup


@pytest.fixture
def world():
    return World()


def group_of(world, key=b"g"):
    row = world.say(c.GroupGet(key))
    return row.state, row.attempt, row.epochs


def placed(world, epochs, attempt=0, key=b"g"):
    """Proposed, and agreed to by all."""
    world.say(c.GroupPropose(key, attempt, epochs))
    return [kind(world.say(c.GroupAgree(key, attempt + 1, epoch))) for epoch in dict.fromkeys(epochs)]


def test_a_group_ends_with_its_job_unless_an_actor_made_it_on_a_node_that_lives(world):
    world.join(b"n1")
    job = world.say(c.JobStart("ns"), b"driver")
    for key, more in ((b"g", {}), (b"h", {"node": b"n1", "in_actor": True}), (b"i", {"node": b"n2", "in_actor": True})):
        world.say(c.GroupCreate(PlacementGroup(key, [{"CPU": 1.0}], job=job, **more)))
    world.say(c.JobEnd(job))
    assert [world.say(c.GroupGet(key)).state for key in (b"g", b"h", b"i")] == ["REMOVED", "PENDING", "REMOVED"]


def test_groups_made_at_one_time_have_an_order(world):
    world.join(b"n1")
    keys = [b"d", b"a", b"c", b"b"]
    for key in keys[:2]:
        world.say(c.GroupCreate(PlacementGroup(key, [{"CPU": 1.0}])))
    world.restart()
    for key in keys[2:]:
        world.say(c.GroupCreate(PlacementGroup(key, [{"CPU": 1.0}])))
    created = [world.say(c.GroupGet(key)).created_at for key in keys]
    assert created == sorted(set(created))


def test_a_group_is_placed_when_all_nodes_have_agreed(world):
    first, second = world.join(b"n1"), world.join(b"n2", b"d2")
    world.say(c.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}, {"CPU": 2.0}], "SPREAD", name="x")))
    assert world.say(c.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}]))).name == "x"  # said twice
    assert world.say(c.GroupByName("", "x")).state == "PENDING"
    assert kind(world.say(c.GroupPropose(b"g", 0, [first]))) == "invalid"
    assert kind(world.say(c.GroupPropose(b"g", 0, [first, 99]))) == "stale"
    assert world.say(c.GroupPropose(b"g", 0, [first, second])).attempt == 1
    assert kind(world.say(c.GroupPropose(b"g", 0, [first, second]))) == "stale"  # of another proposer
    assert kind(world.say(c.GroupAgree(b"g", 0, first))) == "stale"
    assert world.say(c.GroupAgree(b"g", 1, first)).state == "PENDING"
    assert world.say(c.GroupAgree(b"g", 1, first)).agreed == [first]
    world.restart()
    row = world.say(c.GroupAgree(b"g", 1, second))
    assert (row.state, row.epochs, row.proposed, row.agreed) == ("PLACED", [first, second], [], [])
    assert kind(world.say(c.GroupAgree(b"g", 1, second))) == "stale"


def test_a_proposal_ends_when_it_is_withdrawn_and_when_a_node_of_it_dies(world):
    first, second = world.join(b"n1"), world.join(b"n2", b"d2")
    world.say(c.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}, {"CPU": 2.0}])))
    world.say(c.GroupPropose(b"g", 0, [first, second]))
    world.say(c.GroupAgree(b"g", 1, first))
    assert world.say(c.GroupPropose(b"g", 1, [])).agreed == []
    assert kind(world.say(c.GroupAgree(b"g", 1, second))) == "stale"
    world.say(c.GroupPropose(b"g", 2, [first, second]))
    world.say(c.NodeDied(second, "x"))
    row = world.say(c.GroupGet(b"g"))
    assert (row.state, row.attempt, row.proposed) == ("PENDING", 4, [])
    assert kind(world.say(c.GroupAgree(b"g", 3, first))) == "stale"


def test_a_placement_group_loses_a_node_and_is_placed_again(world):
    first, second = world.join(b"n1"), world.join(b"n2", b"d2")
    world.say(c.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}, {"CPU": 2.0}], "SPREAD", name="x")))
    assert placed(world, [first, second]) == ["", ""]
    world.say(c.NodeDied(first, "x"))
    assert group_of(world) == ("RESCHEDULING", 2, [0, second])
    world.restart()
    assert kind(world.say(c.GroupPropose(b"g", 1, [second, second]))) == "stale"  # of the older search
    assert kind(world.say(c.GroupPropose(b"g", 2, [first, second]))) == "stale"  # on a dead node
    third = world.join(b"n3", b"d3")
    assert kind(world.say(c.GroupPropose(b"g", 2, [second, third]))) == "invalid"  # a bundle that is left stays
    world.say(c.GroupPropose(b"g", 2, [third, second]))
    assert kind(world.say(c.GroupAgree(b"g", 3, second))) == "invalid"  # it was not asked
    assert world.say(c.GroupAgree(b"g", 3, third)).state == "PLACED"
    assert world.say(c.GroupRemove(b"g")).state == "REMOVED"
    assert kind(world.say(c.GroupByName("", "x"))) == "missing"


def test_a_node_that_comes_back_has_its_bundles(world):
    first, second = world.join(b"n1"), world.join(b"n2", b"d2")
    for key in (b"g", b"h"):
        world.say(c.GroupCreate(PlacementGroup(key, [{"CPU": 1.0}, {"CPU": 1.0}])))
        placed(world, [first, second], key=key)
    again = world.join(b"n1")  # before it was given up
    assert group_of(world) == ("PLACED", 3, [again, second])
    world.say(c.NodeDied(again, "x"))
    world.restart()
    placed(world, [second, second], 4, b"h")  # meanwhile
    last = world.join(b"n1")
    assert group_of(world) == ("PLACED", 5, [last, second])
    assert group_of(world, b"h") == ("PLACED", 5, [second, second])
    world.say(c.NodeDied(last, "x"))
    world.say(c.NodeDied(second, "x"))
    world.join(b"n1")
    assert group_of(world)[0] == "RESCHEDULING"
