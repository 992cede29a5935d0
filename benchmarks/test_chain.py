"""Claim: 1 M dependent tasks/s; a hop does not go through the owner."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("chain"), ids=lambda row: row.title)
def test_chain(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
