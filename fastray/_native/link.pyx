# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""The node agent's hands in shared memory: what its node wants done elsewhere (Bridge), and the links to other
nodes (Link). csrc/link.h explains the words; fastray/transfer/ decides and moves the bytes.

One thread at a time, as for everything that uses the session's Process: whoever calls holds the agent's lock.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from fastray._native.bulk cimport BulkValue
from fastray._native.cpp cimport (
    Actor,
    Class,
    ErrorCode,
    Function,
    Handle,
    Header,
    Process,
    Record,
    gen_of,
    index_of,
    is_asked,
    is_sealed,
    kActorClass,
    kActorDead,
    kActorForeign,
    kActorPending,
    kActorRestarting,
    kArgsInHeap,
    kEntryUsed,
    kErrorAgent,
    kFetchClass,
    kRecordsMax,
    kRouteClass,
    make_handle,
    state_of,
    word_gen,
)
from fastray._native.cpp_link cimport Bulk, Cancel, Copy, Ended, LocalFunction, Stop
from fastray._native.cpp_link cimport Link as CLink
from fastray._native.object_ref cimport ObjectRef, make_held_ref, session

from fastray._native.actors import index_of_name

ROUTE_CLASS, FETCH_CLASS = kRouteClass, kFetchClass
FINISH, KILL, RESTART = 0, 1, 2
AGENT_ERROR = bytes([kErrorAgent])


def join_cluster(uint64_t node_number):
    """From now on this node's values may be away, and this process is its agent."""
    cdef Header* header = &session.process.segment().header()
    header.node_number = node_number
    header.agent_slot.store(session.process.slot())
    header.clustered.store(1)


def describe_class(uint32_t c):
    """(demand by resource name, runtime_env, placement, job) of a class."""
    cdef Header* header = &session.process.segment().header()
    cdef Class* cls = &session.process.segment().cls(c)
    demand = {(<bytes>header.resources[i].name).decode(): cls.demand[i]
              for i in range(header.resources_used.load()) if cls.demand[i]}
    return demand, cls.runtime_env, cls.placement, cls.job


def describe_function(uint32_t f):
    """(name, class, flags, max_retries, returns, max_calls, timeout in ms, digest) of a function."""
    cdef Function* entry = &session.process.segment().function(f)
    digest = (<uint64_t>entry.hash[0]).to_bytes(8, "little") + (<uint64_t>entry.hash[1]).to_bytes(8, "little")
    return ((<bytes>entry.name).decode("utf-8", "replace"), entry.cls, entry.flags, entry.max_retries, entry.returns,
            entry.max_calls, entry.timeout_ms, digest)


def foreign_actors():
    """(index, creation, state, ends, calls, placement) of each actor here that is the agent's to place or to serve:
    `ends` when no handle is left, `calls` when one can be sent."""
    cdef Header* header = &session.process.segment().header()
    cdef uint32_t a, state
    cdef Actor* actor
    cdef Class* cls
    rows = []
    for a in range(header.actors_used.load()):
        cls = &session.process.segment().cls(kActorClass + a)
        if not cls.routed:
            continue
        actor = &session.process.segment().actor(a)
        state = actor.state.load()
        if state < kActorPending or state > kActorDead:
            continue
        rows.append((a, actor.creation.load(), state, bool(actor.ending.load()),
                     bool(session.process.has_call(cls[0], False)), cls.placement))
    return rows


def keep_actor_here(uint32_t a):
    """It is placed on this node: a worker of its own will run it."""
    cdef Class* cls = &session.process.segment().cls(kActorClass + a)
    cls.routed = 0
    session.process.ring_bell()


def actor_of(Handle creation):
    """Index of the actor whose creation record this is."""
    return session.records[index_of(creation)].cls - kActorClass


def lose_host(Handle creation):
    """The node where this actor ran is gone, or the agent that knew it. False: no restart is left."""
    return bool(session.process.lose_host(creation))


def find_named(str name_space, str name):
    """(creation, id) of the living actor of this name that was created here; (0, b"") when there is none."""
    cdef int a = index_of_name(name_space, name)
    if a < 0:
        return 0, b""
    cdef Actor* actor = &session.process.segment().actor(a)
    key = (<uint64_t>actor.id[0]).to_bytes(8, "big") + (<uint64_t>actor.id[1]).to_bytes(8, "big")
    return (0, b"") if actor.ending.load() else (actor.creation.load(), key)


def release_name(Handle creation):
    """The actor is being killed for good."""
    cdef Actor* actor = &session.process.segment().actor(session.records[index_of(creation)].cls - kActorClass)
    if actor.creation.load() == creation:
        actor.name_hash[0] = actor.name_hash[1] = 0


def describe_actor(uint32_t a):
    """(class name, flags, restarts that are left or -1, info, function of the class, class, identity)"""
    cdef Actor* actor = &session.process.segment().actor(a)
    left = actor.max_restarts if actor.max_restarts < 0 else max(0, actor.max_restarts - <int>actor.restarts.load())
    return ((<bytes>actor.class_name).decode("utf-8", "replace"), actor.flags.load() & ~<uint32_t>kActorForeign,
            left, actor.info, session.records[index_of(actor.creation.load())].function, kActorClass + a, (actor.id[0], actor.id[1]))


def wake_word():
    return session.process.wake_word()


def wake():
    """The thread in `wait` returns."""
    Process.wake_process(session.process.segment(), session.process.slot())


def wait(list classes, uint32_t seen, double timeout_s):
    """Sleeps until one of these classes has work, something is asked for, a task that was sent here ends, or `wake()`.

    `seen`: wake_word() from before the last look around."""
    cdef vector[uint32_t] watched
    cdef int64_t timeout_ns = <int64_t>(timeout_s * 1e9)
    for c in classes:
        watched.push_back(c)
    with nogil:
        session.process.sleep_for_classes(watched.data(), watched.size(), seen, timeout_ns)
    session.process.sweep()


def describe_away(Handle h):
    """(id of the object, bytes) of a record of this node that is away, or was a moment ago; None when it is gone."""
    cdef Record* r = &session.records[index_of(h)]
    if word_gen(r.state.load()) != gen_of(h):
        return None
    cdef ObjectRef ref = make_held_ref(h)
    return (ref.binary(), Process.away_of(r[0]).bytes) if session.process.is_away(h) else None


def is_away(Handle h):
    """Done, the value is on another node and nobody here wants it."""
    return bool(session.process.is_away(h))


def is_wanted(Handle h):
    """Asked for, and not here yet."""
    cdef uint64_t w = session.records[index_of(h)].state.load()
    return bool(is_asked(w)) and word_gen(w) == gen_of(h)


def take_asked():
    """[(handle, number of the node that has the value)] of what was asked for since the last call."""
    cdef vector[Handle] asked
    session.process.take_asked(&asked)
    return [(h, Process.away_of(session.records[index_of(h)]).node) for h in asked]


def claim(uint32_t cls, size_t n):
    """Claims up to n tasks of a class: [(handle, class it was submitted in)]."""
    cdef vector[Handle] claimed
    session.process.claim_many(cls, n, &claimed)
    return [(h, session.records[index_of(h)].cls) for h in claimed]


def put_back(Handle h, uint32_t cls):
    """A claimed task goes to workers here, in class `cls`."""
    return bool(session.process.put_back(h, cls))


def fail(Handle h, bytes error):
    """A claimed task fails with this (an error code and what belongs to it)."""
    cdef Record* r = &session.records[index_of(h)]
    cdef const char* data = error
    session.process.fail(r[0], h, <ErrorCode>(<uint8_t>data[0]), data + 1, len(error) - 1)


def arguments_of(Handle task):
    """[(handle, bytes, whether it is here)] of its arguments that are references; (0, bytes, True): what it has by
    value."""
    cdef Record* r = &session.records[index_of(task)]
    cdef uint32_t deps, refs, i
    cdef const Handle* handles = Process.argument_handles(session.process.segment(), r[0], &deps, &refs)
    cdef Record* argument
    found = []
    if r.args_bytes == kArgsInHeap:
        found.append((0, Process.view_payload(session.process.segment(), r.args_heap.offset).header.total_bytes, True))
    for i in range(deps):
        argument = &session.records[index_of(handles[i])]
        found.append((handles[i], CLink.value_bytes(session.process.segment(), argument[0]),
                      is_sealed(argument.state.load())))
    return found


def give_up_asked(Handle h):
    """What was asked for cannot be had: computed again, or lost."""
    if session.process.unask(h):
        session.process.recover(h)


cdef list copies_of(vector[Copy] found):
    cdef Copy c
    copies = []
    for c in found:
        copies.append((c.h, c.node, c.there))
    return copies


cdef class Link:
    cdef CLink* link

    def __cinit__(self, uint64_t node, uint64_t peer):
        self.link = new CLink(session.process, node, peer)

    def __dealloc__(self):
        del self.link

    # ---- sending tasks ----------------------------------------------------------------------------

    def claim(self, uint32_t cls, size_t n):
        """Claims up to n tasks of a class for the peer; how many."""
        return self.link.claim(cls, n)

    def stage(self, Handle claimed):
        self.link.stage(claimed)

    def unknown_functions(self):
        """Functions of the claimed tasks that the peer has not been told of."""
        return list(self.link.unknown_functions())

    def describe(self, uint32_t function, bytes message):
        self.link.describe(function, message)

    def unknown_classes(self):
        """Classes of placement groups of the claimed tasks that the peer has not been told of."""
        return list(self.link.unknown_classes())

    def describe_class(self, uint32_t cls, bytes message):
        self.link.describe_class(cls, message)

    def outstanding_in(self, uint32_t cls):
        """Tasks of this class that are out there."""
        return self.link.outstanding_in(cls)

    def send_staged(self):
        self.link.send_staged()

    def send_cancel(self, Handle task, bint force):
        self.link.send_cancel(task, force)

    def holds(self, Handle h):
        """Whether the peer has a record for this one."""
        return bool(self.link.holds(h))

    def bytes_there(self, Handle task):
        return self.link.bytes_there(task)

    def knows(self, uint32_t function):
        return bool(self.link.knows(function))

    # ---- actors -----------------------------------------------------------------------------------------

    def send_actor(self, Handle creation):
        """Creates this actor there; its class is known there, and a message has said what its entry holds."""
        self.link.send_actor(creation)

    def hosts(self, Handle creation):
        return bool(self.link.hosts(creation))

    def claim_calls(self, uint32_t actor, size_t n):
        return self.link.claim_calls(actor, n)

    def send_actor_stop(self, Handle creation, uint64_t how):
        """FINISH: no handle is left; KILL; RESTART: its process is killed and may start again."""
        self.link.send_actor_stop(creation, <Stop>how)

    def prepare_actor(self, uint64_t wire, uint32_t actor):
        """The creation that comes under this name fills this entry."""
        self.link.prepare_actor(wire, actor)

    def has_staged(self):
        """Calls from the log of an actor that runs there now wait for send_staged."""
        return bool(self.link.has_staged())

    def unknown_actors(self):
        """Creations of the actors that what waits to be sent names, and that the peer does not know."""
        return list(self.link.unknown_actors())

    def import_actor(self, bytes ref, uint32_t actor):
        """An actor of the peer's gets this entry here; False when it has one already."""
        return bool(self.link.import_actor(ref, actor))

    def knows_actor(self, Handle creation):
        """Whether the peer has heard of this actor."""
        return bool(self.link.knows_actor(creation))

    def mirrors_actor(self, Handle creation):
        """Whether it is the peer's own, and here only because of a handle."""
        return bool(self.link.mirrors_actor(creation))

    def take_ended(self):
        """[(creation, why)] of actors of ours that ended there."""
        ended = []
        cdef Ended e
        for e in self.link.take_ended():
            ended.append((e.creation, e.end))
        return ended

    def take_kills(self):
        """[(creation here, KILL or RESTART)] of the peer's actors that are to be killed."""
        kills = []
        cdef Cancel c
        for c in self.link.take_kills():
            kills.append((c.first, c.second))
        return kills

    # ---- running the peer's -------------------------------------------------------------------------

    def know(self, uint32_t number, uint32_t function, uint16_t cls):
        """The peer's function `number` is `function` of this node, and runs in class `cls`."""
        cdef LocalFunction local
        local.function = function
        local.cls = cls
        self.link.know(number, local)

    def know_class(self, uint32_t number, cls):
        """The peer's class `number` is `cls` here; None: its placement group was removed."""
        self.link.know_class(number, 0xFFFFFFFF if cls is None else <uint32_t>cls)  # kNoClass

    def collect(self):
        """Writes the results of what has ended; whether there were any."""
        self.link.send_consumed()
        return bool(self.link.collect())

    def take_cancels(self):
        """[(handle of a task of the peer's here, force)] that the peer wants cancelled."""
        cancels = []
        cdef Cancel c
        for c in self.link.take_cancels():
            h = self.link.imported_as(c.first)
            if h:
                cancels.append((h, bool(c.second)))
        return cancels

    # ---- both -----------------------------------------------------------------------------------------

    def receive(self, bytes batch, size_t at):
        """Applies a batch from `at` on, up to a message: (place to go on from, the message or None).

        Raises ValueError when the batch makes no sense: then the link has to be closed."""
        cdef const uint8_t* message = NULL
        cdef size_t size = 0
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(batch)
        at += self.link.receive(data + at, PyBytes_GET_SIZE(batch) - at, &message, &size)
        if self.link.bad():
            raise ValueError("the other node sent what cannot be understood")
        return at, None if message == NULL else (<const char*>message)[:size]

    def send_message(self, bytes body):
        self.link.send_message(body)

    def fetch(self, Handle asked, bint here=False):
        """`here`: the peer is not to say where else it is."""
        self.link.fetch(asked, here)

    def is_fetching(self, Handle asked):
        """Asked for at the peer, and not all here."""
        return bool(self.link.is_fetching(asked))

    # ---- copies -------------------------------------------------------------------------------------

    def take_elsewhere(self):
        """[(handle, number of a node, handle there)] of values that were asked for, and that node has."""
        return copies_of(self.link.take_elsewhere())

    def fetch_copy(self, Handle asked, Handle there):
        self.link.fetch_copy(asked, there)

    def take_orphans(self):
        """What was asked for, and cannot be had from the peer."""
        return list(self.link.take_orphans())

    def mirrors(self, Handle h):
        """Whether the peer owns what this record stands for."""
        return bool(self.link.mirrors(h))

    def have_copy(self, Handle mirror):
        """The value of this mirror is here: if the peer owns it, it hears of that."""
        self.link.have_copy(mirror)

    def take_copies(self):
        """[(record of ours that is away, number of the peer, copy there)]"""
        return copies_of(self.link.take_copies())

    def take_moved(self):
        """Records of ours whose value has come to be away there."""
        return list(self.link.take_moved())

    def take_gone(self):
        """Records of ours that are not away there any more: lost, or nobody's."""
        return list(self.link.take_gone())

    def switch_to(self, Handle h, uint64_t node, Handle there):
        """What is away at the peer comes from this copy; False when it is not away there."""
        cdef Copy c
        c.h, c.node, c.there = h, node, there
        return bool(self.link.switch_to(c))

    def export_ref(self, Handle h):
        return <bytes>self.link.export_ref(h)

    def import_ref(self, bytes ref):
        return self.link.import_ref(ref)

    def sweep(self):
        self.link.sweep()

    def take_out(self):
        """What is to be sent, as one batch; b"" for nothing."""
        if self.link.out_bytes() == 0:
            return b""
        return <bytes>self.link.take_out()

    def take_bulk(self):
        """Values that came without their buffers."""
        values = []
        cdef BulkValue value
        cdef Bulk bulk
        for bulk in self.link.take_bulk():
            value = BulkValue.__new__(BulkValue)
            value.bulk = bulk
            values.append(value)
        return values

    def finish_bulk(self, BulkValue value, bint complete):
        """Seals it; not `complete`: its buffers will not come from there."""
        return bool(self.link.finish_bulk(value.bulk, complete))

    def down(self, bytes error):
        """The link is gone; tasks that may not run again fail with `error` (an error code and what belongs to it)."""
        self.link.down(error)

    def counts(self):
        """How many tasks are out, how many of the peer's are here, records held for it, held there, mirrors."""
        c = self.link.counts()
        return {"outstanding": c.outstanding, "imports": c.imports, "exported": c.exported, "held": c.held,
                "mirrors": c.mirrors}
