"""Who is dead, from times it is told. Pure: no clock, no sockets.

    member     a client that owns a node or a job
    closed     its stream of events ended without a goodbye: gone after `grace_s`, unless it comes back before
    silent     it promised heartbeats (nodes do, drivers do not: a stopped driver is being debugged) and sent
               none for `silence_s`

A check that comes later than it should means that this process was held up: then everyone gets that time on
top, for their heartbeats wait in our own sockets. Called by server.py.
"""

from __future__ import annotations

GRACE_S = 0.5
SILENCE_S = 2.5
RETURN_S = 10.0  # for members of an earlier server process to come back to a new one
CHECK_EVERY_S = 0.1


class FailureDetector:
    def __init__(self, grace_s: float = GRACE_S, silence_s: float = SILENCE_S) -> None:
        self._grace_s = grace_s
        self._silence_s = silence_s
        self._streams: dict[bytes, int] = {}  # open ones, of everyone
        self._members: set[bytes] = set()
        self._closed_by: dict[bytes, float] = {}  # member -> when it is gone
        self._silent_by: dict[bytes, float] = {}
        self._last_check: float | None = None

    def watch(self, member: bytes, now: float, *, beats: bool, returning: bool = False) -> None:
        """Starts to care. `beats`: it sends heartbeats; `returning`: it has to come back to this server."""
        self._members.add(member)
        allowed_s = RETURN_S if returning else self._silence_s
        if beats:
            self._silent_by[member] = now + allowed_s
        if member not in self._streams:
            self._closed_by.setdefault(member, now + allowed_s)

    def forget(self, member: bytes) -> None:
        self._members.discard(member)
        self._closed_by.pop(member, None)
        self._silent_by.pop(member, None)

    def opened(self, client: bytes) -> None:
        self._streams[client] = self._streams.get(client, 0) + 1
        self._closed_by.pop(client, None)

    def closed(self, client: bytes, now: float) -> None:
        self._streams[client] -= 1
        if self._streams[client] == 0:
            del self._streams[client]
            if client in self._members:
                self._closed_by[client] = now + self._grace_s

    def beat(self, member: bytes, now: float) -> None:
        if member in self._silent_by:
            self._silent_by[member] = now + self._silence_s

    def check(self, now: float) -> list[tuple[bytes, str]]:
        """(member, reason) of those that are gone; they are forgotten. Every CHECK_EVERY_S."""
        late = 0.0 if self._last_check is None else now - self._last_check - 2 * CHECK_EVERY_S
        self._last_check = now
        if late > 0:
            for by in (self._closed_by, self._silent_by):
                for member in by:
                    by[member] += late
        gone = [(member, "its connection closed") for member, by in self._closed_by.items() if by <= now]
        known = {member for member, _ in gone}
        gone += [
            (member, f"no heartbeat for {self._silence_s:g} s")
            for member, by in self._silent_by.items()
            if by <= now and member not in known
        ]
        for member, _ in gone:
            self.forget(member)
        return gone
