"""Lineage replay in the simulator: `recovery.lineage.plan` decides on a random graph while data goes and workers die.

    ask      somebody gets a lost result: a plan is made, its runs are played in order, one after the other
    fault    between two runs: more data goes, a task lets go of its arguments, a worker dies (an attempt is used up)
    replan   after a fault: what is to be run may be another set, or it may have become impossible

What has to hold: a plan is the smallest set (a definition written down a second time, here), in an order in which every
argument is there; nothing that is there is run; no task uses more attempts than it has; an ask ends with the value, or
with an object that truly cannot be made and a chain of names that leads from it to what was asked for.
"""

from __future__ import annotations

import random
from zlib import crc32

from fastray.recovery import lineage
from fastray.recovery.lineage import Node
from fastray.sim import Outcome, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NODES_MAX, ASKS, FAULTS_MAX, ROUNDS_MAX = 24, 3, 30, 1000


class Violation(Exception):
    """An invariant does not hold."""


def run(seed: int, plan: Plan, trace: bool) -> Outcome:
    """Plays one seed."""
    game, violation = _Game(seed, plan, trace), ""
    try:
        game.play()
    except Violation as error:
        violation = str(error)
    counts = {"tasks": len(game.graph), "calls": 0, "faults": game.faults, "runs": game.runs, "errors": game.errors}
    return Outcome(seed, violation, game.digest, game.events, counts, "".join(game.said))


class _Game:
    """One seed: a graph, in which everything is there at first, and a number of asks."""

    def __init__(self, seed: int, plan: Plan, trace: bool) -> None:
        self.random = random.Random(seed)
        self.graph: dict[int, Node] = {}
        self.values: list[int] = []  # what can be an argument, or asked for
        self.returns: dict[int, list[int]] = {}  # by task, of those with several
        self.said: list[str] = []
        self.digest = self.events = self.faults = self.runs = self.errors = 0
        self._trace = trace
        size = min(self.random.randint(2, NODES_MAX), plan.tasks)
        self.faults_left = min(self.random.randint(0, FAULTS_MAX), plan.faults)
        self.loses, self.forgets, self.dies = (self.random.choice((0, 0.1, 0.4)) for _ in range(3))
        while len(self.graph) < size:
            self._grow()

    def _grow(self) -> None:
        draw, key = self.random, len(self.graph)
        if draw.random() < 0.15:
            self.graph[key] = Node("put", "done", f"put{key}")
            self.values.append(key)
            return
        arguments = draw.sample(self.values, min(len(self.values), draw.randint(0, 3)))
        retries = draw.choice((0, 1, 3, 3, -1))
        self.graph[key] = Node("task", "done", f"f{key}", list(arguments), max_retries=retries)
        self.returns[key] = [key]
        if draw.random() < 0.2:
            self.returns[key] = [key + 1, key + 2]
            for value in self.returns[key]:
                self.graph[value] = Node("return", "done", f"r{value}", [key])
        self.values += self.returns[key]

    def play(self) -> None:
        """Raises Violation."""
        for _ in range(ASKS):
            if not self.values:
                return
            while self.faults_left and self.random.random() < 0.6:
                self._fault(self._lose)
            lost = [key for key in self.values if self.graph[key].state == "lost"]
            self._ask(self.random.choice(lost or self.values))

    # ---- an ask ----------------------------------------------------------------------------------------

    def _ask(self, wanted: int) -> None:
        self._say(f"ask {wanted}")
        for _ in range(ROUNDS_MAX):
            if self.graph[wanted].state != "lost":
                self.errors += self.graph[wanted].state == "failed"
                return
            found = lineage.plan(self.graph, wanted)
            self._check(found, wanted)
            self._say(f"plan {found.runs} missing {found.missing}")
            for missing in found.missing:
                self.graph[missing.key].state = "failed"  # type: ignore[index]
            if not found.missing:
                all(self._run(key) for key in found.runs)  # type: ignore[arg-type]
            elif not found.runs and self.graph[wanted].state == "lost":
                raise Violation(f"{wanted} is lost, nothing runs, and only {found.missing} is missing")
            else:
                self._fail_dependents(found.runs)  # type: ignore[arg-type]
        raise Violation(f"{wanted} is still lost after {ROUNDS_MAX} plans")

    def _fail_dependents(self, runs: list[int]) -> None:
        """What needs something that failed fails with it, without a run."""
        for key in runs:
            if any(self.graph[a].state == "failed" for a in self._arguments(key)):
                self._settle(key, "failed")

    def _run(self, key: int) -> bool:
        """One run of a task. False: something came in between, so another plan has to be made."""
        task = self.graph[key]
        if all(self.graph[value].state != "lost" for value in self.returns[key]):
            raise Violation(f"task {key} runs although all that it makes is there")
        states = [self.graph[a].state for a in self._arguments(key)]
        if task.arguments is None or "lost" in states:
            raise Violation(f"task {key} runs without its arguments")
        if "failed" in states:
            self._settle(key, "failed")
            return True
        task.attempts += 1
        self.runs += 1
        if 0 <= task.max_retries < task.attempts:
            raise Violation(f"task {key} runs again {task.attempts} times with max_retries {task.max_retries}")
        self._say(f"run {key}, attempt {task.attempts}")
        if self._happens(self.dies):
            self._fault(lambda: f"worker of {key} dies")
            return False
        self._settle(key, "done")
        undisturbed = True
        for chance, fault in ((self.loses, self._lose), (self.forgets, self._forget)):
            if self._happens(chance):
                self._fault(fault)
                undisturbed = False
        return undisturbed

    def _arguments(self, key: int) -> list[int]:
        """Of a task, none when it let go of them; of a return value its task. Keys are ints in this world."""
        return [key for key in self.graph[key].arguments or () if isinstance(key, int)]

    def _settle(self, key: int, state: str) -> None:
        for value in self.returns[key]:
            if self.graph[value].state == "lost":
                self.graph[value].state = state

    # ---- faults ----------------------------------------------------------------------------------------

    def _happens(self, chance: float) -> bool:
        return self.faults_left > 0 and self.random.random() < chance

    def _fault(self, what: Callable[[], str]) -> None:
        self.faults_left -= 1
        self.faults += 1
        self._say(what())

    def _lose(self) -> str:
        lost = self.random.sample(self.values, self.random.randint(1, max(1, len(self.values) // 2)))
        for key in lost:
            if self.graph[key].state == "done":
                self.graph[key].state = "lost"
        return f"{lost} lose their data"

    def _forget(self) -> str:
        key = self.random.choice(list(self.returns)) if self.returns else None
        if key is not None and self.graph[key].arguments:
            self.graph[key].arguments = None
        return f"{key} lets go of its arguments"

    def _say(self, what: str) -> None:
        self.events += 1
        self.digest = crc32(what.encode(), self.digest)
        if self._trace:
            self.said.append(what + "\n")

    # ---- what has to hold ------------------------------------------------------------------------------

    def _check(self, found: lineage.Plan, wanted: int) -> None:
        runs, impossible = set[int](), set[int]()
        self._need(wanted, runs, impossible, set())
        if set(found.runs) != runs or len(found.runs) != len(runs):
            raise Violation(f"for {wanted} run {found.runs}, the smallest set is {sorted(runs)}")
        if {missing.key for missing in found.missing} != impossible:
            raise Violation(f"for {wanted} {found.missing} is missing, it should be {sorted(impossible)}")
        place = {key: at for at, key in enumerate(found.runs)}
        for key in runs:
            makers = [self._maker(a) for a in self._arguments(key) if self.graph[a].state == "lost"]
            if any(place[maker] >= place[key] for maker in makers if maker in place):
                raise Violation(f"for {wanted} task {key} runs before one that it needs: {found.runs}")
        for missing in found.missing:
            self._check_chain(missing, wanted)

    def _need(self, key: int, runs: set[int], impossible: set[int], seen: set[int]) -> None:
        """The definition: what is lost is made by its task, which needs its arguments."""
        if self.graph[key].state != "lost" or key in seen:
            return
        seen.add(key)
        maker = self._maker(key)
        task = self.graph[maker]
        spent = 0 <= task.max_retries <= task.attempts
        if task.kind != "task" or task.arguments is None or spent:
            impossible.add(key)
        elif maker not in runs:
            runs.add(maker)
            for argument in self._arguments(maker):
                self._need(argument, runs, impossible, seen)

    def _maker(self, key: int) -> int:
        return self._arguments(key)[0] if self.graph[key].kind == "return" else key

    def _check_chain(self, missing: lineage.Missing, wanted: int) -> None:
        keys = {node.title(): key for key, node in self.graph.items()}
        chain: list[Any] = [missing.key, *(keys[name] for name in missing.chain[1:])]
        linked = all(a in self._arguments(self._maker(b)) for a, b in zip(chain, chain[1:]))
        if chain[-1] != wanted or not linked:
            raise Violation(f"the chain of {missing} does not lead to {wanted}")
