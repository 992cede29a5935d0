"""Jobs of a node in the cluster's table, and the numbers for those to come. Called by agent.py.

    block     numbers that the store has reserved for this node; the node's loop gives them to drivers that attach
    report    the node's own table is compared with what the store was told: a job that began or ended is told now

Both are repeated after a failure, and begun anew by the next agent, so nothing is lost with one.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.records import RUNNING, Job
from fastray.node_state import JOB_RUNNING, job_id_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray.gcs.client import GcsClient

    Entry = tuple[int, int, int, int, int, str, str]  # of Attachment.jobs

BLOCK = 64  # numbers reserved at once
LEFT_MIN = 32  # fewer, and the next block is reserved


class JobReporter:
    """`give(first, count)` passes reserved numbers to the node."""

    def __init__(self, gcs: GcsClient, node_id: bytes, give: Callable[[int, int], None]) -> None:
        self._gcs = gcs
        self._node_id = node_id
        self._give = give
        self._first = 0
        self._left = 0  # numbers from `_first` on that no driver has
        self._told: dict[int, bool] = {}  # number -> whether the store believes that it runs

    def begin(self, entries: list[Entry]) -> None:
        """The first block, and what the store knows of this node from an agent before this one."""
        if entries:
            rows: list[Job] = self._gcs.read("job")
            # those that run are told again: their connection is now this agent's
            self._told = {row.job_id: False for row in rows if row.node == self._node_id and row.state != RUNNING}
        self._first = self._reserve()
        self.look(entries)

    def _reserve(self) -> int:
        first: int = self._gcs.call(commands.JobsReserve(BLOCK))
        self._give(first, BLOCK)
        self._left += BLOCK
        return first

    def look(self, entries: list[Entry]) -> None:
        """Tells the store what has changed. Raises GcsUnavailableError: look again later."""
        for number, state, pid, _, _, namespace, entrypoint in entries:
            runs = state == JOB_RUNNING
            if number not in self._told or (runs and not self._told[number]):
                name = namespace or f"anonymous-{job_id_of(number)}"
                start = commands.JobStart(name, entrypoint, self._node_id, {"pid": str(pid)}, number)
                self._left -= number not in self._told and number >= self._first
                self._gcs.call(start)
                self._told[number] = True
            if not runs and self._told[number]:
                self._gcs.call(commands.JobEnd(number))
                self._told[number] = False
        remembered = {entry[0] for entry in entries}
        self._told = {number: runs for number, runs in self._told.items() if number in remembered}
        if self._left < LEFT_MIN:
            self._reserve()
