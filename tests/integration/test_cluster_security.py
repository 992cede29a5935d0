"""Every endpoint of a running cluster refuses a caller without the token, before it looks at what he sent.

    endpoint   what a process of the cluster listens on: the store, each agent's streams, each agent's Flight server
    canary     a pickle that makes a folder when it is loaded; it stands where an agent unpickles what a peer sends
    stranger   a node that a test registers with the right token: only what it says on a stream is then left to check
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import random
import socket
import stat
import struct
import subprocess
import sys

import psutil
import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

import grpc
import msgspec
import pyarrow
import pyarrow.flight as flight
from integration_helpers import eventually
from test_gcs_security import METHODS, Canary, certificates, status

import fastray
from fastray import sessions
from fastray.cluster import inquiry
from fastray.cluster_utils import Cluster
from fastray.gcs import commands, wire
from fastray.gcs.client import GcsClient
from fastray.gcs.records import Node
from fastray.transfer import stream
from fastray.transfer.bulk import TICKET
from fastray.transfer.functions import Definition

WAIT_S = 30.0
REFUSED = "this cluster asks for its token"
GIVEN = ["none", "wrong", "prefix", "empty"]
MESSAGE, TASK, RESULT, FETCH, VALUE, ITEM, LAST = 1, 2, 3, 6, 7, 10, 11  # FrameKind


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    os.environ["FASTRAY_TMPDIR"] = str(folder)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1, resources={"far": 1})
    made.wait_for_nodes()
    with open(os.path.join(made.head_node.session_path, sessions.TOKEN), encoding="ascii") as file:
        made.token = file.read().strip()
    fastray.init(address=made.address)
    run_everywhere()
    yield made
    fastray.shutdown()
    made.shutdown()
    del os.environ["FASTRAY_TMPDIR"]


def run_everywhere():
    """A task on each node."""
    refs = [fastray.remote(resources=there)(lambda: 7).remote() for there in ({}, {"far": 1})]
    assert fastray.get(refs, timeout=WAIT_S) == [7, 7]


# ---- who listens where -------------------------------------------------------------------------------------


def rows(cluster):
    """Of the cluster's own nodes, the head first."""
    ids = [node.node_id for node in cluster.list_all_nodes()]
    by_id = {row["node_id"]: row for row in inquiry.ask(cluster.head_node.session_path, "nodes")}
    return [by_id[node_id] for node_id in ids]


def processes(node):
    daemon = psutil.Process(node.pid)
    return [daemon, *daemon.children(recursive=True)]


def listening(process):
    """host:port of each socket that takes what others send, UDP too."""
    sockets = process.net_connections(kind="inet")
    taking = [s.laddr for s in sockets if s.status == psutil.CONN_LISTEN or s.type == socket.SOCK_DGRAM]
    return {f"{host.replace('::ffff:', '')}:{port}" for host, port in taking}  # an IPv4 address on an IPv6 socket


def agent_of(node):
    return next(process for process in processes(node) if process.cmdline()[-1].endswith("# fastray.node agent"))


def stream_addresses(cluster):
    return [row["info"]["address.node"] for row in rows(cluster)]


def flight_addresses(cluster):
    """What an agent listens on besides its streams."""
    found = []
    for node, taken in zip(cluster.list_all_nodes(), stream_addresses(cluster)):
        agent = agent_of(node)
        assert eventually(lambda agent=agent: len(listening(agent)) == 2)  # it imports pyarrow
        found += listening(agent) - {taken}
    assert len(found) == 2
    return found


def test_all_that_listens_is_known_and_on_loopback(cluster):
    known = {cluster.address, *stream_addresses(cluster), *flight_addresses(cluster)}
    everything = [process for node in cluster.list_all_nodes() for process in processes(node)]
    assert len(everything) >= 8  # two daemons, two servers of the store, two agents, workers
    assert set().union(*map(listening, everything)) == known
    assert {address.rpartition(":")[0] for address in known} == {"127.0.0.1"}


def test_the_token_is_its_users_alone(cluster):
    for node in cluster.list_all_nodes():
        path = node.session_path
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(os.path.join(path, sessions.TOKEN)).st_mode) == 0o600
        assert not any(cluster.token in " ".join(process.cmdline()) for process in processes(node))


# ---- callers without the token -----------------------------------------------------------------------------


def headers(cluster, given):
    """Metadata of a caller of the right version."""
    tokens = {"right": cluster.token, "wrong": "x" * 43, "prefix": cluster.token[:-1], "empty": " "}
    return wire.metadata(tokens.get(given, ""))


class Stranger:
    def __init__(self, cluster):
        self._gcs = GcsClient(cluster.address, cluster.token)
        self._gcs.stay_connected()
        self._version = 0
        self.node_id = bytes(7) + b"\1" + os.urandom(20)  # the smallest number: others wait to be called by it
        self.epoch = self._gcs.call(commands.NodeRegister(Node(self.node_id, "127.0.0.1:1", {})))

    def who(self):
        """Metadata that say who calls, after a sign of life."""
        self._version += 1
        assert not self._gcs.beat(self.epoch, self._version, {}, {}, full=True).fenced
        return [(stream.NODE, self.node_id.hex()), (stream.EPOCH, str(self.epoch))]

    def leave(self):
        self._gcs.close()


@pytest.fixture
def stranger(cluster):
    made = Stranger(cluster)
    yield made
    made.leave()


def frame(kind, body):
    return struct.pack("<QQ", kind, len(body)) + body


def canary_frame(path):
    """A function whose environment is the canary."""
    fields = {"number": 1, "name": "f", "digest": b"", "pickled": b"", "rest": pickle.dumps(()), "references": []}
    numbers = dict.fromkeys(("flags", "max_retries", "returns", "max_calls", "timeout_ms", "job"), 0)
    definition = Definition(**fields, **numbers, demand={}, environment=pickle.dumps(Canary(path)))
    return frame(MESSAGE, msgspec.msgpack.encode(("function", definition)))


def read(connection):
    """All that it says, until it closes the connection; a socket's time limit fails the test."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(1 << 16):
            said += more
    return said


def messages(*bodies):
    return b"".join(stream.LENGTH.pack(len(body)) + body for body in bodies)


def caller(address):
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def talk(address, metadata, batches, *, stay=True):
    """The status of the other side's answer, "" when it accepts the stream; then sends all, and reads until it ends
    the connection. `stay`: we do not end it before."""
    with caller(address) as connection:
        connection.sendall(messages(msgspec.msgpack.encode(dict(metadata))))
        (size,) = stream.LENGTH.unpack(connection.recv(8, socket.MSG_WAITALL))
        answer, _ = msgspec.msgpack.decode(connection.recv(size, socket.MSG_WAITALL))
        with contextlib.suppress(ConnectionError):
            connection.sendall(messages(*batches))
            if not stay:
                connection.shutdown(socket.SHUT_WR)
        read(connection)
    return answer


@pytest.mark.parametrize("given", GIVEN)
def test_the_store_refuses(cluster, tmp_path, given):
    body = pickle.dumps(Canary(tmp_path / "canary"))
    with grpc.insecure_channel(cluster.address, wire.CHANNEL_OPTIONS) as channel:
        for method in METHODS:
            assert status(channel, method, body, headers(cluster, given)) == grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("given", GIVEN)
def test_agents_refuse_streams(cluster, stranger, tmp_path, given):
    batches = [canary_frame(tmp_path / "canary"), pickle.dumps(Canary(tmp_path / "canary"))]
    for address in stream_addresses(cluster):
        metadata = [*headers(cluster, given), *stranger.who()]  # all is right but the token
        assert talk(address, metadata, batches) == "UNAUTHENTICATED"
        with caller(address) as connection:  # who does not wait for the answer
            connection.sendall(messages(msgspec.msgpack.encode(dict(metadata)), *batches))
            read(connection)
    assert not (tmp_path / "canary").exists()
    run_everywhere()


def test_agents_refuse_what_is_no_hello(cluster, tmp_path):
    body = pickle.dumps(Canary(tmp_path / "canary"))
    for address in stream_addresses(cluster):
        for first in (body, messages(body), canary_frame(tmp_path / "canary")):
            with caller(address) as connection:
                connection.sendall(first)
                assert read(connection) == b""
    assert not (tmp_path / "canary").exists()


def test_agents_refuse_who_is_no_node_of_the_cluster(cluster, stranger, tmp_path):
    batches = [canary_frame(tmp_path / "canary")]
    right, who = headers(cluster, "right"), dict(stranger.who())
    old = [(name, "0") if name == wire.WIRE else (name, value) for name, value in right]
    over = {**who, stream.EPOCH: str(stranger.epoch - 1)}
    for address in stream_addresses(cluster):
        for metadata, answer in [
            ([*old, *who.items()], "FAILED_PRECONDITION"),  # another wire version
            ([*right, *over.items()], "FAILED_PRECONDITION"),  # a life that is over
            (right, "INVALID_ARGUMENT"),  # nobody
            ([*right, (stream.NODE, "no hex"), (stream.EPOCH, "1")], "INVALID_ARGUMENT"),
        ]:
            assert talk(address, metadata, batches) == answer
    assert not (tmp_path / "canary").exists()


def flight_calls(client, options, body):
    """All that a Flight server can be asked."""
    descriptor, schema = flight.FlightDescriptor.for_command(body), pyarrow.schema([])

    def put(method, *more):
        writer, reader = method(descriptor, *more, options)
        writer.begin(schema) if not more else None
        writer.write_metadata(body)
        writer.done_writing()
        reader.read() if more else reader.read_all()
        writer.close()

    return [
        lambda: client.do_get(flight.Ticket(body), options).read_all(),
        lambda: client.get_flight_info(descriptor, options),
        lambda: client.get_schema(descriptor, options),
        lambda: list(client.list_flights(body, options)),
        lambda: client.list_actions(options),
        lambda: list(client.do_action(flight.Action("load", body), options)),
        lambda: put(client.do_put, schema),
        lambda: put(client.do_exchange),
        lambda: client.authenticate_basic_token("user", "password", options),
    ]


def flight_options(cluster, given):
    pairs = [(name.encode(), value.encode()) for name, value in headers(cluster, given)]
    return flight.FlightCallOptions(timeout=WAIT_S, headers=pairs)


@pytest.mark.parametrize("given", GIVEN)
def test_flight_servers_refuse(cluster, tmp_path, given):
    body = pickle.dumps(Canary(tmp_path / "canary"))
    for address in flight_addresses(cluster):
        with flight.FlightClient(f"grpc+tcp://{address}") as client:
            for call in flight_calls(client, flight_options(cluster, given), body):
                with pytest.raises((flight.FlightUnauthenticatedError, OSError), match=REFUSED):
                    call()
    assert not (tmp_path / "canary").exists()


# ---- peers with the token ----------------------------------------------------------------------------------


def lives(cluster):
    """What changes when a node or its agent has to begin again."""
    return [(agent_of(node).pid, row["epoch"]) for node, row in zip(cluster.list_all_nodes(), rows(cluster))]


def test_a_peer_with_the_token_may_run_code(cluster, stranger, tmp_path):
    """The design, and the proof that the canary of the tests above sings."""
    for number, address in enumerate(stream_addresses(cluster)):
        canary = tmp_path / str(number)
        talk(address, [*headers(cluster, "right"), *stranger.who()], [canary_frame(canary)])
        assert canary.exists()
    run_everywhere()


GARBAGE = {
    "a pickle": pickle.dumps({"a": 1}),
    "half a head": b"\1\0\0",
    "less than it says": struct.pack("<QQ", MESSAGE, 1 << 31),
    "a kind that is none": frame(99, bytes(16)),
    "half a task": frame(TASK, bytes(10)),
    "references that are not there": frame(TASK, struct.pack("<QIIHHHBB", 1, 1, 0, 1, 9, 9, 0, 0) + bytes(24)),
    "a result of no task": frame(RESULT, struct.pack("<QII", 5, 3, 0) + bytes(16)),
    "asking for what was never lent": frame(FETCH, struct.pack("<QQ", 3, 3)),
    "a value for a record that cannot be": frame(VALUE, struct.pack("<QQ", 2**64 - 1, 3) + bytes(16)),
    "an item of no stream": frame(ITEM, struct.pack("<QII", 7, 0, 3) + bytes(16)),
    "no message": frame(MESSAGE, b"\xc1"),
    "a message of no kind": frame(MESSAGE, msgspec.msgpack.encode(("load", b""))),
    "a function without its fields": frame(MESSAGE, msgspec.msgpack.encode(("function", [1]))),
    "a handle of no reference": frame(MESSAGE, msgspec.msgpack.encode(("handle", [b"", []]))),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_its_stream_and_nothing_else(cluster, stranger, garbage):
    before = lives(cluster)
    for address in stream_addresses(cluster):
        assert talk(address, [*headers(cluster, "right"), *stranger.who()], [garbage]) == ""  # and it ended
    run_everywhere()
    assert lives(cluster) == before


def test_random_frames_do_no_harm(cluster, stranger):
    rng = random.Random(5)
    before = lives(cluster)
    addresses = stream_addresses(cluster)
    for number in range(60):
        words = [rng.choice((0, 1, 3, 7, rng.getrandbits(16), rng.getrandbits(64))) for _ in range(12)]
        body = struct.pack("<12Q", *words)[: 8 * rng.randrange(1, 13)]
        batches = [frame(rng.randrange(1, LAST + 1), body) for _ in range(3)]
        talk(addresses[number % 2], [*headers(cluster, "right"), *stranger.who()], batches, stay=False)
    run_everywhere()
    assert lives(cluster) == before


@pytest.mark.parametrize(
    "ticket",
    [
        *(b"", b"x" * 31, bytes(32), TICKET.pack(2**64 - 1, 0, 8, 0), TICKET.pack(1, 2**63, 2**63, 0)),
        *(TICKET.pack(1, 0, 8, 1), pickle.dumps(1) * 5, b"0" * 32, b"../auth_token" + b"\0" * 19),
    ],
    ids=[
        *("empty", "short", "nothing", "no record", "far out"),
        *("no arguments", "a pickle", "no package", "a path"),
    ],
)
def test_a_ticket_that_names_nothing_is_refused(cluster, ticket):
    before = lives(cluster)
    for address in flight_addresses(cluster):
        with flight.FlightClient(f"grpc+tcp://{address}") as client, pytest.raises(flight.FlightServerError):
            client.do_get(flight.Ticket(ticket), flight_options(cluster, "right")).read_all()
    run_everywhere()
    assert lives(cluster) == before


# ---- TLS -----------------------------------------------------------------------------------------------------


def test_with_certificates_nothing_between_nodes_is_readable(tmp_path):
    """In a program of its own: this process has its cluster."""
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy, fastray\n"
        "from fastray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "cluster.add_node(num_cpus=1, resources={'far': 1}); cluster.wait_for_nodes()\n"
        "fastray.init(address=cluster.address)\n"
        "make = fastray.remote(lambda n: numpy.ones(n)).options(resources={'far': 1})\n"
        "assert fastray.get(make.remote(2_000_000), timeout=60).sum() == 2_000_000\n"
        "fastray.shutdown(); cluster.shutdown(); print('whole')\n"
    )
    environ = {**os.environ, **certificates(tmp_path), "FASTRAY_TMPDIR": str(tmp_path / "runtime")}
    (tmp_path / "runtime").mkdir()
    done = subprocess.run([sys.executable, str(program)], env=environ, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


def test_a_stream_with_a_certificate_speaks_tls_only(tmp_path):
    from fastray.gcs import auth

    (tmp_path / "other").mkdir()
    tls, other_tls = auth.load_tls(certificates(tmp_path)), auth.load_tls(certificates(tmp_path / "other"))
    accepted = queue.SimpleQueue()
    server = stream.Server("secret" * 6, lambda node_id, epoch, made: accepted.put(made) or "")
    address = f"127.0.0.1:{server.listen('127.0.0.1', tls)}"
    try:
        for trusted in (None, other_tls):
            with pytest.raises(OSError, match=r"."):
                stream.connect(address, "secret" * 6, trusted, bytes(28), 1)
        ends = [stream.connect(address, "secret" * 6, tls, bytes(28), 1), accepted.get(timeout=WAIT_S)]
        sent = [[os.urandom(size) for size in (1, 5000, 3 << 20, 0, 1 << 20) * 8] for _ in ends]
        got = [queue.SimpleQueue() for _ in ends]
        for end, came in zip(ends, got):
            end.on_batch = came.put
        ends[0].begin()
        for end, batches in zip(ends, sent):
            for batch in batches:
                end.send(batch)
        assert [got[1].get(timeout=WAIT_S) for _ in sent[0]] == sent[0]
        assert [got[0].get(timeout=WAIT_S) for _ in sent[1]] == sent[1]
        ends[0].end("the test is over")
        assert eventually(lambda: all(end._socket.fileno() < 0 for end in ends))
    finally:
        server.close()


def test_a_flight_server_with_a_certificate_speaks_tls_only(cluster, tmp_path):
    from fastray.gcs import auth
    from fastray.transfer.flight import StoreServer

    tls = auth.load_tls(certificates(tmp_path))
    server = StoreServer("127.0.0.1", "secret" * 6, tls, str(tmp_path))
    try:
        given = (b"authorization", f"Bearer {'secret' * 6}".encode())
        headers = flight.FlightCallOptions(timeout=WAIT_S, headers=[given])
        ticket = flight.Ticket(TICKET.pack(1, 0, 1, 0))
        with pytest.raises(flight.FlightUnavailableError):
            flight.FlightClient(f"grpc+tcp://127.0.0.1:{server.port}").do_get(ticket, headers)
        trusted = flight.FlightClient(f"grpc+tls://127.0.0.1:{server.port}", tls_root_certs=tls.ca)
        with pytest.raises(flight.FlightServerError, match="record"):
            trusted.do_get(ticket, headers)
    finally:
        server.shutdown()
