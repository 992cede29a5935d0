"""What every test gets: no session left over from the test before, and proof that a module leaves nothing
behind.

    marker    an environment variable with a random value; every process that a test starts inherits it, so
              that other sessions on the same machine are never taken for ours

`python -m pytest` puts the checkout in front of an installed fastray. A checkout that was never built cannot
be imported, so it is taken off the path here, before any test module is imported.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKER = "FASTRAY_TEST_SESSION"
LEFTOVER_WAIT_S = 5.0  # a node that lost its driver is gone within one second

os.environ[MARKER] = uuid.uuid4().hex
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))  # daemon_helpers, waiting

if not list((ROOT / "fastray" / "_native").glob("*.so")):
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # ended meanwhile, or not ours
        return b""


def marked_processes() -> dict[int, str]:
    """Processes of fastray that these tests started, running or not waited for: pid -> command line."""
    wanted = f"{MARKER}={os.environ[MARKER]}".encode()
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        command = _read(f"/proc/{entry}/cmdline")
        ours = b"fastray.node" in command or b"fastray.gcs" in command
        if ours and wanted in _read(f"/proc/{entry}/environ").split(b"\0"):
            found[int(entry)] = command.replace(b"\0", b" ").decode(errors="replace")[:200]
        elif not command:
            state, _, parent = _read(f"/proc/{entry}/stat").rpartition(b") ")[2][:20].partition(b" ")
            if state == b"Z" and parent.split(b" ")[0] == str(os.getpid()).encode():
                found[int(entry)] = "a child that nobody waited for"
    return found


def marked_files() -> set[str]:
    """Files of fastray in the places where shared memory and temporary files are."""
    found = {str(path) for path in Path("/dev/shm").glob("*fastray*")}
    found |= {str(path) for path in Path(tempfile.gettempdir()).glob("*fastray*")}
    return found


def open_segments() -> int:
    """Shared-memory files of fastray that this process holds open."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:fastray")
        except OSError:  # the descriptor of the listing itself
            continue
    return count


def _wait_for_end(pid: int, deadline: float) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended, and somebody waited for it
        return
    select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
    os.close(pidfd)


def _shutdown() -> None:
    fastray = sys.modules.get("fastray")
    if fastray is not None and hasattr(fastray, "shutdown"):
        fastray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_behind():
    """After each module: no process, file or shared memory that was not there before."""
    processes, files, segments = marked_processes(), marked_files(), open_segments()
    yield
    _shutdown()
    deadline = time.monotonic() + LEFTOVER_WAIT_S
    for pid in marked_processes().keys() - processes.keys():
        _wait_for_end(pid, deadline)
    left = {pid: command for pid, command in marked_processes().items() if pid not in processes}
    new_files, new_segments = marked_files() - files, open_segments() - segments
    assert not left, f"processes left behind: {left}"
    assert not new_files, f"files left behind: {new_files}"
    assert new_segments <= 0, f"{new_segments} shared-memory segments left open"


@pytest.fixture(autouse=True)
def _session_ends_with_its_test():
    """A session that a test began ends with it; one of a module's fixture stays."""
    fastray = sys.modules.get("fastray")
    before = bool(fastray is not None and fastray.is_initialized())
    yield
    if not before:
        _shutdown()


@pytest.fixture(scope="module")
def module_goes_by_value(request):
    """Functions of the test module travel by value: workers need not be able to import it."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="module")
def node():
    """A session with 2 CPUs for a whole module: `node` is fastray."""
    import fastray

    fastray.init(num_cpus=2)
    yield fastray
    fastray.shutdown()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A daemon with 2 CPUs for a whole module, see daemon_helpers.py."""
    from daemon_helpers import Daemon

    made = Daemon(tmp_path_factory.mktemp("runtime"))
    yield made
    made.stop()


@pytest.fixture
def fresh_daemon(tmp_path):
    """A daemon with 2 CPUs for one test, that may kill it."""
    from daemon_helpers import Daemon

    made = Daemon(tmp_path / "runtime")
    yield made
    made.stop()


@pytest.fixture
def fresh_node():
    """A session with 2 CPUs for one test: `fresh_node` is fastray."""
    import fastray

    fastray.init(num_cpus=2)
    yield fastray
    fastray.shutdown()
