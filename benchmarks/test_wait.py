"""Claim: 300,000 calls of wait() a second, one by one over a list of 1,000 references."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("wait(refs)"), ids=lambda row: row.title)
def test_wait(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
