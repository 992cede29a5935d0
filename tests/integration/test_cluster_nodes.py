"""Nodes that join a cluster: `fastray start --head`, `fastray start --address`, on this machine.

    cluster    a head with 2 CPUs for the module; nodes of a test join and leave it
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc")

from cluster_helpers import Nodes, alive, ids, row_of, sees
from daemon_helpers import Daemon
from integration_helpers import program_environment
from waiting import eventually, free_port

import fastray
from fastray import daemon, sessions
from fastray.cluster import inquiry, launch
from fastray.exceptions import AuthenticationError, GcsUnavailableError
from fastray.gcs.client import GcsClient

GET_S = 30.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Nodes(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


@pytest.fixture
def joined(cluster):
    node = cluster.join(num_cpus=3, resources={"disk": 2}, labels={"zone": "b"})
    yield node
    node.stop()
    cluster.all.remove(node)


def test_a_node_that_joins_is_seen_by_all_with_what_it_has(cluster, joined):
    for node in (cluster.head, joined):
        assert sees(node, cluster.head, joined)
        row = row_of(node, joined)
        assert (row["resources"]["CPU"], row["resources"]["disk"]) == (3, 2)
        assert row["labels"]["zone"] == "b"
        assert row["labels"]["ray.io/node-id"] == joined.info["node_id"]
        assert (row["info"]["pid"], row["info"]["head"], row["address"]) == (str(joined.pid), "", "127.0.0.1")
        assert row["is_self"] == (node is joined)
        assert row_of(node, cluster.head)["info"]["head"] == "1"
    assert row_of(joined, joined)["epoch"] > row_of(joined, cluster.head)["epoch"]


def test_a_node_that_is_stopped_says_goodbye(cluster):
    node = cluster.join()
    assert sees(cluster.head, cluster.head, node)
    node.stop()
    cluster.all.remove(node)
    assert sees(cluster.head, cluster.head)
    row = row_of(cluster.head, node)
    assert (row["state"], row["reason"]) == ("DEAD", "it left")
    assert not os.path.exists(node.path)


def test_heartbeats_tell_what_is_free_and_what_waits(cluster, joined):
    with fastray.init(address=joined.path):

        @fastray.remote(resources={"disk": 2}, num_cpus=1)
        def hold(path):
            while not os.path.exists(path):
                pass

        end = os.path.join(cluster.folder, "end")
        refs = [hold.remote(end) for _ in range(3)]

        def seen():
            row = row_of(cluster.head, joined)
            return row["available"].get("disk") == 0 and row["available"]["CPU"] == 2 and row["queues"]

        queues = eventually(seen)
        assert queues, row_of(cluster.head, joined)
        assert [queue[0] for queue in queues.values()] == [2]
        open(end, "x").close()
        fastray.get(refs, timeout=GET_S)
        os.unlink(end)

        def free():
            row = row_of(cluster.head, joined)
            return row["available"]["disk"] == 2 and not row["queues"]

        assert eventually(free), row_of(cluster.head, joined)


def test_a_driver_finds_the_node_of_its_machine(cluster, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", str(cluster.folder))
    node = cluster.join()
    try:
        for address in ("auto", cluster.address):  # the head first
            with fastray.init(address=address) as context:
                assert context.address_info["node_pid"] == cluster.head.pid
        with fastray.init(address=node.path) as context:
            assert context.address_info["node_pid"] == node.pid
    finally:
        node.stop()
        cluster.all.remove(node)
    with pytest.raises(ConnectionError, match=r"start --address=192\.0\.2\.1:6379"):
        fastray.init(address="192.0.2.1:6379")


# ---- joining that fails -------------------------------------------------------------------------------


def start(folder, *arguments, **variables):
    """`fastray start ...` in a runtime directory: (exit code, what it says)."""
    environment = program_environment({"FASTRAY_TMPDIR": str(folder), **variables})
    command = [sys.executable, "-m", "fastray", "start", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    return done.returncode, done.stdout + done.stderr


def left(folder):
    return [str(path) for path in folder.iterdir()] if folder.exists() else []


def test_a_wrong_token_is_refused_on_the_terminal(cluster, tmp_path):
    code, said = start(tmp_path, f"--address={cluster.address}", FASTRAY_AUTH_TOKEN="w" * 32)
    assert (code, "the wrong token" in said) == (1, True), said
    code, said = start(tmp_path, f"--address={cluster.address}", HOME=str(tmp_path))
    assert (code, "no token" in said and "FASTRAY_AUTH_TOKEN" in said) == (1, True), said
    assert left(tmp_path) == []
    assert alive(cluster.head) == ids(cluster.head)


def test_the_token_of_another_machine_is_taken_from_the_environment(cluster, tmp_path):
    token = Path(cluster.head.path, sessions.TOKEN).read_text().strip()
    for variables in (
        {"FASTRAY_AUTH_TOKEN": token},
        {"FASTRAY_AUTH_TOKEN_PATH": os.path.join(cluster.head.path, sessions.TOKEN)},
    ):
        code, said = start(tmp_path, f"--address={cluster.address}", **variables)
        assert code == 0, said
        (path,) = sessions.directories(str(tmp_path))
        kept = Path(path, sessions.TOKEN)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert kept.read_text().strip() == token
        environment = program_environment({"FASTRAY_TMPDIR": str(tmp_path)})
        subprocess.run([sys.executable, "-m", "fastray", "stop"], check=True, timeout=60, env=environment)
    assert sees(cluster.head, cluster.head)


def test_other_versions_are_refused_on_the_terminal(cluster, tmp_path):
    """The joining side runs with another version in its head: sitecustomize changes what it says."""
    for change, why in (
        ("import platform; platform.python_version = lambda: '3.4.1'", "Python 3.4.1 does not match"),
        ("import fastray.gcs.wire as wire; wire.WIRE_VERSION = 99", "wire version 99 does not match"),
    ):
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(change)
        root = os.path.dirname(fastray.__path__[0])
        code, said = start(
            tmp_path / "run", f"--address={cluster.address}", PYTHONPATH=f"{site}:{root}",
            FASTRAY_AUTH_TOKEN_PATH=os.path.join(cluster.head.path, sessions.TOKEN),
        )  # fmt: skip
        assert (code, why in said) == (1, True), said
    assert alive(cluster.head) == ids(cluster.head)


def test_where_no_head_answers_the_start_fails(tmp_path, monkeypatch):
    with pytest.raises(ConnectionError, match="no head runs"):
        launch.find_cluster("auto", str(tmp_path))
    code, said = start(tmp_path, "--address=auto")
    assert (code, "no head runs" in said) == (1, True)


def test_only_a_token_opens_other_addresses_than_loopback(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_AUTH_MODE", "disabled")
    with pytest.raises(daemon.StartError, match="without a token"):
        Daemon(tmp_path, host="0.0.0.0")
    assert left(tmp_path) == []
    monkeypatch.delenv("FASTRAY_AUTH_MODE")
    made = Nodes(tmp_path, host="0.0.0.0")
    try:
        address = f"127.0.0.1:{made.head.info['port']}"
        with pytest.raises(AuthenticationError):
            GcsClient(address, "w" * 32)
        node = made.join()
        assert sees(node, *made.all)
    finally:
        made.stop()


# ---- what it costs ------------------------------------------------------------------------------------


def test_a_session_of_one_node_starts_nothing_of_a_cluster(tmp_path):
    program = (
        "import sys, json, fastray; fastray.init(num_cpus=1); fastray.get(fastray.remote(lambda: 1).remote());"
        "print(json.dumps([n for n in sys.modules if n.startswith(('grpc', 'fastray.cluster.', 'fastray.gcs'))]))"
    )
    environment = program_environment({})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment)
    assert json.loads(done.stdout) == [], done.stderr


def test_a_daemon_imports_no_grpc(cluster):
    with open(f"/proc/{cluster.head.pid}/maps") as file:
        assert "grpc" not in file.read()
    (agent,) = cluster.head.helpers("node agent")
    with open(f"/proc/{agent}/maps") as file:
        assert "grpc" in file.read()


def test_a_head_listens_on_the_port_that_it_is_given(tmp_path):
    port = free_port()
    made = Daemon(tmp_path, port=port)
    try:
        assert (made.info["port"], made.info["gcs"]) == (port, f"127.0.0.1:{port}")
        assert os.path.basename(made.path) == f"session-{port}"
        with pytest.raises(daemon.StartError, match="cannot listen"):
            Daemon(tmp_path / "elsewhere", port=port)
        assert left(tmp_path / "elsewhere") == []
    finally:
        made.stop()


def test_who_asks_where_no_agent_is_gets_an_error(tmp_path):
    with pytest.raises(GcsUnavailableError, match="does not answer"):
        inquiry.ask(str(tmp_path), "nodes", wait_s=0.1)
