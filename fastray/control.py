"""Messages to the node on a control socket, as csrc/local_scheduler.h defines them.

Each is a struct ControlMessage (kind, slot, handle, force, bytes) and `bytes` of text, sent whole: the
sockets are SOCK_SEQPACKET. Drivers send all kinds, workers cancel_message and kill_actor_message.
"""

from __future__ import annotations

import struct

_MESSAGE = struct.Struct("<IIQII")
SHUTDOWN, CANCEL, PRELOAD, KILL_WORKER, KILL_ACTOR = 1, 2, 3, 4, 5


def shutdown_message() -> bytes:
    """Goodbye: the node kills its workers, sends what they printed, and ends."""
    return _MESSAGE.pack(SHUTDOWN, 0, 0, 0, 0)


def cancel_message(slot: int, handle: int, force: bool) -> bytes:
    """Interrupt the worker in `slot`, if it still runs `handle`; kill it when `force`."""
    return _MESSAGE.pack(CANCEL, slot, handle, 1 if force else 0, 0)


def preload_message(modules: list[str]) -> bytes:
    """Import these before the next workers are forked."""
    text = "\n".join(modules).encode()
    return _MESSAGE.pack(PRELOAD, 0, 0, 0, len(text)) + text


def kill_worker_message(slot: int) -> bytes:
    """For tests: SIGKILL to the worker in `slot`."""
    return _MESSAGE.pack(KILL_WORKER, slot, 0, 0, 0)


def kill_actor_message(creation: int, no_restart: bool) -> bytes:
    """SIGKILL to the actor whose creation record is `creation`; it does not start again when `no_restart`."""
    return _MESSAGE.pack(KILL_ACTOR, 0, creation, 1 if no_restart else 0, 0)
