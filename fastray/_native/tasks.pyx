# cython: language_level=3, freethreading_compatible=False
"""What the workers of a node do and did, read from shared memory: for the cluster's task table. Called by
fastray/node_tasks.py, in the node's agent and in whoever looks at one node.

Everything is a picture of one moment. Names are read when they are asked for: an event of a job that is over may
have got the name of another function.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool

from fastray._native.cpp cimport (
    Actor,
    Atomic64,
    Failure,
    FailureLog,
    FlightEvent,
    FlightRecorder,
    Handle,
    Proc,
    Record,
    Segment,
    gen_of,
    index_of,
    is_actor_class,
    kActorClass,
    kClaimed,
    kEventTask,
    kFailures,
    kFlightWaiting,
    kRecordsMax,
    kTask,
    state_of,
    ticks,
    ticks_per_us,
    wall_ns,
    word_gen,
    word_holder,
)
from fastray._native.session cimport Attachment

cdef enum:
    WORKER = 2  # ProcKind


def look(Attachment attachment not None, dict marks not None):
    """(now, workers): for each process that is or was a worker (slot, incarnation, pid or 0 when it is dead, job, tasks
    started, events written, number of the oldest event in the ring, tasks that it holds, events, whether it is an actor's).

    A task: (id, handle, function, attempt, is it an actor's call, id of its parent or 0, job, whether it waits to begin).
    An event: (number, function, id of the task, begin, end or 0, whether it raised); times in ns of wall clock.
    `marks`: slot -> (incarnation, number of the first event wanted, ...); processes with nothing new are left out.
    """
    cdef Segment* segment = &attachment.segment
    cdef uint32_t slot
    cdef Proc* p
    cdef FlightRecorder* recorder
    cdef int64_t now = wall_ns()
    cdef uint64_t now_ticks = ticks(), n, written, oldest, since, claim
    cdef double per_us = ticks_per_us()
    cdef FlightEvent* e
    cdef uint64_t begin, end, what
    cdef cbool alive, calls
    cdef dict names = {}
    cdef list found = [], events
    for slot in range(1, segment.header().procs_used.load()):
        p = &segment.proc(slot)
        alive = p.state.load() == 2
        if p.kind != WORKER or p.incarnation == 0:
            continue
        mark = marks.get(slot)
        since = mark[1] if mark is not None and mark[0] == p.incarnation else 0
        recorder = &segment.recorder(slot)
        written = recorder.written.load()
        claim = p.claim.load() if alive else 0
        calls = alive and calls_of(segment, p) != NULL
        if written == since and claim == 0 and not calls and mark is not None and mark[0] == p.incarnation:
            continue
        oldest = recorder.oldest()
        events = []
        for n in range(max(since, oldest), written):
            e = &recorder.events[n % 32]
            begin, end, what = e.begin.load(), e.end.load(), e.what.load()
            if what & 0xFF != kEventTask:
                continue
            events.append((n, name_of(segment, names, <uint32_t>(what >> 8)), e.record.load(),
                           now - to_ns(now_ticks - begin if now_ticks > begin else 0, per_us),
                           0 if end == 0 else now - to_ns(now_ticks - end if now_ticks > end else 0, per_us),
                           bool(end & 1)))
        found.append((slot, p.incarnation, p.pid if alive else 0, p.job, p.heartbeat.load(), written, oldest,
                      held(segment, names, slot, p, claim) if alive else [], events, p.lease.load() > kActorClass))
    return now, found


cdef int64_t to_ns(uint64_t n, double per_us):
    return <int64_t>(<double>n / per_us * 1000)


cdef str name_of(Segment* segment, dict names, uint32_t function):
    name = names.get(function)
    if name is None:
        name = names[function] = (<bytes>segment.function(function).name).decode("utf-8", "replace")
    return name


cdef list held(Segment* segment, dict names, uint32_t slot, Proc* p, Handle claim):
    """What it runs: one task, or an actor's calls in flight."""
    cdef list found = []
    cdef uint32_t place
    cdef Actor* actor = calls_of(segment, p)
    cdef Atomic64* flight
    if claim != 0:
        add_task(segment, names, slot, p, claim, found)
    if actor != NULL:
        flight = segment.at[Atomic64](actor.flight.load())
        for place in range(actor.flight_places.load()):
            if flight[place].load() != 0:
                add_task(segment, names, slot, p, flight[place].load(), found)
    return found


cdef Actor* calls_of(Segment* segment, Proc* p):
    """The actor of this process, if it runs several calls at once."""
    cdef uint32_t lease = p.lease.load()
    if lease <= kActorClass or segment.actor(lease - 1 - kActorClass).flight.load() == 0:
        return NULL
    return &segment.actor(lease - 1 - kActorClass)


cdef int add_task(Segment* segment, dict names, uint32_t slot, Proc* p, uint64_t named, list found) except -1:
    cdef Handle h = named & ~kFlightWaiting
    if index_of(h) == 0 or index_of(h) >= kRecordsMax:
        return 0
    cdef Record* r = &segment.record(h)
    cdef uint64_t w = r.state.load()
    if state_of(w) != kClaimed or word_holder(w) != slot or word_gen(w) != gen_of(h) or r.kind != kTask:
        return 0
    cdef uint32_t job = segment.cls(r.cls).job
    found.append((r.id, h, name_of(segment, names, r.function), r.attempts, is_actor_class(r.cls),
                  segment.record(<Handle>r.parent).id if r.parent else 0, job if job else p.job,
                  bool(named & kFlightWaiting)))
    return 0


def is_claimed(Attachment attachment not None, Handle h):
    """False: this life of the record is over, or it is not being run now."""
    cdef uint64_t w
    if index_of(h) == 0 or index_of(h) >= kRecordsMax:
        return False
    w = attachment.segment.record(h).state.load()
    return state_of(w) == kClaimed and word_gen(w) == gen_of(h)


def failures(Attachment attachment not None, uint64_t since, uint32_t most):
    """(number of the first, those from there on, at most so many; None for each that is not there). The first is number
    `since`, or the oldest that is not overwritten.

    A failure: (id, parent's id or 0, function, attempt, job, pid or 0, whether it is an actor's call, begin in ns or 0,
    end in ns, ErrorCode, text).
    """
    cdef FailureLog* log = &attachment.segment.failures()
    cdef uint64_t written = log.written.load(), n, first = since
    cdef Failure f
    cdef list found = []
    if written > since + kFailures:
        first = written - kFailures
    for n in range(first, min(written, first + most)):
        if not log.read(n, &f):
            found.append(None)
            continue
        found.append((f.task, f.parent, (<bytes>f.name).decode("utf-8", "replace"), f.attempt, f.job, f.pid,
                      bool(f.actor), f.began_ns, f.ended_ns, f.code,
                      (<bytes>f.text[:f.text_bytes]).decode("utf-8", "replace")))
    return first, found


def failures_written(Attachment attachment not None):
    """How many have failed since the node began."""
    return attachment.segment.failures().written.load()


def told(Attachment attachment not None):
    """What the agent before this one had told: (number of the first failure not told, marks as `look` takes them, each
    with the tasks started that were told)."""
    cdef FailureLog* log = &attachment.segment.failures()
    cdef uint32_t slot
    marks = {}
    for slot in range(attachment.segment.header().procs_used.load()):
        if log.marks[slot].incarnation.load() != 0:
            marks[slot] = (log.marks[slot].incarnation.load(), log.marks[slot].events.load(),
                           log.marks[slot].started.load())
    return log.taken.load(), marks


def set_told(Attachment attachment not None, uint64_t taken, dict marks not None):
    """The agent has told so much. A mark that is cut short by its death names no process."""
    cdef FailureLog* log = &attachment.segment.failures()
    cdef uint32_t slot
    log.taken.store(taken)
    for slot, (incarnation, events, started) in marks.items():
        log.marks[slot].incarnation.store(0)
        log.marks[slot].events.store(events)
        log.marks[slot].started.store(started)
        log.marks[slot].incarnation.store(incarnation)
