"""Nodes that join a cluster: `fastray start --head`, `fastray start --address`, on this machine.

    cluster    a head with 2 CPUs for the module; nodes of a test join and leave it
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
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
from fastray.cluster.jobs import BLOCK
from fastray.exceptions import AuthenticationError, GcsUnavailableError
from fastray.gcs.client import GcsClient
from fastray.node_state import job_id_of
from fastray.util import state

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
        assert (row["info"]["pid"], row["info"]["head"]) == (str(joined.pid), "")
        assert row["address"].partition(":")[0] == "127.0.0.1"
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


# ---- looking from a driver ----------------------------------------------------------------------------

DRIVER = '''
import os, signal, fastray
fastray.init(address=os.environ["DAEMON"], namespace="there")
print(fastray.get_runtime_context().get_job_id(), flush=True)
signal.pause()
'''


@pytest.fixture
def elsewhere(joined, start_program, tmp_path):
    """A driver of the node that joined: (process, its job)."""
    process = start_program(DRIVER, tmp_path, env={"DAEMON": joined.path})
    return process, process.stdout.readline().strip()


def test_a_driver_sees_the_resources_of_all_nodes(cluster, joined):
    assert sees(cluster.head, cluster.head, joined)
    with fastray.init(address=cluster.head.path):
        rows = [row for row in fastray.nodes() if row["Alive"]]
        assert {row["NodeID"]: row["Resources"]["CPU"] for row in rows} == {
            cluster.head.info["node_id"]: 2, joined.info["node_id"]: 3,
        }  # fmt: skip
        assert {row["NodeID"] for row in rows if row["Labels"].get("zone") == "b"} == ids(joined)
        assert fastray.get_runtime_context().get_node_id() == cluster.head.info["node_id"]
        total = fastray.cluster_resources()
        assert (total["CPU"], total["disk"], total["node:__internal_head__"]) == (5, 2, 1)
        assert total["memory"] == sum(row["Resources"]["memory"] for row in rows)

        @fastray.remote(num_cpus=2)
        def inside():
            return fastray.cluster_resources()["CPU"], fastray.available_resources()["CPU"], len(state.list_nodes())

        everywhere = len(state.list_nodes())
        assert fastray.get(inside.remote(), timeout=GET_S) == (5, 3, everywhere)
        assert state.list_nodes()[0].is_head_node
        alone = state.list_nodes(filters=[("node_id", "=", joined.info["node_id"])])
        assert [(row.state, row.resources_total["disk"], row.labels["zone"]) for row in alone] == [("ALIVE", 2, "b")]


def test_nodes_that_died_stay_in_the_list(cluster):
    node = cluster.join(num_cpus=7)
    node.kill()
    cluster.all.remove(node)
    assert sessions.remove_stale(node.path)
    assert sees(cluster.head, cluster.head)
    with fastray.init(address=cluster.head.path):
        (row,) = [row for row in fastray.nodes() if row["NodeID"] == node.info["node_id"]]
        assert (row["Alive"], row["Resources"], row["DeathReason"]) == (False, {}, 2)
        assert row["DeathReasonMessage"] == "its connection closed"
        assert fastray.cluster_resources()["CPU"] == 2


def test_jobs_have_numbers_of_the_cluster_and_are_seen_everywhere(cluster, joined, elsewhere):
    process, theirs = elsewhere
    with fastray.init(address=cluster.head.path, namespace="here"):
        mine = fastray.get_runtime_context().get_job_id()
        assert mine != theirs

        def running():
            rows = state.list_jobs(filters=[("status", "=", "RUNNING")])
            return {row.job_id: (row.namespace, row.pid) for row in rows}

        expected = {mine: ("here", os.getpid()), theirs: ("there", process.pid)}
        assert eventually(lambda: running() == expected), running()
        process.kill()
        assert eventually(lambda: set(running()) == {mine})
        (ended,) = state.list_jobs(filters=[("job_id", "=", theirs)])
        assert ended.end_time >= ended.start_time
    assert eventually(lambda: mine in {job_id_of(row["job_id"]) for row in ended_jobs(joined)})


def ended_jobs(node):
    return [row for row in inquiry.ask(node.path, "jobs") if row["state"] != "RUNNING"]


def test_numbers_of_jobs_do_not_end(cluster):
    """They are reserved in blocks, which is not to be seen."""
    seen = []
    for _ in range(2 * BLOCK):
        with fastray.init(address=cluster.head.path):
            seen.append(fastray.get_runtime_context().get_job_id())
    assert len(set(seen)) == len(seen)
    numbers = {job_id_of(row["job_id"]) for row in inquiry.ask(cluster.head.path, "jobs")}
    assert eventually(lambda: {job_id_of(row["job_id"]) for row in ended_jobs(cluster.head)} >= set(seen)), numbers


def test_the_commands_show_the_whole_cluster(cluster, joined, elsewhere):
    _, theirs = elsewhere

    def command(*arguments):
        environment = program_environment({})
        done = subprocess.run(
            [sys.executable, "-m", "fastray", *arguments, "--address", cluster.head.path],
            capture_output=True, text=True, timeout=60, check=True, env=environment,
        )  # fmt: skip
        return done.stdout

    def status():
        return json.loads(command("status", "--json"))

    assert eventually(lambda: [row["job_id"] for row in status()["drivers"]] == [theirs]), status()["drivers"]
    found = status()
    assert [row["node_id"] for row in found["nodes"]] == [cluster.head.info["node_id"], joined.info["node_id"]]
    assert found["gcs"] == cluster.address
    text = command("status")
    for words in ("2 nodes alive", "the head", "disk", joined.info["node_id"][:16], theirs, "there"):
        assert words in text
    assert theirs in command("list", "jobs")
    assert {row["node_id"] for row in json.loads(command("list", "nodes", "--json"))} >= ids(cluster.head, joined)


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
    with pytest.raises(daemon.StartError, match="cannot reach"):
        Daemon(tmp_path, host="0.0.0.0")
    try:
        host = launch.own_address(None, "192.0.2.1:1")
    except OSError:
        pytest.skip("this machine has no other address")
    monkeypatch.setenv("FASTRAY_AUTH_MODE", "disabled")
    with pytest.raises(daemon.StartError, match="without a token"):
        Daemon(tmp_path, host=host)
    assert left(tmp_path) == []
    monkeypatch.delenv("FASTRAY_AUTH_MODE")
    made = Nodes(tmp_path, host=host)
    try:
        assert made.address == f"{host}:{made.head.info['port']}"
        with pytest.raises(AuthenticationError):
            GcsClient(made.address, "w" * 32)
        node = made.join()
        assert sees(node, *made.all)
        assert row_of(made.head, node)["info"]["pid"] == str(node.pid)
        with fastray.init(address=node.path):
            assert fastray.cluster_resources()[f"node:{host}"] == 2
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


def test_only_its_user_may_ask_an_agent(cluster):
    assert sees(cluster.head, cluster.head)
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fd = os.open(cluster.head.path, os.O_PATH)  # past the directory's mode: the agent looks too
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"/proc/self/fd/{fd}/agent.sock")
                connection.sendall(b"nodes\n")
                code = 0 if connection.recv(100) == b"" else 2
        except (PermissionError, BrokenPipeError, ConnectionResetError):
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("question", [b"", b"\n", b"nothing\n", b"\xff" * 1000])
def test_nonsense_is_not_answered_and_does_no_harm(cluster, question):
    assert sees(cluster.head, cluster.head)  # it answers
    with socket.socket(socket.AF_UNIX) as connection, sessions.short_name(
        os.path.join(cluster.head.path, inquiry.SOCKET)
    ) as name:
        connection.connect(name)
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert cluster.head.info["node_id"] in alive(cluster.head)


def test_who_asks_where_no_agent_is_gets_an_error(tmp_path):
    with pytest.raises(GcsUnavailableError, match="does not answer"):
        inquiry.ask(str(tmp_path), "nodes", wait_s=0.1)
