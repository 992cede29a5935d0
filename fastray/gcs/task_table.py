"""What ran, where, how long, and why it failed; bounded.

    running    in full, by task and attempt
    failed     the FAILED_MAX youngest; older ones are on disk
    finished   counted for each function, with samples: the youngest and the slowest SAMPLES_MAX; all of them
               go to the store's history, which is bounded there
    function   its qualified name; FUNCTIONS_MAX are told apart, the rest is counted under OTHERS

Rows of running and failed tasks and the counts survive a restart. Called by tables.py.
"""

from __future__ import annotations

from fastray.gcs import commands
from fastray.gcs.node_table import NodeTable
from fastray.gcs.records import FAILED, FINISHED, RUNNING, FunctionStats, Task
from fastray.gcs.table import Changes, Refused, Table

FAILED_MAX = 10_000
SAMPLES_MAX = 8
FUNCTIONS_MAX = 10_000
OTHERS = "(others)"


def key_of(task: Task) -> bytes:
    return task.task_id + task.attempt.to_bytes(4, "big")


class StatsTable(Table[FunctionStats]):
    name, row, published = "task_stats", FunctionStats, False

    def count(self, task: Task, changes: Changes) -> None:
        name = task.function
        row = self.rows.get(name.encode())
        if row is None:
            if len(self.rows) >= FUNCTIONS_MAX:
                name = OTHERS
            row = self.rows.get(name.encode()) or FunctionStats(name)
        seconds = max(0.0, task.ended_at - task.started_at) if task.started_at else 0.0
        row.seconds_sum += seconds
        row.seconds_max = max(row.seconds_max, seconds)
        if task.state == FAILED:
            row.failed += 1
        else:
            row.finished += 1
            self._sample(row, task, seconds)
        self.put(changes, name.encode(), row)

    @staticmethod
    def _sample(row: FunctionStats, task: Task, seconds: float) -> None:
        row.recent.append(task)
        if len(row.recent) > SAMPLES_MAX:
            del row.recent[0]
        slowest = row.slowest
        if len(slowest) < SAMPLES_MAX or seconds > slowest[-1].ended_at - slowest[-1].started_at:
            slowest.append(task)
            slowest.sort(key=lambda t: t.started_at - t.ended_at)
            del slowest[SAMPLES_MAX:]


class TaskTable(Table[Task]):
    name, row, published = "task", Task, False

    def __init__(self, nodes: NodeTable) -> None:
        super().__init__()
        self.stats = StatsTable()
        self._nodes = nodes
        self._running: dict[int, dict[bytes, None]] = {}  # epoch -> keys
        self._failed: dict[bytes, None] = {}  # oldest first

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        self.stats.begin(incarnation)
        for key, row in sorted(self.rows.items(), key=lambda item: item[1].ended_at):
            if row.state == RUNNING:
                self._running.setdefault(row.epoch, {})[key] = None
            else:
                self._failed[key] = None

    def report(self, command: commands.TasksReport, changes: Changes) -> None:
        self._nodes.alive(command.epoch)
        for task in command.tasks:
            if task.state not in (RUNNING, FINISHED, FAILED):
                raise Refused("invalid", f"a task cannot be {task.state!r}")
        for task in command.tasks:
            task.epoch = command.epoch
            if task.state == RUNNING:
                key = key_of(task)
                if key in self._failed:
                    continue  # its end came first
                before = self.rows.get(key)
                if before is not None:
                    self._running[before.epoch].pop(key)  # it was to run elsewhere
                self._running.setdefault(task.epoch, {})[key] = None
                self.put(changes, key, task)
            else:
                self._ended(task, changes)

    def _ended(self, task: Task, changes: Changes) -> None:
        key = key_of(task)
        started = self.rows.get(key)
        if started is not None:
            if started.state == FAILED:
                return  # an end after the node's death was counted: the first one stays
            self._running.get(started.epoch, {}).pop(key, None)
            task.started_at = task.started_at or started.started_at
            task.spec = task.spec or started.spec
        if task.state == FINISHED:
            task.spec = b""  # only what failed is run again by people
        changes.history.append((task.task_id, task))
        self.stats.count(task, changes)
        if task.state == FINISHED:
            self.drop(changes, key)
            return
        self._failed[key] = None
        self.put(changes, key, task)
        while len(self._failed) > FAILED_MAX:
            oldest = next(iter(self._failed))
            del self._failed[oldest]
            self.drop(changes, oldest)

    def node_died(self, epoch: int, reason: str, now: float, changes: Changes) -> None:
        for key in list(self._running.pop(epoch, ())):
            task = self.rows[key]
            task.state, task.ended_at, task.error = FAILED, now, f"node died: {reason}"
            self._failed[key] = None
            self.put(changes, key, task)
            changes.history.append((task.task_id, task))
            self.stats.count(task, changes)

    def select(self, command: commands.TasksList) -> list[Task]:
        found = list(self.rows.values())
        for stats in self.stats.rows.values():
            found += {key_of(task): task for task in (*stats.recent, *stats.slowest)}.values()
        found = [
            task
            for task in found
            if command.function in ("", task.function)
            and command.state in ("", task.state)
            and command.job in (0, task.job)
        ]
        found.sort(key=lambda task: -(task.ended_at or task.started_at))
        return found[: command.limit]

    def summary(self) -> list[tuple[str, int, int, int, float, float]]:
        running: dict[str, int] = {}
        for keys in self._running.values():
            for key in keys:
                name = self.rows[key].function
                running[name] = running.get(name, 0) + 1
        names = {row.function for row in self.stats.rows.values()} | running.keys()
        found = []
        for name in sorted(names):
            row = self.stats.rows.get(name.encode()) or FunctionStats(name)
            found.append(
                (name, running.get(name, 0), row.finished, row.failed, row.seconds_sum, row.seconds_max)
            )
        return found

    def is_valid(self) -> bool:
        running = {key for keys in self._running.values() for key in keys}
        return (
            running == {key for key, row in self.rows.items() if row.state == RUNNING}
            and set(self._failed) == self.rows.keys() - running
            and len(self._failed) <= FAILED_MAX
        )
