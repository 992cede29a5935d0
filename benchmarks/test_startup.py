"""Claim: import, init and the first result in 60 ms; the idle runtime takes 60 MB (PSS of all processes)."""

import pytest

from fastray._benchmark.rows import select


@pytest.mark.parametrize("row", select("import", "idle"), ids=lambda row: row.title)
def test_startup(row, system, measure):
    measure(row, system)
