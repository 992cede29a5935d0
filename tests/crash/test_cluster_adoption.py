"""Named detached actors whose home dies: another node makes them anew, when they may restart."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("grpc")

from cluster_helpers import agent_of, far_cluster
from waiting import eventually

import fastray
from fastray.cluster import adoption
from fastray.exceptions import ActorDiedError
from fastray.gcs.records import Actor

GET_S = 60


@pytest.fixture
def cluster(tmp_path):
    with far_cluster(tmp_path / "runtime", head_cpus=1, resources={"far": 4}) as made:
        yield made


class Keeper:
    def __init__(self, value, *, more=0):
        self.value = value + more

    def look(self):
        return self.value, fastray.get_runtime_context().get_node_id()


@fastray.remote(resources={"far": 1}, num_cpus=0)
class Maker:
    """On the far node, which is the home of what it makes."""

    def make(self, name, restarts, args=(1,), **options):
        made = fastray.remote(num_cpus=0)(Keeper)
        made.options(name=name, lifetime="detached", max_restarts=restarts, **options).remote(*args, more=1)
        return fastray.get(fastray.get_actor(name).look.remote())


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def look(name):
    try:
        return get(fastray.get_actor(name).look.remote())
    except (ValueError, ActorDiedError):
        return None


def test_it_is_made_anew_with_its_arguments(cluster):
    maker = Maker.remote()
    assert get(maker.make.remote("restarts", 1)) == (2, cluster.far_node.node_id)
    assert get(maker.make.remote("does not", 0)) == (2, cluster.far_node.node_id)
    assert get(maker.make.remote("refers", -1, (fastray.put(1),))) == (2, cluster.far_node.node_id)
    assert look("restarts") == (2, cluster.far_node.node_id)
    cluster.kill_node(cluster.far_node)
    assert eventually(lambda: look("restarts") == (2, cluster.head_node.node_id), 60)
    assert [look(name) for name in ("does not", "refers")] == [None, None]
    rows = fastray.util.state.list_actors(limit=100, filters=[("state", "=", "ALIVE")])
    (row,) = [row for row in rows if row.name == "restarts"]
    assert (row.is_detached, row.ray_namespace) == (True, fastray.get_runtime_context().namespace)
    fastray.kill(fastray.get_actor("restarts"))
    assert look("restarts") is None


def test_it_stays_when_only_the_agent_of_its_home_dies(cluster):
    maker = Maker.remote()
    get(maker.make.remote("stays", -1))
    os.kill(agent_of(cluster.far_node), signal.SIGKILL)
    assert eventually(lambda: look("stays") == (2, cluster.far_node.node_id))


def row(name="x", created_at=0.0, **about):
    known = {"detached": True, "spec": b"s", "state": "DEAD", "reason": "its node died: x", "home": b"n"}
    known["max_restarts"] = 1
    return Actor(name.encode(), "K", name=name, created_at=created_at, **{**known, **about})


@pytest.mark.parametrize(
    ("rows", "made"),
    [
        ([row()], ["x"]),
        ([row(max_restarts=-1, restarts=9)], ["x"]),
        ([row(restarts=1)], []),
        ([row(max_restarts=0)], []),
        ([row(detached=False)], []),
        ([row(spec=b"")], []),
        ([row(name="")], []),
        ([row(reason="it was killed by fastray.kill()")], []),
        ([row(home=b"alive")], []),
        ([row(state="ALIVE")], []),
        ([row(), row(created_at=1.0, state="ALIVE", home=b"alive")], []),
        ([row(), row(created_at=1.0, reason="killed")], []),
        ([row(), row("y"), row(created_at=1.0)], ["x", "y"]),
    ],
)
def test_who_is_to_be_made_anew(rows, made):
    assert sorted(each.name for each in adoption.orphans(rows, {b"alive"})) == made
