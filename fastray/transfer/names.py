"""Named actors of all nodes. A part of the router; it answers questions of this node's processes (cluster/inquiry.py).

    home      the node where an actor was created: its table has the name, and the store says which node that is
    wanted    a message to the home of an actor that a process here looks for; the answer, "found", comes behind the
              handle (a message of its own, see peer.py), with a reference to it or nothing

A name is the store's to give: it is registered before the actor is made. What the store has not yet heard of (an actor
that has just ended) its home knows.
"""

from __future__ import annotations

import itertools
import threading
import time

import msgspec

from fastray._native import link as native
from fastray.exceptions import GcsRequestError
from fastray.gcs import commands
from fastray.gcs.records import Actor
from fastray.transfer.peer import number_of
from fastray.transfer.questions import FIND, NAMES, RESERVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray.transfer.peer import Peer
    from fastray.transfer.router import Router

ANSWER_S = 5.0  # for another node to answer, or to be connected
END_S = 2.0  # for the end of an actor that was killed from here to be known where it lived
LOOK_S = 0.02


class Names:
    def __init__(self, router: Router) -> None:
        self._router = router
        self._agent = router.agent
        self._tokens = itertools.count(1)
        self._waiting: dict[int, list[int]] = {}  # token -> handle, once it is there
        self._answered = threading.Condition(router.lock)
        self._agent.answers.update({FIND: self.find, RESERVE: self.reserve, NAMES: self.names})

    # ---- questions of this node's processes -----------------------------------------------------------

    def find(self, about: list[str]) -> int:
        """The creation record here of the actor (namespace, name), which may live anywhere; 0: there is none."""
        namespace, name = about
        try:
            row = Actor(*self._agent.gcs.call(commands.ActorByName(namespace, name)))
        except GcsRequestError:
            return 0
        return self._find_at_home(row)

    def reserve(self, about: dict[str, Any]) -> bool:
        """Registers the actor that is to be made; False: another has the name."""
        key = bytes.fromhex(about.pop("actor_id"))
        entry: int = about.pop("entry")
        about["spec"] = bytes.fromhex(about["spec"])
        actor = Actor(key, home=self._agent.node_id, **about)
        until = time.monotonic() + END_S
        while True:
            row = self._agent.actors.reserve(actor, entry)
            if row.actor_id == key:
                return True
            at_home = row.home == self._agent.node_id
            lives = at_home and self._agent.actors.is_reserved(row.actor_id)
            if lives or self._find_at_home(row):
                return False
            if at_home:
                self._agent.actors.ended(self._agent.epoch, row.actor_id)
            elif time.monotonic() > until:
                return False
            else:
                time.sleep(LOOK_S)

    def names(self, _: object) -> list[tuple[str, str]]:
        """(namespace, name) of all that live."""
        found: list[tuple[str, str]] = self._agent.gcs.call(commands.ActorNames())
        return found

    # ---- other nodes ----------------------------------------------------------------------------------

    def _find_at_home(self, row: Actor) -> int:
        if row.home == self._agent.node_id:
            with self._router.lock:
                handle, key = native.find_named(row.namespace, row.name)
                return handle if key == row.actor_id else 0
        until = time.monotonic() + ANSWER_S
        with self._answered:
            peer = self._router.peers.get(number_of(row.home))
            while peer is None and time.monotonic() < until:
                self._answered.wait(LOOK_S)
                peer = self._router.peers.get(number_of(row.home))
            if peer is None:
                return 0
            self._router.actors.step()  # what was killed here has to be heard of first
            token = next(self._tokens)
            found = self._waiting[token] = []
            peer.send_message("wanted", (token, row.namespace, row.name))
            peer.flush()
            self._answered.wait_for(lambda: found or peer.ended, ANSWER_S)
            del self._waiting[token]
        return found[0] if found else 0

    def wanted(self, peer: Peer, content: msgspec.Raw) -> None:
        """The peer looks for an actor that was made here."""
        self._router.actors.kill(peer)
        token, namespace, name = msgspec.msgpack.decode(content, type=tuple[int, str, str])
        handle, _ = native.find_named(namespace, name)
        reference = b""
        if handle:
            peer.introduce(handle)
            reference = peer.link.export_ref(handle)
        peer.send_message("found", (token, reference))

    def found(self, peer: Peer, content: msgspec.Raw) -> None:
        token, reference = msgspec.msgpack.decode(content, type=tuple[int, bytes])
        handle = peer.link.import_ref(reference) if reference else 0
        if token in self._waiting:
            self._waiting[token].append(handle)
            self._answered.notify_all()
