"""Session directories: where they are, who has one, what a killed daemon leaves. A lock stands for the daemon here."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from fastray import sessions


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch):
    monkeypatch.setattr(sessions, "CLAIM_WAIT_S", 0.05)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ("/a/b", {"FASTRAY_TMPDIR": "/c", "XDG_RUNTIME_DIR": "/d"}, "/a/b"),
        (None, {"FASTRAY_TMPDIR": "/c", "XDG_RUNTIME_DIR": "/d"}, "/c"),
        (None, {"XDG_RUNTIME_DIR": "/d"}, "/d/fastray"),
        (None, {}, f"/tmp/fastray-{os.geteuid()}"),
    ],
)
def test_the_runtime_directory(monkeypatch, given, environment, expected):
    for name in ("FASTRAY_TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sessions.runtime_dir(given) == expected


def test_a_session_directory_has_one_owner(tmp_path):
    base = str(tmp_path / "base")
    path, lock = sessions.claim(base, 1)
    assert (path, os.stat(path).st_mode & 0o777) == (f"{base}/session-1", 0o700)
    with pytest.raises(sessions.SessionRunningError) as caught:
        sessions.claim(base, 1)
    assert caught.value.path == path
    assert not sessions.remove_stale(path)
    other, second = sessions.claim(base, 2)
    assert sorted(sessions.directories(base)) == [path, other]
    os.close(second)
    sessions.remove(path)
    os.close(lock)
    assert list(sessions.directories(base)) == [other]
    assert sessions.remove_stale(other)
    assert list(sessions.directories(base)) == []


def test_what_a_killed_daemon_left_is_used_again(tmp_path):
    base = str(tmp_path)
    program = (
        "import os, sys; from fastray import sessions; path, lock = sessions.claim(sys.argv[1], 1)\n"
        "open(path + '/daemon.json', 'w').close(); open(path + '/node.sock', 'w').close(); os.kill(os.getpid(), 9)"
    )
    root = os.path.dirname(os.path.dirname(sessions.__file__))
    done = subprocess.run([sys.executable, "-c", program, base], env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == -9
    assert sorted(os.listdir(f"{base}/session-1")) == ["daemon.json", "lock", "node.sock"]
    path, lock = sessions.claim(base, 1)
    assert os.listdir(path) == ["lock"]
    os.close(lock)
    assert sessions.remove_stale(path)
    assert os.listdir(base) == []


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path, monkeypatch):
    path, lock = sessions.claim(str(tmp_path), 1)
    real = sessions.fcntl.flock

    def remove_first(fd, how):
        monkeypatch.setattr(sessions.fcntl, "flock", real)
        sessions.remove(path)  # its owner ends between our open and our lock
        os.close(lock)
        real(fd, how)

    monkeypatch.setattr(sessions.fcntl, "flock", remove_first)
    again, second = sessions.claim(str(tmp_path), 1)
    assert again == path
    assert os.path.samestat(os.fstat(second), os.stat(f"{path}/lock"))
    os.close(second)
    assert sessions.remove_stale(path)


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_what_is_not_ours_alone_is_refused(tmp_path, kind):
    target = tmp_path / "session-1"
    if kind == "open to others":
        target.mkdir(mode=0o750)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.write_text("")
    with pytest.raises(sessions.UnsafeDirectoryError) as caught:
        sessions.claim(str(tmp_path), 1)
    assert caught.value.errno == errno.EPERM
    assert not sessions.remove_stale(str(target))
    assert os.path.lexists(target)


def test_a_runtime_directory_that_others_write_to_is_refused(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(0o770)
    with pytest.raises(sessions.UnsafeDirectoryError):
        sessions.claim(str(base), 1)


@pytest.mark.parametrize("length", [10, 107, 108, 200])
def test_sockets_have_names_of_any_length(tmp_path, length):
    folder = str(tmp_path)
    while len(folder) + 11 < length:
        folder = os.path.join(folder, "d" * min(100, length - len(folder) - 11))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    assert not sessions.is_listening(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with sessions.short_name(os.path.join(folder, sessions.SOCKET)) as name:
            listener.bind(name)
        listener.listen(1)
        assert os.path.exists(os.path.join(folder, sessions.SOCKET))
        assert sessions.is_listening(folder)
    assert not sessions.is_listening(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 5}'])
def test_the_file_about_a_daemon_may_be_anything(tmp_path, text):
    (tmp_path / sessions.INFO).write_text(text)
    assert sessions.read_info(str(tmp_path)) == ({"pid": 5} if "pid" in text else {})


def test_what_a_killed_head_leaves_of_its_cluster_stays_for_the_next_one(tmp_path):
    base = str(tmp_path)
    path, lock = sessions.claim(base, 1)
    for name in (sessions.STORE, sessions.STORE + "-wal", sessions.TOKEN, sessions.INFO, sessions.SOCKET, "agent.sock"):
        (tmp_path / os.path.basename(path) / name).touch()
    os.close(lock)
    again, lock = sessions.claim(base, 1)
    assert again == path
    kept = {sessions.LOCK, sessions.STORE, sessions.STORE + "-wal", sessions.TOKEN}
    assert set(os.listdir(path)) == kept
    sessions.remove(path)
    os.close(lock)
    assert not os.path.exists(path)


def test_nodes_of_one_cluster_have_directories_of_their_own(tmp_path):
    claimed = [sessions.claim(str(tmp_path), 1, unique) for unique in ("", "a", "b")]
    assert [os.path.basename(path) for path, _ in claimed] == ["session-1", "session-1-a", "session-1-b"]
    for path, lock in claimed:
        sessions.remove(path)
        os.close(lock)
