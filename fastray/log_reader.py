"""The driver's thread that prints what tasks printed: frames from the node's log socket into a LogPrinter.

A frame is {u32 pid, u8 stream (1 stdout, 2 stderr), u32 bytes} and the bytes. The thread ends when the node
closes the socket, after the last line.
"""

from __future__ import annotations

import select
import socket
import struct

HEADER = struct.Struct("<IBI")
READ_BYTES = 1 << 16


def print_logs(logs: socket.socket, log_to_driver: bool) -> None:
    """Prints until end of file; with log_to_driver off, reads and drops."""
    printer = None
    pending = bytearray()
    wait_s: float | None = None
    while True:
        if select.select([logs], [], [], wait_s)[0]:
            try:
                data = logs.recv(READ_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            if not log_to_driver:
                continue
            if printer is None:
                from fastray.logs import LogPrinter

                printer = LogPrinter()
            pending += data
            while len(pending) >= HEADER.size:
                pid, stream, size = HEADER.unpack_from(pending)
                if len(pending) < HEADER.size + size:
                    break
                printer.feed(pid, "stdout" if stream == 1 else "stderr", bytes(pending[HEADER.size :][:size]))
                del pending[: HEADER.size + size]
        if printer is not None:
            wait_s = printer.tick()
    if printer is not None:
        printer.close()
