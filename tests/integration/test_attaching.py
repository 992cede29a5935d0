"""Attaching to a daemon: addresses, refusals, nonsense on its socket, and that attaching leaves nothing behind.

    daemon    one node for the module (tests/conftest.py); each test's drivers come and go
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys

import pytest
from daemon_helpers import Daemon, comes_back_to, idle

import fastray
from fastray import attach, control, sessions
from fastray.exceptions import InvalidOptionError
from fastray.util import state

GET_S = 30.0


# ---- attaching -----------------------------------------------------------------------------------------


def test_an_attached_driver_is_a_driver_like_any_other(daemon):
    with fastray.init(address=daemon.path, namespace="here") as context:
        assert context.address_info["node_pid"] == daemon.pid
        assert context.address_info["session_name"] == daemon.info["session"]
        assert context.address_info["address"] == f"unix:{daemon.path}/node.sock"

        @fastray.remote
        def where():
            context = fastray.get_runtime_context()
            return context.get_job_id(), context.get_node_id(), context.namespace, context.runtime_env

        here = fastray.get_runtime_context()
        expected = (here.get_job_id(), here.get_node_id(), "here", {})
        assert fastray.get(where.remote(), timeout=GET_S) == expected
        assert fastray.cluster_resources()["CPU"] == 2
        assert [node["NodeID"] for node in fastray.nodes()] == [here.get_node_id()]
        assert fastray.get([fastray.remote(lambda x: x * x).remote(i) for i in range(500)]) == [
            i * i for i in range(500)
        ]
        big = fastray.put(bytes(10 << 20))
        assert fastray.get(fastray.remote(len).remote(big), timeout=GET_S) == 10 << 20
    assert not fastray.is_initialized()


@pytest.mark.parametrize("form", ["socket", "unix", "session", "runtime", "variable"])
def test_every_form_of_address_finds_the_node(daemon, monkeypatch, form):
    addresses = {
        "socket": os.path.join(daemon.path, "node.sock"),
        "unix": "unix:" + os.path.join(daemon.path, "node.sock"),
        "session": daemon.path,
        "runtime": os.path.dirname(daemon.path),
    }
    if form == "variable":
        monkeypatch.setenv("FASTRAY_ADDRESS", daemon.path)
        for given in (None, "auto"):
            fastray.init(address=given)
            assert fastray.get_runtime_context().get_node_id() == fastray.nodes()[0]["NodeID"]
            assert fastray.util.state.list_nodes()[0].node_id.startswith(daemon.info["session"][8:])
            fastray.shutdown()
        context = fastray.init(address="local", num_cpus=1)
        assert context.address_info["address"] == "local"
    else:
        context = fastray.init(address=addresses[form])
        assert context.address_info["node_pid"] == daemon.pid


def test_auto_and_a_port_look_into_the_runtime_directory(daemon, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", os.path.dirname(daemon.path))
    port = daemon.info["port"]
    for address in ("auto", f"127.0.0.1:{port}", f"localhost:{port}"):
        with fastray.init(address=address) as context:
            assert context.address_info["node_pid"] == daemon.pid
    with pytest.raises(ConnectionError, match="start --head"):
        fastray.init(address="127.0.0.1:1")
    with pytest.raises(ConnectionError, match="this machine"):
        fastray.init(address="192.0.2.1:6379")


def test_where_no_node_is_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path / "none"))
    for address in ("auto", str(tmp_path), str(tmp_path / "session-1"), f"unix:{tmp_path}/session-1/node.sock"):
        with pytest.raises(ConnectionError, match="no fastray node"):
            fastray.init(address=address)
    assert not fastray.is_initialized()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "options",
    [{"num_cpus": 2}, {"num_gpus": 0}, {"resources": {"a": 1}}, {"labels": {"a": "b"}},
     {"object_store_memory": 100 << 20}, {"_memory": 1 << 30}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_what_the_node_decides_is_refused(daemon, options):
    with pytest.raises(InvalidOptionError, match=next(iter(options)).lstrip("_")) as caught:
        fastray.init(address=daemon.path, **options)
    assert isinstance(caught.value, ValueError)
    assert not fastray.is_initialized()


def hello(wire=None, python=None, magic=None, text=b"\0"):
    version = sys.version_info[0] << 8 | sys.version_info[1]
    real = control.WIRE
    return struct.pack(
        "<QIIII", magic or real[0], wire or real[1], python or version, 0, len(text)
    ) + text  # fmt: skip


@pytest.mark.parametrize(
    ("message", "why"),
    [(hello(wire=99), "version 99"), (hello(python=3 << 8 | 4), "Python 3.4")],
    ids=["wire version", "Python"],
)
def test_another_version_is_refused_and_told_why(daemon, monkeypatch, message, why):
    monkeypatch.setattr(control, "attach_message", lambda *_: message)
    with pytest.raises(ConnectionError, match=why):
        fastray.init(address=daemon.path)
    monkeypatch.undo()
    fastray.init(address=daemon.path)


@pytest.mark.parametrize(
    "message", [b"", b"x", hello(magic=1), hello()[:-1], hello() + b"y", os.urandom(4000)],
    ids=["empty", "short", "magic", "cut", "long", "noise"],
)  # fmt: skip
def test_nonsense_on_the_socket_is_hung_up_on(daemon, message):
    before = idle(daemon)
    with sessions.connect(daemon.path) as connection:
        connection.settimeout(GET_S)
        with contextlib.suppress(BrokenPipeError):
            connection.send(message)
        assert connection.recv(100) == b""
    assert comes_back_to(daemon, before)


def test_connections_that_say_nothing_are_dropped_when_there_are_many(daemon):
    before = idle(daemon)
    silent = [sessions.connect(daemon.path) for _ in range(100)]
    with fastray.init(address=daemon.path):
        assert fastray.get(fastray.remote(lambda: 1).remote(), timeout=GET_S) == 1
    silent[0].settimeout(GET_S)
    assert silent[0].recv(1) == b""
    for connection in silent:
        connection.close()
    assert comes_back_to(daemon, before)


def test_a_node_has_one_agent(daemon):
    before = idle(daemon)
    with pytest.raises(ConnectionError, match="has an agent already"):
        attach.AttachedNode(daemon.path, role=control.AS_AGENT)
    assert comes_back_to(daemon, before)


# ---- again and again -----------------------------------------------------------------------------------


def test_attaching_a_thousand_times_leaks_nothing(daemon):
    ours = len(os.listdir("/proc/self/fd"))
    for i in range(1000):
        fastray.init(address=daemon.path)
        if i % 10 == 0:
            assert fastray.get(fastray.remote(lambda i=i: i).remote(), timeout=GET_S) == i
        fastray.shutdown()
        if i == 100:
            before, memory = idle(daemon), daemon.memory()
    assert comes_back_to(daemon, before)
    assert daemon.memory() < memory + (2 << 20)
    assert len(os.listdir("/proc/self/fd")) == ours
    assert daemon.status()["drivers"] == []


def test_a_process_sees_its_jobs_as_different_ones(daemon):
    ids = set()

    @fastray.remote
    class Named:
        def job(self):
            return fastray.get_runtime_context().get_job_id()

    @fastray.remote
    def job():
        return fastray.get_runtime_context().get_job_id()

    for _ in range(3):
        with fastray.init(address=daemon.path):
            mine = fastray.get_runtime_context().get_job_id()
            ids.add(mine)
            actor = Named.remote()
            assert fastray.get([job.remote(), actor.job.remote()], timeout=GET_S) == [mine, mine]
            rows = state.list_jobs(filters=[("status", "=", "RUNNING")])
            assert [(row.job_id, row.pid) for row in rows] == [(mine, os.getpid())]
    assert len(ids) == 3


def test_the_path_of_a_socket_may_be_long(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    made = Daemon(deep)
    try:
        with fastray.init(address=made.path):
            assert fastray.get(fastray.remote(lambda: 7).remote(), timeout=GET_S) == 7
    finally:
        made.stop()


def test_nobody_else_may_attach(daemon):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    directory = os.stat(daemon.path)
    assert directory.st_mode & 0o777 == 0o700
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fd = os.open(daemon.path, os.O_PATH)  # past the directory's mode: the daemon looks too
            os.setresuid(65534, 65534, 65534)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(f"/proc/self/fd/{fd}/node.sock")
                connection.settimeout(GET_S)
                connection.send(hello())
                code = 0 if connection.recv(100) == b"" else 2
            except (PermissionError, BrokenPipeError, ConnectionResetError):
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

