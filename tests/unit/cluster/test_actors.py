"""The node's actors told to the store: entries of its table in, rows of the store's table out."""

from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("grpc")

from fastray.cluster.actors import LOOKS, ActorReporter
from fastray.exceptions import GcsRequestError, GcsUnavailableError
from fastray.gcs import commands as c
from fastray.gcs.records import Actor, Node
from fastray.gcs.table import Changes, Context
from fastray.gcs.tables import GlobalState

SESSION = 7
PENDING, STARTING, ALIVE, RESTARTING, DEAD = 2, 3, 4, 5, 6  # ActorState
KILLED = 3  # ActorEnd


class Store:
    """A store in this process; answers nothing while `away`."""

    def __init__(self):
        self.state = GlobalState()
        self.state.begin("cluster")
        self.away = False
        self.said = []
        self.epoch = self.call(c.NodeRegister(Node(b"n", "h:1", {})))

    def call(self, command):
        if self.away:
            raise GcsUnavailableError(address="here", waited_s=1.0)
        self.said.append(type(command).__name__)
        result = self.state.apply(command, Context(b"client", 1.0), Changes())
        if isinstance(result, c.Failure):
            raise GcsRequestError(result.message, result.kind)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(result.value))

    def read(self, table):
        return self.state.tables[table].values()

    def rows(self):
        return {
            int.from_bytes(row.actor_id[8:], "big"): (row.state, row.restarts, row.epoch, row.worker)
            for row in self.state.actors.rows.values()
        }


class Watch:
    """What `ActorWatch` would see."""

    def __init__(self):
        self.rows = []
        self.written = set()
        self.names = {}

    def changed(self):
        rows, self.rows = self.rows, []
        return rows

    def see(self, record, state, restarts=0, pid=0):
        self.rows.append((record, record, state, restarts, pid, not pid))

    def describe(self, creation):
        return "K", self.names.get(creation, ""), "ns", False, 1, -1, KILLED

    def is_written(self, entry):
        return entry in self.written


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def reporter(store, watch):
    return ActorReporter(store, SESSION, b"n", watch)


def reserve(reporter, record, name, entry=3):
    actor = Actor(reporter.key(record), "K", namespace="ns", name=name, home=b"n")
    return reporter.reserve(actor, entry).actor_id == reporter.key(record)


def test_the_lives_of_an_actor_are_told(store, watch, reporter):
    told = []
    lives = ((PENDING, 0, 0), (STARTING, 0, 5), (ALIVE, 0, 5), (RESTARTING, 1, 0), (STARTING, 1, 6))
    for state, restarts, pid in lives:
        watch.see(1, state, restarts, pid)
        reporter.look(store.epoch)
        told.append(store.rows()[1][:2])
    assert told == [
        ("PENDING_CREATION", 0), ("PENDING_CREATION", 0), ("ALIVE", 0), ("RESTARTING", 1), ("RESTARTING", 1)
    ]  # fmt: skip
    watch.see(1, ALIVE, 1, 6)
    reporter.look(store.epoch)
    assert store.rows() == {1: ("ALIVE", 1, store.epoch, 6)}
    watch.see(1, DEAD, 1)
    reporter.look(store.epoch)
    assert store.rows() == {1: ("DEAD", 1, 0, 0)}
    assert store.state.actors.rows[reporter.key(1)].reason == "it was killed by fastray.kill()"


def test_an_actor_elsewhere_has_the_epoch_of_its_host(store, watch, reporter):
    other = store.call(c.NodeRegister(Node(b"other", "h:1", {})))
    reporter.epoch_of = {1: other}.__getitem__
    watch.see(1, ALIVE)
    reporter.look(store.epoch)
    assert store.rows() == {1: ("ALIVE", 0, other, 0)}


def test_one_that_ended_between_two_looks_is_not_told(store, watch, reporter):
    watch.see(1, DEAD)
    reporter.look(store.epoch)
    assert store.rows() == {}


def test_what_the_store_did_not_hear_is_told_later(store, watch, reporter):
    watch.see(1, ALIVE, 0, 5)
    reporter.look(store.epoch)
    store.away = True
    watch.see(1, DEAD)
    with pytest.raises(GcsUnavailableError):
        reporter.look(store.epoch)
    store.away = False
    reporter.look(store.epoch)
    assert store.rows() == {1: ("DEAD", 0, 0, 0)}
    said = len(store.said)
    reporter.look(store.epoch)
    assert len(store.said) == said


def test_a_name_is_reserved_before_its_actor_is_made(store, watch, reporter):
    watch.written.add(3)
    assert reserve(reporter, 1, "x")
    assert not reserve(reporter, 2, "x")
    assert (reporter.is_reserved(reporter.key(1)), reporter.is_reserved(reporter.key(2))) == (True, False)
    for _ in range(2 * LOOKS):
        reporter.look(store.epoch)
    watch.written.clear()
    watch.names[1] = "x"
    watch.see(1, ALIVE, 0, 5)
    for _ in range(2 * LOOKS):
        reporter.look(store.epoch)
    assert not reporter.is_reserved(reporter.key(1))
    assert store.rows() == {1: ("ALIVE", 0, store.epoch, 5)}


def test_a_reserved_name_is_free_again_when_its_actor_is_never_made(store, watch, reporter):
    watch.written.add(3)
    assert reserve(reporter, 1, "x")
    watch.written.clear()
    for _ in range(LOOKS):
        reporter.look(store.epoch)
    assert store.rows()[1][0] == "DEAD"
    assert reserve(reporter, 2, "x")


@pytest.mark.parametrize("away", [False, True])
def test_a_reserved_one_that_ended_before_a_look_is_told(store, watch, reporter, away):
    assert reserve(reporter, 1, "x")
    watch.see(1, DEAD)
    if away:
        store.away = True
        with pytest.raises(GcsUnavailableError):
            reporter.look(store.epoch)
        store.away = False
    reporter.look(store.epoch)
    assert store.rows()[1][0] == "DEAD"


def test_the_next_agent_tells_what_lives_and_what_does_not(store, watch, reporter):
    for record in (1, 2, 3):
        watch.see(record, ALIVE, 0, record)
    reporter.look(store.epoch)
    epoch = store.call(c.NodeRegister(Node(b"n", "h:1", {})))  # all of them ended with the epoch before
    second = ActorReporter(store, SESSION, b"n", watch)
    watch.see(1, ALIVE, 0, 1)
    watch.see(3, RESTARTING, 1)
    second.begin(epoch)
    assert store.rows() == {1: ("ALIVE", 0, epoch, 1), 2: ("DEAD", 0, 0, 0), 3: ("RESTARTING", 1, 0, 0)}


def test_the_next_agent_ends_what_was_registered_and_never_made(store, watch, reporter):
    assert reserve(reporter, 1, "x")
    ActorReporter(store, SESSION, b"n", watch).begin(store.epoch)
    assert store.rows()[1][0] == "DEAD"


def test_an_actor_whose_name_another_has_lives_on_outside_of_the_table(store, watch, reporter, capsys):
    store.call(c.NodeRegister(Node(b"m", "h:1", {})))
    store.call(c.ActorRegister(Actor(b"another", "K", namespace="ns", name="x", home=b"m")))
    watch.names[1] = "x"
    watch.see(1, ALIVE, 0, 5)
    reporter.look(store.epoch)
    assert "is not in the cluster's table" in capsys.readouterr().out
    watch.see(1, DEAD)
    reporter.look(store.epoch)
    assert 1 not in store.rows()
