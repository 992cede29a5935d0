"""A client's stream of events, which outlives the server's restarts.

    topic      a table or a channel; the version up to which this client has its events
    watch      an object id whose first copy is waited for; left again with every new server
    view       keys of a table that this client was told of, to tell it of those that are gone after a restart

The thread opens a stream with the versions it has. When the stream ends (the server died, or this client was
too slow) it opens the next one and gets what it missed. It gives up never: the window belongs to the calls.
Called by client.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import grpc
import msgspec

from fastray.exceptions import GcsUnavailableError
from fastray.gcs import commands, records, wire
from fastray.gcs.connection import BREAKS, Backoff, Connection
from fastray.gcs.table import encode

OBJECT = "object"
ROWS: dict[str, type[records.Row]] = {
    "node": records.Node,
    "load": records.Load,
    "actor": records.Actor,
    "job": records.Job,
    "placement_group": records.PlacementGroup,
}
Found = tuple[int, list[bytes], bytes]
Submit = Callable[[commands.Command], "Future[Any]"]

log = logging.getLogger("fastray.gcs")
_decode_notices = msgspec.msgpack.Decoder(list[wire.Notice]).decode
_decode_found = msgspec.msgpack.Decoder(Found).decode


class Subscription:
    def __init__(self, connection: Connection, client: bytes, window_s: float) -> None:
        self._connection = connection
        self._client = client
        self._window_s = window_s
        self._lock = threading.Lock()
        self._topics: dict[str, int] = {}
        self._handlers: dict[str, list[Callable[[bytes, Any], None]]] = {}
        self._views: dict[str, set[bytes]] = {}
        self._watches: dict[bytes, list[Callable[[bytes, Found], None]]] = {}
        self._submit: Submit | None = None
        self._stream: Any = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._opened = threading.Event()  # the server has this client's stream

    def subscribe(self, handlers: Mapping[str, Callable[[bytes, Any], None]]) -> None:
        for topic in handlers:
            if topic not in ROWS and not topic.startswith("channel:"):
                raise ValueError(f'no topic {topic!r}: there are {", ".join(ROWS)} and "channel:NAME"')
        with self._lock:
            for topic, on_event in handlers.items():
                self._handlers.setdefault(topic, []).append(on_event)
                self._topics[topic] = -1  # the new handler gets the whole table
                self._views.setdefault(topic, set())
            stream, self._stream = self._stream, None
            self._opened.clear()
        if stream is not None:
            stream.cancel()  # the thread opens one with the new topic
        self.open()

    def open(self) -> None:
        """Returns when the server has the stream: what happens from now on is heard.

        Raises GcsUnavailableError after the client's window; the thread goes on trying.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="gcs-events", daemon=True)
                self._thread.start()
        if self._thread is not threading.current_thread() and not self._opened.wait(self._window_s):
            raise GcsUnavailableError(waited_s=self._window_s)

    def watch(self, ids: list[bytes], on_found: Callable[[bytes, Found], None], submit: Submit) -> None:
        self.open()
        with self._lock:
            self._submit = submit
            for key in ids:
                self._watches.setdefault(key, []).append(on_found)
        self._leave(ids, submit)

    def unwatch(self, ids: list[bytes]) -> None:
        with self._lock:
            for key in ids:
                self._watches.pop(key, None)

    def close(self) -> None:
        self._closed.set()
        self._opened.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # ---- the listening thread -------------------------------------------------------------------------

    def _listen(self) -> None:
        backoff = Backoff()
        while not self._closed.is_set():
            channel = self._connection.channel
            try:
                with self._lock:
                    asked = encode(wire.Subscribe(self._client, dict(self._topics)))
                    stream = channel.subscribe(asked, metadata=self._connection.metadata)
                    self._stream = stream
                    self._opened.clear()
                if self._closed.is_set():
                    stream.cancel()
                for body in stream:
                    backoff.reset()
                    self._received(stream, _decode_notices(body))
            except ValueError:  # the channel was replaced a moment ago
                continue
            except grpc.RpcError as error:
                log.debug("the stream of events ended: %s", error)
                with self._lock:
                    replaced = stream is not self._stream  # by `subscribe`, which wants another one
                if not replaced and error.code() in BREAKS:
                    self._connection.broke(channel)
            self._closed.wait(backoff.next_s())

    def _received(self, stream: Any, notices: list[wire.Notice]) -> None:
        with self._lock:
            if stream is not self._stream:
                return  # of a stream that was replaced: the new one tells it again
            first = not self._opened.is_set()
        for notice in notices:
            if notice.topic == OBJECT:
                for key, value in notice.rows:
                    self._found(key, _decode_found(value))
            else:
                self._told(stream, notice)
        if first:
            self._opened.set()
            if self._submit is not None and self._watches:
                self._leave(list(self._watches), self._submit)

    def _told(self, stream: Any, notice: wire.Notice) -> None:
        topic, row = notice.topic, ROWS.get(notice.topic)
        with self._lock:
            if stream is not self._stream:
                return  # as above
            handlers = list(self._handlers.get(topic, ()))
            if row is not None:
                self._topics[topic] = notice.version
        view = self._views[topic]
        if notice.whole:
            there = {key for key, _ in notice.rows}
            self._call(handlers, [(key, None) for key in view - there])
            view.clear()
        events: list[tuple[bytes, Any]] = []
        for key, value in notice.rows:
            if row is None:
                events.append((key, value))
            elif value:
                view.add(key)
                events.append((key, msgspec.msgpack.decode(value, type=row)))
            else:
                view.discard(key)
                events.append((key, None))
        self._call(handlers, events)

    @staticmethod
    def _call(handlers: list[Callable[[bytes, Any], None]], events: list[tuple[bytes, Any]]) -> None:
        for key, value in events:
            for handler in handlers:
                try:
                    handler(key, value)
                except Exception:
                    log.exception("a subscriber's callback failed")

    # ---- callbacks of objects -------------------------------------------------------------------------

    def _leave(self, ids: list[bytes], submit: Submit) -> None:
        """Leaves callbacks at the server; what is there already is answered at once."""

        def answered(future: Future[Any]) -> None:
            if future.exception() is None:
                for key, where in zip(ids, future.result()):
                    if where is not None and where[1]:
                        self._found(key, (where[0], list(where[1]), where[2]))

        submit(commands.ObjectsWatch(ids)).add_done_callback(answered)

    def _found(self, key: bytes, where: Found) -> None:
        with self._lock:
            waiting = self._watches.pop(key, [])
        for on_found in waiting:
            try:
                on_found(key, where)
            except Exception:
                log.exception("the callback of an object failed")
