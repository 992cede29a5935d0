"""`fastray start`, `stop`, `status`, `list` from the shell, in runtime directories of the tests' own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from integration_helpers import GONE_S, is_alive, marked_pids, program_environment
from waiting import eventually, free_port

import fastray

WAIT_S = 60
START = [sys.executable, "-m", "fastray", "start", "--head", "--port"]


class Shell:
    """Runs `fastray ...` with a runtime directory of its own."""

    def __init__(self, folder):
        self.base = Path(folder)
        self.env = program_environment({"FASTRAY_TMPDIR": str(folder), "PROGRAM_MARK": str(folder)})
        self.env.pop("FASTRAY_ADDRESS", None)

    def __call__(self, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "fastray", *arguments], capture_output=True, text=True, timeout=WAIT_S, env=self.env
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    def start(self, *arguments):
        self("start", "--head", "--num-cpus", "2", *(() if "--port" in arguments else ("--port", "0")), *arguments)
        return self.status()

    def status(self):
        return json.loads(self("status", "--json"))

    def left(self):
        """Files and processes of it."""
        return [str(path) for path in self.base.glob("*")] if self.base.exists() else [], marked_pids(self.base)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path / "runtime"))
    made = Shell(tmp_path / "runtime")
    yield made
    made("stop")
    assert eventually(lambda: made.left() == ([], [])), made.left()


def test_a_node_is_started_looked_at_and_stopped(shell):
    said = shell(
        "start", "--head", "--port", "0", "--num-cpus", "3", "--resources", '{"disk": 2}', "--labels", "zone=a,rack=7"
    )
    assert 'fastray.init(address="auto")' in said
    status = shell.status()
    node = status["nodes"][0]
    assert (node["resources_total"]["CPU"], node["resources_total"]["disk"]) == (3, 2)
    assert node["labels"] == {"zone": "a", "rack": "7", "ray.io/node-id": node["node_id"]}
    assert (status["drivers"], status["actors"], status["workers"]) == ([], [], 0)
    assert is_alive(status["pid"])
    assert os.stat(status["path"]).st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in Path(status["path"]).iterdir() if path.suffix != ".sock")
    with fastray.init(address="auto"):
        labels = fastray.nodes()[0]["Labels"]
        assert (labels["zone"], labels["rack"]) == ("a", "7")

        @fastray.remote(resources={"disk": 1})
        def inside():
            return fastray.nodes()[0]["Labels"]["zone"], fastray.available_resources()["disk"]

        assert fastray.get(inside.remote(), timeout=WAIT_S) == ("a", 1)
    assert "Stopped 1 node" in shell("stop")
    assert not is_alive(status["pid"])
    assert shell.left() == ([], [])


def test_without_a_node_the_commands_say_so(shell):
    assert "No node runs" in shell("stop")
    for command in (("status",), ("status", "--json"), ("list", "jobs")):
        assert "no fastray node found" in shell(*command, code=1)
    assert shell.left() == ([], [])


def test_a_second_node_needs_a_port_or_a_place_of_its_own(shell, tmp_path):
    port, other = str(free_port()), str(free_port())
    first = shell.start("--port", port)
    assert "runs already" in shell("start", "--head", "--port", port, code=1)
    assert shell.status()["pid"] == first["pid"]
    shell("start", "--head", "--port", other)
    second = json.loads(shell("status", "--json", "--address", f"127.0.0.1:{other}"))
    elsewhere = str(tmp_path / "elsewhere")
    assert "cannot listen" in shell("start", "--head", "--port", port, "--temp-dir", elsewhere, code=1)
    shell("start", "--head", "--port", "0", "--temp-dir", elsewhere)
    third = json.loads(shell("status", "--json", "--temp-dir", elsewhere))
    assert len({first["pid"], second["pid"], third["pid"]}) == 3
    assert shell.status()["pid"] == second["pid"]  # the latest
    assert "Stopped 1 node" in shell("stop", "--port", other)
    assert shell.status()["pid"] == first["pid"]
    assert "Stopped 1 node" in shell("stop")
    assert is_alive(third["pid"])  # not of this runtime directory
    assert "Stopped 1 node" in shell("stop", "--temp-dir", elsewhere)
    assert os.listdir(elsewhere) == []


def test_two_that_start_at_once_are_one(shell):
    command = [*START, str(free_port())]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=shell.env)
        for _ in range(2)
    ]
    ends = [(process.communicate(timeout=WAIT_S), process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 1], ends
    assert any("runs already" in err for (_, err), _ in ends)


def test_what_a_killed_node_left_goes_with_the_next_start_or_stop(shell):
    port = str(free_port())
    for command in (("stop",), ("start", "--head", "--port", port)):
        status = shell.start("--port", port)
        pidfd = os.pidfd_open(status["pid"])
        os.kill(status["pid"], signal.SIGKILL)
        assert select.select([pidfd], [], [], WAIT_S)[0]
        os.close(pidfd)
        assert eventually(lambda: marked_pids(shell.base) == [], GONE_S)
        assert os.listdir(shell.base) == [f"session-{port}"]
        assert "no fastray node found" in shell("status", code=1)
        said = shell(*command)
        assert "Removed what 1 killed node left" in said if command == ("stop",) else "The node runs" in said


def test_status_and_list_show_what_is_there(shell):
    shell.start()
    fastray.init(address="auto", namespace="mine")

    @fastray.remote
    class Holder:
        def pid(self):
            return os.getpid()

    holder = Holder.options(name="holder", lifetime="detached").remote()
    pid = fastray.get(holder.pid.remote(), timeout=WAIT_S)
    job = fastray.get_runtime_context().get_job_id()
    status = shell.status()
    assert [(row["job_id"], row["pid"], row["namespace"]) for row in status["drivers"]] == [(job, os.getpid(), "mine")]
    assert [(row["class_name"], row["name"], row["pid"], row["state"]) for row in status["actors"]] == [
        ("Holder", "holder", pid, "ALIVE")
    ]
    assert status["workers"] >= 1
    text = shell("status")
    for word in (job, "holder", "detached", "mine", "CPU", "object_store_memory", "1 drivers attached"):
        assert word in text
    assert "Holder" in shell("list", "actors")
    assert "ALIVE" in shell("list", "nodes")
    rows = json.loads(shell("list", "workers", "--json"))
    assert {row["worker_type"] for row in rows} == {"DRIVER", "WORKER"}
    fastray.shutdown()
    assert [row["status"] for row in json.loads(shell("list", "jobs", "--json"))] == ["SUCCEEDED"]
    assert [row["name"] for row in shell.status()["actors"]] == ["holder"]


@pytest.mark.parametrize("how", [(), ("--force",)], ids=["gently", "by force"])
def test_stop_ends_what_tasks_started(shell, tmp_path, how):
    shell.start()
    fastray.init(address="auto")
    path = str(tmp_path / "child")

    @fastray.remote
    def spawn():
        import subprocess

        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(path + ".new", "w") as file:
            file.write(str(child.pid))
        os.rename(path + ".new", path)
        child.wait()

    ref = spawn.remote()
    assert eventually(lambda: os.path.exists(path))
    child = int(Path(path).read_text())
    shell("stop", *how)
    with pytest.raises(fastray.exceptions.LocalRayletDiedError):
        fastray.get(ref, timeout=WAIT_S)
    assert eventually(lambda: not is_alive(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_node_that_blocks_ends_with_its_command(shell, number):
    process = subprocess.Popen([*START, "0", "--block"], stdout=subprocess.PIPE, text=True, env=shell.env)
    line = ""
    while "To end it" not in line:
        line = process.stdout.readline()
        assert line
    pid = shell.status()["pid"]
    process.send_signal(number)
    code = process.wait(WAIT_S)
    process.stdout.close()
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert eventually(lambda: not is_alive(pid))
    assert eventually(lambda: shell.left() == ([], []))


def test_a_command_that_blocks_ends_with_its_node(shell):
    process = subprocess.Popen([*START, "0", "--block"], stdout=subprocess.PIPE, text=True, env=shell.env)
    while "To end it" not in process.stdout.readline():
        pass
    shell("stop")
    assert process.wait(WAIT_S) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("start",), 2, "--head"),
        (("start", "--head", "--resources", "{"), 2, "not JSON"),
        (("start", "--head", "--resources", "[1]"), 2, "not a JSON object"),
        (("start", "--head", "--resources", '{"CPU": 1}'), 2, "num_cpus"),
        (("start", "--head", "--labels", "zone"), 2, "key=value"),
        (("start", "--head", "--port", "70000"), 2, "no port"),
        (("start", "--head", "--address", "127.0.0.1:1"), 2, "not allowed with"),
        (("start", "--address", "here"), 2, "HOST:PORT"),
        (("start", "--address", "127.0.0.1:1", "--port", "5"), 2, "a head's"),
        (("start", "--address", "auto"), 1, "no head runs"),
        (("start", "--head", "--store", "redis:"), 2, "sqlite:"),
        (("start", "--head", "--num-cpus", "-1"), 2, "at least 0"),
        (("start", "--head", "--object-store-memory", "5"), 2, "at least"),
        (("list", "nothing"), 2, "invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments_are_named(shell, arguments, code, said):
    assert said in shell(*arguments, code=code)
    assert shell.left() == ([], [])


def test_a_directory_that_others_can_write_to_is_refused(shell):
    port = str(free_port())
    start = ("start", "--head", "--port", port)
    session = f"session-{port}"
    shell.base.mkdir()
    shell.base.chmod(0o777)
    assert "closed to others" in shell(*start, code=1)
    shell.base.chmod(0o755)
    (shell.base / session).mkdir(mode=0o755)
    assert "closed to others" in shell(*start, code=1)
    (shell.base / session).rmdir()
    (shell.base / session).symlink_to("/tmp")
    assert "closed to others" in shell(*start, code=1)
    (shell.base / session).unlink()
    shell.start("--port", port)
