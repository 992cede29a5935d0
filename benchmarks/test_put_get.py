"""Claim: small put 1.5 M/s, small get 5 M/s; 100 MB put as fast as `a.copy()`, got without a copy in 4 us."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("put", "get"), ids=lambda row: row.title)
def test_put_get(row, system, measure):
    measure(row, system)
