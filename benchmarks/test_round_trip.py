"""Claim: `get(f.remote(i))` takes 2 us back to back and 10 us when the worker sleeps (medians)."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("round trip"), ids=lambda row: row.title)
def test_round_trip(row, system, measure):
    measure(row, system)
