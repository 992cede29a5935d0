# cython: language_level=3, freethreading_compatible=False
"""What waits on a node, and what became of its actors: read from shared memory, a picture of one moment. Called by the
node's agent (fastray/cluster/load.py, actors.py).
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from fastray._native.cpp cimport (
    Actor,
    Class,
    Handle,
    Segment,
    kActorClass,
    kActorDead,
    kActorDetached,
    kActorForeign,
    kActorPending,
    kActorsMax,
    kEntryUsed,
)
from fastray._native.session cimport Attachment


def class_queues(Attachment attachment not None):
    """(class, tasks that wait, tasks taken so far, workers with a lease) of each scheduling class of tasks in use.

    Queues are a hint: an entry may stand there twice, and what was taken counts what was skipped too.
    """
    cdef Segment* segment = &attachment.segment
    cdef uint32_t c, slot, q, procs = segment.header().procs_used.load()
    cdef uint64_t head, tail, waiting, taken
    cdef Class* cls
    rows = []
    for c in range(segment.header().classes_used.load()):
        cls = &segment.cls(c)
        if cls.state.load() != kEntryUsed:
            continue
        waiting = taken = 0
        for slot in range(procs):
            q = cls.queues[slot].load()
            if q == 0:
                continue
            tail = segment.queue(q).tail.load()
            head = segment.queue(q).head.load()
            taken += head
            if tail > head:
                waiting += tail - head
        rows.append((c, waiting, taken, cls.leases.load()))
    return rows


cdef struct Seen:
    Handle creation  # 0: none, or its end has been told
    uint64_t record
    uint32_t state, restarts, slot


cdef class ActorWatch:
    """The actors that were created on this node, wherever they run: what has changed since the last look."""
    cdef Attachment attachment
    cdef vector[Seen] seen

    def __init__(self, Attachment attachment not None):
        self.attachment = attachment

    def changed(self):
        """[(record id, creation, state, restarts, pid, whether it runs elsewhere)] of each that began, changed or ended;
        pid 0: it runs nowhere."""
        cdef Segment* segment = &self.attachment.segment
        cdef uint64_t session = segment.header().session
        cdef uint32_t a, state, restarts, slot, used = segment.header().actors_used.load()
        cdef Handle creation
        cdef Actor* actor
        cdef Seen* seen
        rows = []
        if self.seen.size() < used:
            self.seen.resize(used)
        for a in range(used):
            actor = &segment.actor(a)
            seen = &self.seen[a]
            state = actor.state.load()
            creation = actor.creation.load() if kActorPending <= state <= kActorDead and actor.id[0] == session else 0
            if seen.creation != 0 and seen.creation != creation:
                rows.append((seen.record, seen.creation, kActorDead, seen.restarts, 0, False))
                seen.creation = 0
            if creation == 0 or (state == kActorDead and seen.creation == 0 and seen.record == actor.id[1]):
                continue
            restarts, slot = actor.restarts.load(), actor.slot.load()
            if seen.creation == creation and (seen.state, seen.restarts, seen.slot) == (state, restarts, slot):
                continue
            seen.creation = creation if state != kActorDead else 0
            seen.record, seen.state, seen.restarts, seen.slot = actor.id[1], state, restarts, slot
            foreign = bool(actor.flags.load() & kActorForeign)
            pid = actor.host_pid.load() if foreign else segment.proc(slot).pid if slot else 0
            rows.append((actor.id[1], creation, state, restarts, pid, foreign))
        return rows

    def is_written(self, uint32_t a):
        """The actor in this entry is being made."""
        return a < kActorsMax and self.attachment.segment.actor(a).state.load() & 0xFF == 1

    def describe(self, Handle creation):
        """(class name, name, namespace, detached, job, max_restarts, ActorEnd) of an actor; None when it is gone."""
        cdef Segment* segment = &self.attachment.segment
        cdef uint32_t a = segment.record(creation).cls - kActorClass
        if segment.record(creation).cls < kActorClass:
            return None
        cdef Actor* actor = &segment.actor(a)
        row = ((<bytes>actor.class_name).decode("utf-8", "replace"), (<bytes>actor.name).decode("utf-8", "replace"),
               (<bytes>actor.name_space).decode("utf-8", "replace"), bool(actor.flags.load() & kActorDetached),
               segment.cls(kActorClass + a).job, actor.max_restarts, actor.end.load())
        return row if actor.creation.load() == creation else None
