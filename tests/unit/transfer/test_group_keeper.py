"""Rows of a placement group come by two ways, as events and as answers: the older one is not taken for news. And which
groups have lost their job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("msgspec")
pytest.importorskip("grpc")

from fastray.gcs import commands as c
from fastray.gcs.records import PlacementGroup
from fastray.gcs.table import Changes
from fastray.gcs.tables import GlobalState
from fastray.transfer.group_keeper import JOB_RETURN_S, GroupKeeper, _age


def test_the_age_of_a_row_grows_with_each_change():
    state, now, ages = GlobalState(), 0.0, []
    from fastray.gcs.records import Node
    from fastray.gcs.table import Context

    def say(command):
        result = state.apply(command, Context(b"client", now), Changes())
        row = state.groups.rows.get(b"g")
        if row is not None:
            ages.append(_age(row))
        return getattr(result, "value", result)

    first, second = (say(c.NodeRegister(Node(name, "", {"CPU": 2.0}))) for name in (b"n1", b"n2"))
    say(c.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}, {"CPU": 1.0}])))
    say(c.GroupPropose(b"g", 0, [first, second]))
    say(c.GroupAgree(b"g", 1, second))
    say(c.GroupPropose(b"g", 1, []))
    say(c.GroupPropose(b"g", 2, [first, second]))
    say(c.GroupAgree(b"g", 3, first))
    assert say(c.GroupAgree(b"g", 3, second)).state == "PLACED"
    say(c.NodeDied(first, "x"))
    say(c.NodeRegister(Node(b"n1", "", {"CPU": 2.0})))
    assert state.groups.rows[b"g"].state == "PLACED"
    say(c.GroupRemove(b"g"))
    assert ages == sorted(set(ages))
    assert len(ages) == 10


class Keeper(GroupKeeper):
    """Of an agent that knows these jobs; notes what it ends."""

    def __init__(self, rows, ended, known):
        self.rows = {row.group_id: row for row in rows}
        self._jobless = {}
        self._agent = SimpleNamespace(ended_jobs=lambda: ended, known_jobs=lambda: known)
        self.removed = set()

    def _submit(self, key, command, nodes=None):
        self.removed.add(command.group_id)


def test_groups_end_with_their_job_also_when_nobody_was_told_of_it():
    def group(name, job, node, **more):
        return PlacementGroup(name, [{"CPU": 1.0}], job=job, node=node, **more)

    rows = [
        group(b"over", 1, b"n1"),
        group(b"of an actor", 1, b"n1", in_actor=True),
        group(b"detached", 1, b"n1", detached=True),
        group(b"runs", 2, b"gone"),  # its driver is elsewhere
        group(b"not told yet", 3, b"n1"),
        group(b"never told", 3, b"gone"),
    ]
    keeper = Keeper(rows, ended={1}, known={1, 2})
    keeper._end_jobless(0.0, {b"n1": 1})
    assert not keeper.removed
    keeper._end_jobless(JOB_RETURN_S, {b"n1": 1})
    assert keeper.removed == {b"over", b"never told"}
