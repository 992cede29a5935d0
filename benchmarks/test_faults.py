"""Claims: a worker killed every 100 ms costs at most 30 % of the rate; the replay of a chain of 10,000 lost results
starts within 10 ms."""

import pytest

from fastray._benchmark.fault_rows import fault_rows


@pytest.mark.parametrize("row", fault_rows(), ids=lambda row: row.title)
def test_faults(row, measure):
    measure(row, "fastray")
