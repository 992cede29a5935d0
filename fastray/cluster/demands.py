"""What tasks and actors of this node ask for that no node has, while an autoscaler's hook is there (autoscaler.py).

    hook        the job whose driver has it, in the store: KvPut(NAMESPACE, HOOK_KEY). It counts while that job runs
    look        before something is called impossible, the store is asked, if it was not within LOOK_S: whether there is
                a hook, and which nodes live. One that has just joined may be news that is on its way
    demands     of each node, in the store too; a message on CHANNEL says that some have changed
    round       one step of the router; what was unmet in it is compared with what was told, from time to time

Called by the router, with its lock held, and by threads that answer questions.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from fastray.exceptions import GcsRequestError, GcsUnavailableError
from fastray.gcs import commands
from fastray.gcs.client import rows_of
from fastray.gcs.records import ALIVE, RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from fastray.cluster.agent import Agent

    Row = tuple[dict[str, float], dict[str, str], int]  # resources, labels, how many

NAMESPACE, CHANNEL = "fastray-autoscaler", "fastray-autoscaler"
HOOK_KEY, DEMANDS_KEY = b"hook", b"demands/"
LOOK_S = 1.0
JOB_WAIT_S = 5.0  # for the store to hear of the job that registers a hook
UNIT = 10_000  # of a demand, as options.to_units makes it


class Demands:
    def __init__(self, agent: Agent) -> None:
        from fastray.autoscaler import DEMANDS, HOOK

        self._agent = agent
        self._round: dict[str, Row] = {}
        self._told: dict[str, Row] = {}
        self._hooked = False
        self._nodes: set[bytes] = set()  # that live
        self._changed = threading.Condition()
        self._version = 0
        self._looked_at = -LOOK_S
        self._looking = False
        self.answered: Callable[[], None] = lambda: None  # the router looks again
        agent.answers.update({HOOK: self._set_hook, DEMANDS: self._list})

    # ---- the router's -----------------------------------------------------------------------------------

    def heard(self, key: bytes, message: bytes) -> None:
        """Some demands are others, or the hook."""
        self._looked_at = -LOOK_S
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def may_come(self) -> bool:
        """Somebody may add the node that is missing, or it is there, or the store is being asked about that."""
        if not self._looking and time.monotonic() - self._looked_at >= LOOK_S:
            self._looking = True
            questions = [commands.KvGet(NAMESPACE, [HOOK_KEY]), commands.TableRead("job"), commands.TableRead("node")]
            answers = [self._agent.gcs.submit(question) for question in questions]
            answers[-1].add_done_callback(lambda _: self._read(*answers))
        return self._looking or self._hooked or not self._nodes <= set(self._agent.nodes)

    def _read(self, hook: Future[Any], jobs: Future[Any], nodes: Future[Any]) -> None:
        try:
            job = int(hook.result()[0] or 0)
            self._hooked = any(row.job_id == job and row.state == RUNNING for row in rows_of("job", jobs.result()))
            self._nodes = {row.node_id for row in rows_of("node", nodes.result()) if row.state == ALIVE}
        except (GcsUnavailableError, GcsRequestError):
            pass  # as it was
        self._looked_at, self._looking = time.monotonic(), False
        self.answered()

    def note(self, demand: Mapping[str, int], labels: Mapping[str, str], count: int) -> None:
        """So many tasks or actors wait for this, which no node has."""
        resources = {name: units / UNIT for name, units in sorted(demand.items()) if units}
        key = json.dumps((resources, dict(sorted(labels.items()))))
        before = self._round.get(key)
        self._round[key] = (resources, dict(labels), count + (before[2] if before else 0))

    def begin_round(self) -> None:
        self._round = {}

    def tell(self) -> None:
        """Tells the store what has changed."""
        if self._round == self._told:
            return
        self._told = self._round
        key = DEMANDS_KEY + self._agent.node_id
        self._agent.gcs.submit(commands.KvPut(NAMESPACE, key, json.dumps(list(self._round.values())).encode()))
        self._agent.gcs.submit(commands.Publish(CHANNEL, b""))

    # ---- questions of this node's processes ---------------------------------------------------------------

    def _set_hook(self, job: int) -> bool:
        if job and not self._agent.wait_for_job(job, JOB_WAIT_S):
            raise GcsUnavailableError(f"the global control store has not heard of job {job} for {JOB_WAIT_S} s")
        self._agent.gcs.call(commands.KvPut(NAMESPACE, HOOK_KEY, str(int(job)).encode()))
        self._looked_at = -LOOK_S  # here at once, elsewhere when the message comes
        self._agent.gcs.call(commands.Publish(CHANNEL, b""))
        return True

    def _list(self, about: dict[str, Any]) -> tuple[int, list[Row]]:
        """(version, demands of all nodes), as soon as the version is another than `seen`."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != about["seen"], about["wait_s"])
            version = self._version
        with self._agent.lock:
            nodes = list(self._agent.nodes)
        values = self._agent.gcs.call(commands.KvGet(NAMESPACE, [DEMANDS_KEY + node for node in nodes]))
        sums: dict[str, Row] = {}
        for value in values:
            for resources, labels, count in json.loads(value) if value else ():
                key = json.dumps((resources, labels), sort_keys=True)
                sums[key] = resources, labels, count + (sums[key][2] if key in sums else 0)
        return version, list(sums.values())
