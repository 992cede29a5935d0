"""The store's client, for daemons and drivers: blocking calls, and futures.

    submit    a command goes into the queue; its future has the result once it is durable
    call      the same, and waits
    batch     what is in the queue when the last batch was answered; so it grows with the load by itself
    window    how long a store that does not answer is waited for; after it, GcsUnavailableError

One batch is in flight at a time, so commands take effect in the order of `submit`. A batch that got no answer
is sent again under its number, and the store applies it once, whichever side or wire broke. Threads: one that
sends, and one that listens (subscription.py) while something is subscribed.

Heartbeats have a connection of their own, and a new one after each that is late. When packets were lost for a while,
TCP waits longer and longer before it tries again, also when the way is free: a node would be declared dead of it.

A client cannot be used in a fork of its process: gRPC's threads are not there. Called by daemons, drivers, CLI.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import grpc
import msgspec

from fastray.exceptions import (
    AuthenticationError,
    ForkedProcessError,
    GcsRequestError,
    GcsUnavailableError,
    NodeFencedError,
    RpcError,
    VersionMismatchError,
)
from fastray.gcs import auth, commands, wire
from fastray.gcs.connection import BREAKS, Backoff, Connection
from fastray.gcs.records import Row, Task
from fastray.gcs.subscription import ROWS, Subscription
from fastray.gcs.table import encode

WINDOW_S = 30.0
BATCH_COMMANDS_MAX = 2_000
BATCH_BYTES_MAX = 4 << 20
PENDING_COMMANDS_MAX = 100_000  # more, and `submit` waits
CALL_WAIT_S = 10.0  # for one answer, before the batch is sent again
BEAT_WAIT_S = 0.5  # a part of the time after which a silent node is dead
CLOSE_WAIT_S = 2.0
CLOSED = "this client of the global control store is closed"
_decode_results = msgspec.msgpack.Decoder(list[commands.Result]).decode


def rows_of(table: str, answer: Any) -> list[Any]:
    """What TableRead answers."""
    _, rows = answer
    return [msgspec.convert(row, ROWS[table]) for row in rows]


class GcsClient:
    """Connects at once. Raises AuthenticationError, VersionMismatchError, GcsUnavailableError.

    `token` is "" for a store without authentication; `window_s` bounds every wait for a store that is away.
    """

    def __init__(
        self, address: str, token: str = "", *, window_s: float = WINDOW_S, tls: auth.Tls | None = None
    ) -> None:
        self.client_id = os.urandom(16)
        self.window_s = window_s
        self._pid = os.getpid()
        self._connection = Connection(address, token, tls)
        self._beats = Connection(address, token, tls)
        self._subscription = Subscription(self._connection, self.client_id, window_s)
        self._seq = 0
        self._queue: deque[tuple[bytes, Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._sender: threading.Thread | None = None
        try:
            self._hello()
        except BaseException:
            self._close_connections()
            raise

    @property
    def address(self) -> str:
        return self._connection.address

    def _hello(self) -> None:
        welcome = msgspec.msgpack.decode(self._invoke("Hello", b""), type=wire.Welcome)
        self.cluster = welcome.cluster
        if welcome.python != wire.python_version():
            warnings.warn(
                f"this is Python {wire.python_version()}, the cluster's store runs {welcome.python}", stacklevel=4
            )

    # ---- commands -------------------------------------------------------------------------------------

    def submit(self, command: commands.Command) -> Future[Any]:
        """The result, decoded; GcsRequestError (NodeFencedError) when refused, GcsUnavailableError when lost.

        Waits while PENDING_COMMANDS_MAX commands are queued.
        """
        if os.getpid() != self._pid:
            raise ForkedProcessError("a client of the global control store does not survive a fork: make a new one")
        body = encode(command)
        future: Future[Any] = Future()
        with self._changed:
            while len(self._queue) >= PENDING_COMMANDS_MAX and not self._closing:
                self._changed.wait()
            if self._closing:
                raise GcsUnavailableError(CLOSED)
            if self._sender is None:
                self._sender = threading.Thread(target=self._send_forever, name="gcs-client", daemon=True)
                self._sender.start()
            self._queue.append((body, future))
            if len(self._queue) == 1:
                self._changed.notify_all()
        return future

    def call(self, command: commands.Command, timeout_s: float | None = None) -> Any:
        """As `submit`, and waits. Raises TimeoutError after `timeout_s`; the command may still take effect."""
        return self.submit(command).result(timeout_s)

    async def acall(self, command: commands.Command) -> Any:
        return await asyncio.wrap_future(self.submit(command))

    def flush(self) -> None:
        """Returns when everything submitted before is durable, or refused."""
        self.call(commands.KvGet("", []))

    def read(self, table: str) -> list[Any]:
        """The rows of a published table, see `subscribe`."""
        return rows_of(table, self.call(commands.TableRead(table)))

    def tasks(self, command: commands.TasksList, timeout_s: float | None = None) -> list[Task]:
        """The rows. Raises TimeoutError after `timeout_s`."""
        return msgspec.convert(self.call(command, timeout_s), list[Task])

    def beat(
        self,
        epoch: int,
        version: int,
        available: dict[str, float],
        queues: dict[str, list[float]],
        *,
        full: bool = False,
    ) -> commands.BeatReply:
        """A heartbeat, now, past the queue. Raises GcsUnavailableError: try again at the next one."""
        beat = commands.Beat(self.client_id, epoch, version, full, available, queues)
        reply = self._invoke("Beat", encode(beat), self._beats, wait_s=BEAT_WAIT_S, retry=False)
        return msgspec.msgpack.decode(reply, type=commands.BeatReply)

    def history(self, task_id: bytes = b"", limit: int = 100) -> list[Task]:
        """Ended tasks, newest first, from the store's disk."""
        reply = self._invoke("History", encode(commands.History(task_id, limit)))
        return msgspec.msgpack.decode(reply, type=list[Task])

    # ---- events ---------------------------------------------------------------------------------------

    def subscribe(self, topic: str, on_event: Callable[[bytes, Row | bytes | None], None]) -> None:
        """on_event(key, row) for every row of a table ("node", "load", "actor", "job", "placement_group"),
        now and whenever it changes; None for a row that is gone. For "channel:NAME": on_event(b"", message).

        Runs on the listening thread; states in between may be skipped, the last one never is. Everything may
        come twice: when another handler joins, and when the store restarts.
        """
        self.subscribe_all({topic: on_event})

    def subscribe_all(self, handlers: Mapping[str, Callable[[bytes, Any], None]]) -> None:
        """As `subscribe`, for several topics at once: the stream is opened once."""
        self._subscription.subscribe(handlers)

    def watch_objects(
        self, ids: list[bytes], on_found: Callable[[bytes, tuple[int, list[bytes], bytes]], None]
    ) -> None:
        """on_found(id, (bytes, ids of nodes, task)) once for each id, as soon as a node has a copy.

        It runs on one of the client's threads, and must not wait for a command.
        """
        self._subscription.watch(ids, on_found, self.submit)

    def unwatch_objects(self, ids: list[bytes]) -> None:
        self._subscription.unwatch(ids)
        self.submit(commands.ObjectsUnwatch(ids))

    def stay_connected(self) -> None:
        """Opens the stream by which the store sees that this process lives: for nodes and drivers."""
        self._subscription.open()

    # ---- the end --------------------------------------------------------------------------------------

    def close(self, *, goodbye: bool = True) -> None:
        """Sends what is queued and says goodbye: its node leaves, its jobs end. May be called twice.

        Without `goodbye` the store finds out by the closed connection.
        """
        if self._closing or os.getpid() != self._pid:
            return
        self.window_s = min(self.window_s, CLOSE_WAIT_S)
        if goodbye:
            try:
                self.flush()
                self.call(commands.Goodbye())
            except GcsUnavailableError:
                pass  # it will see the connection closed
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._sender is not None:
            self._sender.join()
        self._subscription.close()
        self._close_connections()

    def _close_connections(self) -> None:
        self._connection.close()
        self._beats.close()

    def __enter__(self) -> GcsClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- the sender -----------------------------------------------------------------------------------

    def _send_forever(self) -> None:
        while not self._closing or self._queue:
            taken = self._take()
            if not taken:
                continue
            try:
                self._send(taken)
            except Exception as error:
                if isinstance(error, GcsUnavailableError):
                    while self._queue:  # what came after has waited as long, or for it
                        taken += self._take()
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)

    def _take(self) -> list[tuple[bytes, Future[Any]]]:
        """The next batch; empty when the client closes."""
        with self._changed:
            taken: list[tuple[bytes, Future[Any]]] = []
            size = 0
            while not self._queue and not self._closing:
                self._changed.wait()
            while self._queue and len(taken) < BATCH_COMMANDS_MAX and size < BATCH_BYTES_MAX:
                body, future = self._queue.popleft()
                if future.set_running_or_notify_cancel():  # False: whoever waited gave up, and it is not sent
                    size += len(body)
                    taken.append((body, future))
            self._changed.notify_all()  # who waits for room
            return taken

    def _send(self, taken: list[tuple[bytes, Future[Any]]]) -> None:
        self._seq += 1
        body = encode((self.client_id, self._seq, [msgspec.Raw(command) for command, _ in taken]))
        reply = self._invoke("Batch", body)
        for (_, future), result in zip(taken, _decode_results(reply)):
            if isinstance(result, commands.Done):
                future.set_result(result.value)
            else:
                error_type = NodeFencedError if result.kind == "stale" else GcsRequestError
                future.set_exception(error_type(result.message, result.kind))

    def _invoke(
        self, name: str, body: bytes, connection: Connection | None = None, *, wait_s: float = CALL_WAIT_S,
        retry: bool = True,
    ) -> bytes:  # fmt: skip
        """Calls until there is an answer, or the window is over."""
        begin, backoff = time.monotonic(), Backoff()
        connection = connection or self._connection
        while True:
            channel = connection.channel
            try:
                return channel.unary[name](body, metadata=connection.metadata, timeout=wait_s)  # type: ignore[no-any-return]
            except ValueError:  # another thread has just replaced and closed it
                if self._closing:
                    raise GcsUnavailableError(CLOSED) from None
                continue
            except grpc.RpcError as error:
                waited_s = time.monotonic() - begin
                failure = self._failure(error, waited_s)
            if not isinstance(failure, GcsUnavailableError):
                raise failure
            connection.broke(channel)
            pause_s = backoff.next_s()
            if not retry or self._closing or waited_s + pause_s > self.window_s:
                raise failure
            time.sleep(pause_s)

    def _failure(self, error: Any, waited_s: float) -> Exception:
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return AuthenticationError(details)
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            return VersionMismatchError(details)
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return GcsRequestError(details)
        if code in BREAKS:
            return GcsUnavailableError(address=self.address, waited_s=waited_s)
        return RpcError(f"{self.address}: {code.name}: {details}", code.value[0])


