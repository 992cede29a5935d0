"""The stream between two agents: one TCP connection per pair of nodes, opened by the node with the smaller number.

    message   its length (u64), then so many bytes
    hello     the first message of who opens: msgpack, a map of strings, the metadata of the store's protocol (token,
              versions; fastray/gcs/wire.py) and which life of which node this is
    reply     the first one back: msgpack, ["", ""], or the status (as gRPC names it) and the sentence of a refusal
    batch     every later message: whole frames (csrc/link_wire.h), in order. A long one goes in pieces of whole frames

Without the token nothing but the hello is read, and nothing of it is used but the token. With certificates
(FASTRAY_TLS_*) all of it goes through TLS.

Who sends writes to the socket itself, and who reads applies what it reads: no thread stands between. Only what the
socket does not take at once is left to a second thread. docs/internals/transfer.md has the measurement.

When a stream ends, for whatever reason, its `on_end` is called once. Called by router.py.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import Any

import msgspec

from fastray.gcs import auth, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODE, EPOCH = "fastray-node", "fastray-epoch"  # in the hello: who calls
HELLO_BYTES_MAX = 4096
HELLO_WAIT_S = 5.0  # for the connection, and for the first message of either side
GREETINGS_MAX = 64  # callers at a time that have not said who they are
LENGTH = struct.Struct("<Q")
FRAME_HEAD = struct.Struct("<QQ")  # kind, bytes that follow
MESSAGE_BYTES_MAX = 1 << 40
PIECE_BYTES = 32 << 20
READ_BYTES = 256 << 10
BEHIND_BYTES = 64 << 20
SILENCE_S = 10  # nothing was acknowledged for so long, or taken out of a full socket: it is gone, or the way to it
PROBE_S = 2  # when nothing else is sent


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
    """Batches to one node, and from it. `send` never blocks; what it is given goes out in order, once it has begun."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._fd = connection.fileno()
        self._left: collections.deque[memoryview] = collections.deque()
        self._left_bytes = 0
        self._sending = threading.Condition()  # guards _left and _held, and who writes
        self._held = True  # what is sent waits: the stream has not begun, or the socket is full
        self._writer = threading.Thread(target=self._write, name="fastray-link-out", daemon=True)
        self._ended = threading.Lock()
        # an SSL object is for one thread at a time, a socket is for one in each direction
        self._tls: Any = None if type(connection) is socket.socket else threading.Lock()
        self.on_batch: Callable[[bytes], None] = lambda batch: None
        self.on_end: Callable[[str], None] = lambda reason: None
        self.on_drained: Callable[[], None] = lambda: None  # all that is_behind() is sent

    def begin(self) -> None:
        """What was sent until now goes out, and what comes is given to `on_batch`."""
        self._socket.settimeout(0.0)
        self._writer.start()
        threading.Thread(target=self._read, name="fastray-link", daemon=True).start()

    def end(self, reason: str) -> None:
        """Closes it. May be called again, and by anybody."""
        if self._ended.acquire(blocking=False):
            self._shut()
            self.on_end(reason)

    def _shut(self) -> None:
        """Both threads end, and so does the other side."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    # ---- sending --------------------------------------------------------------------------------------

    def is_behind(self) -> bool:
        """The other side takes less than it is sent: what can wait should."""
        return self._left_bytes > BEHIND_BYTES

    def send(self, batch: bytes) -> None:
        with self._sending:
            for piece in pieces(batch):
                self._left_bytes += LENGTH.size + len(piece)
                if len(piece) < READ_BYTES:
                    self._left.append(memoryview(LENGTH.pack(len(piece)) + piece))
                else:
                    self._left += (memoryview(LENGTH.pack(len(piece))), memoryview(piece))
            if not self._held:
                self._push()

    def _push(self) -> None:
        """Writes what the socket takes; the rest is held. A connection that broke is the reader's to end."""
        left = self._left
        try:
            while left and (sent := self._without_waiting(self._socket.send, left[0])) is not None:
                self._left_bytes -= sent
                if sent == len(left[0]):
                    left.popleft()
                else:
                    left[0] = left[0][sent:]
        except OSError:
            left.clear()
            self._left_bytes = 0
            self._shut()
        if bool(left) != self._held:
            self._held = bool(left)
            self._sending.notify()

    def _write(self) -> None:
        """The thread that sends what was held."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        with self._sending:
            while not self._ended.locked():
                behind = self.is_behind()
                self._push()
                if behind and not self.is_behind():
                    self.on_drained()
                if not self._held:
                    self._sending.wait()
                    continue
                self._sending.release()
                poll.poll()
                self._sending.acquire()

    def _without_waiting(self, call: Callable[[Any], Any], argument: Any) -> Any:
        """None when it would have to wait."""
        try:
            if self._tls is None:
                return call(argument)
            with self._tls:
                return call(argument)
        except BlockingIOError:
            return None
        except OSError as error:
            if self._tls is not None:
                import ssl

                if isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
                    return None
            raise

    # ---- reading --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """The thread that reads: until the other side ends, or its process does."""
        reason = "it closed the connection"
        try:
            for message in self._messages():
                self.on_batch(message)
        except OSError as error:
            reason = f"the connection broke ({error.strerror or error})"
        except ValueError as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        self.end(reason)
        with self._sending:
            self._sending.notify()
        self._writer.join()  # a number that is closed may be another file's at once
        self._socket.close()

    def _messages(self) -> Iterator[bytes]:
        rest = b""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while data := self._receive(poll):
            rest = rest + data if rest else data
            at = 0
            while len(rest) - at >= LENGTH.size:
                size = LENGTH.unpack_from(rest, at)[0]
                if size > MESSAGE_BYTES_MAX:
                    raise ValueError(f"a message of {size:,} bytes")
                begin = at + LENGTH.size
                if len(rest) - begin < size:
                    if size < READ_BYTES:
                        break
                    rest, begin = self._long(rest[begin:], size, poll), 0
                yield rest[begin : begin + size]
                at = begin + size
            rest = rest[at:]

    def _long(self, start: bytes, size: int, poll: select.poll) -> bytes:
        """`size` bytes that begin with `start`, and what came with their end. Less when the other side ended."""
        parts = [start]
        missing = size - len(start)
        while missing > 0 and (data := self._receive(poll)):
            parts.append(data)
            missing -= len(data)
        if missing > 0:
            raise ValueError("it closed the connection in the middle of a message")
        return b"".join(parts)

    def _receive(self, poll: select.poll) -> bytes:
        """Some bytes; none when the other side has ended."""
        while True:
            data: bytes | None = self._without_waiting(self._socket.recv, READ_BYTES)
            if data is not None:
                return data
            poll.poll()


# ---- the first message of either side --------------------------------------------------------------------


def connect(address: str, token: str, tls: auth.Tls | None, node_id: bytes, epoch: int) -> Stream:
    """A stream to the agent there, which has accepted it; `begin` is the caller's. Raises OSError: it is not there, or
    refuses."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + HELLO_WAIT_S
    connection = socket.create_connection((host.strip("[]"), int(port)), HELLO_WAIT_S)
    try:
        _prepare(connection)
        if tls is not None:
            connection = _client_context(tls).wrap_socket(connection, server_hostname=host.strip("[]"))
        hello = {**dict(wire.metadata(token)), NODE: node_id.hex(), EPOCH: str(epoch)}
        connection.sendall(_message(hello))
        status, reason = _first(connection, deadline, tuple[str, str])
        if status:
            raise ConnectionRefusedError(f"{status}: {reason}")
    except BaseException as error:
        connection.close()
        if isinstance(error, ValueError):
            raise ConnectionError(str(error)) from None
        raise
    return Stream(connection)


class Server:
    """Accepts streams of other agents. `accept(node id, epoch, stream)` says "", or why not."""

    def __init__(self, token: str, accept: Callable[[bytes, int, Stream], str]) -> None:
        self._token = token
        self._accept = accept
        self._socket: socket.socket | None = None
        self._context: Any = None
        self._greetings = threading.Semaphore(GREETINGS_MAX)

    def listen(self, host: str, tls: auth.Tls | None) -> int:
        """The port. Raises InvalidOptionError for a host that others reach, without a token."""
        auth.check_bind(host, self._token)
        self._context = None if tls is None else _server_context(tls)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = self._socket = socket.create_server((host, 0), family=family)
        threading.Thread(target=self._serve, args=(listening,), name="fastray-accept", daemon=True).start()
        return int(listening.getsockname()[1])

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            self._socket.close()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            self._greetings.acquire()
            try:
                connection, _ = listening.accept()
            except OSError:
                self._greetings.release()
                if listening.fileno() < 0:
                    return
                time.sleep(0.01)  # who called is gone, or no descriptor is free
                continue
            threading.Thread(target=self._greet, args=(connection,), name="fastray-greet", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(HELLO_WAIT_S)
            _prepare(connection)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            refused = self._hear(connection)
            if refused:
                connection.sendall(_message(refused))
                connection.close()
        except (OSError, ValueError):  # gone, too slow, or no hello
            connection.close()
        finally:
            self._greetings.release()

    def _hear(self, connection: socket.socket) -> tuple[str, str] | None:
        """Begins the stream, or says why not."""
        hello = _first(connection, time.monotonic() + HELLO_WAIT_S, dict[str, str])
        refused = wire.refusal(hello, self._token)
        if refused is not None:
            return refused[0].name, refused[1]
        try:
            node_id, epoch = bytes.fromhex(hello[NODE]), int(hello[EPOCH])
        except (KeyError, ValueError):
            return "INVALID_ARGUMENT", "who calls? The hello names no node"
        stream = Stream(connection)
        stream.send(msgspec.msgpack.encode(("", "")))  # the reply, before anything else
        problem = self._accept(node_id, epoch, stream)
        if problem:
            return "FAILED_PRECONDITION", problem
        stream.begin()
        return None


def _prepare(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        connection.setsockopt(socket.IPPROTO_TCP, option, PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)  # of probes too


def _message(content: Any) -> bytes:
    body = msgspec.msgpack.encode(content)
    return LENGTH.pack(len(body)) + body


def _first(connection: socket.socket, deadline: float, kind: Any) -> Any:
    """The other side's first message, and not a byte more. Raises OSError, and ValueError when it is none."""
    size = LENGTH.unpack(_exactly(connection, LENGTH.size, deadline))[0]
    if size > HELLO_BYTES_MAX:
        raise ValueError(f"a first message of {size:,} bytes")
    return msgspec.msgpack.decode(_exactly(connection, size, deadline), type=kind)


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("it closed the connection")
        data += more
    return data


def _client_context(tls: auth.Tls) -> Any:
    import ssl

    return ssl.create_default_context(cadata=tls.ca.decode())


def _server_context(tls: auth.Tls) -> Any:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with os.fdopen(os.memfd_create("fastray-tls"), "wb") as file:  # ssl reads files only
        file.write(tls.key + b"\n" + tls.cert)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context
