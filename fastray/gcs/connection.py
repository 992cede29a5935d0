"""A gRPC channel that is replaced when it breaks.

gRPC waits at least 100 ms before it tries a broken connection again, which is longer than a standby needs to take
over; a new channel tries at once. Whoever sees a channel break says so, and the first to say it makes the next.
Called by client.py and subscription.py.
"""

from __future__ import annotations

import random
import threading
from typing import Any

import grpc

from fastray.gcs import auth, wire

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.002, 0.1

BREAKS = (  # what a call ends with when the server or the connection goes
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,  # a connection that breaks within a message
)


class Channel:
    """One channel and its methods. A call on a closed one raises ValueError."""

    def __init__(self, channel: Any) -> None:
        self.close = channel.close
        self.unary = {name: channel.unary_unary(wire.method(name)) for name in wire.UNARY}
        self.subscribe = channel.unary_stream(wire.method(wire.SUBSCRIBE))


class Connection:
    def __init__(self, address: str, token: str, tls: auth.Tls | None) -> None:
        self.address = address
        self.metadata = wire.metadata(token)
        self._credentials = None if tls is None else grpc.ssl_channel_credentials(tls.ca)
        self._lock = threading.Lock()
        self._closed = False
        self.channel = self._make()

    def _make(self) -> Channel:
        if self._credentials is None:
            return Channel(grpc.insecure_channel(self.address, wire.CHANNEL_OPTIONS))
        return Channel(grpc.secure_channel(self.address, self._credentials, wire.CHANNEL_OPTIONS))

    def broke(self, channel: Channel) -> None:
        """Replaces `channel`, unless somebody has."""
        with self._lock:
            if channel is not self.channel or self._closed:
                return
            self.channel = self._make()
        channel.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.channel.close()


class Backoff:
    """Pauses that grow from 2 to 100 ms, each up to a third shorter: all clients of a dead server come back."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    def next_s(self) -> float:
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, BACKOFF_MAX_S)
        return pause_s * random.uniform(0.67, 1.0)
