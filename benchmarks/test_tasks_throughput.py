"""Claim: 4 M tasks/s from single `f.remote(i)` calls and one `get(list)`; 1 M with a core stolen."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("tasks, "), ids=lambda row: row.title)
def test_tasks_throughput(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
