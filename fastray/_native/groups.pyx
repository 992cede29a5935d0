# cython: language_level=3, freethreading_compatible=False
"""The table of placement groups as a process of the node reads it; see csrc/types_group.h.

The node alone writes it. A row that is read while its entry becomes another's is noticed by its life, and is none.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastray._native.cpp cimport (
    Class,
    Group,
    Handle,
    Header,
    Proc,
    Process,
    Record,
    Segment,
    kActorAlive,
    kActorClass,
    kActorPending,
    kActorStarting,
    kErrorGroupRemoved,
    kEntryUsed,
    kFailed,
    kGroupIdBytes,
    kGroupShared,
    kGroupsMax,
    kObject,
    now_ns,
    proc_set_add,
    proc_set_take,
)
from fastray._native.object_ref cimport make_ref, session
from fastray._native.session cimport Attachment

cdef enum:
    WAIT_STEP_NS = 50000000

GROUPS_MAX = kGroupsMax
ID_BYTES = kGroupIdBytes


cdef Group* entry(uint32_t g) noexcept:
    return &session.process.segment().group(g)


def find_group(group_id):
    """Number of the entry with this id; 0 when there is none."""
    cdef bytes wanted = bytes(group_id)
    cdef uint32_t g
    for g in range(1, kGroupsMax):
        if entry(g).state.load() != 0 and (<const char*>entry(g).id)[:kGroupIdBytes] == wanted:
            return g
    return 0


def group_row(uint32_t g):
    """(id, state, life, job, flags, name, namespace, spec, nanoseconds from made to ready or 0) of an entry; None when
    it is free."""
    cdef Group* group = entry(g)
    cdef uint32_t life = group.life.load(), state = group.state.load()
    if state == 0:
        return None
    row = ((<const char*>group.id)[:kGroupIdBytes], state, life, group.job, group.flags,
           (<bytes>group.name).decode("utf-8", "replace"), (<bytes>group.name_space).decode("utf-8", "replace"),
           (<const char*>(session.process.segment().base() + group.spec))[:group.spec_bytes] if group.spec else b"",
           group.ready_ns - group.made_ns if group.ready_ns else 0)
    return row if group.life.load() == life and group.state.load() != 0 else None


def group_rows():
    """The rows of all entries that are not free, the latest last."""
    cdef uint32_t g
    rows = [(entry(g).made_ns, g) for g in range(1, kGroupsMax) if entry(g).state.load() != 0]
    return [row for _, g in sorted(rows) if (row := group_row(g)) is not None]


def wait_for_group(group_id, tuple states, int64_t timeout_ns):
    """Sleeps until the group with this id is in one of `states`; the number of its entry. 0: not in time."""
    cdef bytes wanted = bytes(group_id)
    cdef Process* p = session.process
    cdef int64_t end = now_ns() + timeout_ns
    cdef Handle none = 0
    cdef uint32_t seen, g = 0
    while True:
        seen = p.wake_word()  # the node wakes who may wait when a group changes
        if g == 0 or (<const char*>entry(g).id)[:kGroupIdBytes] != wanted:
            g = find_group(wanted)
        if g != 0 and entry(g).state.load() in states:
            return g
        if now_ns() >= end:
            return 0
        with nogil:
            p.sleep_on(&none, 0, seen, min(<int64_t>WAIT_STEP_NS, max(<int64_t>1, end - now_ns())))
        PyErr_CheckSignals()
        if session.process != p:
            return 0


def own_creation():
    """Handle of the creation record of the actor that runs here."""
    return session.process.segment().actor(session.process.self().lease.load() - 1 - kActorClass).creation.load()


def own_group():
    """Number of the group in which this worker has its lease; 0 for none."""
    cdef uint32_t lease = session.process.self().lease.load()
    cdef Class* c
    if lease == 0:
        return 0
    c = &session.process.segment().cls(lease - 1)
    return c.group if c.group != 0 and entry(c.group).life.load() == c.group_life else 0


def leased(Attachment attachment):
    """Of the node: resources of placement groups, and under lease to workers that run a task outside of them, by name,
    in 1/10000 of a unit."""
    cdef Segment* segment = &attachment.segment
    cdef Header* header = &segment.header()
    cdef uint32_t slot, lease, g, i
    cdef Proc* p
    names = list(attachment.resources())
    used = [0] * len(names)
    for g in range(1, kGroupsMax):
        if segment.group(g).state.load() != 0:
            for i in range(len(names)):
                used[i] += segment.group(g).reserved[i]
    for slot in range(1, header.procs_used.load()):
        p = &segment.proc(slot)
        lease = p.lease.load()
        if p.state.load() != 2 or lease == 0 or p.claim.load() == 0 or segment.cls(lease - 1).group != 0:
            continue
        for i in range(len(names)):
            if not (names[i] == "CPU" and p.blocked.load()):
                used[i] += segment.cls(lease - 1).demand[i]
    return dict(zip(names, used))


# ---- for the node agent -----------------------------------------------------------------------------------


def changes():
    """Grows whenever the node changes a group of the cluster."""
    return session.process.segment().header().groups_changed.load()


def shared_rows():
    """(entry, id, state, life, job, flags, name, namespace, spec, whether an actor made it, attempt in which the node
    held all that it is to hold, or -1) of each group of the cluster that the node knows, in the order in which they
    were made."""
    cdef uint32_t g
    cdef Group* group
    rows = []
    for g in range(1, kGroupsMax):
        group = entry(g)
        if group.state.load() == 0 or not group.flags & kGroupShared:
            continue
        row = group_row(g)
        rows.append((group.made_ns, (g, *row[:8], bool(group.creator), <int64_t>group.held.load() - 1)))
    rows.sort()
    return [row for _, row in rows]


def routed_classes():
    """(class, tasks that wait, job, placement, runtime_env) of each class that is not for workers here, and of no
    placement group."""
    cdef Header* header = &session.process.segment().header()
    cdef uint32_t c
    cdef Class* cls
    rows = []
    for c in range(header.classes_used.load()):
        cls = &session.process.segment().cls(c)
        if cls.state.load() == kEntryUsed and cls.routed and cls.group == 0:
            rows.append((c, session.process.waiting_in(c), cls.job, cls.placement, cls.runtime_env))
    return rows


def group_classes():
    """(class, entry, life, bundle, routed, placement, runtime_env, job, tasks that wait) of each class of a group."""
    cdef Header* header = &session.process.segment().header()
    cdef uint32_t c
    cdef Class* cls
    rows = []
    for c in range(header.classes_used.load()):
        cls = &session.process.segment().cls(c)
        if cls.state.load() == kEntryUsed and cls.group != 0 and cls.placement != 0:
            rows.append((c, cls.group, cls.group_life, cls.bundle, bool(cls.routed), cls.placement, cls.runtime_env,
                         cls.job, session.process.waiting_in(c) if cls.routed else 0))
    return rows


def group_actors():
    """(class, entry, life, bundle, routed, placement, ActorState) of each actor in a group that may move."""
    cdef Header* header = &session.process.segment().header()
    cdef uint32_t a
    cdef Class* cls
    rows = []
    for a in range(header.actors_used.load()):
        cls = &session.process.segment().cls(kActorClass + a)
        if cls.group != 0 and cls.placement != 0:
            rows.append((kActorClass + a, cls.group, cls.group_life, cls.bundle, bool(cls.routed), cls.placement,
                         session.process.segment().actor(a).state.load()))
    return rows


def hosts_of_group(uint32_t of_entry, uint32_t of_life):
    """Creations of the actors of this node in a group that are placed, here or elsewhere."""
    cdef Header* header = &session.process.segment().header()
    cdef uint32_t a, state
    cdef Class* cls
    rows = []
    for a in range(header.actors_used.load()):
        cls = &session.process.segment().cls(kActorClass + a)
        state = session.process.segment().actor(a).state.load()
        if cls.group != of_entry or cls.group_life != of_life or cls.placement == 0:
            continue
        if state == kActorStarting or state == kActorAlive or (state == kActorPending and not cls.routed):
            rows.append(session.process.segment().actor(a).creation.load())
    return rows


def tasks_in(uint32_t c):
    """How many tasks of a class wait here or run, about."""
    return session.process.waiting_in(c) + session.process.segment().cls(c).leases.load()


def place_of_class(uint32_t c):
    """(entry, life, bundle) of the group of a class; zeros: of none."""
    cdef Class* cls = &session.process.segment().cls(c)
    return cls.group, cls.group_life, cls.bundle


def set_routed(uint32_t c, bint routed):
    """The tasks of this class are the agent's to place, or those of workers here."""
    cdef Class* cls = &session.process.segment().cls(c)
    cls.routed = routed
    if not routed:
        proc_set_take(cls.sleeping, session.process.slot())
        proc_set_add(cls.sleeping, 0)  # the node has no lease on it yet
    session.process.ring_bell()


def removed_reference():
    """A reference whose value is TaskPlacementGroupRemoved."""
    cdef Process* p = session.process
    cdef Record* r = p.allocate_record()
    if r == NULL:
        from fastray.exceptions import TooManyTasksError
        raise TooManyTasksError()
    cdef Handle h = p.handle_of(r)
    cdef uint64_t flags = 0
    r.id = p.next_id()
    r.kind = kObject
    r.function = r.parent = 0
    r.ret = 1
    r.args_bytes = r.dependencies = r.references = 0
    p.write_error(r[0], kErrorGroupRemoved, NULL, 0, &flags, h)
    p.publish_state(r, h, kFailed, flags)
    return make_ref(h)
