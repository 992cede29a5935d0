"""The Flight server and client of bulk.py; the only user of pyarrow.

Who asks without the cluster's token is refused by the middleware, before a ticket is looked at.
"""

from __future__ import annotations

import mmap
import os
import re
from typing import Any

import numpy
import pyarrow  # type: ignore[import-untyped]
import pyarrow.flight as flight  # type: ignore[import-untyped]

from fastray._native.bulk import payload_parts
from fastray.gcs import auth
from fastray.runtime_envs.store import FOLDER
from fastray.transfer.bulk import CHUNK, TICKET, slices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = pyarrow.schema([("bytes", pyarrow.uint8())])
PACKAGE = re.compile(rb"[0-9a-f]{32}")
AUTHORIZATION = "authorization"
# A machine that vanished closes nothing, and who only reads would wait for ever.
CLIENT_OPTIONS = [
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long it tries to connect
]


class _Gate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> None:
        given = (headers.get(AUTHORIZATION) or [""])[0]
        given = given if isinstance(given, bytes) else given.encode("latin-1", "replace")
        if self._token and not auth.matches(given, f"Bearer {self._token}"):
            what = "the wrong token" if given else "no token"
            raise flight.FlightUnauthenticatedError(f"this cluster asks for its token, and got {what}")


class StoreServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves sealed values of this process's node, straight from the store, and packages of its session directory."""

    def __init__(self, host: str, token: str, tls: auth.Tls | None, session_path: str) -> None:
        auth.check_bind(host, token)
        self._packages = os.path.join(session_path, FOLDER)
        name = f"[{host}]" if ":" in host else host
        scheme, certificates = ("tcp", None) if tls is None else ("tls", [(tls.cert, tls.key)])
        super().__init__(
            f"grpc+{scheme}://{name}:0", middleware={"token": _Gate(token)}, tls_certificates=certificates
        )

    def do_get(self, context: Any, ticket: Any) -> Any:
        if PACKAGE.fullmatch(ticket.ticket):
            return flight.GeneratorStream(SCHEMA, _batches([self._package(ticket.ticket.decode())]))
        if len(ticket.ticket) != TICKET.size:
            raise flight.FlightServerError("a ticket is 32 bytes, or the digest of a package")
        handle, first, size, arguments = TICKET.unpack(ticket.ticket)
        try:
            views = slices(payload_parts(handle, bool(arguments)), first, size)
        except KeyError as error:
            raise flight.FlightServerError(str(error)) from None
        return flight.GeneratorStream(SCHEMA, _batches(views))


    def _package(self, digest: str) -> memoryview:
        try:
            with open(os.path.join(self._packages, f"{digest}.zip"), "rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise flight.FlightServerError(f"no package {digest} here: {error.strerror}") from None


def _batches(views: list[memoryview]) -> Iterator[Any]:
    for view in views:
        for at in range(0, view.nbytes, CHUNK):
            piece = view[at : at + CHUNK]
            array = pyarrow.Array.from_buffers(pyarrow.uint8(), piece.nbytes, [None, pyarrow.py_buffer(piece)])
            yield pyarrow.record_batch([array], schema=SCHEMA)


class StoreClient:
    def __init__(self, address: str, token: str, tls: auth.Tls | None) -> None:
        if tls is None:
            self._client = flight.FlightClient(f"grpc+tcp://{address}", generic_options=CLIENT_OPTIONS)
        else:
            self._client = flight.FlightClient(
                f"grpc+tls://{address}", tls_root_certs=tls.ca, generic_options=CLIENT_OPTIONS
            )
        headers = [(AUTHORIZATION.encode(), f"Bearer {token}".encode())] if token else []
        self._options = flight.FlightCallOptions(headers=headers)

    def read(self, ticket: bytes, buffers: list[memoryview], first: int) -> None:
        """Copies what the ticket names to its place in `buffers`. Raises when it is not all there."""
        size = TICKET.unpack(ticket)[2]
        targets = [numpy.frombuffer(view, numpy.uint8) for view in slices(buffers, first, size)]
        reader = self._client.do_get(flight.Ticket(ticket), self._options)
        target, at, got = 0, 0, 0
        for chunk in reader:
            data = numpy.frombuffer(chunk.data.column(0).buffers()[1], numpy.uint8)
            while len(data):  # of one buffer as it is sent, but nothing depends on it
                n = min(len(data), len(targets[target]) - at)
                targets[target][at : at + n] = data[:n]
                data, at, got = data[n:], at + n, got + n
                if at == len(targets[target]):
                    target, at = target + 1, 0
        if got != size:
            raise OSError(f"{got:,} of {size:,} bytes came")

    def read_package(self, digest: str, path: str) -> None:
        """Writes the package to the file `path`. Raises when the node has none, or the connection breaks."""
        reader = self._client.do_get(flight.Ticket(digest.encode()), self._options)
        with open(path, "wb") as file:
            for chunk in reader:
                file.write(chunk.data.column(0).buffers()[1])
