"""Claims: over two nodes of this machine >= 300,000 tasks/s, a round trip <= 300 us, a large result >= 2 GB/s; a node
that is in a cluster keeps >= 0.95 of a private one's rate of local tasks."""

import pytest

from fastray._benchmark.cluster_rows import cluster_rows


@pytest.mark.parametrize("row", cluster_rows(), ids=lambda row: row.title)
def test_cluster(row, measure):
    measure(row, "fastray")
