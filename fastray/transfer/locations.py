"""Where large values of this node are, told to the store's object table (paper, section 4.1). A part of the router.

    reported   records of ours that are away, or were: their rows in the table go when nobody needs them

Only what is away is told: a value that never left its node is that node's business. Nothing waits for the store.
"""

from __future__ import annotations

from fastray._native import link as native
from fastray.gcs import commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.cluster.agent import Agent
    from fastray.transfer.peer import Peer

TASK_BYTES = 16  # of an object's id: the id of its task


class Locations:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._reported: dict[int, tuple[bytes, int]] = {}  # record -> id of the object, bytes
        self._added: dict[int, list[tuple[bytes, int, bytes]]] = {}  # epoch -> objects

    def look(self, peer: Peer) -> None:
        """What is away at the peer now, and what is not any more."""
        for handle in peer.link.take_moved():
            about = native.describe_away(handle)
            if about is not None:
                self._reported[handle] = about
                self.has(handle, peer.row.epoch)
        gone = [self._reported.pop(handle)[0] for handle in peer.link.take_gone() if handle in self._reported]
        if gone:
            self.tell()
            self._agent.gcs.submit(commands.ObjectsDelete(gone))

    def has(self, handle: int, epoch: int) -> None:
        """The node of this epoch has the value of this record, if it is one of ours that is away."""
        if handle in self._reported:
            key, size = self._reported[handle]
            self._added.setdefault(epoch, []).append((key, size, key[:TASK_BYTES]))

    def tell(self) -> None:
        added, self._added = self._added, {}
        for epoch, objects in added.items():
            self._agent.gcs.submit(commands.ObjectsAdd(epoch, objects, self._agent.epoch))
