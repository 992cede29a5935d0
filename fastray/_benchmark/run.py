"""Runs a row of rows.py on fastray or on a peer: `sampler` starts the system, each call measures once."""

from __future__ import annotations

import contextlib
from functools import partial

import fastray
from fastray._benchmark import processes, work
from fastray._benchmark.peers import PEERS, missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastray._benchmark.rows import Row

SYSTEMS = ("fastray", *PEERS)


def why_not(row: Row, system: str) -> str:
    """Why this system cannot do this row here; an empty string when it can."""
    if system == "fastray":
        return ""
    if not row.session and row.peer is None:
        if row.unit not in ("ms", "MB"):  # of starting
            return "peers have nothing like it"
        if system not in processes.startup_systems():
            return f"{system} starts its workers one by one, as they are needed"
    elif row.peer is None:
        return "peers have nothing like it"
    return missing(system)


@contextlib.contextmanager
def sampler(row: Row, system: str, quick: bool) -> Iterator[Callable[[], float | None]]:
    """A function that measures the row once: its value, or None when this peer has no such operation."""
    if not row.session:
        yield partial(_fresh, row, system, quick)
    elif system == "fastray":
        fastray.init(num_cpus=row.workers, log_to_driver=False)
        try:
            work.tasks(1000)
            with processes.stolen_core() if row.stolen else contextlib.nullcontext():
                yield partial(row.measure, quick)
        finally:
            fastray.shutdown()
    else:
        assert row.peer is not None
        peer = PEERS[system](row.workers)
        try:
            yield partial(row.peer, peer, quick)
        finally:
            peer.close()


def _fresh(row: Row, system: str, quick: bool) -> float:
    if system == "fastray":
        return row.measure(quick)
    seconds, pss = processes.startup(system, row.workers)
    return pss / 1e6 if row.unit == "MB" else seconds * 1e3
