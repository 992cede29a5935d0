"""A real server process and its clients: order, batches, events, restarts, deaths of those who are connected."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import signal
import subprocess
import sys

import pytest

pytest.importorskip("grpc")

import grpc

from fastray.exceptions import (
    ForkedProcessError,
    GcsRequestError,
    GcsUnavailableError,
    NodeFencedError,
    RuntimeSystemError,
)
from fastray.gcs import auth, commands, wire
from fastray.gcs.client import GcsClient
from fastray.gcs.process import GcsProcess
from fastray.gcs.records import Actor, Node, PlacementGroup, Task
from fastray.gcs.table import encode

WAIT_S = 20.0


class Cluster:
    """A server on a database of its own, and clients of it."""

    def __init__(self, folder) -> None:
        self.store = f"sqlite:{folder}/gcs.db"
        self.token_path = f"{folder}/token"
        self.server = GcsProcess(store=self.store, token_path=self.token_path)
        self.token = auth.load_token(self.token_path, environ={})
        self.clients: list[GcsClient] = []
        self.members: list[Member] = []

    def client(self, **options) -> GcsClient:
        client = GcsClient(self.server.address, self.token, **options)
        self.clients.append(client)
        return client

    def restart(self, *, kindly: bool = False) -> None:
        if kindly:
            assert self.server.stop() == 0
        else:
            self.server.kill()
        self.server = GcsProcess(store=self.store, token_path=self.token_path, port=self.server.port)

    def member(self, what: str) -> Member:
        self.members.append(Member(self, what))
        return self.members[-1]

    def close(self) -> None:
        for member in self.members:
            member.end()
        for client in self.clients:
            client.close(goodbye=False)
        self.server.stop()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def node(name: bytes, **resources: float) -> Node:
    return Node(name, "127.0.0.1:1", resources or {"CPU": 2.0}, {"zone": "a"})


class Heard(queue.Queue):
    """Events in order; `until` waits for one that matches."""

    def hear(self, key, row) -> None:
        self.put((key, row))

    def until(self, matches):
        while True:
            key, row = self.get(timeout=WAIT_S)
            if matches(key, row):
                return key, row


# ---- commands -----------------------------------------------------------------------------------------


def test_commands_take_effect_in_order_and_one_refusal_stops_none(cluster):
    client = cluster.client()
    futures = [client.submit(commands.KvPut("n", b"k", b"%d" % i)) for i in range(1000)]
    refused = client.submit(commands.ActorGet(b"none"))
    last = client.submit(commands.KvGet("n", [b"k"]))
    assert [future.result(WAIT_S) for future in futures] == [True] + [False] * 999
    with pytest.raises(GcsRequestError, match="no actor") as caught:
        refused.result(WAIT_S)
    assert caught.value.kind == "missing"
    assert last.result(WAIT_S) == [b"999"]


def test_rows_come_back_as_they_were_sent(cluster):
    client = cluster.client()
    epoch = client.call(commands.NodeRegister(node(b"n1", CPU=2.0, GPU=0.5)))
    client.call(commands.ActorRegister(Actor(b"a", "K", name="x", spec=bytes(range(256)))))
    client.call(commands.TasksReport(epoch, [Task(b"t", "f", state="FAILED", error="é\n", spec=b"s")]))
    (task,) = client.call(commands.TasksList())
    assert task[Task.__struct_fields__.index("error")] == "é\n"
    assert [row.task_id for row in client.history()] == [b"t"]
    assert client.history(b"other") == []


def test_a_future_can_be_awaited(cluster):
    client = cluster.client()

    async def run():
        await asyncio.gather(*(client.acall(commands.KvPut("n", b"%d" % i, b"v")) for i in range(100)))
        return await client.acall(commands.KvKeys("n"))

    assert len(asyncio.run(run())) == 100


def test_a_malformed_batch_is_refused_as_a_whole_and_the_client_goes_on(cluster):
    client = cluster.client()
    with pytest.raises(GcsRequestError, match="malformed request"):
        client.call(commands.KvPut("n", b"k", 5))
    assert client.call(commands.KvKeys("n")) == []


def test_a_closed_client_says_so(cluster):
    client = cluster.client()
    client.call(commands.KvPut("n", b"k", b"v"))
    client.close()
    client.close()
    with pytest.raises(GcsUnavailableError, match="closed"):
        client.submit(commands.KvKeys("n"))


def test_a_client_does_not_survive_a_fork(cluster):
    client = cluster.client()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            client.submit(commands.KvKeys("n"))
        except ForkedProcessError:
            os.write(write, b"refused")
        os._exit(0)
    os.close(write)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    os.waitpid(pid, 0)
    assert client.call(commands.KvKeys("n")) == []


def test_a_session_of_one_node_imports_none_of_it(run_program):
    done = run_program(
        """
        import sys
        import fastray

        @fastray.remote
        def loaded():
            return {"grpc", "msgspec", "sqlite3", "pyarrow", "fastray.gcs"} & set(sys.modules)

        fastray.init(num_cpus=1)
        print(fastray.get(loaded.remote()))
        print({"grpc", "msgspec", "sqlite3", "pyarrow", "fastray.gcs"} & set(sys.modules))
        """
    )
    assert done.stdout == "set()\nset()\n", done.stderr


# ---- restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kindly", [False, True])
def test_a_restart_is_not_seen_by_its_users(cluster, kindly):
    client = cluster.client()
    epoch = client.call(commands.NodeRegister(node(b"n1")))
    client.call(commands.JobStart("ns", "main.py"))
    client.call(commands.ActorRegister(Actor(b"a", "K", namespace="ns", name="x")))
    client.call(commands.GroupCreate(PlacementGroup(b"g", [{"CPU": 1.0}])))
    client.call(commands.ObjectsAdd(epoch, [(b"o", 9, b"t")]))
    client.call(commands.TasksReport(epoch, [Task(b"t", "f")]))
    cluster.restart(kindly=kindly)
    assert client.call(commands.ObjectsLocate([b"o"])) == [[9, [b"n1"], b"t"]]
    assert client.call(commands.ActorByName("ns", "x"))[0] == b"a"
    assert client.call(commands.GroupGet(b"g"))[0] == b"g"
    assert client.call(commands.JobStart("ns")) == 2
    assert client.call(commands.TasksSummary()) == [["f", 1, 0, 0, 0.0, 0.0, 0, False]]


def test_what_is_submitted_while_the_store_is_away_is_applied_once(cluster):
    client = cluster.client()
    client.call(commands.JobStart("ns"))
    cluster.server.kill()
    futures = [client.submit(commands.JobStart("ns")) for _ in range(10)]
    cluster.server = GcsProcess(
        store=cluster.store, token_path=cluster.token_path, port=cluster.server.port
    )
    assert [future.result(WAIT_S) for future in futures] == list(range(2, 12))


def test_beyond_the_window_there_is_a_typed_error_and_later_it_works_again(cluster):
    client = cluster.client(window_s=0.2)
    port = cluster.server.port
    cluster.server.kill()
    with pytest.raises(GcsUnavailableError, match="could not be reached") as caught:
        client.call(commands.KvPut("n", b"k", b"v"))
    assert caught.value.address == cluster.server.address
    with pytest.raises(GcsUnavailableError):
        GcsClient(cluster.server.address, cluster.token, window_s=0.1)
    cluster.server = GcsProcess(store=cluster.store, token_path=cluster.token_path, port=port)
    client.window_s = WAIT_S
    assert client.call(commands.KvPut("n", b"k", b"v")) is True


def test_a_second_server_on_the_same_store_or_port_does_not_start(cluster, tmp_path):
    with pytest.raises(RuntimeSystemError, match="another server has this store open"):
        GcsProcess(store=cluster.store, token_path=cluster.token_path)
    with pytest.raises(RuntimeSystemError, match="cannot listen on"):
        GcsProcess(token_path=cluster.token_path, port=cluster.server.port)


@pytest.mark.parametrize("followed", [True, False])
def test_a_standby_has_what_was_acknowledged_whoever_died_and_whenever_it_came(cluster, followed):
    options = {"store": cluster.store, "token_path": cluster.token_path, "port": cluster.server.port}
    cluster.server.stop()
    cluster.server = GcsProcess(followed=followed, **options)
    client, heard = cluster.client(), Heard()
    client.call(commands.KvPut("n", b"before", b"1"))
    standby = GcsProcess(standby=True, **options)
    client.subscribe("job", heard.hear)
    client.call(commands.KvPut("n", b"after", b"2"))
    client.call(commands.KvDelete("n", b"before"))
    cluster.server.stop()
    assert standby.serving() == cluster.server.address
    cluster.server = standby
    assert client.call(commands.KvGet("n", [b"before", b"after"])) == [None, b"2"]
    job = client.call(commands.JobStart("ns"))
    assert heard.until(lambda key, row: True)[1].job_id == job


def test_a_standby_serves_at_once_where_nobody_does_and_needs_a_port(tmp_path, cluster):
    port = cluster.server.port
    cluster.server.kill()
    standby = GcsProcess(store=f"sqlite:{tmp_path}/new.db", token_path=cluster.token_path, standby=True, port=port)
    standby.serving()
    assert cluster.client().call(commands.KvKeys("n")) == []
    assert standby.stop() == 0
    with pytest.raises(RuntimeSystemError, match="needs the port"):
        GcsProcess(store=cluster.store, token_path=cluster.token_path, standby=True)
    cluster.server = GcsProcess(store=cluster.store, token_path=cluster.token_path)


def test_the_server_dies_with_its_parent(tmp_path):
    program = (
        "import sys; from fastray.gcs.process import GcsProcess\n"
        f"server = GcsProcess(token_path={str(tmp_path / 'token')!r})\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert select.select([pidfd], [], [], WAIT_S)[0]  # readable: it has ended
    os.close(pidfd)


# ---- events -------------------------------------------------------------------------------------------


def test_a_subscriber_hears_what_is_there_and_what_changes_over_a_restart(cluster):
    client, other = cluster.client(), cluster.client()
    heard = Heard()
    epoch = other.call(commands.NodeRegister(node(b"n1")))
    client.subscribe("node", heard.hear)
    assert heard.until(lambda key, row: True)[1].epoch == epoch
    second = other.call(commands.NodeRegister(node(b"n2")))
    assert heard.until(lambda key, row: key == b"n2")[1].epoch == second
    cluster.restart()
    other.call(commands.NodeDied(second, "broken"))
    _, row = heard.until(lambda key, row: key == b"n2" and row.state == "DEAD")
    assert row.reason == "broken"


def test_channels_carry_messages_to_those_who_listen(cluster):
    client, other = cluster.client(), cluster.client()
    heard = Heard()
    client.subscribe("channel:logs", heard.hear)
    other.call(commands.Publish("other", b"not this"))
    for number in range(100):
        other.submit(commands.Publish("logs", b"%d" % number))
    assert [heard.get(timeout=WAIT_S)[1] for _ in range(100)] == [b"%d" % n for n in range(100)]
    with pytest.raises(ValueError, match="no topic 'session'"):
        client.subscribe("session", heard.hear)


def test_the_first_copy_of_an_object_calls_back_also_after_a_restart(cluster):
    client, other = cluster.client(), cluster.client()
    epoch = other.call(commands.NodeRegister(node(b"n1")))
    other.call(commands.ObjectsAdd(epoch, [(b"there", 1, b"")]))
    heard = Heard()
    client.watch_objects([b"there", b"soon", b"later"], heard.hear)
    assert heard.get(timeout=WAIT_S) == (b"there", (1, [b"n1"], b""))
    client.flush()
    other.call(commands.ObjectsAdd(epoch, [(b"soon", 2, b"t")]))
    assert heard.get(timeout=WAIT_S) == (b"soon", (2, [b"n1"], b"t"))
    cluster.restart()
    other.call(commands.ObjectsAdd(epoch, [(b"later", 3, b"")]))
    assert heard.get(timeout=WAIT_S) == (b"later", (3, [b"n1"], b""))
    client.watch_objects([b"never"], heard.hear)
    client.unwatch_objects([b"never"])
    other.call(commands.ObjectsAdd(epoch, [(b"never", 3, b"")]))
    client.flush()
    assert heard.empty()


def test_a_subscriber_that_does_not_read_is_cut_off(cluster):
    """A stream that is not read fills the connection's window, then its queue."""
    client = cluster.client()
    channel = grpc.insecure_channel(cluster.server.address, wire.CHANNEL_OPTIONS)
    opened = channel.unary_stream(wire.method("Subscribe"))(
        encode(wire.Subscribe(b"slow", {"channel:x": -1})), metadata=wire.metadata(cluster.token)
    )
    next(opened)  # it is open; and nothing more is read
    for _ in range(20):
        batch = [client.submit(commands.Publish("x", b"n" * 1000)) for _ in range(1000)]
        batch[-1].result(WAIT_S)
    with pytest.raises(grpc.RpcError) as caught:
        for _ in opened:
            pass
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    channel.close()


# ---- deaths -------------------------------------------------------------------------------------------


NODE_PROGRAM = """
import sys, threading
from fastray.gcs import commands
from fastray.exceptions import GcsUnavailableError
from fastray.gcs.client import GcsClient
from fastray.gcs.records import Node
client = GcsClient(sys.argv[1], sys.argv[2])
client.stay_connected()
if sys.argv[3] == "node":
    epoch = client.call(commands.NodeRegister(Node(b"n1", "h:1", {"CPU": 2.0})))
else:
    epoch = client.call(commands.JobStart("ns"))
print(epoch, flush=True)
version, full = 0, True
while not threading.Event().wait(0.2):
    version += 1
    if sys.argv[3] == "node":
        try:
            reply = client.beat(epoch, version, {"CPU": 1.0}, {}, full=full)
        except GcsUnavailableError:
            continue
        full = reply.resync
        if reply.fenced:
            print("fenced", flush=True)
"""


class Member:
    """A process that is a node or a driver."""

    def __init__(self, cluster: Cluster, what: str) -> None:
        command = [sys.executable, "-c", NODE_PROGRAM, cluster.server.address, cluster.token, what]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.epoch = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self.process.stdout.close()


def test_a_killed_node_is_seen_by_its_connection(cluster):
    client, heard = cluster.client(), Heard()
    member = cluster.member("node")
    client.subscribe("node", heard.hear)
    client.subscribe("load", heard.hear)
    heard.until(lambda key, row: row is not None and getattr(row, "available", None) == {"CPU": 1.0})
    member.end()
    _, row = heard.until(lambda key, row: getattr(row, "state", "") == "DEAD")
    assert row.reason == "its connection closed"
    with pytest.raises(NodeFencedError, match="epoch"):
        client.call(commands.ObjectsAdd(member.epoch, [(b"o", 1, b"")]))


def test_a_stopped_node_is_seen_by_its_silence_and_fenced_when_it_goes_on(cluster):
    client, heard = cluster.client(), Heard()
    member = cluster.member("node")
    client.subscribe("node", heard.hear)
    member.process.send_signal(signal.SIGSTOP)
    _, row = heard.until(lambda key, row: row.state == "DEAD")
    assert "no heartbeat" in row.reason
    member.process.send_signal(signal.SIGCONT)
    assert member.process.stdout.readline() == "fenced\n"


def test_a_job_ends_with_its_driver(cluster):
    client, heard = cluster.client(), Heard()
    client.subscribe("job", heard.hear)
    member = cluster.member("driver")
    member.end()
    _, row = heard.until(lambda key, row: row.state != "RUNNING")
    assert (row.job_id, row.state, row.reason) == (member.epoch, "FAILED", "its connection closed")


def test_members_live_on_over_a_restart(cluster):
    client, heard = cluster.client(), Heard()
    member = cluster.member("node")
    cluster.restart()
    client.subscribe("load", heard.hear)  # the new server has no load, and asks the node for all of it
    _, load = heard.until(lambda key, row: row is not None)
    assert (load.epoch, load.available) == (member.epoch, {"CPU": 1.0})
    client.subscribe("node", heard.hear)
    member.end()
    _, row = heard.until(lambda key, row: getattr(row, "state", "") == "DEAD")
    assert row.epoch == member.epoch
