"""The placer of placement groups, played: what it proposes and withdraws, and when.

    World    nodes of 2 CPUs, groups, a clock; `decide` applies what is proposed as the store does
"""

from __future__ import annotations

import random

import pytest

from fastray.scheduling.group_placer import HASTY_S, PATIENT_S, RETURN_S, GroupPlacer, Wanted, place
from fastray.scheduling.resources import UNIT, add, units
from fastray.scheduling.view import Infeasible, NodeView

CPU = {"CPU": 1.0}


class World:
    def __init__(self, **cpus):
        self.total = {name.encode(): {"CPU": amount * UNIT} for name, amount in (cpus or {"a": 2, "b": 2}).items()}
        self.busy = {name: {} for name in self.total}  # what tasks and actors hold
        self.placer = GroupPlacer()
        self.groups = {}
        self.now = 0.0

    def want(self, name, *bundles, strategy="PACK", kept=None, lost=False):
        self.groups[name] = Wanted(
            name.encode(), 0, bundles, strategy, [{}] * len(bundles), {i: n.encode() for i, n in (kept or {}).items()},
            [], lost,
        )  # fmt: skip

    def views(self):
        """As heartbeats tell it: what is placed counts, what is proposed does not yet."""
        found = [NodeView(name, dict(total)) for name, total in sorted(self.total.items())]
        for node in found:
            add(node.available, self.busy[node.node_id], -1)
            add(node.available, self.held().get(node.node_id, {}), -1)
        return found

    def held(self):
        held = {}
        for group in self.groups.values():
            for index, node_id in group.kept.items():
                add(held.setdefault(node_id, {}), units(group.bundles[index]))
        return held

    def decide(self, after=0.0):
        """{name: nodes of the proposal, "" when it is withdrawn} of what is new."""
        self.now += after
        wanted = [group for group in self.groups.values() if len(group.kept) < len(group.bundles)]
        proposals = self.placer.decide(self.now, wanted, self.views(), self.held())
        said = {}
        for proposal in proposals:
            name = proposal.group_id.decode()
            self.groups[name] = self.groups[name]._replace(attempt=proposal.attempt + 1, proposed=proposal.nodes)
            said[name] = b"".join(proposal.nodes).decode()
        return said

    def agree(self, name):
        group = self.groups[name]
        self.groups[name] = group._replace(kept=dict(enumerate(group.proposed)), proposed=[])

    def remove(self, name):
        del self.groups[name]

    def hold(self, node, cpus):
        add(self.busy[node.encode()], {"CPU": cpus * UNIT})


def test_what_fits_is_proposed_at_once_and_once():
    world = World()
    world.want("g", CPU, CPU, strategy="STRICT_SPREAD")
    assert sorted(world.decide()["g"]) == ["a", "b"]
    assert world.decide() == {}


def test_several_groups_do_not_get_the_same_resources():
    world = World()
    for name in ("g", "h", "i"):
        world.want(name, CPU, CPU, strategy="STRICT_PACK")
    first = world.decide()
    assert sorted(first.values()) == ["aa", "bb"]
    for name in first:
        world.agree(name)
    assert world.decide() == {}
    world.remove("g")
    assert world.decide() == {"i": first["g"]}


def test_one_that_does_not_fit_waits_and_smaller_ones_pass():
    world = World()
    world.want("g", CPU, {"CPU": 2.0}, strategy="STRICT_SPREAD", kept={0: "a", 1: "b"})
    world.want("big", CPU, CPU, strategy="STRICT_PACK")
    world.want("small", CPU)
    assert world.decide()["small"] == "a"


def test_a_group_takes_its_turn_among_tasks_and_gives_back_when_it_waits_in_vain():
    world = World()
    world.hold("a", 2)
    world.want("g", {"CPU": 2.0}, {"CPU": 2.0}, strategy="STRICT_SPREAD")
    assert sorted(world.decide()["g"]) == ["a", "b"]
    assert world.placer.due == 0.0
    assert world.decide() == {}
    assert world.placer.due == pytest.approx(PATIENT_S)
    assert world.decide(PATIENT_S) == {"g": ""}
    assert world.decide(0.1) == {}  # nothing is free that was not
    world.busy[b"a"] = {}
    assert sorted(world.decide(0.1)["g"]) == ["a", "b"]


def test_it_is_more_patient_each_time():
    world = World()
    world.hold("a", 2)
    world.want("g", {"CPU": 2.0}, {"CPU": 2.0}, strategy="STRICT_SPREAD")
    patience = PATIENT_S
    for _ in range(3):
        assert world.decide()["g"] != ""
        world.decide()
        assert world.decide(0.9 * patience) == {}
        assert world.decide(0.1 * patience) == {"g": ""}
        assert world.decide(0.9 * patience) == {}
        world.now += 0.1 * patience
        patience *= 2


def test_it_waits_elsewhere_the_next_time():
    world = World()
    world.hold("a", 2)
    world.hold("b", 2)
    world.want("g", {"CPU": 2.0})
    first = world.decide()["g"]
    world.decide()
    assert world.decide(PATIENT_S) == {"g": ""}
    assert {first, world.decide(PATIENT_S)["g"]} == {"a", "b"}


def test_of_two_that_wait_the_younger_gives_way():
    world = World()
    world.want("g", CPU, CPU, strategy="STRICT_SPREAD")
    world.want("h", CPU, CPU, strategy="STRICT_SPREAD")
    assert set(world.decide()) == {"g", "h"}
    world.decide()
    assert world.decide(HASTY_S) == {"h": ""}
    assert world.decide(PATIENT_S - HASTY_S)["g"] == ""


def test_a_lost_bundle_waits_for_its_node_then_goes_elsewhere():
    world = World(a=2, b=2, c=2)
    world.want("g", CPU, CPU, strategy="STRICT_SPREAD", kept={0: "a"}, lost=True)
    assert world.decide() == {}
    assert world.placer.due == pytest.approx(RETURN_S)
    assert world.decide(RETURN_S)["g"] in ("ab", "ac")


def test_what_never_fits_is_not_proposed_until_a_node_joins():
    world = World()
    world.want("g", {"moon": 1.0})
    assert world.decide() == {}
    world.total[b"c"], world.busy[b"c"] = {"moon": UNIT}, {}
    assert world.decide() == {"g": "c"}


def test_labels():
    nodes = [NodeView(b"a", {"CPU": UNIT}, None, {"zone": "x"}), NodeView(b"b", {"CPU": UNIT}, None, {"zone": "y"})]
    group = Wanted(b"g", 0, [CPU, CPU], "PACK", [{"zone": "y"}, {"zone": "!y"}], {}, [], False)
    assert place(group, nodes) == [b"b", b"a"]
    assert nodes[0].total == {"CPU": UNIT}
    nowhere = place(group._replace(selectors=[{"zone": "z"}, {}]), nodes)
    assert isinstance(nowhere, Infeasible)
    assert "zone in (z)" in nowhere.reason


def test_of_nodes_that_are_as_good_the_one_where_it_was_made():
    nodes = [NodeView(name, {"CPU": 2 * UNIT}) for name in (b"a", b"b", b"c")]
    for strategy in ("PACK", "STRICT_PACK"):
        group = Wanted(b"g", 0, [CPU, CPU], strategy, [{}, {}], {}, [], False)
        for origin in (b"a", b"b", b"c"):
            assert place(group._replace(origin=origin), nodes) == [origin, origin]


@pytest.mark.parametrize("seed", range(30))
def test_all_are_placed_in_the_end(seed):
    """Groups that compete, agreed to by nodes in any order as far as there is room, removed when they are placed."""
    chance, world = random.Random(seed), World(a=2, b=2, c=2)
    for number in range(8):
        bundles = [{"CPU": float(chance.randint(1, 2))} for _ in range(chance.randint(1, 3))]
        world.want(str(number), *bundles, strategy=chance.choice(["PACK", "SPREAD", "STRICT_SPREAD"]))
    reserved = {}  # (name, attempt, node)
    for _ in range(3000):
        for name in world.decide(chance.random() * 0.2):
            for key in [key for key in reserved if key[0] == name]:
                del reserved[key]
        name = chance.choice(sorted(world.groups))
        group = world.groups[name]
        free = {node_id: dict(total) for node_id, total in world.total.items()}
        for amounts in (*((key[2], there) for key, there in reserved.items()), *world.held().items()):
            add(free[amounts[0]], amounts[1], -1)
        if group.proposed:
            node_id = chance.choice(group.proposed)
            wanted = {}
            for index, there in enumerate(group.proposed):
                if there == node_id:
                    add(wanted, units(group.bundles[index]))
            if wanted["CPU"] <= free[node_id]["CPU"]:
                reserved.setdefault((name, group.attempt, node_id), wanted)
            if all((name, group.attempt, there) in reserved for there in group.proposed):
                for key in [key for key in reserved if key[0] == name]:
                    del reserved[key]
                world.agree(name)
        elif len(group.kept) == len(group.bundles):
            world.remove(name)
        if not world.groups:
            return
    raise AssertionError(f"these wait for ever: {world.groups}")
