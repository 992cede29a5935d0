"""The parts of fastray/transfer that need no session: how values are cut, what messages hold."""

from __future__ import annotations

import pickle
import random
import threading

import pytest

pytest.importorskip("grpc")

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastray._native import link as native
from fastray.exceptions import NodeDiedError
from fastray.scheduling.view import Infeasible
from fastray.transfer import bulk
from fastray.transfer.functions import ActorDefinition, Definition, Functions, Wishes
from fastray.transfer.peer import Peer, cannot, error_of, number_of

# ---- bulk.py -----------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40))
@example(0)
@example(2 * bulk.PART_MIN - 1)
@example(2 * bulk.PART_MIN + 1)
@settings(max_examples=500, deadline=None)
def test_parts_cover_every_byte_once(total):
    parts = bulk.split(total)
    assert 1 <= len(parts) <= bulk.PARALLEL
    assert parts[0][0] == 0
    assert [first + size for first, size in parts] == [first for first, _ in parts[1:]] + [total]
    assert len(parts) == 1 or all(size >= bulk.PART_MIN for _, size in parts)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=500, deadline=None)
def test_slices_are_the_bytes_of_all_buffers(contents, first, size):
    buffers = [memoryview(bytearray(content)) for content in contents]
    views = bulk.slices(buffers, first, size)
    assert b"".join(views) == b"".join(contents)[first : first + size]
    assert all(view.nbytes for view in views)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_parts_in_any_order_fill_the_buffers(contents, seed):
    whole = b"".join(contents)
    buffers = [bytearray(len(content)) for content in contents]
    cuts = sorted(random.Random(seed).choices(range(len(whole) + 1), k=3))
    parts = list(zip([0, *cuts], [*cuts, len(whole)]))
    random.Random(seed).shuffle(parts)
    for first, end in parts:
        for view in bulk.slices([memoryview(buffer) for buffer in buffers], first, end - first):
            view[:] = whole[first : first + view.nbytes]
            first += view.nbytes
    assert b"".join(buffers) == whole


# ---- messages ----------------------------------------------------------------------------------------------

short = st.integers(0, 2**32 - 1)
demands = st.dictionaries(st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), max_size=4)
definitions = st.builds(
    Definition, number=short, name=st.text(max_size=40), digest=st.binary(max_size=16), pickled=st.binary(max_size=200),
    rest=st.binary(max_size=50), references=st.lists(st.binary(max_size=40), max_size=3), flags=short,
    max_retries=st.integers(-1, 2**31 - 1), returns=st.integers(0, 65535), max_calls=short, timeout_ms=short,
    demand=demands, environment=st.binary(max_size=50), job=short,
)  # fmt: skip
words = st.integers(0, 2**64 - 1)
actors = st.builds(
    ActorDefinition, wire=words, identity=st.tuples(words, words), class_name=st.text(max_size=40), flags=short,
    max_restarts=st.integers(-1, 2**31 - 1), info=st.binary(max_size=100), demand=demands,
    environment=st.binary(max_size=50), job=short,
)  # fmt: skip


def decode(message, content_type):
    """As Peer does."""
    kind, content = msgspec.msgpack.decode(message, type=tuple[str, msgspec.Raw])
    return kind, msgspec.msgpack.decode(content, type=content_type)


@given(definitions)
@settings(max_examples=200, deadline=None)
def test_a_function_arrives_as_it_was_described(definition):
    message = msgspec.msgpack.encode(("function", definition))
    assert decode(message, Definition) == ("function", definition)


@given(actors, st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_an_actor_and_a_handle_arrive_as_they_were_described(definition, reference):
    assert decode(msgspec.msgpack.encode(("actor", definition)), ActorDefinition) == ("actor", definition)
    message = msgspec.msgpack.encode(("handle", (reference, definition)))
    assert decode(message, tuple[bytes, ActorDefinition]) == ("handle", (reference, definition))


@given(definitions, st.data())
@settings(max_examples=300, deadline=None)
def test_a_message_that_was_changed_is_refused_or_has_the_right_types(definition, data):
    message = bytearray(msgspec.msgpack.encode(("function", definition)))
    if data.draw(st.booleans(), "cut"):
        message = message[: data.draw(st.integers(0, len(message) - 1))]
        with pytest.raises(msgspec.DecodeError):
            decode(bytes(message), Definition)
        return
    message[data.draw(st.integers(0, len(message) - 1), "at")] ^= data.draw(st.integers(1, 255), "bits")
    try:
        _, changed = decode(bytes(message), Definition)
    except ValueError:  # what Peer.receive says it raises; the stream ends
        return
    assert [type(field) for field in msgspec.structs.astuple(changed)] == [
        type(field) for field in msgspec.structs.astuple(definition)
    ]


class Unlinked(Peer):
    """A peer without a link: messages only."""

    def __init__(self):
        self.flight = threading.Event()
        self.printed = []
        self.on_log = lambda *row: self.printed.append(row)


@given(st.binary(max_size=100))
@example(msgspec.msgpack.encode(("no such kind", 1)))
@example(msgspec.msgpack.encode(("log", "not a row")))
@example(msgspec.msgpack.encode(("flight", 7)))
@example(pickle.dumps(("flight", "127.0.0.1:1")))
@settings(max_examples=500, deadline=None)
def test_what_is_no_message_is_refused(message):
    peer = Unlinked()
    with pytest.raises(ValueError, match=r"."):  # the stream ends, and says so
        peer._on_message(message)
    assert not peer.flight.is_set()
    assert not peer.printed


def test_messages_of_known_kinds_are_taken():
    peer = Unlinked()
    peer._on_message(msgspec.msgpack.encode(("flight", "127.0.0.1:77")))
    peer._on_message(msgspec.msgpack.encode(("log", (1, 2, 1, b"hello\n"))))
    assert peer.flight.is_set()
    assert (peer.flight_address, peer.printed) == ("127.0.0.1:77", [(1, 2, 1, b"hello\n")])


# ---- numbers, errors, wishes -------------------------------------------------------------------------------


@given(st.binary(min_size=28, max_size=28), st.binary(min_size=28, max_size=28))
def test_numbers_order_nodes_as_their_ids_do(one, other):
    assert 0 <= number_of(one) < 2**64
    assert number_of(one).to_bytes(8, "big") == one[:8]
    assert (number_of(one) < number_of(other)) == (one[:8] < other[:8])


def test_a_failure_is_its_code_and_the_pickled_error():
    data = error_of(native.AGENT_ERROR, NodeDiedError("gone"))
    assert data[:1] == native.AGENT_ERROR
    error = pickle.loads(data[1:])
    assert (type(error), str(error)) == (NodeDiedError, "gone")


amounts = st.floats(0, 1e9)


@given(st.text(max_size=40), st.dictionaries(st.text(min_size=1, max_size=10), st.tuples(amounts, amounts)))
def test_the_reason_names_all_that_is_missing(reason, missing):
    text = cannot(Infeasible(reason, missing))
    assert text.startswith(f"this task can never run in this cluster: {reason}")
    assert text.endswith(").") == bool(missing) or reason.endswith(")")
    for name, (asked, there) in missing.items():
        assert f"{name}: asked for {asked:g}, the most any node has is {there:g}" in text


class Blobs:
    """Of an attachment: the table of blobs."""

    def __init__(self):
        self.blobs = {}

    def function_blob(self, index):
        return self.blobs[index]


def test_wishes_are_read_again_when_their_entry_has_another_content():
    attachment = Blobs()
    functions = Functions(attachment, "")
    attachment.blobs[3] = pickle.dumps(({"CPU": 10_000},))
    assert functions.wishes(3) is functions.wishes(3)
    assert functions.wishes(3) == Wishes({"CPU": 10_000}, "DEFAULT", {})
    attachment.blobs[3] = pickle.dumps(({"far": 1}, "SPREAD", {"zone": "far"}))  # the job is over, the entry another's
    assert functions.wishes(3) == Wishes({"far": 1}, "SPREAD", {"zone": "far"})
