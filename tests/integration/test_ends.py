"""Ends of programs: signals, sudden deaths of any of their processes, exits of each kind. Nothing stays."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import uuid

import pytest
from integration_helpers import (
    GONE_S,
    comes_to_rest,
    eventually,
    files_of_fastray,
    marked_pids,
    wait_for_gate,
)

BUSY = """
import os, signal, subprocess, sys, threading, time
import fastray

@fastray.remote
def stay(path, seconds=600):
    open(path, "x").close()
    time.sleep(seconds)

def begin(folder, n=2):
    refs = [stay.remote(os.path.join(folder, f"started{i}")) for i in range(n)]
    while not all(os.path.exists(os.path.join(folder, f"started{i}")) for i in range(n)):
        time.sleep(0.003)
    return refs

folder = sys.argv[1]
fastray.init(num_cpus=2)
from fastray.runtime import current_runtime
"""


class Program:
    """A program with a folder for its temporary files, and a mark that its processes inherit."""

    def __init__(self, start_program, tmp_path, body):
        self.mark = uuid.uuid4().hex
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        self.files = files_of_fastray()
        environment = {"PROGRAM_MARK": self.mark, "TMPDIR": str(self.temporary)}
        self.process = start_program(BUSY + body, str(tmp_path), env=environment)

    def line(self):
        text = self.process.stdout.readline()
        assert text, self.process.stderr.read()
        return text.strip()

    def roles(self):
        """Reads a line of pids: {"driver", "node", "workers"}."""
        driver, node, *workers = map(int, self.line().split())
        return {"driver": [driver], "node": [node], "workers": workers}

    def ended(self, seconds=20):
        self.process.wait(seconds)
        return self.process.returncode

    def what_is_left(self, seconds=GONE_S):
        eventually(lambda: not marked_pids(self.mark), seconds)
        return marked_pids(self.mark), files_of_fastray() - self.files, list(self.temporary.iterdir())


NOTHING = ([], set(), [])
SAY_PIDS = """
runtime = current_runtime()
workers = [row[2] for row in runtime.attachment.processes() if row[1] == 2]
print(os.getpid(), runtime.node.pid, *workers, flush=True)
"""


@pytest.fixture
def program(start_program, tmp_path):
    def make(body):
        return Program(start_program, tmp_path, body)

    return make


BODIES = {
    "busy": "refs = begin(folder)\n" + SAY_PIDS + "fastray.get(refs)\n",
    "idle": "fastray.get(begin.__globals__['stay'].remote(folder + '/x', 0))\n"
    + SAY_PIDS
    + "time.sleep(600)\n",
    "booting": "workers = []\nprint(os.getpid(), current_runtime().node.pid, flush=True)\ntime.sleep(600)\n",
    "submitting": SAY_PIDS
    + "f = fastray.remote(lambda x: bytes(x))\n"
    + "while True: fastray.get([f.remote(5000) for _ in range(500)])\n",
    "subprocess": """
@fastray.remote
def spawn(path):
    child = subprocess.Popen(["sleep", "600"])
    open(path, "x").close()
    child.wait()
refs = [spawn.remote(folder + "/spawned")]
while not os.path.exists(folder + "/spawned"):
    time.sleep(0.003)
"""
    + SAY_PIDS
    + "fastray.get(refs)\n",
    "many workers": """
@fastray.remote
def deep(n):
    if n:
        return fastray.get(deep.remote(n - 1))
    open(folder + "/deep", "x").close()
    time.sleep(600)
ref = deep.remote(12)
while not os.path.exists(folder + "/deep"):
    time.sleep(0.003)
"""
    + SAY_PIDS
    + "fastray.get(ref)\n",
}


@pytest.mark.parametrize("state", list(BODIES))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_leaves_nothing_behind(program, state, number):
    running = program(BODIES[state])
    roles = running.roles()
    assert eventually(lambda: len(marked_pids(running.mark)) >= 2)
    os.kill(roles["driver"][0], number)
    running.ended()
    assert running.what_is_left() == NOTHING


ROLES = ("driver", "node", "workers")
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(ROLES, n)]


@pytest.mark.crash
@pytest.mark.parametrize("killed", SUBSETS, ids="+".join)
def test_any_of_its_processes_may_be_killed_and_nothing_is_left(program, killed):
    running = program(
        "refs = begin(folder)\n"
        + SAY_PIDS
        + """
try:
    fastray.get(refs, timeout=5)
except fastray.exceptions.LocalRayletDiedError:
    print("node died", flush=True)
except fastray.exceptions.RayError as error:
    print(type(error).__name__, flush=True)
assert fastray.get(fastray.remote(lambda: 5).remote(), timeout=20) == 5
"""
    )
    roles = running.roles()
    assert len(roles["workers"]) >= 2
    for role in killed:
        for number in roles[role]:
            with contextlib.suppress(ProcessLookupError):  # it ended with the one killed before it
                os.kill(number, signal.SIGKILL)
    if "driver" not in killed:
        said = running.line()
        if "node" in killed:
            assert said == "node died"
        else:  # `begin` makes its files with "x": the second try of a task fails
            assert said == "TaskError(FileExistsError)"
        assert running.ended() == 0, running.process.stderr.read()
    else:
        running.ended()
    assert running.what_is_left() == NOTHING


def test_a_killed_node_is_a_typed_error_and_init_starts_anew(program):
    running = program(
        """
refs = begin(folder)
other = fastray.put(1)
os.kill(current_runtime().node.pid, signal.SIGKILL)
started = time.monotonic()
for call in (lambda: fastray.get(refs), lambda: fastray.get(refs[0])):
    try:
        call()
    except fastray.exceptions.RayError as error:
        print(type(error).__name__, "signal 9" in str(error), flush=True)
print(time.monotonic() - started < 5, flush=True)
fastray.shutdown()
fastray.init(num_cpus=1)
print(fastray.get(fastray.remote(lambda: 5).remote()), flush=True)
"""
    )
    assert running.line() in ("LocalNodeDiedError True", "LocalRayletDiedError True")
    running.line()
    assert running.line() == "True"
    assert running.line() == "5"
    assert running.ended() == 0
    assert running.what_is_left() == NOTHING


@pytest.mark.parametrize("how", ["get", "get list", "wait", "stream", "future", "timeout", "map", "aio"])
def test_control_c_interrupts_every_wait_and_the_session_goes_on(program, how):
    running = program(
        f"""
@fastray.remote
def stream(path):
    open(path, "x").close()
    time.sleep(600)
    yield 1

def wait(how):
    if how == "stream":
        next(stream.remote(folder + "/started0"))
        return
    if how == "map":
        list(fastray.remote(lambda x: stay.__wrapped__(folder + "/started0")).map([1]))
        return
    (ref,) = begin(folder, 1)
    if how == "get": fastray.get(ref)
    if how == "get list": fastray.get([fastray.put(1), ref, ref])
    if how == "wait": fastray.wait([fastray.put(1), ref], num_returns=2)
    if how == "timeout": fastray.get(ref, timeout=600)
    if how == "future": ref.future().result()
    if how == "aio":
        import asyncio
        async def main():
            await ref
        asyncio.run(main())

try:
    wait({how!r})
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(fastray.get(fastray.remote(lambda: 5).remote(), timeout=20), flush=True)
"""
    )
    wait_for_gate(os.path.join(os.path.dirname(running.temporary), "started0"))
    assert comes_to_rest(running.process.pid)
    os.kill(running.process.pid, signal.SIGINT)
    assert running.line() == "interrupted"
    assert running.line() == "5"
    assert running.ended() == 0
    assert running.what_is_left() == NOTHING


def test_control_c_at_a_terminal_reaches_the_driver_only(start_program, tmp_path):
    """The kernel sends SIGINT to the whole foreground group: tasks go on."""
    process = start_program(
        BUSY
        + """
ref = stay.remote(folder + "/started", 0.5)
print("go", flush=True)
try:
    fastray.get(ref); time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", fastray.get(ref), flush=True)
""",
        str(tmp_path),
        start_new_session=True,
    )
    assert process.stdout.readline() == "go\n"
    wait_for_gate(str(tmp_path / "started"))
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "interrupted None\n"
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyError('x')", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.execv('/bin/true', ['true'])", 0),
        ("fastray.shutdown()", 0),
    ],
)
def test_a_program_that_ends_without_shutdown_leaves_nothing(program, end, code):
    running = program("refs = begin(folder)\n" + end + "\n")
    assert running.ended() == code
    assert running.what_is_left() == NOTHING


def test_a_program_ends_although_daemon_threads_submit_and_wait(program):
    running = program(
        """
f = fastray.remote(lambda x: x)
going = threading.Event()
def submit():
    while True:
        fastray.get([f.remote(i) for i in range(50)])
        going.set()
def wait():
    fastray.get(stay.remote(folder + "/forever"))
for target in (submit, submit, wait):
    threading.Thread(target=target, daemon=True).start()
going.wait()
print("end", flush=True)
"""
    )
    assert running.line() == "end"
    assert running.ended() == 0
    assert "Fatal" not in running.process.stderr.read()
    assert running.what_is_left() == NOTHING


def test_a_program_that_stops_listening_to_its_output_does_not_hang_its_tasks(program):
    running = program(
        """
@fastray.remote
def talk():
    for i in range(20000):
        print("line", i)
    return 1
os.close(1)
sys.stdout = open(os.devnull, "w")
fastray.get(talk.remote(), timeout=20)
"""
    )
    assert running.ended() == 0, running.process.stderr.read()
    assert running.what_is_left() == NOTHING


def test_two_programs_at_once_do_not_see_each_other(start_program, tmp_path):
    body = "f = fastray.remote(lambda x: x)\n"
    body += "print(fastray.get([f.remote(i) for i in range(1000)])[-1], flush=True)\n"
    programs = [start_program(BUSY + body, str(tmp_path)) for _ in range(3)]
    for process in programs:
        assert process.stdout.readline() == "999\n", process.stderr.read()
        assert process.wait(20) == 0
