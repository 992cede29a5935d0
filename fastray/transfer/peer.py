"""One other node, as its neighbour's agent sees it: its link, the stream to it, and the messages between batches.

    message   a frame for Python: msgpack of (kind, content). "function": a Definition; "class": a ClassDefinition;
              "actor": an ActorDefinition; "handle": a reference and an ActorDefinition; "wanted", "found": see
              names.py; "log": job, pid, stream, text; "flight": where its store is

Everything here runs with the agent's lock held but `Stream.send`'s own thread. Called by router.py.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from fastray._native import link as native
from fastray._native.link import Link
from fastray.actor import OUT_OF_ORDER
from fastray.exceptions import TaskUnschedulableError
from fastray.transfer.functions import ActorDefinition, ClassDefinition, Definition, Functions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray.gcs.records import Node
    from fastray.scheduling.view import Infeasible
    from fastray.transfer.names import Names
    from fastray.transfer.stream import Stream
    from fastray.transfer.trace import Trace

BATCH_MAX = 4000  # tasks placed at a time
DECISIONS_MAX = 64  # and decisions about them
OUTSTANDING_MAX = 20_000  # tasks sent to one node and not answered yet


class Peer:
    """`number` names the node in references: the first 8 bytes of its id."""

    def __init__(
        self,
        own_number: int,
        row: Node,
        stream: Stream,
        functions: Functions,
        published: Callable[[Definition], None],
        trace: Trace | None = None,
    ) -> None:
        self.row = row
        self.node_id = row.node_id
        self.number = number_of(row.node_id)
        self.link = Link(own_number, self.number)
        self.stream = stream
        self._functions = functions
        self._published = published
        self._trace = trace
        self.ended = False
        self.names: Names | None = None
        self.on_log: Callable[[int, int, int, bytes], None] = lambda job, pid, stream, text: None
        self.flight = threading.Event()  # set when flight_address is known
        self.flight_address = ""

    def room(self) -> int:
        """How many tasks more it may be sent now."""
        return 0 if self.stream.is_behind() else max(0, OUTSTANDING_MAX - int(self.link.counts()["outstanding"]))

    def send_staged(self) -> None:
        """What was claimed or staged goes out, behind the functions it needs."""
        for function in self.link.unknown_functions():
            self._describe(function)
        for cls in self.link.unknown_classes():
            definition = self._functions.describe_class(cls)
            self.link.describe_class(cls, msgspec.msgpack.encode(("class", definition)))
        self.introduce_actors()
        self.link.send_staged()

    def introduce_actors(self) -> bool:
        """The peer gets to know the actors that what waits here names; whether there were any."""
        unknown = self.link.unknown_actors()
        for creation in unknown:
            self.introduce(creation)
        return bool(unknown)

    def introduce(self, creation: int) -> None:
        """Unless the peer knows it already."""
        if self.link.knows_actor(creation):
            return
        definition = self._functions.describe_actor(native.actor_of(creation), creation)
        definition.flags, definition.max_restarts = definition.flags & OUT_OF_ORDER, 0
        self.send_message("handle", (self.link.export_ref(creation), definition))

    def _describe(self, function: int) -> None:
        definition = self._functions.describe(self.link, function)
        self.link.describe(function, msgspec.msgpack.encode(("function", definition)))
        self._published(definition)

    def send_actor(self, actor: int, creation: int, function: int) -> None:
        """The actor in this entry is created there."""
        if not self.link.knows(function):
            self._describe(function)
        self.send_message("actor", self._functions.describe_actor(actor, creation))
        self.link.send_actor(creation)

    def flush(self) -> None:
        batch = self.link.take_out()
        if batch and not self.ended:
            if self._trace is not None:
                self._trace.sent(batch)
            self.stream.send(batch)

    def receive(self, batch: bytes) -> None:
        """Raises ValueError for what cannot be understood."""
        at = 0
        while at < len(batch):
            if self._trace is not None:
                self._trace.got(batch, at)
            at, message = self.link.receive(batch, at)
            if message is not None:
                self._on_message(message)

    def _on_message(self, message: bytes) -> None:
        kind, content = msgspec.msgpack.decode(message, type=tuple[str, msgspec.Raw])
        if kind == "function":
            definition = msgspec.msgpack.decode(content, type=Definition)
            self._functions.make(self.link, definition)
            if self._trace is not None:
                self._trace.note("function_made", name=definition.name, digest=definition.digest.hex())
        elif kind == "class":
            self._functions.make_class(self.link, msgspec.msgpack.decode(content, type=ClassDefinition))
        elif kind == "actor":
            self._functions.make_actor(self.link, msgspec.msgpack.decode(content, type=ActorDefinition))
        elif kind == "handle":
            reference, actor = msgspec.msgpack.decode(content, type=tuple[bytes, ActorDefinition])
            self._functions.make_handle(self.link, reference, actor)
        elif kind == "wanted" and self.names is not None:
            self.names.wanted(self, content)
        elif kind == "found" and self.names is not None:
            self.names.found(self, content)
        elif kind == "log":
            self.on_log(*msgspec.msgpack.decode(content, type=tuple[int, int, int, bytes]))
        elif kind == "flight":
            self.flight_address = msgspec.msgpack.decode(content, type=str)
            self.flight.set()
        else:
            raise ValueError(f"a message of unknown kind {kind!r}")

    def send_message(self, kind: str, content: Any) -> None:
        self.link.send_message(msgspec.msgpack.encode((kind, content)))

    def down(self, error: bytes) -> None:
        self.ended = True
        self.link.down(error)


def number_of(node_id: bytes) -> int:
    return int.from_bytes(node_id[:8], "big")


def error_of(agent_error: bytes, error: Exception) -> bytes:
    """What a record that failed with `error` holds."""
    import pickle

    return agent_error + pickle.dumps(error)


def unschedulable(outcome: Infeasible) -> bytes:
    """The same of a task that no node can run."""
    return error_of(native.AGENT_ERROR, TaskUnschedulableError(cannot(outcome), missing=outcome.missing))


def cannot(outcome: Infeasible) -> str:
    """For people."""
    lacks = "; ".join(
        f"{name}: asked for {asked:g}, the most any node has is {there:g}"
        for name, (asked, there) in outcome.missing.items()
    )
    return f"this task can never run in this cluster: {outcome.reason}" + (f" ({lacks})" if lacks else "") + "."
