"""Packages of runtime_envs between nodes: files of the session directory that workers of other nodes ask for.

    package   `env/DIGEST.zip` (fastray/runtime_envs/publish.py); once on a node, any node may have it from there
    asked     a worker asks its agent over `agent.sock`; the agent fetches it once, whoever asks meanwhile waits
    over      a job that has ended and has no detached actor here. A package that only such jobs name is removed when no
              process here uses it any more

Fetched by Flight, since frames of tasks and results must not wait behind it, under the digest of its bytes: what comes
is checked against that. Not through the store of the GCS: what is in there is in memory, in SQLite and in the server
that stands by, and each agent can hand out what its node has. Called by router.py.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from concurrent.futures import Future

from fastray.runtime_envs.packages import digest_of
from fastray.runtime_envs.store import session_store
from fastray.transfer.bulk import ADDRESS_WAIT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastray.cluster.agent import Agent
    from fastray.transfer.bulk import Bulk
    from fastray.transfer.peer import Peer

QUESTION = "package"
DEAD = 6  # ActorState
LOOK_S = 1.0
NAMED = re.compile(r"([0-9a-f]{32})@(\d+)")


class Packages:
    """Those of one node. `peers(number, seconds)`: the nodes that can be asked, that one first, which is waited for."""

    def __init__(self, agent: Agent, bulk: Bulk, peers: Callable[[int, float], list[Peer]]) -> None:
        self._agent = agent
        self._bulk = bulk
        self._peers = peers
        self._store = session_store(agent.path)
        self._lock = threading.Lock()
        self._fetches: dict[str, Future[str]] = {}
        self._removing: set[str] = set()
        self._kept = False  # packages of jobs that are over, by detached actors
        self._looked_at = 0.0
        agent.answers[QUESTION] = self._answer

    # ---- fetching -------------------------------------------------------------------------------------

    def _answer(self, about: tuple[str, int]) -> str:
        """Fetches the package `about[0]`, which node `about[1]` has; "" when it is here, else why not."""
        digest, origin = about
        with self._lock:
            fetch = self._fetches.get(digest)
            first = fetch is None
            if fetch is None:
                fetch = self._fetches[digest] = Future()
        if first:
            try:
                fetch.set_result(self._fetch(digest, origin))
            except Exception as error:
                fetch.set_result(f"{type(error).__name__}: {error}")
            with self._lock:
                del self._fetches[digest]
        return fetch.result()

    def _fetch(self, digest: str, origin: int) -> str:
        target = self._store.path(digest) + ".zip"
        if os.path.exists(target):
            return ""
        why = f"node {origin:016x}, which has it, is not there"
        for peer in self._peers(origin, ADDRESS_WAIT_S):
            problem = self._fetch_from(peer, digest, target)
            if not problem:
                return ""
            if peer.number == origin:
                why = problem
        return why

    def _fetch_from(self, peer: Peer, digest: str, target: str) -> str:
        if not peer.flight.wait(ADDRESS_WAIT_S):
            return f"node {peer.node_id.hex()} did not say where its store is served"
        unfinished = f"{target}.{os.getpid()}.tmp"
        try:
            self._bulk.client(peer.flight_address).read_package(digest, unfinished)
            if digest_of(unfinished) != digest:
                return f"what node {peer.node_id.hex()} sent is something else"
            os.replace(unfinished, target)
        except Exception as error:
            return f"node {peer.node_id.hex()}: {type(error).__name__}: {error}"
        finally:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
        return ""

    # ---- removing -------------------------------------------------------------------------------------

    def job_ended(self) -> None:
        """Removes, as soon as nobody uses them, packages that only jobs name which are over."""
        with self._lock:
            self._look()

    def look(self) -> None:
        """The same from time to time, while detached actors keep packages of jobs that are over: they end too."""
        if self._kept and time.monotonic() - self._looked_at >= LOOK_S:
            self.job_ended()

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        markers = [found for name in os.listdir(self._store.root) if (found := NAMED.fullmatch(name))]
        self._kept = False
        if not markers:
            return
        detached = {row[8] for row in self._agent.attachment.actors() if row[6] and row[1] != DEAD}
        over = self._agent.ended_jobs()
        ended = [found for found in markers if int(found[2]) in over - detached]
        self._kept = any(int(found[2]) in over & detached for found in markers)
        for found in ended:
            os.unlink(self._store.path(found[0]))
        needed = {found[1] for found in markers if found not in ended}
        for digest in {found[1] for found in ended} - needed - self._removing:
            self._removing.add(digest)
            threading.Thread(target=self._remove, args=(digest,), name="fastray-package", daemon=True).start()

    def _remove(self, digest: str) -> None:
        """Waits until the last worker that uses it is gone."""
        try:
            self._store.remove(digest, fcntl.LOCK_EX, unless=lambda: self._is_named(digest))
        finally:
            self._removing.discard(digest)

    def _is_named(self, digest: str) -> bool:
        return any(name.startswith(f"{digest}@") for name in os.listdir(self._store.root))
