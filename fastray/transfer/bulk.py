"""The buffers of large values, between the stores of two nodes: Arrow Flight.

    ticket    handle of a sealed record, first byte and number of bytes, counted over the codec and all buffers of the
              value, one after the other; and 1 when the arguments of a task are meant instead (4 u64)
    chunk     CHUNK bytes of that: one record batch with one column of uint8, which views the store: the sender copies
              nothing itself. The receiver copies each chunk once, to its place in its own store

    package   the ticket of a file of a runtime_env is its digest (packages.py)

A large value, or a task's large arguments, are fetched by PARALLEL streams of their parts. The record is held for the
receiver by the link (csrc/link.h) as long as it fetches. A fetch that fails is the router's to give up: the value is
computed again, the task fails.

pyarrow is imported by a thread of its own: that takes longer than joining a cluster may. Called by router.py.
"""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastray._native.bulk import BulkValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray.cluster.agent import Agent
    from fastray.gcs import auth
    from fastray.transfer.peer import Peer

CHUNK = 16 << 20
PARALLEL = 4
PART_MIN = 16 << 20  # a value is split when its parts are at least this long
ADDRESS_WAIT_S = 20.0  # for the other node to say where its server is: it may be importing
TICKET = struct.Struct("<QQQQ")


class Bulk:
    """`done(peer, value, complete)` is called on a thread of its own when a fetch ends."""

    def __init__(self, agent: Agent, tls: auth.Tls | None, done: Callable[[Peer, BulkValue, bool], None]) -> None:
        self._agent = agent
        self._tls = tls
        self._done = done
        self._server: Any = None
        self._clients: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(4, "fastray-bulk")
        self._parts = ThreadPoolExecutor(4 * PARALLEL, "fastray-part")
        self._lock = threading.Lock()

    def serve(self, ready: Callable[[str], None]) -> None:
        """Starts the server; `ready(address)` when it is there."""

        def start() -> None:
            from fastray.transfer.flight import StoreServer

            host = self._agent.host
            self._server = StoreServer(host, self._agent.token, self._tls, self._agent.path)
            ready(f"{host}:{self._server.port}")

        threading.Thread(target=start, name="fastray-flight", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._parts.shutdown(wait=False, cancel_futures=True)

    # ---- fetching -------------------------------------------------------------------------------------

    def fetch(self, peer: Peer, value: BulkValue) -> None:
        """Brings the buffers of `value`, whose record is at the peer."""
        self._threads.submit(self._fetch, peer, value)

    def _fetch(self, peer: Peer, value: BulkValue) -> None:
        complete = False
        try:
            if not peer.flight.wait(ADDRESS_WAIT_S):
                raise TimeoutError(f"node {peer.node_id.hex()} did not say where its store is served")
            client = self.client(peer.flight_address)
            places = value.parts()
            total = sum(place.nbytes for place in places)
            parts = [
                self._parts.submit(
                    client.read, TICKET.pack(value.remote, first, size, value.is_arguments), places, first
                )
                for first, size in split(total)
            ]
            for part in parts:
                part.result()
            complete = True
        except Exception as error:
            if not peer.ended:
                print(f"fetching from node {peer.node_id.hex()}: {type(error).__name__}: {error}")
        finally:
            self._done(peer, value, complete)

    def client(self, address: str) -> Any:
        """A StoreClient of the node whose store is served there."""
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                from fastray.transfer.flight import StoreClient

                client = self._clients[address] = StoreClient(address, self._agent.token, self._tls)
            return client


def split(total: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of the parts that are fetched side by side."""
    count = max(1, min(PARALLEL, total // PART_MIN))
    bounds = [total * part // count for part in range(count + 1)]
    return [(first, end - first) for first, end in zip(bounds, bounds[1:])]


def slices(buffers: list[memoryview], first: int, size: int) -> list[memoryview]:
    """The views that make up `size` bytes from byte `first` of all buffers, one after the other."""
    found = []
    at = 0
    for buffer in buffers:
        begin, end = max(first, at), min(first + size, at + buffer.nbytes)
        if begin < end:
            found.append(buffer[begin - at : end - at])
        at += buffer.nbytes
    return found
