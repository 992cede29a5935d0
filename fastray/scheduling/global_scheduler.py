"""What is known of all nodes, and what was placed since they last said so. A state machine: events in,
placements out.

    said       what a node's last heartbeat tells: free resources, queues
    assumed    what was placed there since then; a heartbeat that comes takes its place
    unreachable  alive, but who places cannot send anything there now: taken only when no other node can run it

Without it a burst of requests between two heartbeats would all go to the same node. A request that no node can
run is Infeasible; its caller raises, or keeps it until `version` has changed (a node joined). Called by the
process that has the GCS; driven by the tests and the simulator.
"""

from __future__ import annotations

import heapq

from fastray.scheduling.bundles import place_group
from fastray.scheduling.policy import feasible_nodes, place, preference
from fastray.scheduling.resources import add, fits, units
from fastray.scheduling.view import NodeView, Placed, Request, queue_wait_s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastray.scheduling.policy import Outcome
    from fastray.scheduling.resources import Units
    from fastray.scheduling.view import Busy, Infeasible


class GlobalScheduler:
    def __init__(self) -> None:
        self.nodes: dict[bytes, NodeView] = {}
        self.unreachable: set[bytes] = set()
        self.version = 0  # grows when nodes come and go: what was infeasible may fit now
        self._spread_after = b""

    def joined(self, node_id: bytes, resources: Mapping[str, float], labels: Mapping[str, str]) -> None:
        self.nodes[node_id] = NodeView(node_id, units(resources), labels=labels)
        self.version += 1

    def gone(self, node_id: bytes) -> None:
        if self.nodes.pop(node_id, None) is not None:
            self.version += 1

    def said(
        self, node_id: bytes, available: Mapping[str, float], queues: Mapping[str, Sequence[float]]
    ) -> None:
        """A heartbeat: what is free, and class -> (tasks that wait, mean seconds of one)."""
        node = self.nodes.get(node_id)
        if node is not None:
            node.available = units(available)
            node.wait_s = queue_wait_s(queues.values(), node.cpus)

    def submit(self, request: Request) -> Outcome:
        """Places it, and assumes that it goes there."""
        outcome = place(request, self._reachable(), self._spread_after)
        if self.unreachable and not isinstance(outcome, Placed):
            outcome = place(request, list(self.nodes.values()), self._spread_after)
        if isinstance(outcome, Placed):
            if request.strategy == "SPREAD":
                self._spread_after = outcome.node_id
            if request.bundles is None:
                self._assume(request, self.nodes[outcome.node_id])
        return outcome

    def submit_many(self, request: Request, count: int) -> list[Outcome]:
        """As `submit`, `count` times, for the cost of one look at every node and a heap."""
        nodes = feasible_nodes(request, request.labels, self._reachable())
        if request.strategy != "DEFAULT" or request.bundles is not None or not nodes:
            return [self.submit(request) for _ in range(count)]
        heap = [(preference(request, node), node) for node in nodes]  # node ids differ: no two are equal
        heapq.heapify(heap)
        placed: list[Outcome] = []
        for _ in range(count):
            node = heap[0][1]
            placed.append(Placed(node.node_id, fits(request.resources, node.available)))
            self._assume(request, node)
            heapq.heapreplace(heap, (preference(request, node), node))
        return placed

    def _reachable(self) -> list[NodeView]:
        return [node for node in self.nodes.values() if node.node_id not in self.unreachable]

    @staticmethod
    def _assume(request: Request, node: NodeView) -> None:
        if fits(request.resources, node.available):
            add(node.available, request.resources, -1)
        else:
            node.wait_s += request.seconds / node.cpus

    def submit_group(
        self, bundles: Sequence[Units], strategy: str, kept: Mapping[int, bytes] | None = None
    ) -> list[bytes] | Infeasible | Busy:
        """A node for each bundle, whose resources count as taken from now on."""
        found = place_group(bundles, strategy, list(self.nodes.values()), kept)
        if isinstance(found, list):
            for index, node_id in enumerate(found):
                if index not in (kept or {}):
                    add(self.nodes[node_id].available, bundles[index], -1)
        return found

    def release(self, node_id: bytes, resources: Units) -> None:
        """A bundle or a task there ended before a heartbeat said so."""
        node = self.nodes.get(node_id)
        if node is not None:
            add(node.available, resources)
