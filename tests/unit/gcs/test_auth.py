"""Tokens and their file, TLS settings, the rule for binding, versions at the connect."""

from __future__ import annotations

import os
import threading

import pytest

from fastray.exceptions import AuthenticationError, InvalidOptionError
from fastray.gcs import auth, wire

TOKEN = "t" * 20


def test_the_token_is_made_once_with_mode_0600(tmp_path):
    path = tmp_path / "deep" / "token"
    token = auth.load_token(str(path), create=True, environ={})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(token) >= 32
    assert auth.load_token(str(path), create=True, environ={}) == token
    assert auth.load_token(environ={"FASTRAY_AUTH_TOKEN_PATH": str(path)}) == token
    assert os.listdir(path.parent) == ["token"]


def test_all_who_start_at_once_have_the_same_token(tmp_path):
    tokens = []
    start = threading.Barrier(8)

    def begin():
        start.wait()
        tokens.append(auth.load_token(str(tmp_path / "token"), create=True, environ={}))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8
    assert len(set(tokens)) == 1


def test_the_environment_wins(tmp_path):
    assert auth.load_token(str(tmp_path / "none"), environ={"FASTRAY_AUTH_TOKEN": TOKEN}) == TOKEN
    assert auth.load_token(environ={"FASTRAY_AUTH_MODE": "disabled", "FASTRAY_AUTH_TOKEN": TOKEN}) == ""
    with pytest.raises(InvalidOptionError, match="FASTRAY_AUTH_MODE"):
        auth.load_token(environ={"FASTRAY_AUTH_MODE": "off"})


def test_a_file_that_is_missing_open_to_others_or_no_token_is_refused(tmp_path):
    with pytest.raises(AuthenticationError, match="cannot be read"):
        auth.load_token(str(tmp_path / "none"), environ={})
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        auth.load_token(str(path), environ={})
    path.chmod(0o600)
    assert auth.load_token(str(path), environ={}) == TOKEN
    for bad in ("short", "with a blank in it, and long", ""):
        path.write_text(bad)
        with pytest.raises(AuthenticationError, match="printable ASCII"):
            auth.load_token(str(path), environ={})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host):
    auth.check_bind(host, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.example.org", ""])
def test_anything_else_needs_one(host):
    auth.check_bind(host, TOKEN)
    with pytest.raises(InvalidOptionError, match="without a token"):
        auth.check_bind(host, "")


def test_half_a_tls_setting_is_refused(tmp_path):
    file = tmp_path / "x.pem"
    file.write_bytes(b"pem")
    ca = {"FASTRAY_TLS_CA_CERT": str(file)}
    assert auth.load_tls({}) is None
    assert auth.load_tls(ca) == auth.Tls(b"pem", b"", b"")
    with pytest.raises(InvalidOptionError, match="FASTRAY_TLS_SERVER_CERT and FASTRAY_TLS_SERVER_KEY"):
        auth.load_tls(ca, server=True)
    with pytest.raises(InvalidOptionError, match="FASTRAY_TLS_CA_CERT"):
        auth.load_tls({"FASTRAY_TLS_SERVER_KEY": str(file)})
    with pytest.raises(InvalidOptionError, match="cannot be read"):
        auth.load_tls({"FASTRAY_TLS_CA_CERT": str(tmp_path / "none")})


def test_versions_must_match():
    major, minor, patch = wire.python_version().split(".")
    fine = {wire.WIRE: str(wire.WIRE_VERSION), wire.PYTHON: f"{major}.{minor}.{patch}"}
    assert wire.mismatch(fine) == ""
    assert wire.mismatch({**fine, wire.PYTHON: f"{major}.{minor}.999"}) == ""
    assert "minor versions" in wire.mismatch({**fine, wire.PYTHON: f"{major}.{int(minor) + 1}.{patch}"})
    assert "same fastray version" in wire.mismatch({**fine, wire.WIRE: "0"})
    assert "wire version none" in wire.mismatch({})
