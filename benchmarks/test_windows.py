"""Claim: 1 M tasks/s with 10 or 1,000 tasks in flight, also with a core stolen: waking and spinning."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("windows of "), ids=lambda row: row.title)
def test_windows(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
