"""Actors of this node whose process is on another one, and those of others that run here. A part of the router.

    foreign   created here, placed by the global scheduler; its calls wait here and are sent in order
    host      the peer where it runs
"""

from __future__ import annotations

from fastray._native import link as native
from fastray.actor_errors import HANDLES_GONE, NODE_GONE, START_FAILED
from fastray.control import actor_ended_message, kill_actor_message
from fastray.runtime import ACTOR_CLASS
from fastray.scheduling.view import Infeasible, Placed
from fastray.transfer.peer import BATCH_MAX, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.transfer.peer import Peer
    from fastray.transfer.router import Router

PENDING, RESTARTING, DEAD = 2, 5, 6  # ActorState


class HostedActors:
    def __init__(self, router: Router) -> None:
        self._router = router
        self._ending: set[int] = set()  # told that no handle is left

    def step(self) -> list[int]:
        """Places those that wait, sends calls to those that run elsewhere; the classes of these."""
        classes = []
        found = native.foreign_actors()
        if self._ending:
            self._ending.intersection_update(creation for _, creation, *_ in found)
        for actor, creation, state, ends, calls, placement in found:
            host = self._host(creation)
            if state in (PENDING, RESTARTING):
                self._place(actor, creation, placement)
            elif state == DEAD:
                if host is not None:
                    host.link.send_actor_stop(creation, native.KILL)
            elif host is not None:
                if not calls or host.room():
                    classes.append(ACTOR_CLASS + actor)
                else:  # until there is room again
                    self._router.held_back = True
                self._serve(host, actor, creation, calls, ends)
            elif not native.lose_host(creation):  # the agent before this one sent it away
                self._router.say(actor_ended_message(creation, NODE_GONE))
        return classes

    def _serve(self, host: Peer, actor: int, creation: int, calls: bool, ends: bool) -> None:
        if calls:  # none can be claimed as long as the host has not heard of the actor
            if host.link.claim_calls(actor, min(BATCH_MAX, host.room())):
                host.send_staged()
        elif ends and host.link.mirrors_actor(creation):
            self._router.say(actor_ended_message(creation, HANDLES_GONE))
        elif ends and host.link.holds(creation) and creation not in self._ending:
            self._ending.add(creation)
            host.link.send_actor_stop(creation, native.FINISH)

    def kill(self, peer: Peer) -> None:
        """Those of the peer's here that it wants killed."""
        for creation, how in peer.link.take_kills():
            if how == native.KILL:
                native.release_name(creation)  # another may have it at once
            self._router.say(kill_actor_message(creation, how == native.KILL))

    def epoch_of_host(self, creation: int) -> int:
        """Of the node where this actor of ours runs; 0 when it runs nowhere else."""
        with self._router.lock:
            host = self._host(creation)
            return 0 if host is None else host.row.epoch

    def _host(self, creation: int) -> Peer | None:
        return next((peer for peer in self._router.peers.values() if peer.link.hosts(creation)), None)

    def _place(self, actor: int, creation: int, placement: int) -> None:
        router = self._router
        if router.groups.place_actor(actor, creation, placement):
            return
        wishes = router.functions.wishes(placement)
        with router.agent.lock:
            router.look_at_nodes()
            outcome = router.agent.scheduler.submit(router.request(wishes))
        if isinstance(outcome, Infeasible):
            if router.is_final(wishes, 1):
                router.say(actor_ended_message(creation, START_FAILED))
        elif isinstance(outcome, Placed) and outcome.node_id == router.agent.node_id:
            native.keep_actor_here(actor)
        elif isinstance(outcome, Placed):
            peer = router.peers.get(number_of(outcome.node_id))
            if peer is not None:
                peer.send_actor(actor, creation, native.describe_actor(actor)[4])
