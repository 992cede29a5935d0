"""What ran, where, how long, and why it failed; bounded.

    running    in full, by task and attempt
    failed     the FAILED_MAX youngest; older ones are on disk
    finished   counted for each function, with samples: the youngest and the slowest SAMPLES_MAX; all of them
               go to the store's history, which is bounded there
    function   its qualified name; FUNCTIONS_MAX are told apart, the rest is counted under OTHERS, and failures that
               nobody knows more of under UNSEEN
    survivor   failed with its node's life, but only the node's agent had died: the next one says that it runs on

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
UNSEEN = "(not seen)"
NODE_DIED = "NODE_DIED"


def key_of(task: Task) -> bytes:
    return task.task_id + task.attempt.to_bytes(4, "big")


def seconds_of(task: Task) -> float:
    return max(0.0, task.ended_at - task.started_at) if task.started_at else 0.0


class StatsTable(Table[FunctionStats]):
    name, row, published = "task_stats", FunctionStats, False

    def _row_of(self, name: str) -> FunctionStats:
        row = self.rows.get(name.encode())
        if row is None:
            if len(self.rows) >= FUNCTIONS_MAX and name != UNSEEN:
                name = OTHERS
            row = self.rows.get(name.encode()) or FunctionStats(name)
        return row

    def count(self, task: Task, changes: Changes) -> None:
        row = self._row_of(task.function)
        seconds = seconds_of(task)
        row.seconds_sum += seconds
        row.seconds_max = max(row.seconds_max, seconds)
        row.actor = task.actor
        if task.state == FAILED:
            row.failed += 1
        else:
            row.finished += 1
            self._sample(row, task, seconds)
        self.put(changes, row.function.encode(), row)

    def uncount(self, task: Task, changes: Changes) -> None:
        """A failure that was none."""
        row = self._row_of(task.function)
        row.failed = max(0, row.failed - 1)
        row.seconds_sum = max(0.0, row.seconds_sum - seconds_of(task))
        self.put(changes, row.function.encode(), row)

    def add(self, command: commands.TasksReport, changes: Changes) -> None:
        for name, finished, estimated, seconds_sum, seconds_max in command.counts:
            row = self._row_of(name)
            row.finished += finished
            row.estimated += estimated
            row.seconds_sum += seconds_sum
            row.seconds_max = max(row.seconds_max, seconds_max)
            self.put(changes, row.function.encode(), row)
        if command.unseen:
            row = self._row_of(UNSEEN)
            row.failed += command.unseen
            self.put(changes, UNSEEN.encode(), row)

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
        node = self._nodes.alive(command.epoch).node_id
        for task in command.tasks:
            if task.state not in (RUNNING, FINISHED, FAILED):
                raise Refused("invalid", f"a task cannot be {task.state!r}")
        for task_id, attempt in command.survived:
            self._survived(task_id + attempt.to_bytes(4, "big"), command.epoch, changes)
        self.stats.add(command, changes)
        for task in command.tasks:
            task.epoch, task.node = command.epoch, node
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

    def _survived(self, key: bytes, epoch: int, changes: Changes) -> None:
        task = self.rows.get(key)
        if task is None or task.error_type != NODE_DIED:
            return
        self.stats.uncount(task, changes)
        del self._failed[key]
        task.state, task.ended_at, task.error, task.error_type, task.epoch = RUNNING, 0.0, "", "", epoch
        self._running.setdefault(epoch, {})[key] = None
        self.put(changes, key, task)

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
            task.state, task.ended_at, task.error, task.error_type = FAILED, now, f"node died: {reason}", NODE_DIED
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
            and command.error_type in ("", task.error_type)
            and command.node in (b"", task.node)
            and task.task_id.startswith(command.task)
        ]
        found.sort(key=lambda task: (task.state != RUNNING, -(task.ended_at or task.started_at)))
        return found[: command.limit]

    def summary(self) -> list[tuple[str, int, int, int, float, float, int, bool]]:
        running: dict[str, int] = {}
        actors = {row.function for row in self.stats.rows.values() if row.actor}
        for keys in self._running.values():
            for key in keys:
                name = self.rows[key].function
                running[name] = running.get(name, 0) + 1
                if self.rows[key].actor:
                    actors.add(name)
        names = {row.function for row in self.stats.rows.values()} | running.keys()
        found = []
        for name in sorted(names):
            row = self.stats.rows.get(name.encode()) or FunctionStats(name)
            seconds = (row.seconds_sum, row.seconds_max)
            counts = (running.get(name, 0), row.finished, row.failed)
            found.append((name, *counts, *seconds, row.estimated, name in actors))
        return found

    def is_valid(self) -> bool:
        running = {key for keys in self._running.values() for key in keys}
        return (
            running == {key for key, row in self.rows.items() if row.state == RUNNING}
            and set(self._failed) == self.rows.keys() - running
            and len(self._failed) <= FAILED_MAX
        )
