"""Claim: 185,000 tasks/s of 10 us of work each on 2 workers (93 % of the ideal)."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("tasks of 10 us"), ids=lambda row: row.title)
def test_work_10us(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
