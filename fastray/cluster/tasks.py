"""What a node tells the cluster's task table: which tasks run, which failed, how many finished. Called by agent.py.

    look     at the node's workers, each beat: what they hold, and the events of their flight recorders
    told     a task that was running at two looks, so that the store was told of it; its end is told too
    tally    finished tasks of a function since the last report: a count, seconds, a few as samples
    report   each REPORT_S, when there is news; the next one goes when the last one was answered

Nothing is written for it where tasks run, but for failures (csrc/failure_log.h). What is exact and what is estimated
is in docs/internals/gcs.md. `TaskReporter` decides and is pure; `TaskWatcher` looks and sends. What was told is kept in
shared memory, so that the next agent goes on there; a report that gets lost with the store is merged into the next.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import NamedTuple

from fastray._native import tasks as native
from fastray.exceptions import FastrayError, GcsUnavailableError
from fastray.gcs import commands
from fastray.gcs.records import FAILED, FINISHED, RUNNING, Task
from fastray.node_tasks import error_of, task_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from typing import Any

    from fastray._native.session import Attachment
    from fastray.gcs.client import GcsClient

    Key = tuple[int, int]  # record id, attempt

REPORT_S = 0.5
ASK_S = 1.0
ROWS_MAX = 2_000  # of a report; failures beyond wait in shared memory, and are overwritten there
TOLD_MAX = 10_000  # running tasks of one node that are told
NEWS_MAX = 10_000  # rows that wait for the store; more, and no others are told that they run
TALLIES_MAX = 1_000  # functions of one report
SAMPLES_MAX = 2  # of a tally: the youngest, and the slowest
SAMPLED_MAX = 200  # tallies of one report with samples
FAILED_IDS_MAX = 4_096
OTHERS = "(others)"
NODE_DIED = "NODE_DIED"
OVERWRITTEN = "(what it said is overwritten: too many failed at once)"


class Tally:
    """Finished tasks of one function."""

    __slots__ = ("estimated", "finished", "recent", "seconds_max", "seconds_sum", "slowest")

    def __init__(self) -> None:
        self.finished = self.estimated = 0
        self.seconds_sum = self.seconds_max = 0.0
        self.recent: list[Task] = []
        self.slowest: list[Task] = []

    def add(self, count: int, seconds: float, seconds_max: float) -> None:
        self.finished += count
        self.seconds_sum += seconds
        self.seconds_max = max(self.seconds_max, seconds_max)

    def sample(self, task: Task) -> None:
        self.recent = [*self.recent[1 - SAMPLES_MAX :], task]
        self.slowest = sorted([*self.slowest, task], key=lambda t: t.started_at - t.ended_at)[:SAMPLES_MAX]

    def merge(self, older: Tally) -> None:
        self.add(older.finished, older.seconds_sum, older.seconds_max)
        self.estimated += older.estimated
        for task in older.slowest:
            self.slowest = sorted([*self.slowest, task], key=lambda t: t.started_at - t.ended_at)[:SAMPLES_MAX]

    def samples(self) -> list[Task]:
        return list({(task.task_id, task.attempt): task for task in (*self.recent, *self.slowest)}.values())


class Worker:
    """How far a process's flight recorder was read."""

    __slots__ = ("accounted", "closed", "incarnation", "open", "since", "written")

    def __init__(self, incarnation: int, events: int = 0, started: int = 0) -> None:
        self.incarnation = incarnation
        self.since = self.written = events  # wanted next; written at the last look
        self.accounted = started  # tasks that were counted, seen or estimated
        self.open: set[int] = set()  # events that had not ended
        self.closed: set[int] = set()  # from `since` on, that had


class Told(NamedTuple):
    task: Task
    handle: int  # 0: by the agent before this one


class Report(NamedTuple):
    """What was sent, until it is answered."""

    taken: int
    marks: dict[int, native.Mark]
    news: dict[Key, Task]
    tallies: dict[str, Tally]
    unseen: int
    survived: list[tuple[bytes, int]]


class TaskReporter:
    """`taken`, `marks`: of `native.told`. `survivors`: rows of this node that the store gave up with the last agent."""

    def __init__(
        self,
        session: int,
        taken: int = 0,
        marks: dict[int, native.Mark] | None = None,
        survivors: Iterable[Task] = (),
    ) -> None:
        self._session = session
        self._read = taken  # failures before this number are read
        self._workers = {slot: Worker(*mark) for slot, mark in (marks or {}).items()}
        self._before: set[Key] = set()  # ran at the last look
        self._told: dict[Key, Told] = {}
        self._ends: dict[int, tuple[int, bool]] = {}  # record id of a told task -> its end, whether it raised
        self._ending: dict[Key, tuple[Task, int]] = {}  # ended; a failure before that number says how
        self._news: dict[Key, Task] = {}
        self._tallies: dict[str, Tally] = {}
        self._failed_ids: dict[int, int] = {}  # record id -> attempt, of late
        self._unseen = 0
        self._unfinished = -1  # number of a failure that was being written
        self._survived: list[tuple[bytes, int]] = []
        self._sent: Report | None = None
        for task in survivors:
            self._survived.append((task.task_id, task.attempt))
            task.state, task.error, task.error_type = RUNNING, "", ""
            self._told[int.from_bytes(task.task_id[8:], "big"), task.attempt] = Told(task, 0)

    def marks(self) -> dict[int, native.Mark]:
        """For `native.look`: what is wanted of each process."""
        return {slot: (w.incarnation, w.since, w.accounted) for slot, w in self._workers.items()}

    # ---- looking --------------------------------------------------------------------------------------

    def look(
        self, now_ns: int, workers: list[native.Worker], failures: int, is_claimed: Callable[[int], bool]
    ) -> None:
        """What `native.look` returned; how many failures were written after it."""
        running: dict[Key, tuple[native.Held, int, int]] = {}
        ids = {record for record, _ in self._told}
        for slot, incarnation, pid, job, started, written, oldest, held, events, actor in workers:
            worker = self._workers.get(slot)
            if worker is None or worker.incarnation != incarnation:
                worker = self._workers[slot] = Worker(incarnation)
            self._count(worker, pid, job, started, written, oldest, events, ids, len(held), actor)
            begun = {record: begin for _, _, record, begin, end, _ in events if not end}
            for task in held:
                if not task[7]:
                    running[task[0], task[3]] = (task, begun.get(task[0], now_ns), pid)
        for key, (task, began_ns, pid) in running.items():
            told = self._told.get(key)
            if told is None and key in self._before and len(self._told) < TOLD_MAX and len(self._news) < NEWS_MAX:
                row = self._row(task[0], task[2], task[3], task[6], task[5], pid, task[4])
                row.started_at = began_ns / 1e9
                self._told[key], self._news[key] = Told(row, task[1]), row
            elif told is not None and not told.handle:  # the agent before told of it
                told.task.worker = pid
                self._told[key] = Told(told.task, task[1])
        self._before = set(running)
        for key in [key for key in self._told if key not in running]:
            handle = self._told[key].handle
            if not handle or not is_claimed(handle):  # else its process is dead, and not yet looked after
                self._end(key, now_ns, failures)

    def _row(self, record: int, name: str, attempt: int, job: int, parent: int, pid: int, actor: bool) -> Task:
        above = task_id(self._session, parent) if parent else b""
        return Task(task_id(self._session, record), name, attempt, job, above, pid, actor=actor)

    def _end(self, key: Key, now_ns: int, failures: int) -> None:
        """A told task is over: how, the failures written by now say, or nothing does."""
        told = self._told.pop(key)
        end, raised = self._ends.pop(key[0], (now_ns, False))
        task = Task(**{name: getattr(told.task, name) for name in Task.__struct_fields__})
        task.state, task.ended_at = FINISHED, end / 1e9
        if raised:
            task.state, task.error, task.error_type = FAILED, OVERWRITTEN, "TASK_EXECUTION_EXCEPTION"
        self._ending[key] = (task, failures)

    def _count(
        self, worker: Worker, pid: int, job: int, started: int, written: int, oldest: int, events: list[native.Event],
        told: set[int], held: int, actor: bool,
    ) -> None:  # fmt: skip
        fresh: list[tuple[str, bool, float]] = []
        still: set[int] = set()
        for number, name, record, begin, end, raised in events:
            if number in worker.closed:
                continue
            if not end:
                still.add(number)
                continue
            worker.closed.add(number)
            worker.accounted += 1
            seconds = max(0, end - begin) / 1e9
            fresh.append((name, raised, seconds))
            if record in told:
                self._ends[record] = (end, raised)
            elif not raised:
                tally = self._tally(name)
                tally.add(1, seconds, seconds)
                row = self._row(record, name, self._failed_ids.get(record, -1) + 1, job, 0, pid, actor)
                row.state, row.started_at, row.ended_at = FINISHED, begin / 1e9, end / 1e9
                tally.sample(row)
        if oldest > worker.written or any(number < oldest for number in worker.open):
            self._estimate(worker, started - worker.accounted - max(held, len(still)), fresh)
        worker.open = still
        worker.since, worker.written = min(still, default=written), written
        worker.closed = {number for number in worker.closed if number >= worker.since}

    def _estimate(self, worker: Worker, missed: int, fresh: list[tuple[str, bool, float]]) -> None:
        """Tasks that came and went between two looks were of the functions that were seen, in their proportion."""
        if missed <= 0 or not fresh:
            return
        worker.accounted += missed
        groups: dict[tuple[str, bool], list[float]] = {}
        for name, raised, seconds in fresh:
            groups.setdefault((name, raised), []).append(seconds)
        left, weight = missed, len(fresh)
        for (name, raised), seconds_of in sorted(groups.items(), key=lambda item: len(item[1])):
            share = left * len(seconds_of) // weight
            left, weight = left - share, weight - len(seconds_of)
            if not raised:  # those that raised stand among the failures
                tally = self._tally(name)
                tally.add(share, share * sum(seconds_of) / len(seconds_of), 0.0)
                tally.estimated += share

    def _tally(self, name: str) -> Tally:
        if name not in self._tallies and len(self._tallies) >= TALLIES_MAX:
            name = OTHERS
        return self._tallies.setdefault(name, Tally())

    # ---- reporting ------------------------------------------------------------------------------------

    def take(
        self, epoch: int, read: Callable[[int, int], tuple[int, list[native.Failed | None]]]
    ) -> commands.TasksReport | None:
        """What is to be sent now, None for nothing; `read(since, most)` as `native.failures`.

        The last one has been answered: `acknowledged` or `lost`.
        """
        assert self._sent is None
        self._read_failures(read)
        for key, (task, failures) in list(self._ending.items()):
            if failures <= self._read:
                del self._ending[key]
                self._unseen -= task.state == FAILED and self._unseen > 0  # it is one of these
                self._news[key] = task
        news = dict(list(self._news.items())[:ROWS_MAX])
        for key in news:
            del self._news[key]
        sent = Report(self._read, self._final_marks(), news, self._tallies, self._unseen, self._survived)
        self._tallies, self._unseen, self._survived = {}, 0, []
        if not (sent.news or sent.tallies or sent.unseen or sent.survived):
            return None
        self._sent = sent
        rows, counts = list(news.values()), []
        for i, (name, tally) in enumerate(sent.tallies.items()):
            samples = tally.samples() if i < SAMPLED_MAX else []
            rows += samples
            seconds = max(0.0, tally.seconds_sum - sum(task.ended_at - task.started_at for task in samples))
            rest = tally.finished - len(samples)  # the store counts each row
            counts.append((name, rest, tally.estimated, seconds, tally.seconds_max))
        return commands.TasksReport(epoch, rows, counts, sent.unseen, sent.survived)

    def _read_failures(self, read: Callable[[int, int], tuple[int, list[native.Failed | None]]]) -> None:
        first, found = read(self._read, max(0, ROWS_MAX - len(self._news)))
        self._unseen += first - self._read
        for number, failure in enumerate(found, first):
            if failure is None and number != self._unfinished:
                self._unfinished = number  # its writer is at it, or dead: then the next time shows it
                self._read = number
                return
            if failure is None:
                self._unseen += 1
                continue
            self._failure(failure)
        self._read = first + len(found)

    def _failure(self, failure: native.Failed) -> None:
        record, parent, name, attempt, job, pid, actor, began_ns, ended_ns, code, text = failure
        row = self._row(record, name, attempt, job, parent, pid, actor)
        row.state, row.started_at, row.ended_at = FAILED, began_ns / 1e9, ended_ns / 1e9
        row.error_type, row.error = error_of(code, text)
        key = (record, attempt)
        self._told.pop(key, None)
        self._ends.pop(record, None)
        self._ending.pop(key, None)
        self._news[key] = row
        self._failed_ids.pop(record, None)
        self._failed_ids[record] = attempt
        if len(self._failed_ids) > FAILED_IDS_MAX:
            del self._failed_ids[next(iter(self._failed_ids))]

    def _final_marks(self) -> dict[int, native.Mark]:
        """For the next agent: what was open is not counted by it."""
        return {
            slot: (w.incarnation, w.written, w.accounted + len(w.open)) for slot, w in self._workers.items()
        }

    def acknowledged(self) -> tuple[int, dict[int, native.Mark]]:
        """The store has it: what `native.set_told` is to keep."""
        assert self._sent is not None
        sent, self._sent = self._sent, None
        return sent.taken, sent.marks

    def lost(self) -> None:
        """Nobody knows whether the store has it, or it has not: it is sent again with the next one."""
        assert self._sent is not None
        sent, self._sent = self._sent, None
        for key, task in sent.news.items():
            self._news.setdefault(key, task)
        for name, tally in sent.tallies.items():
            self._tally(name).merge(tally)
        self._unseen += sent.unseen
        self._survived = sent.survived + self._survived


class TaskWatcher:
    """Looks at the node and reports to the store."""

    def __init__(self, attachment: Attachment, gcs: GcsClient) -> None:
        self._attachment = attachment
        self._gcs = gcs
        self._reporter: TaskReporter | None = None
        self._sending: Future[Any] | None = None
        self._next = 0.0
        self.answers: dict[str, Callable[..., Any]] = {"tasks": self._list, "task_summary": self._summary}

    def begin(self) -> None:
        """Where the agent before this one ended. Raises what the store's client raises."""
        taken, marks = native.told(self._attachment)
        session = self._attachment.session_id
        given_up = commands.TasksList(state=FAILED, error_type=NODE_DIED, task=task_id(session), limit=TOLD_MAX)
        self._reporter = TaskReporter(session, taken, marks, self._gcs.tasks(given_up))

    def beat(self, now: float, epoch: int) -> None:
        """Looks, and reports when it is time. Never waits for the store."""
        reporter = self._reporter
        if reporter is None:
            return
        now_ns, workers = native.look(self._attachment, reporter.marks())
        written = native.failures_written(self._attachment)
        reporter.look(now_ns, workers, written, lambda handle: native.is_claimed(self._attachment, handle))
        if self._sending is not None:
            if not self._sending.done():
                return
            sent, self._sending = self._sending, None
            if isinstance(sent.exception(), GcsUnavailableError):
                reporter.lost()
            else:  # what the store refuses, it refuses again
                native.set_told(self._attachment, *reporter.acknowledged())
        if now < self._next:
            return
        self._next = now + REPORT_S
        report = reporter.take(epoch, lambda since, most: native.failures(self._attachment, since, most))
        if report is not None:
            try:
                self._sending = self._gcs.submit(report)
            except FastrayError:
                reporter.lost()

    # ---- inquiries, on their thread -------------------------------------------------------------------

    def _list(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of the whole cluster. `asked`: fields of TasksList, ids hexadecimal; "history": also from the disk."""
        history = asked.pop("history", False)
        asked = {name: bytes.fromhex(value) if name in ("task", "node") else value for name, value in asked.items()}
        command = commands.TasksList(**asked)
        rows = self._ask(lambda: self._gcs.tasks(command, ASK_S))
        if not rows and history:
            rows = self._gcs.history(command.task, command.limit)
        return [_plain(row) for row in rows]

    def _summary(self, _: object) -> list[Any]:
        return list(self._ask(lambda: self._gcs.call(commands.TasksSummary(), ASK_S)))

    @staticmethod
    def _ask(call: Callable[[], list[Any]]) -> list[Any]:
        """Who asks tries again, so that a store that is away holds nobody else up."""
        try:
            return call()
        except FutureTimeoutError as error:  # no OSError before Python 3.11
            raise GcsUnavailableError("the store does not answer") from error


def _plain(row: Task) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in Task.__struct_fields__ if name != "spec"}
    return {**fields, "task_id": row.task_id.hex(), "parent": row.parent.hex(), "node": row.node.hex()}
