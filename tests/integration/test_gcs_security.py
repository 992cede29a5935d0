"""Every method refuses a caller without the token, before it looks at what he sent; TLS; versions."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess

import pytest

pytest.importorskip("grpc")

import grpc

from fastray.exceptions import AuthenticationError, GcsUnavailableError, RuntimeSystemError, VersionMismatchError
from fastray.gcs import auth, commands, wire
from fastray.gcs.client import GcsClient
from fastray.gcs.process import GcsProcess
from fastray.gcs.server import GcsServer
from fastray.gcs.store import MemoryStore
from fastray.gcs.tables import GlobalState

METHODS = [*map(wire.method, (*wire.UNARY, wire.SUBSCRIBE)), wire.HEALTH]
PARSING = [name for name in METHODS if name not in (wire.method("Hello"), wire.HEALTH)]  # those with a body
CALL_WAIT_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("gcs") / "token"
    server = GcsProcess(token_path=str(path))
    server.token = auth.load_token(str(path), environ={})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address, wire.CHANNEL_OPTIONS) as channel:
        yield channel


class Canary:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def status(channel, method: str, body: bytes, metadata) -> grpc.StatusCode:
    call = channel.unary_stream(method)(body, metadata=metadata, timeout=CALL_WAIT_S)
    try:
        next(call)
    except grpc.RpcError as error:
        return error.code()
    call.cancel()
    return grpc.StatusCode.OK


def test_the_list_of_methods_is_complete():
    async def registered():
        return list(GcsServer(GlobalState(), MemoryStore(), "")._methods())

    assert sorted(asyncio.run(registered())) == sorted(METHODS)


@pytest.mark.parametrize("method", [*METHODS, "/fastray.gcs.Gcs/NoSuchMethod"])
@pytest.mark.parametrize("given", ["none", "wrong", "prefix", "empty"])
def test_a_caller_without_the_token_is_refused_before_his_body_is_read(channel, server, tmp_path, method, given):
    tokens = {"wrong": "x" * 43, "prefix": server.token[:-1], "empty": " "}
    metadata = wire.metadata(tokens.get(given, ""))
    body = pickle.dumps(Canary(tmp_path / "canary"))
    # Were the body decoded first, the answer would be INVALID_ARGUMENT.
    assert status(channel, method, body, metadata) == grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("method", PARSING)
def test_a_caller_with_the_token_cannot_send_a_pickle(channel, server, tmp_path, method):
    body = pickle.dumps(Canary(tmp_path / "canary"))
    assert status(channel, method, body, wire.metadata(server.token)) == grpc.StatusCode.INVALID_ARGUMENT
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("method", [wire.method("Hello"), wire.HEALTH])
def test_the_right_token_is_let_in(channel, server, method):
    assert status(channel, method, b"", wire.metadata(server.token)) == grpc.StatusCode.OK


def test_the_client_says_what_is_wrong(server, monkeypatch):
    with pytest.raises(AuthenticationError, match="got no token"):
        GcsClient(server.address)
    with pytest.raises(AuthenticationError, match="got the wrong token"):
        GcsClient(server.address, "x" * 43)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [(wire.WIRE, "0", "same fastray version"), (wire.PYTHON, "3.1.4", "minor versions"), (wire.WIRE, "", "version")],
)
def test_another_version_is_refused_by_every_method(channel, server, monkeypatch, name, value, match):
    pairs = [(key, value if key == name else given) for key, given in wire.metadata(server.token)]
    for method in METHODS:
        assert status(channel, method, b"", pairs) == grpc.StatusCode.FAILED_PRECONDITION
    monkeypatch.setattr(wire, "metadata", lambda token: pairs)
    with pytest.raises(VersionMismatchError, match=match):
        GcsClient(server.address, server.token)


def test_another_patch_version_warns(server, monkeypatch):
    major, minor, _ = wire.python_version().split(".")
    monkeypatch.setattr(wire, "python_version", lambda: f"{major}.{minor}.99")
    with pytest.warns(UserWarning, match=r"the cluster's store runs"):
        GcsClient(server.address, server.token).close()


def test_a_server_for_others_needs_a_token(tmp_path):
    environ = {**os.environ, "FASTRAY_AUTH_MODE": "disabled"}
    with pytest.raises(RuntimeSystemError, match="without a token"):
        GcsProcess(host="0.0.0.0", environ=environ)
    server = GcsProcess(environ=environ)  # on loopback it does without
    with GcsClient(server.address) as client:
        assert client.call(commands.KvKeys("n")) == []
    assert server.stop() == 0


def certificates(folder) -> dict[str, str]:
    """An authority and a certificate of it for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    try:
        openssl("version")
    except OSError:
        pytest.skip("openssl is not installed")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    openssl("req", *curve, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=server")
    openssl(
        *("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "cert.pem", "-days", "2", "-extfile", "names"),
    )
    return {
        "FASTRAY_TLS_CA_CERT": str(folder / "ca.pem"),
        "FASTRAY_TLS_SERVER_CERT": str(folder / "cert.pem"),
        "FASTRAY_TLS_SERVER_KEY": str(folder / "key.pem"),
    }


def test_tls(tmp_path):
    settings = certificates(tmp_path)
    path = str(tmp_path / "token")
    server = GcsProcess(token_path=path, environ={**os.environ, **settings})
    token = auth.load_token(path, environ={})
    with GcsClient(server.address, token, tls=auth.load_tls(settings)) as client:
        client.stay_connected()
        assert client.call(commands.KvPut("n", b"k", b"v")) is True
    with pytest.raises(GcsUnavailableError):  # without TLS there is no connection
        GcsClient(server.address, token, window_s=0.2)
    (tmp_path / "other").mkdir()
    other = certificates(tmp_path / "other")
    with pytest.raises(GcsUnavailableError):  # a server that our authority does not vouch for
        GcsClient(server.address, token, tls=auth.load_tls(other), window_s=0.2)
    assert server.stop() == 0


def test_half_a_tls_setting_does_not_start(tmp_path):
    environ = {**os.environ, "FASTRAY_TLS_CA_CERT": str(tmp_path / "ca.pem")}
    with pytest.raises(RuntimeSystemError, match="TLS needs FASTRAY_TLS_SERVER_CERT"):
        GcsProcess(token_path=str(tmp_path / "token"), environ=environ)
