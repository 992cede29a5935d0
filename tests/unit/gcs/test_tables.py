"""The store's tables as transcripts: commands in, results, events and persisted rows out."""

from __future__ import annotations

import msgspec
import pytest
from gcs_transcripts import World, kind

from fastray.gcs import commands as c
from fastray.gcs import object_table, records, table, tables
from fastray.gcs.records import Actor, Node, PlacementGroup, Task


@pytest.fixture
def world():
    return World()


# ---- nodes --------------------------------------------------------------------------------------------


def test_each_registration_gets_an_epoch_of_its_own_also_after_a_restart(world):
    assert [world.join(b"n1"), world.join(b"n2")] == [1, 2]
    world.restart()
    assert world.join(b"n3") == 3
    assert world.join(b"n1") == 4  # the life of epoch 1 ended with this
    assert sorted(world.state.nodes.by_epoch) == [2, 3, 4]


def test_a_node_that_was_declared_dead_is_refused_with_its_old_epoch(world):
    epoch = world.join()
    assert world.say(c.NodeDied(epoch, "silent")) is True
    assert world.last.urgent
    assert world.say(c.NodeDied(epoch, "silent")) is False  # known
    for command in (
        c.ObjectsAdd(epoch, [(b"o", 1, b"")]),
        c.ObjectsEvict(epoch, [b"o"]),
        c.TasksReport(epoch, [Task(b"t", "f")]),
        c.ActorsReport(epoch, [c.ActorState(b"a", "ALIVE")]),
    ):
        assert kind(world.say(command)) == "stale"
    assert world.state.beat(c.Beat(b"d1", epoch, 1, False), world.last).fenced
    world.restart()
    assert kind(world.say(c.ObjectsAdd(epoch, [(b"o", 1, b"")]))) == "stale"


def test_a_node_without_an_id_or_with_negative_resources_is_refused(world):
    assert kind(world.say(c.NodeRegister(Node(b"", "h:1", {})))) == "invalid"
    assert kind(world.say(c.NodeRegister(Node(b"n", "h:1", {"CPU": -1.0})))) == "invalid"


def test_a_heartbeat_of_another_client_is_fenced(world):
    """Of a node that was registered with a store before this one: epochs count from 1 in each."""
    epoch = world.join()
    client = world.state.nodes.by_epoch[epoch].client
    assert not world.state.beat(c.Beat(client, epoch, 1, True, {"CPU": 1.0}), world.last).fenced
    assert world.state.beat(c.Beat(b"another", epoch, 2, True, {"CPU": 7.0}), world.last).fenced
    assert [row.available for row in world.state.nodes.loads.rows.values()] == [{"CPU": 1.0}]


def test_dead_nodes_are_kept_up_to_a_limit(world, monkeypatch):
    monkeypatch.setattr("fastray.gcs.node_table.DEAD_MAX", 2)
    for number in range(4):
        epoch = world.join(b"n%d" % number)
        world.now += 1
        world.say(c.NodeDied(epoch, "x"))
    assert sorted(world.state.nodes.rows) == [b"n2", b"n3"]
    assert {key for name, key in world.rows if name == "node"} == {b"n2", b"n3"}
    world.restart()
    assert world.join(b"n9") == 5  # epochs of dropped rows are not given again


def test_load_travels_as_deltas_and_is_asked_for_anew_when_one_is_missing(world):
    epoch = world.join(CPU=4.0, GPU=1.0)

    def beat(version, full=False, available=None, queues=None):
        return world.state.beat(
            c.Beat(b"d1", epoch, version, full, available or {}, queues or {}), world.last
        ).resync

    assert beat(1, available={"CPU": 3.0}) is False
    assert beat(2, queues={"f": [5.0, 0.1]}) is False
    load = world.state.nodes.loads.rows[b"n1"]
    assert (load.available, load.queues) == ({"CPU": 3.0, "GPU": 1.0}, {"f": [5.0, 0.1]})
    assert beat(2, queues={"f": [9.0, 0.1]}) is False  # a repeat changes nothing
    assert load.queues == {"f": [5.0, 0.1]}
    assert beat(4) is True  # version 3 is missing
    assert beat(5, full=True, available={"CPU": 1.0}) is False
    assert world.state.nodes.loads.rows[b"n1"].available == {"CPU": 1.0}
    assert beat(6, queues={"f": []}) is False
    world.restart()
    assert beat(7) is True  # a new server knows no load
    assert "load" not in {name for name, _ in world.rows}


# ---- objects ------------------------------------------------------------------------------------------


def test_a_callback_is_left_and_the_first_copy_calls_it_once(world):
    epoch = world.join()
    assert world.say(c.ObjectsWatch([b"o"]), b"w1") == [None]
    assert world.say(c.ObjectsWatch([b"o"]), b"w2") == [None]
    world.say(c.ObjectsAdd(epoch, [(b"o", 7, b"task")]))
    found = {client: msgspec.msgpack.decode(event.value) for client, event in world.last.callbacks}
    assert found == {b"w1": [7, [b"n1"], b"task"], b"w2": [7, [b"n1"], b"task"]}
    world.say(c.ObjectsAdd(epoch, [(b"o", 7, b"")]))
    assert world.last.callbacks == []
    assert world.say(c.ObjectsWatch([b"o"]), b"w1") == [(7, [b"n1"], b"task")]  # there: no callback is left
    assert world.state.objects._watchers == {}


def test_callbacks_of_a_client_whose_stream_closed_are_forgotten(world):
    world.say(c.ObjectsWatch([b"o", b"p"]), b"w1")
    world.say(c.ObjectsWatch([b"o"]), b"w2")
    world.say(c.ObjectsUnwatch([b"o", b"q"]), b"w2")
    world.state.client_closed(b"w1")
    assert world.state.objects.is_valid()
    assert world.state.objects._watchers == {}


def test_copies_on_a_dead_node_do_not_count_and_cost_no_write(world):
    first, second = world.join(b"n1"), world.join(b"n2", b"d2")
    world.say(c.ObjectsAdd(first, [(b"o", 7, b"t"), (b"p", 8, b"")]))
    world.say(c.ObjectsAdd(second, [(b"o", 7, b"")]))
    assert world.say(c.ObjectsLocate([b"o", b"p", b"q"])) == [(7, [b"n1", b"n2"], b"t"), (8, [b"n1"], b""), None]
    world.say(c.NodeDied(first, "x"))
    assert {name for name, _ in world.last.rows} == {"node"}
    assert world.say(c.ObjectsLocate([b"o", b"p"])) == [(7, [b"n2"], b"t"), (8, [], b"")]
    again = world.join(b"n1")  # a new life has none of the old copies
    assert world.say(c.ObjectsLocate([b"p"])) == [(8, [], b"")]
    world.say(c.ObjectsAdd(again, [(b"p", 8, b"")]))
    world.restart()
    assert world.say(c.ObjectsLocate([b"o", b"p"])) == [(7, [b"n2"], b"t"), (8, [b"n1"], b"")]


def test_objects_are_evicted_and_deleted(world):
    epoch = world.join()
    world.say(c.ObjectsAdd(epoch, [(b"o", 7, b"t"), (b"p", 8, b"")]))
    world.say(c.ObjectsEvict(epoch, [b"o", b"unknown"]))
    assert world.say(c.ObjectsLocate([b"o"])) == [(7, [], b"t")]
    assert world.say(c.ObjectsDelete([b"o", b"p", b"q"])) == 2
    assert world.say(c.ObjectsLocate([b"o", b"p"])) == [None, None]
    assert not [key for name, key in world.rows if name == "object"]


def test_lost_objects_are_kept_up_to_a_limit(world, monkeypatch):
    monkeypatch.setattr(object_table, "LOST_MAX", 3)
    epoch, other = world.join(), world.join(b"n2", b"d2")
    world.say(c.ObjectsAdd(epoch, [(b"%d" % i, 1, b"") for i in range(10)]))
    world.say(c.ObjectsAdd(other, [(b"0", 1, b"")]))
    world.say(c.NodeDied(epoch, "x"))
    world._persist(world.state.tick())
    assert sorted(world.state.objects.rows) == [b"0", b"7", b"8", b"9"]
    assert {key for name, key in world.rows if name == "object"} == set(world.state.objects.rows)


# ---- functions, keys and values -----------------------------------------------------------------------


def test_objects_end_with_their_owner(world):
    owner, other = world.join(b"n1"), world.join(b"n2", b"d2")
    world.say(c.ObjectsAdd(other, [(b"o", 7, b"t"), (b"p", 9, b"t")], owner))
    world.say(c.ObjectsAdd(owner, [(b"o", 7, b"t")], owner))
    world.say(c.ObjectsAdd(other, [(b"q", 8, b"u")]))  # nobody said whose
    assert world.say(c.ObjectsList(2)) == [(b"p", 9, [b"n2"], b"t"), (b"q", 8, [b"n2"], b"u")]
    world.say(c.NodeDied(owner, "x"))
    world.state.tick()
    assert world.say(c.ObjectsList()) == [(b"q", 8, [b"n2"], b"u")]


def test_a_function_lives_as_long_as_a_job_or_an_actor_of_it(world):
    first = world.say(c.JobStart("ns"), b"j1")
    second = world.say(c.JobStart("ns"), b"j2")
    assert (first, second) == (1, 2)
    assert world.say(c.FunctionPut(b"h", b"code", 1)) is True
    assert world.say(c.FunctionPut(b"h", b"code", 2)) is False
    assert world.say(c.FunctionPut(b"k", b"class", 1)) is True
    epoch = world.join()
    world.say(c.ActorRegister(Actor(b"a", "K", job=1, detached=True, class_hash=b"k", home=b"n1")))
    world.say(c.JobEnd(1))
    assert [world.say(c.FunctionGet(digest)) for digest in (b"h", b"k")] == [b"code", b"class"]
    world.say(c.ActorsReport(epoch, [c.ActorState(b"a", "DEAD")]))
    world.say(c.JobEnd(2))
    assert [kind(world.say(c.FunctionGet(digest))) for digest in (b"h", b"k")] == ["missing", "missing"]


def test_keys_and_values(world):
    assert world.say(c.KvPut("n", b"k1", b"v1")) is True
    assert world.say(c.KvPut("n", b"k1", b"v2", overwrite=False)) is False
    assert world.say(c.KvPut("n", b"k2", b"v2")) is True
    assert world.say(c.KvPut("m", b"k1", b"m1")) is True
    assert world.say(c.KvGet("n", [b"k1", b"k2", b"k3"])) == [b"v1", b"v2", None]
    assert world.say(c.KvKeys("n", b"k")) == [b"k1", b"k2"]
    assert kind(world.say(c.KvGet("a\0b", [b"k"]))) == "invalid"
    world.restart()
    assert world.say(c.KvDelete("n", b"k", prefix=True)) == 2
    assert world.say(c.KvDelete("n", b"k1")) == 0
    assert world.say(c.KvGet("m", [b"k1"])) == [b"m1"]


# ---- actors -------------------------------------------------------------------------------------------


def report(world, epoch, key, state, *about):
    return world.say(c.ActorsReport(epoch, [c.ActorState(key, state, *about)]))


def test_an_actor_is_what_its_home_says(world):
    home, other = world.join(b"n1"), world.join(b"n2", b"d2")
    world.say(c.ActorRegister(Actor(b"a", "K", name="x", namespace="n", max_restarts=1, home=b"n1")))
    assert report(world, home, b"a", "ALIVE", 0, other, 77) == 1
    row = world.say(c.ActorGet(b"a"))
    assert (row.state, row.restarts, row.epoch, row.worker) == ("ALIVE", 0, other, 77)
    assert report(world, other, b"a", "DEAD") == 0  # not its home
    world.say(c.NodeDied(other, "x"))  # its home will say what follows
    assert report(world, home, b"a", "RESTARTING", 1, other, 77) == 1
    row = world.say(c.ActorGet(b"a"))
    assert (row.state, row.restarts, row.epoch, row.worker) == ("RESTARTING", 1, 0, 0)
    assert report(world, home, b"a", "DEAD", 1, 0, 0, "it was killed") == 1
    assert world.last.urgent
    row = world.say(c.ActorGet(b"a"))
    assert (row.state, row.reason, row.ended_at) == ("DEAD", "it was killed", 1000.0)
    assert kind(world.say(c.ActorByName("n", "x"))) == "missing"
    assert report(world, home, b"a", "ALIVE") == 0  # a late word
    assert kind(report(world, home, b"a", "WELL")) == "invalid"
    assert kind(report(world, other, b"a", "ALIVE")) == "stale"


def test_an_actor_ends_with_its_home_and_lives_on_when_that_joins_again(world):
    epoch = world.join()
    actor = Actor(b"a", "K", name="x", namespace="n", home=b"n1")
    world.say(c.ActorRegister(actor))
    report(world, epoch, b"a", "ALIVE", 0, epoch)
    world.say(c.NodeDied(epoch, "x"))
    row = world.say(c.ActorGet(b"a"))
    assert (row.state, row.reason) == ("DEAD", "its node died: x")
    assert kind(world.say(c.ActorRegister(Actor(b"b", "K", home=b"n1")))) == "stale"
    again = world.join()
    world.say(c.ActorRegister(Actor(b"a", "K", name="x", namespace="n", home=b"n1")))
    assert report(world, again, b"a", "ALIVE", 2, again) == 1
    assert world.say(c.ActorByName("n", "x")).restarts == 2


def test_names_are_unique_in_a_namespace_while_their_actor_lives(world):
    epoch = world.join()
    world.say(c.ActorRegister(Actor(b"a", "K", name="x", namespace="n", home=b"n1")))
    assert kind(world.say(c.ActorRegister(Actor(b"b", "K", name="x", namespace="n", home=b"n1")))) == "exists"
    assert world.say(c.ActorRegister(Actor(b"b", "K", name="x", namespace="n", home=b"n1"), True)).actor_id == b"a"
    assert world.say(c.ActorRegister(Actor(b"b", "K", name="x", namespace="m", home=b"n1"))).actor_id == b"b"
    assert world.say(c.ActorNames()) == [("m", "x"), ("n", "x")]
    world.restart()
    assert world.say(c.ActorByName("n", "x")).actor_id == b"a"
    report(world, epoch, b"a", "DEAD")
    assert world.say(c.ActorNames()) == [("m", "x")]
    assert world.say(c.ActorRegister(Actor(b"d", "K", name="x", namespace="n", home=b"n1"))).actor_id == b"d"
    assert kind(world.say(c.ActorRegister(Actor(b"d", "K", home=b"")))) == "exists"  # of another home
    assert world.say(c.ActorRegister(Actor(b"d", "K", home=b"n1"))).name == "x"  # told again


# ---- jobs and placement groups ------------------------------------------------------------------------


def test_a_job_ends_with_its_driver_and_takes_its_own_with_it(world):
    job = world.say(c.JobStart("ns", "main.py"), b"driver")
    world.say(c.ActorRegister(Actor(b"a", "K", job=job)))
    world.say(c.ActorRegister(Actor(b"d", "K", job=job, detached=True)))
    world.say(c.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}], job=job)))
    world.say(c.GroupCreate(PlacementGroup(b"h", [{"CPU": 1.0}], job=job, detached=True)))
    assert world.state.owns(b"driver") == (False, True)
    changes = world.gone(b"driver", "its connection closed")
    assert changes.urgent
    assert [world.say(c.ActorGet(key)).state for key in (b"a", b"d")] == ["DEAD", "PENDING_CREATION"]
    assert [world.say(c.GroupGet(key)).state for key in (b"g", b"h")] == ["PENDING", "PENDING"]  # it may come back
    (row,) = world.state.jobs.values()
    assert (row.state, row.reason) == ("FAILED", "its connection closed")
    assert world.say(c.JobEnd(job)) is False
    assert kind(world.say(c.JobEnd(9))) == "missing"
    world.restart()
    assert world.say(c.JobStart("ns")) == 2


def test_goodbye_ends_what_is_the_clients_without_a_failure(world):
    epoch = world.join(client=b"c")
    world.batch(1, c.JobStart("ns"))
    world.batch(2, c.Goodbye())
    (job,) = world.state.jobs.values()
    assert job.state == "FINISHED"
    assert epoch not in world.state.nodes.by_epoch
    assert b"c" not in world.state.sessions.rows


@pytest.mark.parametrize(
    "group",
    [
        PlacementGroup(b"", [{"CPU": 1.0}]),
        PlacementGroup(b"g", []),
        PlacementGroup(b"g", [{"CPU": 1.0}], "ROUND_ROBIN"),
    ],
)
def test_a_placement_group_that_makes_no_sense_is_refused(world, group):
    assert kind(world.say(c.GroupCreate(group))) == "invalid"


# ---- batches, versions, restarts ----------------------------------------------------------------------


def test_a_repeated_batch_is_applied_once_also_by_the_next_server(world):
    reply = world.batch(1, c.JobStart("ns"), c.KvPut("n", b"k", b"v"))
    assert world.batch(1, c.JobStart("ns"), c.KvPut("n", b"k", b"v")) == reply
    assert not world.last
    world.restart()
    assert world.batch(1, c.JobStart("ns"), c.KvPut("n", b"k", b"v")) == reply
    assert len(world.state.jobs.rows) == 1
    world.batch(2, c.JobStart("ns"))
    assert len(world.state.jobs.rows) == 2
    with pytest.raises(tables.StaleBatch):
        world.batch(1, c.JobStart("ns"))


def test_a_batch_goes_on_after_a_refused_command_and_shows_rows_as_they_were(world):
    epoch = world.join()
    reply = world.batch(
        1,
        c.ActorRegister(Actor(b"a", "K", home=b"n1")),
        c.KvGet("a\0b", []),
        c.ActorGet(b"none"),
        c.ActorsReport(epoch, [c.ActorState(b"a", "ALIVE", 0, epoch)]),
        c.ActorGet(b"a"),
    )
    first, second, third, _, fourth = msgspec.msgpack.decode(reply, type=list[c.Result])
    decode = records.Actor.__struct_fields__.index("state")
    assert first.value[decode] == "PENDING_CREATION"
    assert fourth.value[decode] == "ALIVE"
    assert (second.value, third.kind) == ([], "missing")


def test_sessions_are_bounded(world, monkeypatch):
    monkeypatch.setattr(tables, "SESSIONS_MAX", 2)
    for number in range(3):
        world.batch(1, c.KvPut("n", b"k", b"v"), client=b"c%d" % number)
    assert list(world.state.sessions.rows) == [b"c1", b"c2"]
    assert {key for name, key in world.rows if name == "session"} == {b"c1", b"c2"}


def test_subscribers_poll_by_version(world, monkeypatch):
    start, rows = world.say(c.TableRead("node"))
    assert rows == []
    epoch = world.join()
    world.say(c.NodeDied(epoch, "x"))
    version, events = world.say(c.TableSince("node", start))
    assert [event.version for event in events] == [start + 1, start + 2]
    assert [msgspec.msgpack.decode(event.value, type=Node).state for event in events] == ["ALIVE", "DEAD"]
    assert world.say(c.TableSince("node", version)) == (version, [])
    assert world.say(c.TableSince("node", version + 1))[1] is None
    world.restart()
    later, events = world.say(c.TableSince("node", version))
    assert events is None  # a version of another server
    assert later > version
    assert kind(world.say(c.TableRead("session"))) == "missing"
    monkeypatch.setattr(table, "EVENTS_KEPT_MAX", 4)
    small = World()
    start, _ = small.say(c.TableRead("job"))
    for _ in range(6):
        small.say(c.JobStart("n"))
    assert small.say(c.TableSince("job", start))[1] is None
    assert len(small.say(c.TableSince("job", start + 2))[1]) == 4


def test_a_message_reaches_a_channel_and_leaves_nothing(world):
    world.say(c.Publish("logs", b"line"))
    (event,) = world.last.events
    assert (event.topic, event.version, event.value) == ("channel:logs", 0, b"line")
    assert not world.last.rows


def test_a_restart_has_what_was_persisted(world):
    epoch, other = world.join(), world.join(b"n2", b"d2")
    world.batch(1, c.JobStart("ns", "main.py", metadata={"a": "b"}), c.KvPut("n", b"k", b"v"))
    world.say(c.ActorRegister(Actor(b"a", "K", job=1, name="x", resources={"CPU": 0.5}, home=b"n1")))
    report(world, epoch, b"a", "ALIVE", 0, epoch)
    world.say(c.GroupCreate(PlacementGroup(b"g", [{"GPU": 0.5}], "STRICT_SPREAD")))
    world.say(c.GroupPropose(b"g", 0, [other]))
    world.say(c.GroupAgree(b"g", 1, other))
    world.say(c.ObjectsAdd(epoch, [(b"o", 7, b"t")]))
    world.say(c.FunctionPut(b"h", b"code", 1))
    world.say(c.TasksReport(epoch, [Task(b"t", "f"), Task(b"u", "f", state="FINISHED")]))
    world.say(c.NodeDied(other, "x"))
    before = world.contents()
    world.restart()
    assert world.contents() == before
