"""Claim: a queued task with a small argument takes 256 bytes, its reference included."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("memory"), ids=lambda row: row.title)
def test_memory(row, system, measure):
    measure(row, system)
