"""A stream of batches between two agents: one gRPC call per pair of nodes, opened by the node with the smaller number.

    batch     bytes with whole frames (csrc/link_wire.h), in order. A long one goes in pieces of whole frames
    refused   without the token, or with another wire version: before anything is read (auth.py, wire.py of the GCS)

Two threads per stream: gRPC's, which takes batches to send from a queue, and one that reads. When a stream ends, for
whatever reason, its `on_end` is called once. Called by router.py.
"""

from __future__ import annotations

import queue
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from fastray.gcs import auth, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

METHOD = "/fastray.transfer.Link/Open"
NODE, EPOCH = "fastray-node", "fastray-epoch"  # metadata: who calls
STREAMS_MAX = 1000
PIECE_BYTES = 32 << 20
FRAME_BYTES_MAX = (1 << 31) - 1  # gRPC's limit for a message
FRAME_HEAD = struct.Struct("<II")  # kind, bytes that follow
LIMITS = {"grpc.max_receive_message_length": FRAME_BYTES_MAX, "grpc.max_send_message_length": FRAME_BYTES_MAX}
SERVER_OPTIONS = list({**dict(wire.SERVER_OPTIONS), **LIMITS}.items())
CHANNEL_OPTIONS = list({**dict(wire.CHANNEL_OPTIONS), **LIMITS}.items())


def pieces(batch: bytes, most: int = PIECE_BYTES) -> Iterator[bytes]:
    """The batch in parts of whole frames, of `most` bytes unless one frame is longer."""
    begin = at = 0
    while len(batch) - begin > most and at < len(batch):
        end = at + FRAME_HEAD.size + FRAME_HEAD.unpack_from(batch, at)[1]
        if end - begin > most and at > begin:
            yield batch[begin:at]
            begin = at
        at = end
    yield batch[begin:] if begin else batch


class Stream:
    """Batches to one node. `send` never blocks; what it is given goes out in order."""

    def __init__(self) -> None:
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._ended = threading.Lock()
        self._cancel: Callable[[], Any] | None = None
        self.on_batch: Callable[[bytes], None] = lambda batch: None
        self.on_end: Callable[[str], None] = lambda reason: None

    def send(self, batch: bytes) -> None:
        for piece in pieces(batch):
            self._out.put(piece)

    def batches(self) -> Iterator[bytes]:
        return iter(self._out.get, None)

    def read(self, batches: Iterator[bytes]) -> None:
        """Until the other side ends, or its process does."""
        reason = "it closed the connection"
        try:
            for batch in batches:
                self.on_batch(batch)
        except grpc.RpcError as error:
            details = getattr(error, "details", lambda: "")()
            reason = f"the connection broke ({details})" if details else "the connection broke"
        except ValueError as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        self.end(reason)

    def send_end(self) -> None:
        """Nothing more is sent."""
        self._out.put(None)

    def begin(self, batches: Iterator[bytes], cancel: Callable[[], Any]) -> None:
        self._cancel = cancel
        threading.Thread(target=self.read, args=(batches,), name="fastray-link", daemon=True).start()

    def end(self, reason: str) -> None:
        """Closes it. May be called again, and by anybody."""
        if not self._ended.acquire(blocking=False):
            return
        self.send_end()
        if self._cancel is not None:
            self._cancel()
        self.on_end(reason)


class Server:
    """Accepts streams of other agents. `accept(node id, epoch, stream)` says yes, or why not."""

    def __init__(self, token: str, accept: Callable[[bytes, int, Stream], str]) -> None:
        self._token = token
        self._accept = accept
        self._server = grpc.server(ThreadPoolExecutor(STREAMS_MAX), options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((_Handler(self._open, self._refusal),))

    def listen(self, host: str, tls: auth.Tls | None) -> int:
        """The port. Raises InvalidOptionError for a host that others reach, without a token."""
        auth.check_bind(host, self._token)
        name = f"[{host}]:0" if ":" in host else f"{host}:0"
        if tls is None:
            port = self._server.add_insecure_port(name)
        else:
            port = self._server.add_secure_port(name, grpc.ssl_server_credentials([(tls.key, tls.cert)], tls.ca))
        self._server.start()
        return int(port)

    def close(self) -> None:
        self._server.stop(0)

    def _refusal(self, metadata: dict[str, Any]) -> tuple[Any, str] | None:
        return wire.refusal(metadata, self._token)

    def _open(self, batches: Iterator[bytes], context: Any) -> Iterator[bytes]:
        metadata = dict(context.invocation_metadata())
        stream = Stream()
        try:
            node_id, epoch = bytes.fromhex(metadata[NODE]), int(metadata[EPOCH])
        except (KeyError, ValueError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "who calls? The metadata name no node")
        problem = self._accept(node_id, epoch, stream)
        if problem:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        context.send_initial_metadata(())  # accepted: see Client.is_accepted
        context.add_callback(lambda: stream.end("the connection broke"))
        stream.begin(batches, context.cancel)
        return stream.batches()


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, open_stream: Any, refusal: Any) -> None:
        self._open = grpc.stream_stream_rpc_method_handler(open_stream)
        self._refusal = refusal

    def service(self, details: Any) -> Any:
        """The method's handler, or one that says why not: bodies are not looked at before."""
        refused = self._refusal(dict(details.invocation_metadata))
        if refused is not None:
            return grpc.stream_stream_rpc_method_handler(lambda batches, context: context.abort(*refused))
        return self._open if details.method == METHOD else None


class Client:
    """The way to another agent's server."""

    def __init__(self, address: str, token: str, tls: auth.Tls | None) -> None:
        self._metadata = wire.metadata(token)
        if tls is None:
            self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(tls.ca), CHANNEL_OPTIONS)

    def open(self, node_id: bytes, epoch: int) -> Stream:
        stream = Stream()
        call = self._channel.stream_stream(METHOD)(
            stream.batches(), metadata=[*self._metadata, (NODE, node_id.hex()), (EPOCH, str(epoch))]
        )
        stream.call = call  # type: ignore[attr-defined]
        return stream

    def is_accepted(self, stream: Stream) -> bool:
        """Waits for the other side. False: it is not there, or refuses, and this is closed."""
        call = stream.call  # type: ignore[attr-defined]
        try:
            call.initial_metadata()
            if call.is_active():
                return True
        except grpc.RpcError:
            pass
        stream.send_end()
        self._channel.close()
        return False

    def begin(self, stream: Stream) -> None:
        call = stream.call  # type: ignore[attr-defined]
        stream.begin(call, lambda: (call.cancel(), self._channel.close()))
