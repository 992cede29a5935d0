"""Claim: 1.5 M tasks/s from inside two tasks, which own what they submit."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("nested"), ids=lambda row: row.title)
def test_nested(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
