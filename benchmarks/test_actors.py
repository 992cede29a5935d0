"""Claims: 3 M actor calls/s from individual calls, 2 us for a round trip, 200,000 calls/s to an asyncio actor,
300 actors created per second; many callers and actors without collapse."""

import pytest

from fastray._benchmark.actor_rows import actor_rows
from fastray._benchmark.run import SYSTEMS


@pytest.mark.parametrize("row", actor_rows(), ids=lambda row: row.title)
@pytest.mark.parametrize("system", [name for name in SYSTEMS if name in ("fastray", "ray")])
def test_actors(row, system, measure):
    measure(row, system)
