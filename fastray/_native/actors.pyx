# cython: language_level=3, freethreading_compatible=False
"""The actor table as a caller sees it: making an entry, finding an actor by its name, what a handle asks.

An actor is created in three steps: `register_actor` takes an entry and fills it, `submit.create_actor` publishes the
creation record, after which the node starts it. See docs/internals/actors.md.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastray._native.cpp cimport (
    Actor,
    ActorDeath,
    Class,
    Handle,
    Header,
    Process,
    Record,
    gen_of,
    index_of,
    kActor,
    kActorClass,
    kActorDead,
    kActorDetached,
    kActorForeign,
    kActorPending,
    kActorsMax,
    kResourcesMax,
    now_ns,
    word_gen,
)
from fastray._native.object_ref cimport ObjectRef, check_ref, make_held_ref, session

cdef enum:
    NAME_BYTES = 95
    NAMESPACE_BYTES = 63
    WAIT_STEP_NS = 50000000


cdef int copy_text(char* to, str text, size_t room) except -1:
    cdef bytes cut = text.encode("utf-8", "replace")[:room - 1]
    memset(to, 0, room)
    memcpy(to, <const char*>cut, len(cut))
    return 0


cdef int hash_name(str name_space, str name, uint64_t* to) except -1:
    from _blake2 import blake2b
    digest = blake2b(f"{name_space}\0{name}".encode(), digest_size=16).digest()
    to[0] = int.from_bytes(digest[:8], "little")
    to[1] = int.from_bytes(digest[8:], "little") | 1
    return 0


def register_actor(dict demand, list resources, uint32_t runtime_env, uint32_t flags, int32_t max_restarts,
                   uint32_t info, str class_name, str name, str name_space, uint32_t placement=0, job=None,
                   tuple place=(0, 0, 0), tuple identity=(0, 0)):
    """An entry of the actor table, filled in; its index. `demand` in 1/10000 of a unit, by resource name. With
    `placement` (function-table index of pickled wishes) the node agent says where it runs; `job` is for the agent.
    `place` in a placement group: its entry and life, and a bundle or -1; zeros without one. `identity` of an actor that was
    made on another node: as `identity_of` has it there.

    Raises NameTaken with the index of the actor that has the name; TooManyTasksError when the table is full.
    """
    cdef Process* p = session.process
    cdef int a = p.take_actor(), other
    if a < 0:
        from fastray.exceptions import TooManyTasksError
        raise TooManyTasksError(f"{kActorsMax:,} actors are alive or still held by a handle: no room for another")
    cdef Actor* actor = &p.segment().actor(a)
    cdef Class* cls = &p.segment().cls(kActorClass + a)
    cdef uint32_t i
    wanted = [demand.get(resource, 0) for resource in resources]
    for i in range(kResourcesMax):
        cls.demand[i] = wanted[i] if i < <uint32_t>len(wanted) else 0
    cls.runtime_env = runtime_env
    cls.job = p.self().job if job is None else job
    cls.routed = placement != 0
    cls.placement = placement
    cls.group, cls.group_life, cls.bundle = place
    cls.leases.store(1)
    actor.flags.store(flags)
    actor.slot.store(0)
    actor.ending.store(0)
    actor.end.store(0)
    actor.max_restarts = max_restarts
    actor.restarts.store(0)
    actor.info = info
    actor.cause.store(0)
    actor.checkpoint.store(0)
    actor.log_end.store(0)
    actor.log_start.store(0)
    actor.flight.store(0)
    actor.flight_places.store(0)
    actor.last_call.store(0)
    actor.id[0], actor.id[1] = identity
    copy_text(actor.class_name, class_name, 64)
    copy_text(actor.name, name, 96)
    copy_text(actor.name_space, name_space, 64)
    actor.name_hash[0] = actor.name_hash[1] = 0
    if name:
        hash_name(name_space, name, actor.name_hash)
        other = p.find_name(actor.name_hash, actor.name_space, actor.name, a)
        if other >= 0:
            p.untake_actor(a)
            raise NameTaken(other)
    return a


def release_actor(uint32_t a):
    """Gives back an entry whose creation was not published."""
    session.process.untake_actor(a)


class NameTaken(Exception):
    """An actor of this name lives; its index."""


def find_actor(str name_space, str name):
    """(reference to the creation record, info) of the actor of this name; None when there is none."""
    cdef int a = index_of_name(name_space, name)
    return None if a < 0 else hold_actor(session.process.segment().actor(a).creation.load())


def index_of_name(str name_space, str name):
    """The entry of the actor that was created here and has this name; -1 when there is none."""
    cdef uint64_t hashed[2]
    cdef bytes name_bytes = name.encode("utf-8", "replace")[:NAME_BYTES]
    cdef bytes space_bytes = name_space.encode("utf-8", "replace")[:NAMESPACE_BYTES]
    hash_name(name_space, name, hashed)
    return session.process.find_name(hashed, <const char*>space_bytes, <const char*>name_bytes, -1)


def release_name(ObjectRef creation):
    """The actor is being killed for good: another may have its name at once."""
    cdef Actor* actor = &session.process.segment().actor(actor_index(creation))
    if actor.creation.load() == creation.handle:
        actor.name_hash[0] = actor.name_hash[1] = 0


def release_name_of(uint32_t index):
    """Local mode: the actor in this entry left."""
    cdef Actor* actor = &session.process.segment().actor(index)
    actor.name_hash[0] = actor.name_hash[1] = 0


def named_actors():
    """(namespace, name) of each named actor that lives."""
    cdef Header* header = &session.process.segment().header()
    cdef Actor* actor
    cdef uint32_t a
    names = []
    for a in range(header.actors_used.load()):
        actor = &session.process.segment().actor(a)
        if kActorPending <= actor.state.load() < kActorDead and actor.name_hash[1] != 0:
            names.append(((<bytes>actor.name_space).decode("utf-8", "replace"),
                          (<bytes>actor.name).decode("utf-8", "replace")))
    return names


def actor_index(ObjectRef creation):
    """Index of the actor whose creation record this is. Raises StaleReferenceError for another session's."""
    check_ref(creation)
    return session.records[index_of(creation.handle)].cls - kActorClass


def info_of(ObjectRef creation):
    """Function-table index of what a handle of this actor needs to know. Raises StaleReferenceError."""
    return session.process.segment().actor(actor_index(creation)).info


def identity_of(ObjectRef creation):
    """(session, record id) of its creation: the same on all nodes."""
    cdef Actor* actor = &session.process.segment().actor(actor_index(creation))
    return actor.id[0], actor.id[1]


def next_id():
    """An id for a record that this process will make."""
    return session.process.next_id()


def hold_actor(Handle creation):
    """(reference, info) of the living actor with this creation record; None when it is gone."""
    cdef Record* r = &session.records[index_of(creation)]
    if word_gen(r.state.load()) != gen_of(creation) or r.kind != kActor:
        return None
    cdef Actor* actor = &session.process.segment().actor(r.cls - kActorClass)
    cdef uint32_t info = actor.info
    ref = make_held_ref(creation)  # from here on it stays; was it still that one?
    if actor.creation.load() != creation or not kActorPending <= actor.state.load() < kActorDead or actor.ending.load():
        return None
    return ref, info


cdef int pid_of(Actor* actor):
    """Of its process, wherever that is; 0: there is none, or its node has not said yet."""
    cdef uint32_t slot = actor.slot.load()
    if actor.flags.load() & kActorForeign:
        return actor.host_pid.load()
    return session.process.segment().proc(slot).pid if slot else 0


def actor_state(ObjectRef creation):
    """(state, pid of its worker or 0, restarts, end, name, namespace, detached) of an actor."""
    cdef Actor* actor = &session.process.segment().actor(actor_index(creation))
    return (actor.state.load(), pid_of(actor), actor.restarts.load(), actor.end.load(),
            (<bytes>actor.name).decode("utf-8", "replace"), (<bytes>actor.name_space).decode("utf-8", "replace"),
            bool(actor.flags.load() & kActorDetached))


def wait_for_end(ObjectRef creation, int pid, int64_t timeout_ns):
    """Sleeps until the actor's process `pid` is dead and the node has settled what it ran. False: not in time."""
    cdef Process* p = session.process
    cdef Actor* actor = &p.segment().actor(actor_index(creation))
    cdef int64_t end = now_ns() + timeout_ns
    cdef Handle none = 0
    cdef uint32_t seen
    while True:
        seen = p.wake_word()  # the node wakes everyone after a death
        if actor.state.load() >= kActorDead or (pid != 0 and pid_of(actor) != pid):
            return True
        if pid == 0 and not actor.flags.load() & kActorForeign:  # it has no process
            return True
        if now_ns() >= end:
            return False
        with nogil:
            p.sleep_on(&none, 0, seen, WAIT_STEP_NS)
        PyErr_CheckSignals()


def is_done(Handle h):
    """True when the record is sealed or gone."""
    return bool(session.process.sealed(h))


def unpack_death(bytes data):
    """An ActorDeath and its texts as a dictionary."""
    cdef ActorDeath d
    data = data.ljust(sizeof(ActorDeath), b"\0")  # a store without room keeps the beginning only
    memcpy(&d, <const char*>data, sizeof(ActorDeath))
    texts = []
    cdef size_t at = sizeof(ActorDeath)
    cdef int i
    for i in range(6):
        texts.append(data[at:at + d.text_bytes[i]])
        at += d.text_bytes[i]
    class_name, name, last, tail = (text.decode("utf-8", "replace") for text in texts[:4])
    return {"id": (d.id[0], d.id[1]), "time_ns": d.time_ns, "end": d.end, "pid": d.pid, "signal": d.signal,
            "exit_code": d.exit_code, "restarts": d.restarts, "max_restarts": d.max_restarts,
            "may_have_run": bool(d.may_have_run), "class_name": class_name, "actor_name": name, "last_call": last,
            "stderr_tail": tail, "cause": texts[4], "events": texts[5], "peak_memory_bytes": d.peak_bytes,
            "uptime_s": d.uptime_ns / 1e9, "oom_kills": d.oom_kills}
