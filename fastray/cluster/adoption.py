"""Named detached actors whose home died are made anew elsewhere, as Ray's are. Called by agent.py and actor_names.py.

    recipe    the class with its options, the constructor's arguments, sys.path and folder of the program: pickled by
              the creator, kept in the actor's row of the store. None when the arguments hold references, which end
              with the home anyway, or when it is large
    adopter   of the agents, the one with the lowest epoch. It waits whether the dead node comes back (its agent alone
              may have died), then starts a program that makes the actor from its recipe, as a driver of this node

It counts as a restart, of which there have to be some left. The actor begins with its constructor.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fastray.actor import ActorClass
    from fastray.cluster.agent import Agent
    from fastray.gcs.records import Actor

RECIPE_BYTES_MAX = 1 << 20
RETURN_WAIT_S = 10.0  # for a node that was there to come back, or for another in its place


def recipe_of(actor_class: ActorClass, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
    """b"" when there is none."""
    from fastray._native import pickling

    try:
        made = pickling.dumps_by_value((actor_class, args, dict(kwargs)), files=True)
        blob = pickle.dumps((list(sys.path), os.getcwd(), made))
    except Exception:  # create_actor says what is wrong, or has a better way: a reference is no wrong
        return b""
    return blob if len(blob) <= RECIPE_BYTES_MAX else b""


class Adopter:
    def __init__(self, agent: Agent, wait_s: float = RETURN_WAIT_S) -> None:
        self._agent = agent
        self._wait_s = wait_s
        agent.on_node_gone(self._gone)

    def _gone(self, node_id: bytes, reason: str) -> None:
        timer = threading.Timer(self._wait_s, self._adopt)
        timer.daemon = True
        timer.start()

    def _adopt(self) -> None:
        with self._agent.lock:
            living = {row.node_id: row.epoch for row in self._agent.nodes.values()}
        if not living or min(living.values()) != self._agent.epoch:
            return
        try:
            for row in orphans(self._agent.gcs.read("actor"), set(living)):
                self._make(row)
        except Exception:  # the store is away for long: the next death looks again
            traceback.print_exc()

    def _make(self, row: Actor) -> None:
        code = f"from fastray.cluster import adoption; adoption.main({os.getpid()})"
        left = row.max_restarts if row.max_restarts < 0 else row.max_restarts - row.restarts - 1
        arguments = [self._agent.path, row.namespace, row.name, str(left)]
        done = subprocess.run([sys.executable, "-c", code, *arguments], input=row.spec, check=False)
        if done.returncode:
            print(f"actor {row.name!r} of a dead node could not be made anew", flush=True)


def orphans(rows: list[Actor], living: set[bytes]) -> list[Actor]:
    """Of the actors, those that are to be made anew: the last one of each name, if nobody has taken that."""
    from fastray.gcs.actor_table import HOME_DIED  # the agent's alone: creators of actors come by this module too

    last: dict[tuple[str, str], Actor] = {}
    for row in sorted(rows, key=lambda row: row.created_at):
        if row.name:
            last[row.namespace, row.name] = row
    return [
        row
        for row in last.values()
        if row.detached and row.spec and row.state == "DEAD" and row.reason.startswith(HOME_DIED)
        and row.home not in living and (row.max_restarts < 0 or row.restarts < row.max_restarts)
    ]  # fmt: skip


def main(parent: int) -> None:
    """The program: makes the actor, and leaves."""
    from fastray.cluster.child import begin

    begin(parent, "fastray-adopt", 0.0)
    path, namespace, name, restarts = sys.argv[1:]
    sys.path[:], folder, made = pickle.load(sys.stdin.buffer)
    if os.path.isdir(folder):
        os.chdir(folder)
    import fastray

    fastray.init(address=path, namespace=namespace)
    actor_class, args, kwargs = pickle.loads(made)
    options: dict[str, Any] = {"name": name, "namespace": namespace, "max_restarts": int(restarts)}
    actor_class.options(**options, lifetime="detached", get_if_exists=True).remote(*args, **kwargs)
    fastray.shutdown()
