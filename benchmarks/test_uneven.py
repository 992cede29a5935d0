"""Claim: heavy-tailed naps end within 2 % of the best possible schedule."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("600 uneven"), ids=lambda row: row.title)
def test_uneven(row, system, measure):
    measure(row, system)
