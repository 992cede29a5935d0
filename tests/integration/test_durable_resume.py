"""A driver of a durable session is killed and started again; paths that cannot be used; logs that are damaged."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections import Counter

import pytest
from integration_helpers import eventually, note, open_gate, tally

import fastray
from fastray.exceptions import DurablePathError, DurablePathInUseError, DurablePathMismatchError

TASKS = 100_000
WORKERS = 2

MANY = """
    import os, sys, dataclasses
    import fastray

    path, runs, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3])

    @dataclasses.dataclass
    class Answer:
        value: int

    @fastray.remote
    def work(i):
        fd = os.open(runs, os.O_WRONLY | os.O_APPEND)
        os.write(fd, i.to_bytes(4, "little"))
        os.close(fd)
        return Answer(i * i) if i % 1000 == 0 else i * i

    fastray.init(num_cpus=2, durable=path)
    results = fastray.get([work.remote(i) for i in range(tasks)])
    assert all(type(r) is Answer for r in results[::1000]), type(results[0])
    assert [r.value if isinstance(r, Answer) else r for r in results] == [i * i for i in range(tasks)]
    print("complete")
"""


def runs_of(path):
    data = path.read_bytes()
    return Counter(data[i : i + 4] for i in range(0, len(data), 4))


def test_a_killed_driver_goes_on(start_program, run_program, tmp_path):
    runs = tmp_path / "runs"
    runs.touch()
    arguments = (tmp_path / "durable", runs, TASKS)
    for part in (TASKS // 4, TASKS // 2):
        driver = start_program(MANY, *arguments, env={"PYTHONHASHSEED": str(part)})
        assert eventually(lambda d=driver, n=4 * part: runs.stat().st_size >= n or d.poll() is not None)
        assert driver.poll() is None, driver.stderr.read()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert "complete" in run_program(MANY, *arguments).stdout
    counts = runs_of(runs)
    assert len(counts) == TASKS
    # what a worker had run and not yet written down when it was killed: one task each
    assert sum(counts.values()) - TASKS <= 2 * WORKERS
    before = runs.stat().st_size
    assert "complete" in run_program(MANY, *arguments).stdout
    assert runs.stat().st_size == before


def test_two_drivers_on_one_path(start_program, run_program, tmp_path):
    program = """
        import signal, sys, fastray
        fastray.init(num_cpus=1, durable=sys.argv[1])
        print("ready", flush=True)
        if len(sys.argv) > 2:
            signal.pause()
    """
    path = tmp_path / "durable"
    first = start_program(program, path, "stay")
    assert first.stdout.readline().strip() == "ready"
    with pytest.raises(DurablePathInUseError, match=f"process {first.pid}") as caught:
        fastray.init(durable=path)
    assert caught.value.pid == first.pid
    assert not fastray.is_initialized()
    first.kill()
    first.wait()
    assert run_program(program, path).stdout.strip() == "ready"


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DurablePathError, match="a file: name a directory"):
            fastray.init(durable=path)


def test_a_path_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DurablePathError, match="other files"):
        fastray.init(durable=tmp_path)


def test_a_path_that_cannot_be_made():
    with pytest.raises(DurablePathError, match="cannot be made"):
        fastray.init(durable="/proc/fastray-durable")


def test_a_path_of_another_version(tmp_path):
    path = tmp_path / "durable"
    fastray.init(num_cpus=1, durable=path).disconnect()
    header = path / "fastray-durable.json"
    theirs = json.loads(header.read_text())
    header.write_text(json.dumps({**theirs, "python": "2.7"}))
    with pytest.raises(DurablePathMismatchError, match=r"python 2.7 .*fastray durable clear"):
        fastray.init(durable=path)
    header.write_text("{")
    with pytest.raises(DurablePathMismatchError, match="cannot be read"):
        fastray.init(durable=path)


@pytest.mark.parametrize("value", [7, b"", "", "a\0b", ["x"]])
def test_a_path_of_the_wrong_kind(value):
    with pytest.raises(ValueError, match="durable"):
        fastray.init(durable=value)


def test_the_directory_is_private_and_the_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fastray.init(num_cpus=1, durable="~/one/two").disconnect()
    assert stat.S_IMODE((tmp_path / "one" / "two").stat().st_mode) == 0o700
    monkeypatch.chdir(tmp_path)
    fastray.init(num_cpus=1, durable="one/two").disconnect()
    assert (tmp_path / "one" / "two" / "fastray-durable.json").exists()


def session(path):
    return fastray.init(num_cpus=2, durable=path)


def logs(path):
    return sorted(p for p in path.iterdir() if p.name.startswith(("log-", "base-")))


def test_a_log_that_is_damaged(tmp_path):
    runs, path = str(tmp_path / "runs"), tmp_path / "durable"

    @fastray.remote
    def f(i):
        note(runs)
        return "x" * 1000 + str(i)

    def program():
        with session(path):
            assert fastray.get([f.remote(i) for i in range(20)]) == ["x" * 1000 + str(i) for i in range(20)]

    program()
    damaged = next(p for p in logs(path) if b"x" * 1000 in p.read_bytes())
    data = bytearray(damaged.read_bytes())
    data[data.index(b"x" * 1000) + 500] ^= 1  # in the middle of a value: its checksum does not fit, the others stand
    damaged.write_bytes(data)
    program()
    assert len(tally(runs)) == 21
    damaged.write_bytes(b"rubbish")
    program()
    assert 21 <= len(tally(runs)) <= 42
    program()
    assert 21 <= len(tally(runs)) <= 42


def test_logs_are_compacted(tmp_path):
    path = tmp_path / "durable"
    runs = str(tmp_path / "runs")

    @fastray.remote
    def leaf(i):
        return bytes(100_000)

    @fastray.remote
    def tree(n):
        note(runs)
        return len(fastray.get([leaf.remote(i) for i in range(n)]))

    def program():
        with session(path):
            assert fastray.get(tree.remote(50)) == 50

    program()
    before = sum(p.stat().st_size for p in logs(path))
    program()
    program()
    assert [p.name for p in logs(path) if p.name.startswith("base-")]
    assert sum(p.stat().st_size for p in logs(path)) < before / 50
    assert len(tally(runs)) == 1


def test_equal_calls_in_bulk(tmp_path):
    """Thousands of results of one key: each is served once, in linear time."""

    @fastray.remote
    def draw():
        return os.urandom(8)

    drawn = []
    for _ in range(2):
        with session(tmp_path / "durable"):
            drawn.append(fastray.get([draw.remote() for _ in range(20_000)]))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 20_000


def test_a_worker_killed_while_results_are_taken(tmp_path):
    path, runs = tmp_path / "durable", str(tmp_path / "runs")

    @fastray.remote
    def f(i):
        note(runs)
        return i

    @fastray.remote(max_retries=-1)
    def killer(gate, i):
        try:
            open_gate(gate)
        except FileExistsError:
            return i
        return os.kill(os.getpid(), signal.SIGKILL)

    for gate in ("a", "b"):
        with session(path):
            refs = [killer.remote(str(tmp_path / gate), i) if i % 50 == 0 else f.remote(i) for i in range(1000)]
            assert fastray.get(refs) == list(range(1000))
    assert len(tally(runs)) <= 980 + 2


def test_a_full_disk_stops_the_log_and_not_the_session(run_program, tmp_path):
    """With a limit on file sizes, writing fails as on a full disk."""
    program = """
        import resource, signal, sys, fastray
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        @fastray.remote
        def limit():
            import resource, signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        @fastray.remote
        def f(i):
            return b"x" * 10_000 + i.to_bytes(4, "little")

        fastray.init(num_cpus=1, durable=sys.argv[1])
        fastray.get(limit.remote())
        refs = [f.remote(i) for i in range(100)]
        assert fastray.get(refs) == [b"x" * 10_000 + i.to_bytes(4, "little") for i in range(100)]
        fastray.shutdown()
    """
    done = run_program(program, tmp_path / "durable")
    assert (done.stdout + done.stderr).count("results are not kept any more") == 1
    assert "File too large" in done.stdout + done.stderr
    assert run_program(program, tmp_path / "durable").returncode == 0


def test_commands(tmp_path, capsys):
    from fastray.cli import main

    path = tmp_path / "durable"

    @fastray.remote
    def f(i):
        return i

    with session(path):
        fastray.get([f.remote(i) for i in range(1000)])
        assert main(["durable", "info", str(path)]) == 1
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert main(["durable", "info", str(path)]) == 0
    assert ": 1,000 results (" in capsys.readouterr().out
    assert main(["durable", "clear", str(path)]) == 0
    assert not logs(path)
    assert main(["durable", "info", str(path)]) == 1
    assert "not a durable path" in capsys.readouterr().err


def test_a_failed_start_gives_the_path_back(tmp_path):
    with pytest.raises(OSError, match=r"memfd|mmap|segment|memory"):
        fastray.init(num_cpus=1, durable=tmp_path / "durable", object_store_memory=1 << 62)
    session(tmp_path / "durable").disconnect()
