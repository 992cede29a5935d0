"""Tasks and objects between nodes: the part of the node agent that talks to other agents.

Reading order:

    router.py       the loop: what goes where, when
    peer.py         one other node: frames in and out, what it has been told of functions
    hosted_actors.py    actors of one node that run on another
    names.py        named actors, wherever they were created
    functions.py    functions and scheduling classes of one node, made on another
    stream.py       a connection to each node, refused without the token: batches of frames to it and from it
    bulk.py         Arrow Flight: the buffers of large values, from store to store
    copies.py       large values that come from another node than their owner's
    trace.py        what happened when, for docs/internals/remote_task.md; off unless FASTRAY_TRACE=1

csrc/link.h has the words and the frames, docs/internals/transfer.md the reasons. Imported by the agent only: grpc and
pyarrow stay out of everything else.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.cluster.agent import Agent
    from fastray.transfer.router import Router


def start(agent: Agent) -> Router:
    """Serves other agents from now on; its addresses are in `agent.addresses` when this returns. Before `join`."""
    from fastray.transfer.router import Router

    router = Router(agent)
    router.listen()
    agent.actors.epoch_of = router.actors.epoch_of_host
    return router
