"""Claim: 700,000 tasks/s in a binary reduction by references."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("binary tree"), ids=lambda row: row.title)
def test_tree(row, workers, system, measure):
    measure(row._replace(workers=workers), system)
