"""Messages to the node on a control socket, as csrc/local_scheduler.h defines them.

Each is a struct ControlMessage (kind, slot, handle, force, bytes) and `bytes` of text, sent whole: the
sockets are SOCK_SEQPACKET. Workers send setting_up_message, recorded_message, retry_message, cancel_message,
kill_actor_message and those of groups, the agent job_numbers_message, drivers all others too. A daemon's driver
sends `attach_message` first and gets an answer, see docs/internals/daemon.md.
"""

from __future__ import annotations

import struct
import sys

from fastray._native.session import WIRE

_MESSAGE = struct.Struct("<IIQII")
SHUTDOWN, CANCEL, PRELOAD, KILL_WORKER, KILL_ACTOR, RECORDED, JOB_NUMBERS = range(1, 8)
ACTOR_ENDED, JOB_OVER, RETRY_LATER, PRINT, CREATE_GROUP, REMOVE_GROUP, SET_GROUP = range(9, 16)
SETTING_UP = 32


_HELLO = struct.Struct("<QIIII")
_REPLY = struct.Struct("<QQIIIIII")
REPLY_BYTES_MAX = 4096
ELSEWHERE, HOST_END = 4, b"\0"  # of what another node's workers print, see log_reader.py
ATTACHED, REFUSED = 1, 2
AS_DRIVER, AS_OBSERVER, AS_AGENT = 0, 1, 2


def attach_message(namespace: str, entrypoint: str, role: int) -> bytes:
    """Wants to be a driver with a job of its own; an observer has none, nor has the agent, of which there is one."""
    text = namespace.encode("utf-8", "replace") + b"\0" + entrypoint.encode("utf-8", "replace")
    python = sys.version_info[0] << 8 | sys.version_info[1]
    return _HELLO.pack(*WIRE, python, role, len(text)) + text


def read_reply(data: bytes) -> tuple[int, int, int, int, str]:
    """(status, slot, pid of the node, session, why it refuses). Raises ValueError for anything but an answer."""
    if len(data) < _REPLY.size:
        raise ValueError(f"an answer of {len(data)} bytes")
    magic, session, status, slot, _, pid, size, _ = _REPLY.unpack_from(data)
    if magic != WIRE[0] or len(data) != _REPLY.size + size:
        raise ValueError("an answer of another protocol")
    return status, slot, pid, session, data[_REPLY.size :].decode("utf-8", "replace")


def shutdown_message(reads_on: bool = False) -> bytes:
    """Goodbye: a private node kills its workers, sends what they printed, and ends; a daemon ends the job. With
    `reads_on` the driver keeps its mapping: what it owns stays until its process ends."""
    return _MESSAGE.pack(SHUTDOWN, 0, 0, 1 if reads_on else 0, 0)


def cancel_message(slot: int, handle: int, force: bool) -> bytes:
    """Interrupt the worker in `slot`, if it still runs `handle`; kill it when `force`."""
    return _MESSAGE.pack(CANCEL, slot, handle, 1 if force else 0, 0)


def preload_message(modules: list[str]) -> bytes:
    """Import these before the next workers are forked."""
    text = "\n".join(modules).encode()
    return _MESSAGE.pack(PRELOAD, 0, 0, 0, len(text)) + text


def job_numbers_message(first: int, count: int) -> bytes:
    """From the agent: the next drivers' jobs have these numbers."""
    return _MESSAGE.pack(JOB_NUMBERS, count, first, 0, 0)


def actor_ended_message(creation: int, end: int) -> bytes:
    """From the agent: this actor, which ran on another node, is over."""
    return _MESSAGE.pack(ACTOR_ENDED, 0, creation, end, 0)


def job_over_message(job: int) -> bytes:
    """From the agent: the driver of this job, on another node, is gone."""
    return _MESSAGE.pack(JOB_OVER, job, 0, 0, 0)


def print_message(job: int, pid: int, stream: int, text: bytes, host: str) -> bytes:
    """From the agent: the driver of `job` prints what process `pid` of the node at `host` wrote (1: stdout, 2: stderr);
    see log_reader.py."""
    text = host.encode() + HOST_END + text
    return _MESSAGE.pack(PRINT, job, pid, stream | ELSEWHERE, len(text)) + text


def read_forwarded(data: bytes) -> tuple[int, int, bool]:
    """(CANCEL or KILL_ACTOR, handle, force) of what the node passes on to its agent."""
    kind, _, handle, force, _ = _MESSAGE.unpack(data[: _MESSAGE.size])
    return kind, handle, bool(force)


def kill_worker_message(slot: int) -> bytes:
    """For tests: SIGKILL to the worker in `slot`."""
    return _MESSAGE.pack(KILL_WORKER, slot, 0, 0, 0)


def kill_actor_message(creation: int, no_restart: bool) -> bytes:
    """SIGKILL to the actor whose creation record is `creation`; it does not start again when `no_restart`."""
    return _MESSAGE.pack(KILL_ACTOR, 0, creation, 1 if no_restart else 0, 0)


def recorded_message(slot: int) -> bytes:
    """The worker in `slot` has written down the crashes that it was forked with."""
    return _MESSAGE.pack(RECORDED, slot, 0, 0, 0)


def setting_up_message(slot: int) -> bytes:
    """The worker in `slot` prepares its runtime_env, which takes long: it needs no CPU until it has attached."""
    return _MESSAGE.pack(SETTING_UP, slot, 0, 0, 0)


def retry_message(handle: int) -> bytes:
    """The task `handle` raised and is ready to run again: queue it after a delay."""
    return _MESSAGE.pack(RETRY_LATER, 0, handle, 0, 0)


def create_group_message(request: bytes) -> bytes:
    """A placement group is wanted; `request` is a GroupRequest and what belongs to it (csrc/types_group.h)."""
    return _MESSAGE.pack(CREATE_GROUP, 0, 0, 0, len(request)) + request


def set_group_message(request: bytes) -> bytes:
    """From the agent: what a placement group of the cluster is now, and what of it this node is to hold."""
    return _MESSAGE.pack(SET_GROUP, 0, 0, 0, len(request)) + request


def remove_group_message(group_id: bytes) -> bytes:
    """The placement group with this id is not wanted any more."""
    return _MESSAGE.pack(REMOVE_GROUP, 0, 0, 0, len(group_id)) + group_id
