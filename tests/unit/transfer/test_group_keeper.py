"""Rows of a placement group come by two ways, as events and as answers: the older one is not taken for news."""

from __future__ import annotations

import pytest

pytest.importorskip("msgspec")
pytest.importorskip("grpc")

from fastray.gcs import commands as c
from fastray.gcs.records import PlacementGroup
from fastray.gcs.table import Changes
from fastray.gcs.tables import GlobalState
from fastray.transfer.group_keeper import _age


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
