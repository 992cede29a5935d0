"""What workers here print for a driver on another node: from the node's log socket to that node's agent.

The node sends the agent the output of every job whose driver it does not have (csrc/local_scheduler_drivers.cpp),
framed as log_reader.py says. Called by router.py.
"""

from __future__ import annotations

import threading

from fastray.log_reader import HEADER, READ_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastray._native.session import Attachment

TEXT_BYTES_MAX = 60_000  # of one control message


class LogForwarder:
    """Calls `send(job, pid, stream, text)` on its own thread until the node closes the socket."""

    def __init__(
        self, logs: socket.socket, attachment: Attachment, send: Callable[[int, int, int, bytes], None]
    ) -> None:
        self._logs = logs
        self._attachment = attachment
        self._send = send
        self._jobs: dict[int, int] = {}  # by pid; of dead ones too: their last words come late
        threading.Thread(target=self._run, name="fastray-logs", daemon=True).start()

    def _run(self) -> None:
        pending = bytearray()
        while data := self._receive():
            pending += data
            while len(pending) >= HEADER.size:
                pid, stream, size = HEADER.unpack_from(pending)
                if len(pending) < HEADER.size + size:
                    break
                text = bytes(pending[HEADER.size :][:size])
                del pending[: HEADER.size + size]
                job = self._job_of(pid)
                for at in range(0, len(text), TEXT_BYTES_MAX):
                    self._send(job, pid, stream, text[at : at + TEXT_BYTES_MAX])

    def _receive(self) -> bytes:
        try:
            return self._logs.recv(READ_BYTES)
        except OSError:
            return b""

    def _job_of(self, pid: int) -> int:
        if pid not in self._jobs:
            self._jobs.update({row[2]: row[6] for row in self._attachment.processes()})
        return self._jobs.get(pid, 0)
