"""Jobs of nodes in the store: numbers that are reserved, jobs that outlive their node's agent. See test_tables.py."""

from __future__ import annotations

import pytest
from gcs_transcripts import World, kind

from fastray.gcs import commands as c
from fastray.gcs import records


@pytest.fixture
def world():
    return World()


def test_a_store_keeps_its_id(world):
    assert world.state.cluster == ""
    world.state.begin("first")
    world._persist(world.state.begin("second"))
    assert world.state.cluster == "first"
    world.restart()
    assert world.state.cluster == "first"


def test_numbers_of_jobs_are_reserved_once_also_over_a_restart(world):
    assert world.say(c.JobsReserve(64)) == 1
    assert world.say(c.JobStart("ns", "x", b"n", job_id=3)) == 3
    assert world.say(c.JobStart("ns", "x", b"n")) == 65  # one that reserves nothing
    world.restart()
    assert world.say(c.JobsReserve(2)) == 66
    assert world.say(c.JobStart("ns", "x", b"n")) == 68
    assert world.say(c.JobStart("ns", "x", b"n", job_id=64)) == 64
    for wrong in (0, -1, 10_001):
        assert kind(world.say(c.JobsReserve(wrong))) == "invalid"
    assert kind(world.say(c.JobStart("ns", "x", b"n", job_id=69))) == "invalid"
    assert kind(world.say(c.JobStart("ns", "x", b"other", job_id=3))) == "exists"


def test_a_job_goes_on_under_the_next_agent_of_its_node(world):
    world.say(c.JobsReserve(64))
    for ended in (False, True):
        first, second = (b"first", b"second") if not ended else (b"third", b"fourth")
        number = 1 + ended
        world.say(c.JobStart("ns", "x", b"n", {"pid": "7"}, number), client=first)
        started = world.state.jobs.rows[world.state.jobs.key(number)].started_at
        world.now += 5
        if ended:
            world.gone(first)
            assert world.state.jobs.of_client(first) == []
        assert world.say(c.JobStart("ns", "x", b"n", {"pid": "7"}, number), client=second) == number
        world.gone(first)
        (row,) = world.state.jobs.of_client(second)
        assert (row.state, row.started_at, row.ended_at, row.reason) == (records.RUNNING, started, 0.0, "")
        assert world.say(c.JobEnd(number), client=second) is True
    assert [row.state for row in world.state.jobs.rows.values()] == [records.FINISHED] * 2
