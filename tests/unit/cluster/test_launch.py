"""Addresses of clusters, and where a node finds the token of the one that it joins."""

from __future__ import annotations

import json
import os
import socket

import pytest

from fastray import sessions
from fastray.cluster import launch
from fastray.exceptions import AuthenticationError

TOKEN = "t" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("[::1]:7", ("::1", 7)), ("host:65535", ("host", 65535))],
)
def test_an_address_is_a_host_and_a_port(text, expected):
    assert launch.parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "host", ":6379", "host:", "host:0", "host:65536", "host:x"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        launch.parse_address(text)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("127.0.0.1:1", "localhost:1", True),
        ("127.0.0.1:1", f"{os.uname().nodename}:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("10.0.0.1:1", "10.0.0.1:1", True),
        ("10.0.0.1:1", "127.0.0.1:1", False),
    ],
)
def test_two_addresses_may_be_one_store(a, b, same):
    assert launch.is_same_store(a, b) == same


def test_the_own_address_is_given_or_leads_to_the_head():
    assert launch.own_address(None, None) == "127.0.0.1"
    assert launch.own_address(None, "127.0.0.1:6379") == "127.0.0.1"
    assert launch.own_address("10.0.0.7", "127.0.0.1:6379") == "10.0.0.7"
    for everything in ("0.0.0.0", "::"):
        with pytest.raises(ValueError, match="cannot reach"):
            launch.own_address(everything, None)


@pytest.fixture
def session(tmp_path):
    """session(name, gcs, head, token): a session directory where somebody listens."""
    listeners = []

    def make(name, gcs, head=False, token=TOKEN):
        path = tmp_path / name
        path.mkdir(mode=0o700)
        (path / sessions.INFO).write_text(json.dumps({"gcs": gcs, "head": head}))
        (path / sessions.TOKEN).write_text(token)
        (path / sessions.TOKEN).chmod(0o600)
        listeners.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        with sessions.short_name(str(path / sessions.SOCKET)) as short:
            listeners[-1].bind(short)
        listeners[-1].listen()
        return str(path)

    yield make
    for listener in listeners:
        listener.close()


def test_auto_is_the_head_that_runs_here(tmp_path, session, monkeypatch):
    monkeypatch.delenv("FASTRAY_ADDRESS", raising=False)
    with pytest.raises(ConnectionError, match="no head"):
        launch.find_cluster("auto", str(tmp_path))
    session("session-1", "127.0.0.1:1", head=True)
    session("session-2-a", "127.0.0.1:2")
    assert launch.find_cluster("auto", str(tmp_path)) == "127.0.0.1:1"
    monkeypatch.setenv("FASTRAY_ADDRESS", "10.0.0.1:3")
    assert launch.find_cluster("auto", str(tmp_path)) == "10.0.0.1:3"
    monkeypatch.setenv("FASTRAY_ADDRESS", "/some/path")
    assert launch.find_cluster("auto", str(tmp_path)) == "127.0.0.1:1"
    assert launch.find_cluster("localhost:4", str(tmp_path)) == "127.0.0.1:4"
    assert launch.find_cluster("[::1]:4", str(tmp_path)) == "[::1]:4"


def test_the_token_comes_from_the_environment_or_a_node_of_the_same_cluster(tmp_path, session, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = str(tmp_path / "session-9-b")
    os.mkdir(own)
    session("session-1", "127.0.0.1:1", head=True, token="o" * 32)
    session("session-2", "127.0.0.1:2", head=True)
    assert launch.find_token("localhost:2", own, {}) == TOKEN
    assert launch.find_token("localhost:2", own, {"FASTRAY_AUTH_TOKEN": "e" * 32}) == "e" * 32
    assert launch.find_token("localhost:2", own, {"FASTRAY_AUTH_MODE": "disabled"}) == ""
    with pytest.raises(AuthenticationError, match="FASTRAY_AUTH_TOKEN"):
        launch.find_token("10.0.0.1:2", own, {})
    with open(os.path.join(own, sessions.TOKEN), "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write("s" * 32)
    assert launch.find_token("10.0.0.1:2", own, {}) == "s" * 32
