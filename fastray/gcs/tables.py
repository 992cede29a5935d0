"""All tables together: batches of commands in, replies and changes out. Pure code: no clock, no I/O.

    apply_batch    the commands of one client in order; a batch that was applied before gets its reply again
    beat           a heartbeat, outside of the order of batches
    client_gone    the failure detector's verdict: its nodes are dead, its jobs end
    tick           what happens by and by: lost objects are found

What concerns several tables is here: a node's death, a job's end. Called by server.py and the tests.
"""

from __future__ import annotations

from typing import Any, Callable

import msgspec

from fastray.gcs import commands
from fastray.gcs.actor_table import ActorTable
from fastray.gcs.commands import Batch, Beat, BeatReply, Done, Failure, Result
from fastray.gcs.function_table import FunctionTable, KeyValueTable
from fastray.gcs.job_table import JobTable
from fastray.gcs.node_table import NodeTable
from fastray.gcs.object_table import ObjectTable
from fastray.gcs.placement_group_table import PlacementGroupTable
from fastray.gcs.records import ALIVE, Row, Session
from fastray.gcs.table import Changes, Context, Event, Refused, Table, encode
from fastray.gcs.task_table import TaskTable

SESSIONS_MAX = 10_000
SWEPT_OBJECTS_MAX = 2_000  # a tick; about a millisecond
META = "meta"  # the store's own rows
INCARNATION, JOB_NUMBERS, CLUSTER = b"incarnation", b"job numbers", b"cluster"
CHANNEL = "channel:"

Handler = Callable[[Any, Context, Changes], Any]
_NOTHING = msgspec.Raw(encode(Done()))


def _encoded(result: Result) -> msgspec.Raw:
    return _NOTHING if isinstance(result, Done) and result.value is None else msgspec.Raw(encode(result))


class Counter(Row):
    """How many servers have run on this store; the last number for jobs that was reserved."""

    number: int


class Cluster(Row):
    """What tells this store from one that begins anew at the same address."""

    id: str


class StaleBatch(Exception):
    """A batch older than the last one of its client: a late copy of what was retried."""


class Sessions(Table[Session]):
    """The last batch of each client, the least recently used first."""

    name, row, published = "session", Session, False

    def begin(self, incarnation: int) -> None:
        super().begin(incarnation)
        self.rows = dict(sorted(self.rows.items(), key=lambda item: item[1].at))

    def store(self, client: bytes, session: Session, changes: Changes) -> None:
        self.rows.pop(client, None)
        self.put(changes, client, session)
        if len(self.rows) > SESSIONS_MAX:
            self.drop(changes, next(iter(self.rows)))


class GlobalState:
    def __init__(self) -> None:
        self.nodes = NodeTable()
        self.objects = ObjectTable(self.nodes)
        self.tasks = TaskTable(self.nodes)
        self.functions = FunctionTable()
        self.values = KeyValueTable()
        self.actors = ActorTable(self.nodes)
        self.jobs = JobTable()
        self.groups = PlacementGroupTable(self.nodes)
        self.sessions = Sessions()
        found: list[Table[Any]] = [self.nodes, self.nodes.loads, self.objects, self.tasks, self.tasks.stats]
        found += [self.functions, self.values, self.actors, self.jobs, self.groups, self.sessions]
        self.tables: dict[str, Table[Any]] = {table.name: table for table in found}
        self.incarnation = 0
        self.cluster = ""
        self._handlers = self._make_handlers()

    # ---- start ----------------------------------------------------------------------------------------

    def restore(self, table: str, key: bytes, value: bytes) -> None:
        """A row from the store."""
        if table == META:
            if key == INCARNATION:
                self.incarnation = msgspec.msgpack.decode(value, type=Counter).number
            elif key == JOB_NUMBERS:
                self.jobs.reserved_before(msgspec.msgpack.decode(value, type=Counter).number)
            elif key == CLUSTER:
                self.cluster = msgspec.msgpack.decode(value, type=Cluster).id
        elif table in self.tables:
            self.tables[table].restore(key, value)

    def forget(self, table: str, key: bytes) -> None:
        """A row that the store no longer has, for a standby that follows it."""
        if table in self.tables:
            self.tables[table].rows.pop(key, None)

    def begin(self, cluster: str = "") -> Changes:
        """After the last `restore`: this server's incarnation, to be made durable before anything is answered.

        `cluster` is the id of a store that has none yet.
        """
        self.incarnation += 1
        self.cluster = self.cluster or cluster
        for table in self.tables.values():
            table.begin(self.incarnation)
        changes = Changes()
        changes.rows[META, INCARNATION] = Counter(self.incarnation)
        changes.rows[META, CLUSTER] = Cluster(self.cluster)
        return changes

    # ---- commands -------------------------------------------------------------------------------------

    def apply_batch(self, batch: Batch, now: float) -> tuple[bytes, Changes]:
        """The encoded reply, and what changed. Raises StaleBatch."""
        changes = Changes()
        session = self.sessions.rows.get(batch.client)
        if session is not None and batch.seq <= session.seq:
            if batch.seq < session.seq:
                raise StaleBatch
            return session.reply, changes
        context = Context(batch.client, now)
        # Each result at once: a later command may change the row that it shows.
        results = [_encoded(self.apply(command, context, changes)) for command in batch.commands]
        reply = encode(results)
        ends = bool(batch.commands) and isinstance(batch.commands[-1], commands.Goodbye)
        if changes.rows and not ends:
            self.sessions.store(batch.client, Session(batch.seq, reply, now), changes)
        return reply, changes

    def apply(self, command: commands.Command, context: Context, changes: Changes) -> Result:
        try:
            return Done(self._handlers[type(command)](command, context, changes))
        except Refused as refused:
            return refused.failure
        except Exception as error:  # a bug here is its caller's to see, and nobody else's to suffer
            return Failure("internal", f"{type(command).__name__}: {type(error).__name__}: {error}")

    def beat(self, beat: Beat, changes: Changes) -> BeatReply:
        return self.nodes.beat(beat, changes)

    def client_gone(self, client: bytes, reason: str, now: float) -> Changes:
        changes = Changes()
        self._release(client, reason, True, now, changes)
        return changes

    def _release(self, client: bytes, reason: str, failed: bool, now: float, changes: Changes) -> None:
        for node in self.nodes.of_client(client):
            self._node_died(node.epoch, reason, now, changes)
        for job in self.jobs.of_client(client):
            self._end_job(commands.JobEnd(job.job_id, failed, reason), now, changes)

    def client_closed(self, client: bytes) -> None:
        """Its callbacks have nowhere to go; it leaves them again when it comes back."""
        self.objects.client_gone(client)

    def owns(self, client: bytes) -> tuple[bool, bool]:
        """Whether the client is the pulse of a node, and of a job."""
        return bool(self.nodes.of_client(client)), bool(self.jobs.of_client(client))

    def tick(self) -> Changes:
        changes = Changes()
        self.objects.sweep(changes, SWEPT_OBJECTS_MAX)
        return changes

    # ---- what concerns several tables -----------------------------------------------------------------

    def _register_node(self, command: commands.NodeRegister, context: Context, changes: Changes) -> int:
        before = self.nodes.rows.get(command.node.node_id)
        if before is not None and before.state == ALIVE:
            self._node_died(before.epoch, "it joined again", context.now, changes)
        epoch = self.nodes.register(command, context, changes)
        self.groups.node_came(command.node.node_id, epoch, changes)
        return epoch

    def _node_died(self, epoch: int, reason: str, now: float, changes: Changes) -> bool:
        node = self.nodes.died(epoch, reason, now, changes)
        if node is None:
            return False
        self.actors.node_died(node.node_id, reason, now, changes)
        self.groups.node_died(node, reason, changes)
        self.tasks.node_died(epoch, reason, now, changes)
        self.objects.node_died()
        return True

    def _reserve_jobs(self, command: commands.JobsReserve, changes: Changes) -> int:
        first = self.jobs.reserve(command.count)
        changes.rows[META, JOB_NUMBERS] = Counter(self.jobs.last)
        return first

    def _end_job(self, command: commands.JobEnd, now: float, changes: Changes) -> bool:
        if not self.jobs.end(command, now, changes):
            return False
        self.actors.job_ended(command.job_id, now, changes)
        if not command.failed:  # else its driver may live on: its node's agent died, and the next one says so
            self.groups.job_ended(command.job_id, changes)
        self.functions.job_ended(command.job_id, self.actors.classes_in_use(), changes)
        return True

    def _goodbye(self, command: commands.Goodbye, context: Context, changes: Changes) -> None:
        self._release(context.client, "it left", False, context.now, changes)
        self.sessions.drop(changes, context.client)
        self.objects.client_gone(context.client)

    def _read(self, name: str) -> Table[Any]:
        table = self.tables.get(name)
        if table is None or not table.published:
            names = ", ".join(sorted(t.name for t in self.tables.values() if t.published))
            raise Refused("missing", f"no published table {name!r}; there are {names}")
        return table

    def _since(self, command: commands.TableSince) -> tuple[int, list[Event] | None]:
        table = self._read(command.table)
        return table.version, table.since(command.version)

    def _publish(self, command: commands.Publish, changes: Changes) -> None:
        changes.events.append(Event(CHANNEL + command.channel, 0, b"", command.message))

    def _make_handlers(self) -> dict[type[commands.Command], Handler]:
        c = commands
        return {
            c.NodeRegister: self._register_node,
            c.NodeDrain: lambda m, x, ch: self._node_died(m.epoch, m.reason, x.now, ch),
            c.NodeDied: lambda m, x, ch: self._node_died(m.epoch, m.reason, x.now, ch),
            c.JobsReserve: lambda m, x, ch: self._reserve_jobs(m, ch),
            c.JobStart: lambda m, x, ch: self.jobs.start(m, x, ch),
            c.JobEnd: lambda m, x, ch: self._end_job(m, x.now, ch),
            c.ObjectsAdd: lambda m, x, ch: self.objects.add(m, ch),
            c.ObjectsEvict: lambda m, x, ch: self.objects.evict(m, ch),
            c.ObjectsDelete: lambda m, x, ch: self.objects.delete(m, ch),
            c.ObjectsLocate: lambda m, x, ch: self.objects.locate(m.ids),
            c.ObjectsList: lambda m, x, ch: self.objects.largest(m.limit),
            c.ObjectsWatch: lambda m, x, ch: self.objects.watch(m.ids, x),
            c.ObjectsUnwatch: lambda m, x, ch: self.objects.unwatch(m.ids, x.client),
            c.TasksReport: lambda m, x, ch: self.tasks.report(m, ch),
            c.TasksList: lambda m, x, ch: self.tasks.select(m),
            c.TasksSummary: lambda m, x, ch: self.tasks.summary(),
            c.FunctionPut: lambda m, x, ch: self.functions.export(m, ch),
            c.FunctionGet: lambda m, x, ch: self.functions.blob(m.digest),
            c.KvPut: lambda m, x, ch: self.values.set(m, ch),
            c.KvGet: lambda m, x, ch: self.values.get(m),
            c.KvDelete: lambda m, x, ch: self.values.delete(m, ch),
            c.KvKeys: lambda m, x, ch: self.values.keys(m.namespace, m.prefix),
            c.Publish: lambda m, x, ch: self._publish(m, ch),
            c.ActorRegister: lambda m, x, ch: self.actors.register(m, x.now, ch),
            c.ActorsReport: lambda m, x, ch: self.actors.report(m, x.now, ch),
            c.ActorGet: lambda m, x, ch: self.actors.require(m.actor_id, "actor"),
            c.ActorByName: lambda m, x, ch: self.actors.by_name(m.namespace, m.name),
            c.ActorNames: lambda m, x, ch: self.actors.names(),
            c.GroupCreate: lambda m, x, ch: self.groups.create(m, x.now, ch),
            c.GroupPropose: lambda m, x, ch: self.groups.propose(m, ch),
            c.GroupAgree: lambda m, x, ch: self.groups.agree(m, x.now, ch),
            c.GroupRemove: lambda m, x, ch: self.groups.remove(m, ch),
            c.GroupGet: lambda m, x, ch: self.groups.require(m.group_id, "placement group"),
            c.GroupByName: lambda m, x, ch: self.groups.by_name(m.namespace, m.name),
            c.TableRead: lambda m, x, ch: (self._read(m.table).version, self._read(m.table).values()),
            c.TableSince: lambda m, x, ch: self._since(m),
            c.Goodbye: self._goodbye,
        }

    def is_valid(self) -> bool:
        return all(table.is_valid() for table in self.tables.values())
