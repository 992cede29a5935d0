"""A socket in the session directory where processes of this machine ask the agent what it knows of the cluster.

    question    a line: the name of one, and JSON of what it is about, if anything
    answer      JSON, until the end of the connection

One with an argument may take its time (another node is asked): it has a thread of its own.

So a driver needs no gRPC and no token to see the cluster: the directory is its user's, and the agent looks who asks.
`serve` is the agent's, `ask` everybody's.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time

from fastray import sessions
from fastray.exceptions import GcsUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

SOCKET = "agent.sock"
ASK_WAIT_S = 10.0  # for an agent that starts again
TRY_EVERY_S = 0.02
PEER_WAIT_S = 2.0  # for one who asks, to say what, and to read
QUESTION_BYTES_MAX = 4 << 20


def serve(path: str, answers: Mapping[str, Callable[..., Any]]) -> socket.socket:
    """Answers from a thread of its own until the socket that is returned is shut down."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = os.path.join(path, SOCKET)
    try:
        os.unlink(name)  # of an agent that was killed
    except FileNotFoundError:
        pass
    with sessions.short_name(name) as short:
        listener.bind(short)
    listener.listen(64)
    threading.Thread(target=_answer_forever, args=(listener, answers), name="inquiry", daemon=True).start()
    return listener


def _answer_forever(listener: socket.socket, answers: Mapping[str, Callable[..., Any]]) -> None:
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:  # shut down
            return
        argument, answer = b"", None
        try:
            connection.settimeout(PEER_WAIT_S)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", peer)[1] == os.geteuid():
                name, _, argument = _line(connection).partition(b" ")
                answer = answers.get(name.decode("ascii", "replace"))
        except OSError:  # it went away
            pass
        if answer is None:
            connection.close()
        elif argument:
            arguments = (connection, answer, argument)
            threading.Thread(target=_answer, args=arguments, name="inquiry", daemon=True).start()
        else:
            _answer(connection, answer, b"")


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < QUESTION_BYTES_MAX:
        part = connection.recv(1 << 16)
        if not part:
            break
        line += part
    return line.strip()


def _answer(connection: socket.socket, answer: Callable[..., Any], argument: bytes) -> None:
    with connection:
        try:
            found = answer(json.loads(argument)) if argument else answer()
            connection.sendall(json.dumps(found).encode())
        except (OSError, ValueError, GcsUnavailableError):  # it went away, or asks again
            return


def ask(path: str, question: str, about: Any = None, wait_s: float = ASK_WAIT_S) -> Any:
    """What the agent of the node in session directory `path` answers; `about`: what the question needs, for JSON.

    Raises GcsUnavailableError.
    """
    line = question if about is None else f"{question} {json.dumps(about)}"
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _ask_once(path, line, PEER_WAIT_S if about is None else wait_s)
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise GcsUnavailableError(
                    f"the agent of the fastray node in {path} does not answer ({error}): what the node knows of its "
                    "cluster cannot be read"
                ) from None
        time.sleep(TRY_EVERY_S)


def _ask_once(path: str, line: str, wait_s: float) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(wait_s)
        with sessions.short_name(os.path.join(path, SOCKET)) as name:
            connection.connect(name)
        connection.sendall(line.encode() + b"\n")
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return json.loads(b"".join(parts))
