"""The gRPC service around the tables: it has the clock, the sockets and the store; it decides nothing.

    Hello        versions agree; who is the server
    Batch        commands in order; answered when what they did, and what they saw, is durable
    Beat         heartbeats; answered at once
    History      ended tasks, from the store
    Subscribe    a stream of notices; while it is open its client lives
    Health       the standard health check: SERVING, or NOT_SERVING while the store cannot write

The token and the versions of every call are checked when its headers are there, before its body is read. The
failure detector's verdicts are applied here, and published before they are durable. Called by __main__.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, Callable

import grpc
import msgspec

from fastray import __version__
from fastray.gcs import auth, wire
from fastray.gcs.commands import Batch, Beat, Goodbye, History, JobEnd, JobStart, NodeDrain, NodeRegister
from fastray.gcs.commit import Committer
from fastray.gcs.failure_detector import CHECK_EVERY_S, FailureDetector
from fastray.gcs.publisher import Publisher, Subscriber
from fastray.gcs.store import Store
from fastray.gcs.table import Changes, encode
from fastray.gcs.tables import GlobalState, StaleBatch

log = logging.getLogger("fastray.gcs")
_OWNERSHIP = (NodeRegister, NodeDrain, JobStart, JobEnd, Goodbye)  # commands that make or end a pulse
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse{status}
_STOP_GRACE_S = 1.0
BIND_WAIT_S, BIND_EVERY_S = 0.5, 0.002

class GcsServer:
    """One store, served. Made inside of a running event loop."""

    def __init__(
        self, state: GlobalState, store: Store, token: str, *, detector: FailureDetector | None = None
    ) -> None:
        self._state = state
        self._token = token
        self._publisher = Publisher()
        self._committer = Committer(store, self._publisher.publish)
        self._detector = detector or FailureDetector()
        self._server: Any = None
        self._checks: asyncio.Task[None] | None = None
        self._decode_batch = msgspec.msgpack.Decoder(Batch).decode
        self._decode_beat = msgspec.msgpack.Decoder(Beat).decode

    async def start(self, host: str, port: int, tls: auth.Tls | None = None) -> str:
        """The address it listens on. Raises InvalidOptionError, OSError when the port is taken."""
        auth.check_bind(host, self._token)
        self._committer.add(self._state.begin(os.urandom(16).hex()))
        await self._committer.settled()
        now = time.monotonic()
        for node in self._state.nodes.by_epoch.values():
            self._detector.watch(node.client, now, beats=True, returning=True)
        for job in self._state.jobs.rows.values():
            if job.ended_at == 0.0:
                self._detector.watch(job.client, now, beats=False, returning=True)
        name = f"[{host}]" if ":" in host and not host.startswith("[") else host
        bound = await self._listen(f"{name}:{port}", tls)
        await self._server.start()
        self._checks = asyncio.get_running_loop().create_task(self._check_forever())
        return f"{name}:{bound}"

    async def _listen(self, address: str, tls: auth.Tls | None) -> int:
        """The port. The kernel may close the lock of a dead server before its socket: then it is tried again."""
        deadline = time.monotonic() + BIND_WAIT_S
        while True:
            self._server = grpc.aio.server(options=wire.SERVER_OPTIONS)
            self._server.add_generic_rpc_handlers((_Methods(self._refusal, self._methods()),))
            try:
                if tls is None:
                    return int(self._server.add_insecure_port(address))
                credentials = grpc.ssl_server_credentials([(tls.key, tls.cert)], tls.ca)
                return int(self._server.add_secure_port(address, credentials))
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise OSError(f"cannot listen on {address}: {error}") from error
            await asyncio.sleep(BIND_EVERY_S)

    async def stop(self) -> None:
        if self._checks is not None:
            self._checks.cancel()
        self._publisher.cut_all()
        await self._server.stop(_STOP_GRACE_S)
        await self._committer.close()

    # ---- who may call ---------------------------------------------------------------------------------

    def _refusal(self, metadata: dict[str, Any]) -> tuple[Any, str] | None:
        return wire.refusal(metadata, self._token)

    def _methods(self) -> dict[str, Any]:
        unary = {wire.method(name): getattr(self, "_" + name.lower()) for name in wire.UNARY}
        unary[wire.HEALTH] = self._health
        methods = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in unary.items()}
        methods[wire.method(wire.SUBSCRIBE)] = grpc.unary_stream_rpc_method_handler(self._subscribe)
        return methods

    # ---- calls ----------------------------------------------------------------------------------------

    async def _hello(self, body: bytes, context: Any) -> bytes:
        return encode(wire.Welcome(self._state.incarnation, wire.python_version(), __version__, self._state.cluster))

    async def _batch(self, body: bytes, context: Any) -> bytes:
        batch = await _decoded(self._decode_batch, body, context)
        try:
            reply, changes = self._state.apply_batch(batch, time.time())
        except StaleBatch:
            await context.abort(grpc.StatusCode.ABORTED, "a late copy of a batch that was answered")
        self._committer.add(changes)
        if any(isinstance(command, _OWNERSHIP) for command in batch.commands):
            self._watch(batch.client)
        await self._committer.settled()
        return reply

    def _watch(self, client: bytes) -> None:
        beats, drives = self._state.owns(client)
        if beats or drives:
            self._detector.watch(client, time.monotonic(), beats=beats)
        else:
            self._detector.forget(client)

    async def _beat(self, body: bytes, context: Any) -> bytes:
        beat = await _decoded(self._decode_beat, body, context)
        self._detector.beat(beat.client, time.monotonic())
        changes = Changes()
        reply = self._state.beat(beat, changes)
        self._committer.add(changes)
        return encode(reply)

    async def _history(self, body: bytes, context: Any) -> bytes:
        asked = await _decoded(msgspec.msgpack.Decoder(History).decode, body, context)
        return encode([msgspec.Raw(row) for row in await self._committer.history(asked.task_id, asked.limit)])

    async def _health(self, body: bytes, context: Any) -> bytes:
        return _NOT_SERVING if self._committer.failing else _SERVING

    async def _subscribe(self, body: bytes, context: Any) -> None:
        asked = await _decoded(msgspec.msgpack.Decoder(wire.Subscribe).decode, body, context)
        tables = self._state.tables
        for topic in asked.topics:
            if self._publisher.is_table(topic) and not (topic in tables and tables[topic].published):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no topic {topic!r}")
        subscriber = Subscriber(asked.client, asked.topics)
        self._publisher.add(subscriber)
        self._detector.opened(asked.client)
        try:
            missed = self._catch_up(subscriber)
            await self._committer.settled()
            await context.write(encode(missed))
            while True:
                notices = await subscriber.take()
                if subscriber.cut_off:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "cut off: come back for the rest")
                await context.write(encode(notices))
        finally:
            self._detector.closed(asked.client, time.monotonic())
            if self._publisher.remove(subscriber):
                self._state.client_closed(asked.client)

    def _catch_up(self, subscriber: Subscriber) -> list[wire.Notice]:
        """What the subscriber missed of each table, or the whole table."""
        notices: list[wire.Notice] = []
        for topic, version in subscriber.topics.items():
            if not self._publisher.is_table(topic):
                continue
            table = self._state.tables[topic]
            events = table.since(version)
            if events is None:
                notices.append(wire.Notice(topic, table.version, True, table.snapshot()))
            elif events:
                rows = [(event.key, event.value) for event in events]
                notices.append(wire.Notice(topic, table.version, False, rows))
            subscriber.topics[topic] = table.version
        return notices

    # ---- deaths ---------------------------------------------------------------------------------------

    async def _check_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for client, reason in self._detector.check(time.monotonic()):
                log.warning("client %s is gone: %s", client.hex(), reason)
                self._committer.add(self._state.client_gone(client, reason, time.time()))
            self._committer.add(self._state.tick())


async def _decoded(decode: Callable[[bytes], Any], body: bytes, context: Any) -> Any:
    try:
        return decode(body)
    except msgspec.DecodeError as error:  # ValidationError too
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"malformed request: {error}")


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the method of a call, once its headers are there; the body is not read before."""

    def __init__(
        self, refusal: Callable[[dict[str, Any]], tuple[Any, str] | None], methods: dict[str, Any]
    ) -> None:
        self._refusal = refusal
        self._methods = methods

    def service(self, details: Any) -> Any:
        refused = self._refusal(dict(details.invocation_metadata))
        if refused is None:
            return self._methods.get(details.method)

        async def refuse(requests: Any, context: Any) -> None:
            await context.abort(*refused)

        return grpc.stream_stream_rpc_method_handler(refuse)  # a stream: its first message is not read
