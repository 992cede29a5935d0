"""Values that come from another node than their owner's. A part of the router; csrc/link_copies.cpp has the words.

    elsewhere  the owner of what was asked for names the node that has it: it is asked in its place
    orphan     it could not be had there: the owner is to bring it, or, when it is ours, it is computed again
    copy       a node that has the value of a record of ours, which is away: asked when the one that made it is gone

Everything here runs with the agent's lock held.
"""

from __future__ import annotations

from fastray._native import link as native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.transfer.locations import Locations
    from fastray.transfer.peer import Peer


class Copies:
    def __init__(self, peers: dict[int, Peer], locations: Locations) -> None:
        self._peers = peers
        self._locations = locations
        self._known: dict[int, tuple[int, int]] = {}  # record of ours -> number of the node, copy there

    def after(self, peer: Peer) -> None:
        """What has come of what the peer said."""
        for handle, number, there in peer.link.take_elsewhere():
            other = self._peers.get(number)
            if other is None:
                peer.link.fetch(handle, here=True)
            else:
                other.link.fetch_copy(handle, there)
                other.flush()
        for handle in peer.link.take_orphans():
            self._ask_owner(handle)
        for handle, number, there in peer.link.take_copies():
            self._known[handle] = number, there
            self._locations.has(handle, peer.row.epoch)

    def _ask_owner(self, handle: int) -> None:
        if not native.is_wanted(handle):
            return
        owner = next((peer for peer in self._peers.values() if peer.link.mirrors(handle)), None)
        if owner is None:
            native.give_up_asked(handle)
        else:
            owner.link.fetch(handle, here=True)
            owner.flush()

    def arrived(self, handle: int) -> None:
        """A large value is here."""
        for peer in self._peers.values():
            peer.link.have_copy(handle)
            peer.flush()

    def leaving(self, peer: Peer) -> None:
        """The peer is gone; its link is not down yet. What was there and has a copy is asked for where that is."""
        for handle, (number, there) in list(self._known.items()):
            if number == peer.number or (number in self._peers and peer.link.switch_to(handle, number, there)):
                del self._known[handle]

    def sweep(self) -> None:
        for handle in [h for h in self._known if not (native.is_away(h) or native.is_wanted(h))]:
            del self._known[handle]
