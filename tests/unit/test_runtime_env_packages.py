"""Packages of runtime_envs: the same bytes for the same files, what is left out, archives that must not be believed."""

from __future__ import annotations

import os
import socket
import stat
import zipfile

import pytest
from runtime_env_helpers import archive, folder

from fastray.exceptions import RuntimeEnvSetupError
from fastray.runtime_envs import packages
from fastray.runtime_envs.packages import pack, unpack


@pytest.fixture
def packed(tmp_path):
    """`packed(path, ...)`: names in the package, sorted, and its digest."""

    def pack_here(path, excludes=(), **more):
        digest = pack(str(path), str(tmp_path / "package.zip"), list(excludes), **more)
        with zipfile.ZipFile(tmp_path / "package.zip") as made:
            return sorted(made.namelist()), digest

    return pack_here


def test_the_same_files_give_the_same_bytes_whenever_and_wherever_they_were_made(tmp_path, packed):
    one = folder(tmp_path / "one", b="value = 1\n", a="value = 2\n")
    two = folder(tmp_path / "two", a="value = 2\n", b="value = 1\n")
    os.utime(two / "a.py", (10**9, 10**9))
    (one / "__pycache__").mkdir()
    (one / "__pycache__" / "a.cpython.pyc").write_bytes(b"compiled")
    assert packed(one) == packed(two)
    assert packed(one)[0] == ["a.py", "b.py"]


@pytest.mark.parametrize("change", ["content", "name", "executable", "more"])
def test_other_files_give_another_digest(tmp_path, packed, change):
    source = folder(tmp_path / "source", a="value = 1\n")
    before = packed(source)[1]
    if change == "content":
        (source / "a.py").write_text("value = 2\n")
    elif change == "name":
        (source / "a.py").rename(source / "b.py")
    elif change == "executable":
        (source / "a.py").chmod(0o755)
    else:
        (source / "empty").mkdir()
    assert packed(source)[1] != before


def test_a_round_trip_keeps_files_modes_and_empty_directories(tmp_path):
    source = folder(tmp_path / "source", a="value = 1\n")
    (source / "empty").mkdir()
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "run.sh").write_text("#!/bin/sh\n")
    (source / "deep" / "er" / "run.sh").chmod(0o755)
    (source / "blank").write_bytes(b"")
    pack(str(source), str(tmp_path / "package.zip"), [], prefix="source/")
    target = tmp_path / "target"
    target.mkdir()
    unpack(str(tmp_path / "package.zip"), str(target))
    found = target / "source"
    assert (found / "a.py").read_text() == "value = 1\n"
    assert (found / "empty").is_dir()
    assert (found / "blank").read_bytes() == b""
    assert os.access(found / "deep" / "er" / "run.sh", os.X_OK)
    assert not os.access(found / "a.py", os.X_OK) or not stat.S_IMODE((found / "a.py").stat().st_mode) & 0o111


@pytest.mark.parametrize(
    ("excludes", "left"),
    [
        ([], ["a.py", "data/x.bin", "data/y.txt", "sub/data/x.bin"]),
        (["*.bin"], ["a.py", "data/y.txt"]),
        (["/data/"], ["a.py", "sub/data/x.bin"]),
        (["data"], ["a.py"]),
        (["data/*", "!data/y.txt"], ["a.py", "data/y.txt", "sub/data/x.bin"]),
        (["sub/"], ["a.py", "data/x.bin", "data/y.txt"]),
    ],
    ids=str,
)
def test_excludes_are_patterns_as_in_gitignore(tmp_path, packed, excludes, left):
    source = folder(tmp_path / "source", a="value = 1\n")
    for name in ("data/x.bin", "data/y.txt", "sub/data/x.bin"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    assert [name for name in packed(source, excludes)[0] if name[-1] != "/"] == left


def test_ignore_files_count_from_where_they_are(tmp_path, packed, monkeypatch):
    source = folder(tmp_path / "source", a="1", b="2")
    inner = folder(source / "inner", a="3", b="4")
    (inner / ".gitignore").write_text("/a.py\n# a comment\n\n")
    (source / ".rayignore").write_text("/b.py\n")
    assert packed(source)[0] == [".rayignore", "a.py", "inner/.gitignore", "inner/b.py"]
    monkeypatch.setenv("FASTRAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert packed(source)[0] == [".rayignore", "a.py", "inner/.gitignore", "inner/a.py", "inner/b.py"]


def test_links_are_followed_and_circles_are_not(tmp_path, packed):
    source = folder(tmp_path / "source", a="value = 1\n")
    other = folder(tmp_path / "other", b="value = 2\n")
    (source / "link.py").symlink_to(other / "b.py")
    (source / "folder").symlink_to(other)
    (other / "back").symlink_to(source)
    (source / "broken").symlink_to(tmp_path / "nowhere")
    assert packed(source)[0] == ["a.py", "folder/b.py", "link.py"]


def test_a_socket_is_no_file(tmp_path, packed, monkeypatch):
    source = folder(tmp_path / "source", a="value = 1\n")
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert packed(source)[0] == ["a.py"]


def test_modules_and_archives_are_packages_too(tmp_path, packed):
    single = folder(tmp_path / "single", one="value = 1\n") / "one.py"
    assert packed(single)[0] == ["one.py"]
    given = archive(tmp_path / "given.zip", a="value = 1\n")
    assert packed(given)[0] == ["a.py"]
    assert packed(given)[1] == packages.digest_of(str(given))


def test_a_large_directory_is_refused_with_its_largest_files(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(packages, "BYTES_MAX", 3000)
    source = tmp_path / "source"
    source.mkdir()
    for i in range(8):
        (source / f"file{i}").write_bytes(b"x" * 100 * (i + 1))
    with pytest.raises(RuntimeEnvSetupError) as caught:
        packed(source)
    assert "file7" in str(caught.value)
    assert "file3" in str(caught.value)
    assert "file2" not in str(caught.value)
    assert caught.value.field == "working_dir"
    assert packed(source, ["file7"])[0] == [f"file{i}" for i in range(7)]


def test_what_cannot_be_read_is_a_typed_error(tmp_path, packed):
    with pytest.raises(RuntimeEnvSetupError, match=r"nothing\.zip"):
        packed(tmp_path / "nothing.zip")


@pytest.mark.parametrize("name", ["../out.py", "/etc/out.py", "a/../../out.py", "a\\..\\out.py"])
def test_an_archive_cannot_write_outside(tmp_path, name):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(zipfile.ZipInfo(name), "out")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(RuntimeEnvSetupError, match="outside"):
        unpack(str(path), str(target))
    assert sorted(tmp_path.rglob("out.py")) == []


def test_a_damaged_archive_is_a_typed_error(tmp_path):
    path = archive(tmp_path / "bad.zip", a="value = 1\n" * 100)
    data = bytearray(path.read_bytes())
    data[50] ^= 0xFF
    path.write_bytes(data)
    (tmp_path / "target").mkdir()
    with pytest.raises(RuntimeEnvSetupError, match=r"bad\.zip"):
        unpack(str(path), str(tmp_path / "target"))
    path.write_bytes(b"no archive")
    with pytest.raises(RuntimeEnvSetupError, match=r"bad\.zip"):
        unpack(str(path), str(tmp_path / "target"))
