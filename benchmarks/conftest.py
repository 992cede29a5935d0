"""Fixtures of the benchmarks: each measures one row of fastray's table on fastray and on each peer.

    row        what is measured: fastray/_benchmark/rows.py, the same work as `fastray microbenchmark`
    system     fastray or a peer; skipped with the reason when it is not installed or has nothing like the row
    sample     one value of a row: a rate, a time or a size; results are checked in it

Each benchmark starts its system afresh and takes one sample to warm up. The values go into pytest-benchmark's
JSON (`extra_info`). The ratios to fastray are printed at the end, instead of pytest-benchmark's own table: it
would compare the seconds of samples of different sizes. `--quick` does a fifth of the work; `--rounds N`
takes N samples (default 5).
"""

from __future__ import annotations

import statistics

import pytest

from fastray._benchmark.run import SYSTEMS, sampler, why_not

WORKERS = (1, 2)
PEER_ROUNDS_MAX = 2
_found = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="a fifth of the work")
    parser.addoption("--rounds", type=int, default=5, help="samples of each benchmark")


def pytest_configure(config):
    config.stash[_found] = {}
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(items):
    for item in items:  # peers warn as they like
        item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(params=SYSTEMS)
def system(request):
    return request.param


@pytest.fixture(params=WORKERS, ids=lambda n: f"{n}w")
def workers(request):
    return request.param


@pytest.fixture
def measure(benchmark, request):
    """measure(row, system): samples it; the median is compared with the other systems' at the end."""

    def run(row, system):
        reason = why_not(row, system)
        if reason:
            pytest.skip(f"{system}: {reason}")
        values = []
        rounds = request.config.getoption("rounds")
        rounds = rounds if system == "fastray" else min(rounds, PEER_ROUNDS_MAX)
        benchmark.group = f"{row.title} ({row.workers}w)"
        with sampler(row, system, request.config.getoption("quick")) as sample:
            if sample() is None:
                pytest.skip(f"{system}: has no such operation")
            benchmark.pedantic(lambda: values.append(sample()), rounds=rounds, iterations=1)
        median = statistics.median(values)
        benchmark.extra_info.update(
            claim=row.title,
            system=system,
            workers=row.workers,
            unit=row.unit,
            goal=row.goal,
            values=values,
            median=median,
            best=(max if row.is_rate else min)(values),
        )
        request.config.stash[_found].setdefault((row.title, row.workers), {})[system] = (median, row)

    return run


def pytest_terminal_summary(terminalreporter, config):
    from fastray.microbenchmark import amount, ratio_to

    if not config.stash[_found]:
        return
    terminalreporter.section("fastray against its peers (medians; ratio above 1: fastray is better)")
    for (title, workers), systems in config.stash[_found].items():
        terminalreporter.write_line(f"{title} ({workers}w)")
        ours = systems.get("fastray")
        for name, (value, row) in systems.items():
            ratio = f"{ratio_to(ours[0], value, row.is_rate):9.3g}x" if ours and name != "fastray" else ""
            terminalreporter.write_line(f"    {name:10} {amount(value, row.unit):>12} {ratio}")
