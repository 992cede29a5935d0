"""The lazy modules of fastray.util and the command line, as far as they need no session."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import types

import pytest

from fastray import cli, util
from fastray.exceptions import GetTimeoutError, InvalidOptionError
from fastray.util import iterate


class Fake:
    """`fastray.wait` and `.get` over integers: the largest is done first; `done` limits how many are."""

    def __init__(self, done=10**9):
        self.done = done
        self.waits = 0
        self.in_flight = self.in_flight_max = 0

    def wait(self, refs, *, num_returns, timeout):
        self.waits += 1
        order = sorted(refs, reverse=True)
        count = min(num_returns, self.done)
        self.done -= count
        return order[:count], order[count:]

    def get(self, ref):
        self.in_flight -= 1
        return ref * 10

    def remote(self, item):
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        return item


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    import fastray

    monkeypatch.setattr(fastray, "wait", made.wait, raising=False)
    monkeypatch.setattr(fastray, "get", made.get, raising=False)
    return made


def test_as_completed_yields_in_the_order_of_completion(fake):
    assert list(util.as_completed([1, 3, 2], chunk_size=1)) == [30, 20, 10]
    assert fake.waits == 3
    assert list(util.as_completed([1, 3, 2], chunk_size=1, yield_obj_refs=True)) == [3, 2, 1]
    assert list(util.as_completed([])) == []


def test_as_completed_takes_what_is_done_in_chunks(fake):
    assert list(util.as_completed(list(range(100)), chunk_size=50)) == [i * 10 for i in range(99, -1, -1)]
    assert fake.waits == 4


def test_as_completed_raises_when_nothing_is_done_in_time(fake):
    fake.done = 1
    results = util.as_completed([1, 2], chunk_size=1, timeout=0.5)
    assert next(results) == 20
    with pytest.raises(GetTimeoutError, match="1 are pending"):
        next(results)


def test_map_unordered_keeps_a_window_and_reads_lazily(fake):
    read = []
    items = (read.append(i) or i for i in range(50))
    results = util.map_unordered(fake, items, backpressure_size=5, chunk_size=2)
    assert read == []
    next(results)
    assert len(read) <= 7
    assert len(list(results)) == 49
    assert fake.in_flight_max <= 7
    assert sorted(util.map_unordered(fake, range(3), backpressure_size=None)) == [0, 10, 20]


def test_wrong_arguments_are_refused_at_once(fake):
    with pytest.raises(InvalidOptionError, match="chunk_size"):
        util.as_completed([1], chunk_size=0)
    with pytest.raises(InvalidOptionError, match="backpressure_size"):
        util.map_unordered(fake, [1], backpressure_size=5, chunk_size=10)
    with pytest.raises(TypeError, match="needs a remote function"):
        util.map_unordered(len, [1])


def test_names_of_util_load_on_first_use():
    assert util.as_completed is iterate.as_completed
    assert set(util.__all__) <= set(dir(util))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = util.no_such_name


def test_the_ip_address_is_one():
    ipaddress.ip_address(util.get_node_ip_address())
    assert util.get_node_ip_address("127.0.0.1:80") == "127.0.0.1"


def test_the_command_shows_its_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("fastray ")
    done = subprocess.run(
        [sys.executable, "-m", "fastray", "version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("fastray ")


def test_wrong_commands_exit_with_2(capsys):
    for argv in ([], ["no-such-command"]):
        with pytest.raises(SystemExit) as exited:
            cli.main(argv)
        assert exited.value.code == 2
    assert "microbenchmark" in capsys.readouterr().err


def test_microbenchmark_gets_its_arguments(monkeypatch):
    seen = []
    module = types.ModuleType("fastray.microbenchmark")
    module.main = lambda argv: seen.append(argv)
    monkeypatch.setitem(sys.modules, "fastray.microbenchmark", module)
    assert cli.main(["microbenchmark", "--quick", "--help"]) == 0
    assert seen == [["--quick", "--help"]]
