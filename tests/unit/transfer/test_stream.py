"""`fastray/transfer/stream.py` over real sockets, in one process."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import struct
import threading

import msgspec
import pytest

pytest.importorskip("grpc")

from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import eventually

from fastray.exceptions import InvalidOptionError
from fastray.gcs import wire
from fastray.transfer import stream
from fastray.transfer.stream import EPOCH, FRAME_HEAD, LENGTH, NODE, READ_BYTES, Server, Stream, connect, pieces

WAIT_S = 20.0
TOKEN = "t" * 32
NODE_ID = bytes(range(28))


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=12), st.integers(8, 100))
@settings(max_examples=500, deadline=None)
def test_pieces_are_whole_frames(bodies, most):
    frames = [FRAME_HEAD.pack(1, len(body)) + body for body in bodies]
    ends = {sum(map(len, frames[: n + 1])) for n in range(len(frames))}
    found = list(pieces(b"".join(frames), most))
    assert b"".join(found) == b"".join(frames)
    assert {sum(map(len, found[: n + 1])) for n in range(len(found))} <= ends
    assert all(0 < len(piece) <= most or piece in frames for piece in found)


# ---- one stream --------------------------------------------------------------------------------------------


class End:
    """One end of a stream, and what it has seen."""

    def __init__(self, connection, on_batch=None):
        self.stream = Stream(connection)
        self.got = queue.SimpleQueue()
        self.ends = []
        self.stream.on_batch = on_batch or self.got.put
        self.stream.on_end = self.ends.append

    def ended(self):
        return eventually(lambda: self.ends, WAIT_S) and self.ends


@pytest.fixture
def sockets():
    pair = [socket.socket(), None]
    with socket.create_server(("127.0.0.1", 0)) as server:
        pair[0].connect(server.getsockname())
        pair[1], _ = server.accept()
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def ends(sockets):
    made = [End(connection) for connection in sockets]
    for end in made:
        end.stream.begin()
    yield made
    for end in made:
        end.stream.end("the test is over")
        assert eventually(lambda end=end: end.stream._socket.fileno() < 0)


def batches(seed, count=200):
    rng = random.Random(seed)
    sizes = [rng.choice((0, 1, 100, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 1 << 20)) for _ in range(count)]
    return [rng.randbytes(min(size, 64)).ljust(size, b".") for size in sizes]


def test_both_ways_at_once_in_order(ends):
    sent = [batches(0), batches(1)]
    senders = [threading.Thread(target=lambda n=n: list(map(ends[n].stream.send, sent[n]))) for n in (0, 1)]
    for sender in senders:
        sender.start()
    for n in (0, 1):
        assert [ends[1 - n].got.get(timeout=WAIT_S) for _ in sent[n]] == sent[n]
    for sender in senders:
        sender.join()


def test_sending_waits_for_nobody(sockets):
    one = End(sockets[0])
    one.stream.begin()
    sent = [bytes([n]) * (8 << 20) for n in range(16)]
    for batch in sent:
        one.stream.send(batch)  # far more than the socket takes: nobody reads
    other = End(sockets[1])
    other.stream.begin()
    assert [other.got.get(timeout=WAIT_S) for _ in sent] == sent
    one.stream.send(b"again without a wait")
    assert other.got.get(timeout=WAIT_S) == b"again without a wait"
    one.stream.end("over")
    assert other.ended() == ["it closed the connection"]


def test_what_is_sent_before_it_begins_goes_first(sockets):
    one, other = map(End, sockets)
    one.stream.send(b"a")
    one.stream.send(b"b")
    other.stream.begin()
    one.stream.begin()
    one.stream.send(b"c")
    assert [other.got.get(timeout=WAIT_S) for _ in range(3)] == [b"a", b"b", b"c"]


def test_it_ends_once_at_both_ends(ends):
    ends[0].stream.end("first")
    ends[0].stream.end("second")
    assert ends[0].ended() == ["first"]
    assert ends[1].ended() == ["it closed the connection"]
    ends[0].stream.send(b"into nothing")
    ends[1].stream.send(b"into nothing")
    assert (ends[0].ends, ends[1].ends) == (["first"], ["it closed the connection"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("makes no sense"), "makes no sense"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_batch_that_cannot_be_applied_ends_it(sockets, error, reason):
    seen = []

    def on_batch(batch):
        seen.append(batch)
        raise error

    one, other = End(sockets[0]), End(sockets[1], on_batch)
    for end in (one, other):
        end.stream.begin()
    one.stream.send(b"1")
    assert other.ended() == [reason]
    assert one.ended()
    assert seen == [b"1"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (LENGTH.pack(10) + b"half", "it closed the connection"),  # short ones: nothing of it was seen
        (LENGTH.pack(1 << 20) + b"half", "it closed the connection in the middle of a message"),
        (LENGTH.pack(1 << 41), "a message of 2,199,023,255,552 bytes"),
        (b"\1", "it closed the connection"),
    ],
)
def test_half_a_message_is_none(sockets, data, reason):
    sockets[0].sendall(data)
    sockets[0].shutdown(socket.SHUT_WR)
    other = End(sockets[1])
    other.stream.begin()
    assert other.ended() == [reason]
    assert other.got.empty()


def test_a_broken_connection_says_so(sockets):
    other = End(sockets[1])
    other.stream.begin()
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sockets[0].close()  # a reset
    assert other.ended() == ["the connection broke (Connection reset by peer)"]


# ---- who may open one --------------------------------------------------------------------------------------


class Agent:
    """A server, and the ends of the streams that it has accepted."""

    def __init__(self):
        self.answer = ""
        self.accepted = queue.SimpleQueue()
        self.server = Server(TOKEN, self._accept)
        self.port = self.server.listen("127.0.0.1", None)
        self.address = f"127.0.0.1:{self.port}"

    def _accept(self, node_id, epoch, made):
        if not self.answer:
            made.send(b"what waits for it")
            got = queue.SimpleQueue()
            made.on_batch = got.put
            self.accepted.put((node_id, epoch, made, got))
        return self.answer


@pytest.fixture
def agent():
    made = Agent()
    yield made
    made.server.close()


@contextlib.contextmanager
def opened(agent):
    one = connect(agent.address, TOKEN, None, NODE_ID, 7)
    node_id, epoch, other, got = agent.accepted.get(timeout=WAIT_S)
    assert (node_id, epoch) == (NODE_ID, 7)
    came = queue.SimpleQueue()
    one.on_batch = came.put
    one.begin()
    yield one, came, other, got
    one.end("the test is over")
    assert eventually(lambda: one._socket.fileno() < 0 and other._socket.fileno() < 0)


def test_an_accepted_stream_speaks_both_ways(agent):
    with opened(agent) as (one, came, other, got):
        one.send(b"hello")
        other.send(b"and back")
        assert got.get(timeout=WAIT_S) == b"hello"
        assert [came.get(timeout=WAIT_S) for _ in range(2)] == [b"what waits for it", b"and back"]


def test_a_node_that_is_refused_hears_why(agent):
    agent.answer = "epoch 7 of that node is over"
    with pytest.raises(ConnectionRefusedError, match="FAILED_PRECONDITION: epoch 7 of that node is over"):
        connect(agent.address, TOKEN, None, NODE_ID, 7)
    with pytest.raises(ConnectionRefusedError, match="UNAUTHENTICATED: this cluster asks for its token"):
        connect(agent.address, "w" * 32, None, NODE_ID, 7)


HELLO = {**dict(wire.metadata(TOKEN)), NODE: NODE_ID.hex(), EPOCH: "7"}


def first(content):
    body = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    return LENGTH.pack(len(body)) + body


def answer_to(agent, data):
    """All that the server says to it, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", agent.port), WAIT_S) as connection:
        said = b""
        with contextlib.suppress(OSError):  # it does not read what is too long, and resets the connection
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(4096):
                said += more
    return msgspec.msgpack.decode(said[LENGTH.size :]) if said else None


@pytest.mark.parametrize(
    ("hello", "status"),
    [
        (first({}), "UNAUTHENTICATED"),
        (first({**HELLO, wire.WIRE: "0"}), "FAILED_PRECONDITION"),
        (first({**HELLO, NODE: "no hex"}), "INVALID_ARGUMENT"),
        (first({**HELLO, EPOCH: ""}), "INVALID_ARGUMENT"),
        (first({name: value for name, value in HELLO.items() if name != NODE}), "INVALID_ARGUMENT"),
        (first(["no", "map"]), None),
        (first({"authorization": 1}), None),
        (first(b"\xc1"), None),
        (first(b""), None),
        (LENGTH.pack(1 << 62), None),
        (first(HELLO)[:20], None),
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (b"", None),
    ],
)
def test_a_hello_that_is_none_is_refused(agent, hello, status):
    answer = answer_to(agent, hello)
    assert (answer and answer[0]) == status
    assert agent.accepted.empty()
    with opened(agent):  # and nobody else has to suffer
        pass


def test_callers_that_say_nothing_are_let_go(agent, monkeypatch):
    monkeypatch.setattr(stream, "HELLO_WAIT_S", 0.05)
    silent = [socket.create_connection(("127.0.0.1", agent.port), WAIT_S) for _ in range(2 * stream.GREETINGS_MAX)]
    for connection in silent:
        assert connection.recv(1) == b""
        connection.close()
    monkeypatch.undo()
    with opened(agent):
        pass


def test_a_server_that_says_nothing_or_nonsense_is_none(monkeypatch):
    monkeypatch.setattr(stream, "HELLO_WAIT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(OSError, match="timed out"):
            connect(address, TOKEN, None, NODE_ID, 1)
        mute.accept()[0].close()

        def answer():
            connection, _ = mute.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")

        answered = threading.Thread(target=answer)
        answered.start()
        with pytest.raises(OSError, match="first message"):
            connect(address, TOKEN, None, NODE_ID, 1)
        answered.join()
    with pytest.raises(ConnectionRefusedError):
        connect(address, TOKEN, None, NODE_ID, 1)


def test_others_are_not_served_without_a_token():
    with pytest.raises(InvalidOptionError, match="without a token"):
        Server("", lambda *caller: "").listen("0.0.0.0", None)


def test_a_closed_server_leaves_no_thread(agent):
    def accepting():
        return [thread for thread in threading.enumerate() if thread.name == "fastray-accept"]

    assert eventually(lambda: len(accepting()) == 1)
    agent.server.close()
    assert eventually(lambda: not accepting())
