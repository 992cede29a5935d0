"""The driver's thread that prints what tasks printed: frames from the node's log socket into a LogPrinter.

A frame is {u32 pid, u8 stream (1 stdout, 2 stderr), u32 bytes} and the bytes. One from another node has ELSEWHERE in
`stream`, and begins with that node's address, up to HOST_END: two nodes may have processes of one pid. The thread
ends when the node closes the socket, after the last line.
"""

from __future__ import annotations

import select
import socket
import struct

from fastray.control import ELSEWHERE, HOST_END

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
                text, host = bytes(pending[HEADER.size :][:size]), b""
                del pending[: HEADER.size + size]
                if stream & ELSEWHERE:
                    host, _, text = text.partition(HOST_END)
                printer.feed(pid, stream & ~ELSEWHERE, text, host.decode())
        if printer is not None:
            wait_s = printer.tick()
    if printer is not None:
        printer.close()
