"""SIGKILL in the middle of an installation and of unpacking: nothing half-made is used, nobody waits for ever."""

from __future__ import annotations

import os
import signal

import pytest
from runtime_env_helpers import folder, offline, source, waiting_setup
from waiting import eventually, is_alive, open_gate

import fastray
from fastray.exceptions import LocalRayletDiedError

GET_S = 60

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("module_goes_by_value")]


@pytest.fixture(autouse=True)
def envs(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRAY_ENV_CACHE", str(tmp_path / "envs"))
    return tmp_path / "envs"


def commands():
    """pid -> command line, of all processes."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                found[int(entry)] = file.read().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue
    return found


def installers(envs):
    """Processes that install into the cache."""
    return [pid for pid, command in commands().items() if command.startswith(str(envs))]


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(") ")[2].split()[1])


def agent_of(node):
    """Pid of the node's agent."""
    return next(pid for pid, line in commands().items() if "node agent" in line and parent_of(pid) == node.pid)


def complete(envs):
    return [name for name in os.listdir(envs) if name.endswith(".done")]


@fastray.remote
def look(name):
    import importlib

    return importlib.import_module(name).value, os.getpid()


@pytest.fixture
def installing(tmp_path, envs):
    """`installing()`: (reference of a task whose requirement is being built, and waits for a gate; the gate; pid of the
    pip that the worker started). `installing.task` is the task."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    slow = source(tmp_path / "sources", "fastray_slow", setup=waiting_setup(begun, gate))
    options = [*offline()["pip_install_options"], "--no-build-isolation"]
    task = look.options(runtime_env={"pip": {"packages": [str(slow)], "pip_install_options": options}})

    def begin():
        ref = task.remote("fastray_slow")
        assert eventually(begun.exists)
        pip = next(pid for pid in installers(envs) if "-m pip install" in commands().get(pid, ""))
        return ref, gate, pip

    begin.task = task
    return begin


def test_a_worker_that_is_killed_while_it_installs_is_followed_by_one_that_begins_anew(
    fresh_node, installing, envs
):
    ref, gate, pip = installing()
    worker = parent_of(pip)
    os.kill(worker, signal.SIGKILL)
    assert eventually(lambda: not is_alive(pip))  # it does not write on beside the next one
    assert complete(envs) == []
    open_gate(gate)
    value, pid = fastray.get(ref, timeout=GET_S)
    assert value == 1
    assert pid != worker
    assert len(complete(envs)) == 1


def test_a_pip_that_is_killed_is_a_failure(fresh_node, installing, envs):
    ref, _, pip = installing()
    os.kill(pip, signal.SIGKILL)
    with pytest.raises(fastray.exceptions.RuntimeEnvSetupError, match="ended with -9"):
        fastray.get(ref, timeout=GET_S)
    assert complete(envs) == []


def test_a_node_that_is_killed_while_it_installs_leaves_nothing_that_is_taken_for_done(installing, envs):
    fastray.init(num_cpus=1)
    ref, gate, pip = installing()
    os.kill(parent_of(parent_of(pip)), signal.SIGKILL)
    with pytest.raises(LocalRayletDiedError):
        fastray.get(ref, timeout=GET_S)
    assert eventually(lambda: not is_alive(pip))
    assert complete(envs) == []
    open_gate(gate)
    fastray.init(num_cpus=1)
    assert fastray.get(installing.task.remote("fastray_slow"), timeout=GET_S)[0] == 1
    assert len(complete(envs)) == 1


def test_a_cancelled_task_ends_no_installation_that_others_wait_for(fresh_node, installing):
    ref, gate, _ = installing()
    fastray.cancel(ref)
    with pytest.raises(fastray.exceptions.TaskCancelledError):
        fastray.get(ref, timeout=GET_S)
    open_gate(gate)
    assert fastray.get(installing.task.remote("fastray_slow"), timeout=GET_S)[0] == 1


def test_a_process_that_is_killed_at_any_moment_of_unpacking_leaves_all_or_nothing(tmp_path):
    """Packs a directory, then unpacks it in processes that are killed at 30 different moments."""
    import select
    import subprocess
    import sys

    from fastray.runtime_envs.packages import pack, unpack
    from fastray.runtime_envs.store import Store

    many = folder(tmp_path / "many", **{f"module{i}": f"value = {i}\n" * 50 for i in range(300)})
    package = str(tmp_path / "package.zip")
    pack(str(many), package, [])
    program = """
import os, sys
from fastray.runtime_envs.packages import unpack
from fastray.runtime_envs.store import Store

Store(sys.argv[1]).use("entry", lambda path, lock: (os.write(1, b"x"), unpack(sys.argv[2], path)))
os.write(1, b"y")
"""
    store = Store(str(tmp_path / "store"))
    finished = 0
    for i in range(30):
        process = subprocess.Popen([sys.executable, "-c", program, store.root, package], stdout=subprocess.PIPE)
        assert process.stdout.read(1) in (b"x", b"y")
        select.select([], [], [], i * 0.001)  # a moment of unpacking, another one each time
        process.kill()
        process.wait()
        process.stdout.close()
        if os.path.exists(store.path("entry") + ".done"):
            finished += 1
            assert len(os.listdir(store.path("entry"))) == 300
            assert store.remove("entry")
    path, lock = store.use("entry", lambda path, _: unpack(package, path))
    os.close(lock)
    assert len(os.listdir(path)) == 300
    assert finished < 30


def test_an_agent_that_is_killed_while_a_package_comes_is_asked_again(tmp_path, monkeypatch):
    """The worker that waits for it fails or gets it from the next agent; the task runs again and has its files."""
    pytest.importorskip("grpc")
    pytest.importorskip("pyarrow")
    from fastray.cluster_utils import Cluster

    monkeypatch.setenv("FASTRAY_TMPDIR", str(tmp_path / "runtime"))
    directory = folder(tmp_path / "directory", far_module="value = 'far'\n")
    (directory / "large.bin").write_bytes(os.urandom(1 << 20) * 200)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1, resources={"far": 1})
        cluster.wait_for_nodes()
        fastray.init(address=cluster.address)
        task = look.options(resources={"far": 1}, runtime_env={"working_dir": str(directory)}, max_retries=5)
        ref = task.remote("far_module")
        store = os.path.join(node.session_path, "env")
        assert eventually(lambda: any(name.endswith(".tmp") for name in os.listdir(store)))
        os.kill(agent_of(node), signal.SIGKILL)
        assert fastray.get(ref, timeout=GET_S)[0] == "far"
    finally:
        fastray.shutdown()
        cluster.shutdown()
