"""Named actors of a cluster: one name for one actor, found from every node. Each test has a name of its own."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("grpc")

from cluster_helpers import far_cluster
from integration_helpers import eventually

import fastray
from fastray.cluster_utils import Cluster
from fastray.exceptions import ActorAlreadyExistsError, ActorDiedError

GET_S = 60


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with far_cluster(tmp_path_factory.mktemp("runtime"), resources={"far": 8}) as made:
        yield made


class Counter:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

    def node(self):
        return fastray.get_runtime_context().get_node_id()

    def pid(self):
        return os.getpid()

    def identity(self):
        return fastray.get_runtime_context().get_actor_id()


Here = fastray.remote(num_cpus=0)(Counter)
Far = fastray.remote(resources={"far": 0.1}, num_cpus=0)(Counter)
far = fastray.remote(resources={"far": 0.1}, num_cpus=0)


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def died(actor):
    try:
        get(actor.add.remote())
    except ActorDiedError:
        return True
    return False


@far
def use(name, namespace=None):
    return fastray.get(fastray.get_actor(name, namespace).add.remote())


@far
def refused(name):
    try:
        Here.options(name=name).remote()
    except ValueError as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize("actor_class", [Here, Far])
def test_an_actor_is_found_by_name_on_both_nodes(actor_class):
    name = f"both {actor_class is Far}"
    actor = actor_class.options(name=name).remote()
    assert get(use.remote(name)) == 1
    assert get(fastray.get_actor(name).add.remote()) == 2
    assert get(use.remote(name)) == 3
    assert get(actor.add.remote()) == 4


def test_an_actor_made_on_the_other_node_is_found_here(cluster):
    @far
    class Maker:
        def make(self, name):
            self.actor = Here.options(name=name).remote()
            return fastray.get(self.actor.node.remote())

    maker = Maker.remote()
    assert get(maker.make.remote("made there")) == cluster.far_node.node_id
    assert [get(fastray.get_actor("made there").add.remote()) for _ in range(2)] == [1, 2]
    assert "made there" in fastray.util.list_named_actors()
    assert get(far(fastray.util.list_named_actors).remote()) == fastray.util.list_named_actors()


def test_a_name_is_taken_in_the_whole_cluster():
    kept = Here.options(name="taken").remote()
    assert get(refused.remote("taken")) == (
        "ActorAlreadyExistsError",
        f"an actor named 'taken' exists in namespace {fastray.get_runtime_context().namespace!r}: use "
        "get_actor('taken'), get_if_exists=True, or another name",
    )
    with pytest.raises(ActorAlreadyExistsError):
        Far.options(name="taken").remote()
    assert get(kept.add.remote()) == 1


def test_get_if_exists_finds_the_one_on_another_node():
    kept = Here.options(name="if it exists").remote()
    assert get(kept.add.remote()) == 1

    @far
    def get_or_make():
        return fastray.get(Here.options(name="if it exists", get_if_exists=True).remote().add.remote())

    assert sorted(get([get_or_make.remote() for _ in range(3)])) == [2, 3, 4]


def test_many_that_want_one_name_at_once_get_one_actor(cluster):
    @fastray.remote(num_cpus=0, scheduling_strategy="SPREAD")
    def get_or_make():
        actor = Here.options(name="one for all", get_if_exists=True, lifetime="detached").remote()
        return fastray.get(actor.identity.remote()), fastray.get(actor.add.remote())

    answers = get([get_or_make.remote() for _ in range(8)])
    assert len({identity for identity, _ in answers}) == 1
    assert sorted(n for _, n in answers) == list(range(1, 9))
    fastray.kill(fastray.get_actor("one for all"))


@pytest.mark.parametrize("actor_class", [Here, Far])
def test_a_name_is_free_at_once_when_its_actor_was_killed(actor_class):
    name = f"again {actor_class is Far}"

    @far
    def kill(name):
        fastray.kill(fastray.get_actor(name))

    for _ in range(3):
        actor = actor_class.options(name=name).remote()
        assert get(actor.add.remote()) == 1
        get(kill.remote(name))
        assert eventually(lambda actor=actor: died(actor))  # the word of it is on its way
        actor = actor_class.options(name=name).remote()
        fastray.kill(actor)


def test_what_was_killed_from_the_other_node_can_be_made_there_at_once():
    actor = Here.options(name="moves").remote()
    assert get(actor.add.remote()) == 1

    @far
    def move():
        fastray.kill(fastray.get_actor("moves"))
        moved = Here.options(name="moves").remote()
        return fastray.get([moved.add.remote(), moved.node.remote()])

    n, node = get(move.remote())
    assert (n, node) != (2, fastray.get_runtime_context().get_node_id())


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    kept = Here.options(name="known").remote()
    with pytest.raises(ValueError, match=r"no actor named 'unknown' lives in namespace '.*'; it has .*known"):
        get(use.remote("unknown"))
    del kept


def test_a_name_ends_with_the_last_handle():
    actor = Far.options(name="short").remote()
    assert get(use.remote("short")) == 1
    del actor
    assert eventually(lambda: "short" not in fastray.util.list_named_actors())
    with pytest.raises(ValueError, match="no actor named 'short'"):
        get(use.remote("short"))


def test_namespaces_are_apart_on_all_nodes():
    actors = [Here.options(name="same", namespace=space).remote() for space in ("a", "b")]
    assert get(actors[1].add.remote()) == 1
    assert [get(use.remote("same", space)) for space in ("a", "b")] == [1, 2]
    with pytest.raises(ValueError, match="no actor named 'same'"):
        get(use.remote("same"))
    rows = fastray.util.list_named_actors(all_namespaces=True)
    assert [row["namespace"] for row in rows if row["name"] == "same"] == ["a", "b"]


def test_an_actor_has_one_id_on_all_nodes():
    for actor_class in (Here, Far):
        actor = actor_class.remote()

        @far
        def identity_of(handle):
            return handle._actor_id.hex()

        assert get(actor.identity.remote()) == actor._actor_id.hex() == get(identity_of.remote(actor))


def test_the_clusters_table_has_the_actors_of_all_nodes(cluster: Cluster):
    kept = [Far.options(name="in the table").remote(), Here.remote()]
    assert get([actor.add.remote() for actor in kept]) == [1, 1]

    def states():
        rows = {row["actor_id"]: row for row in fastray.util.state.list_actors(limit=1000)}
        return [
            tuple(rows[actor._actor_id.hex()][name] for name in ("state", "node_id", "pid"))
            for actor in kept
            if actor._actor_id.hex() in rows
        ]

    nodes, pids = [cluster.far_node.node_id, cluster.head_node.node_id], get([actor.pid.remote() for actor in kept])
    assert eventually(lambda: states() == [("ALIVE", *found) for found in zip(nodes, pids)])
    keys = [actor._actor_id.hex() for actor in kept]
    assert get(far(lambda: fastray.util.state.list_actors(filters=[("actor_id", "=", keys[1])])[0]["state"]).remote())
    fastray.kill(kept[0])
    assert eventually(lambda: states()[0][0] == "DEAD")
