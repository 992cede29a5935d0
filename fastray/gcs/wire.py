"""Names, versions and limits of the protocol, and its codec.

The codec is msgpack by msgspec: types are checked while decoding, in C; it can make nothing but the classes of
commands.py, so that no message runs code; and fields can be appended. Pickle is never used here: function
pickles and the like are opaque bytes to the store.

    metadata    authorization: "Bearer TOKEN"; fastray-wire and fastray-python: versions. All three are
                checked before a body is looked at
    method      /fastray.gcs.Gcs/NAME. Health is the standard grpc.health.v1.Health/Check

Called by server.py, client.py, subscription.py and fastray/transfer.
"""

from __future__ import annotations

import platform
from typing import Any

import msgspec

from fastray.gcs import auth

WIRE_VERSION = 2
SERVICE = "fastray.gcs.Gcs"
HEALTH = "/grpc.health.v1.Health/Check"
UNARY = ("Hello", "Batch", "Beat", "History")
SUBSCRIBE = "Subscribe"
MESSAGE_BYTES_MAX = 256 << 20
AUTHORIZATION, WIRE, PYTHON = "authorization", "fastray-wire", "fastray-python"

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # two servers on one port would each get a part of the clients
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


def method(name: str) -> str:
    return f"/{SERVICE}/{name}"


def python_version() -> str:
    return platform.python_version()


def metadata(token: str) -> list[tuple[str, str]]:
    """What a client sends with every call."""
    pairs = [(WIRE, str(WIRE_VERSION)), (PYTHON, python_version())]
    return [(AUTHORIZATION, f"Bearer {token}"), *pairs] if token else pairs


def mismatch(given: dict[str, str]) -> str:
    """Why a client with this metadata cannot be served; "" when it can."""
    wire, python = given.get(WIRE, "none"), given.get(PYTHON, "none")
    if wire != str(WIRE_VERSION):
        return (
            f"wire version {wire} does not match this cluster's {WIRE_VERSION}: install the same fastray "
            "version on all nodes"
        )
    ours = python_version()
    if python.split(".")[:2] != ours.split(".")[:2]:
        return (
            f"Python {python} does not match this cluster's {ours}: tasks cannot travel between minor "
            "versions; use the same one on all nodes"
        )
    return ""


def refusal(metadata: dict[str, Any], token: str) -> tuple[Any, str] | None:
    """(status, sentence) for a caller that is not served; `token` is "" when anybody is."""
    from grpc import StatusCode

    if token:
        given = metadata.get(AUTHORIZATION, "")
        given = given if isinstance(given, bytes) else given.encode("latin-1", "replace")
        if not auth.matches(given, f"Bearer {token}"):
            what = "the wrong token" if given else "no token"
            return StatusCode.UNAUTHENTICATED, f"this cluster asks for its token, and got {what}"
    problem = mismatch(metadata)
    return (StatusCode.FAILED_PRECONDITION, problem) if problem else None


class Welcome(msgspec.Struct, array_like=True):
    """The reply to Hello."""

    incarnation: int
    python: str
    fastray: str
    cluster: str = ""  # the id of the store, for as long as its rows are kept


class Subscribe(msgspec.Struct, array_like=True):
    """What a client wants to hear: topic -> the version it has (-1: none, send the table)."""

    client: bytes
    topics: dict[str, int]


class Notice(msgspec.Struct, array_like=True):
    """Of one topic. `whole`: these are all rows, forget what you had. An empty value: the row is gone."""

    topic: str
    version: int
    whole: bool
    rows: list[tuple[bytes, bytes]]
