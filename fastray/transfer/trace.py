"""What an agent did for tasks and values of two nodes, event by event: docs/internals/remote_task.md reads one task's.

    event    a dict: `time_ns` (wall clock), `kind` (a key of KINDS), what it is about. Handles are 16 hexadecimal
             digits: `task` at the node that submitted it, `value` at the node that wants it, `remote` where it is
    off      unless the node was started with FASTRAY_TRACE=1: then the router and its peers have no Trace

Made by router.py, written by router.py and peer.py, read by `of_node`, in any process of the same user.
"""

from __future__ import annotations

import collections
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

VARIABLE = "FASTRAY_TRACE"
QUESTION = "trace"  # on the agent's socket (fastray/cluster/inquiry.py)
EVENTS_MAX = 10_000  # the youngest are kept

# kind -> what happened, and what the event has besides time and kind
KINDS = {
    "function_put": "a function went to the global function table: name, digest",
    "function_made": "another node's function has entries here: name, digest",
    "class_routed": "tasks of a class that no worker here may run wait for the global scheduler: cls, waiting",
    "class_placed": "it placed some of them: cls, node, count",
    "class_spilled": "tasks that would wait here for long went to a node with room: cls, node, count",
    "routed": "a task came to the global scheduler because of its arguments: task",
    "located": "where its arguments are: task, arguments (bytes, node of each)",
    "placed": "the node that runs it: task, node",
    "task_sent": "it left for that node: task",
    "task_got": "it came from the node that submitted it: task",
    "asked": "somebody here needs a value that is away, and its entry names the node that has it: value, node",
    "fetch_sent": "that node was asked for it: value, remote",
    "fetch_got": "another node asks for it: value, remote",
    "value_sent": "it went there: value, bulk (its buffers follow by Flight)",
    "value_got": "it came: value, bulk",
    "replicated": "its buffers are in the store of this node: value, remote, bytes, complete",
    "result_sent": "a task of another node ended here: task, state; away: remote, bytes",
    "result_got": "a task that was sent away ended: task, state; away: remote, bytes",
}

# csrc/link_wire.h
MESSAGE, TASK, RESULT, FETCH, VALUE = 1, 2, 3, 6, 7  # FrameKind
STATES = {4: "done", 5: "failed", 8: "away"}  # State of csrc/types.h
_FRAME = struct.Struct("<QQ")  # FrameHead: kind, bytes of body
_TASK = struct.Struct("<Q")  # TaskHead: wire
_FETCH = struct.Struct("<QQ")  # handle, tag
_RESULT = struct.Struct("<QII")  # ResultHead: wire, state, number of the return value
_REF = struct.Struct("<QQQ")  # RefHead: node, handle, bytes
_VALUE = struct.Struct("<QQIIII")  # tag, state, ValueHead


class Trace:
    def __init__(self) -> None:
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=EVENTS_MAX)

    def note(self, kind: str, **about: Any) -> None:
        self._events.append({"time_ns": time.time_ns(), "kind": kind, **about})

    def rows(self) -> list[dict[str, Any]]:
        """The events, oldest first."""
        return list(self._events.copy())

    def sent(self, batch: bytes) -> None:
        """Notes the frames of a batch that goes out."""
        for kind, body in _frames(batch, 0):
            self._frame(kind, body, "sent")

    def got(self, batch: bytes, at: int) -> None:
        """Notes the frames from `at` on up to the next message, before they are applied."""
        for kind, body in _frames(batch, at):
            if kind == MESSAGE:
                return
            self._frame(kind, body, "got")

    def _frame(self, kind: int, body: memoryview, way: str) -> None:
        try:
            self._note_frame(kind, body, way)
        except struct.error:
            pass  # it is too short: the link says so, and closes

    def _note_frame(self, kind: int, body: memoryview, way: str) -> None:
        if kind == TASK:
            self.note(f"task_{way}", task=name(_TASK.unpack_from(body)[0]))
        elif kind == RESULT:
            task, state, _ = _RESULT.unpack_from(body)
            about: dict[str, Any] = {"task": name(task), "state": STATES.get(state, str(state))}
            if about["state"] == "away":
                _, remote, size = _REF.unpack_from(body, _RESULT.size)
                about.update(remote=name(remote), bytes=size)
            self.note(f"result_{way}", **about)
        elif kind == FETCH:
            remote, value = _FETCH.unpack_from(body)
            self.note(f"fetch_{way}", value=name(value), remote=name(remote))
        elif kind == VALUE:
            value, _, _, _, _, bulk = _VALUE.unpack_from(body)
            self.note(f"value_{way}", value=name(value), bulk=bool(bulk))


def _frames(batch: bytes, at: int) -> Iterator[tuple[int, memoryview]]:
    """(kind, body) of each frame that is whole; what is wrong with others, the link says."""
    while at + _FRAME.size <= len(batch):
        kind, size = _FRAME.unpack_from(batch, at)
        at += _FRAME.size
        if size > len(batch) - at:
            return
        yield kind, memoryview(batch)[at : at + size]
        at += size


def name(handle: int) -> str:
    return f"{handle:016x}"


def from_environment(environ: Mapping[str, str] = os.environ) -> Trace | None:
    """None unless FASTRAY_TRACE is 1."""
    return Trace() if environ.get(VARIABLE) == "1" else None


def of_node(path: str) -> list[dict[str, Any]]:
    """The events of the node with this session directory, oldest first.

    Raises InvalidOptionError when the node does not trace, GcsUnavailableError when its agent does not answer.
    """
    from fastray.cluster import inquiry
    from fastray.exceptions import InvalidOptionError

    events: list[dict[str, Any]] | None = inquiry.ask(path, QUESTION)
    if events is None:
        raise InvalidOptionError(f"the node in {path} does not trace: start it with {VARIABLE}=1 in its environment")
    return events
