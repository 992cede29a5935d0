# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""A task's lineage out of its record, for running it again: fastray/recovery/capture.py asks, and nobody else.

Everything is read while the caller holds a reference to the record. Arguments that were let go of, or that are not
done, raise ReplayError.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint32_t, uint64_t

from fastray._native.codec cimport count_arguments, decode_call
from fastray._native.cpp cimport (
    Actor,
    Handle,
    PayloadView,
    Process,
    Record,
    gen_of,
    index_of,
    is_sealed,
    kActor,
    kActorCheckpoints,
    kActorClass,
    kArgsInHeap,
    kDone,
    kErrorUser,
    kFailed,
    kItem,
    kLost,
    kObject,
    kPromise,
    kReadOnly,
    kTask,
    kWaiting,
    make_handle,
    state_of,
    word_gen,
)
from fastray._native.object_ref cimport ObjectRef, check_ref, make_held_ref, session
from fastray._native.values cimport error_bytes, error_of, payload_buffers, payload_references, read_value

STATES = ("free", "waiting", "ready", "running", "done", "failed", "promised", "lost")


cdef object impossible(str why):
    from fastray.exceptions import ReplayError
    return ReplayError(why)


cdef Record* record_of(Handle h) noexcept:
    return &session.records[index_of(h)]


cdef bint lives(Handle h) noexcept:
    return word_gen(record_of(h).state.load()) == gen_of(h)


def task_of(ObjectRef ref):
    """Handle of the task that makes `ref`; 0 when no task does (`put`, an actor's creation)."""
    check_ref(ref)
    return task_of_handle(ref.handle)


def task_of_handle(Handle h):
    """The same for a handle."""
    cdef Record* r = record_of(h)
    if r.kind == kPromise:
        h = r.args_heap.offset
    elif r.kind == kItem:
        h = handle_at(r.parent)
    return h if lives(h) and record_of(h).kind == kTask and record_of(h).id == r.id else 0


def handle_at(uint32_t index):
    """The handle of what stands in record `index` now."""
    return make_handle(index, word_gen(session.records[index].state.load()))


def describe(Handle h):
    """(id, function-table index, state, attempts, function-table index of its runtime_env, index of its actor or -1)."""
    cdef Record* r = record_of(h)
    cdef int actor = r.cls - kActorClass if r.cls >= kActorClass else -1
    return (r.id, r.function, STATES[<int>state_of(r.state.load())], r.attempts,
            session.process.segment().cls(r.cls).runtime_env, actor)


def arguments(Handle h):
    """(positional arguments, keyword arguments), the values of references in place of those at top level."""
    cdef Record* r = record_of(h)
    cdef const unsigned char* codec = r.args
    cdef Py_ssize_t size = r.args_bytes, nargs = 0, slots, i
    cdef uint32_t deps, refs
    cdef list values = None, references = None, buffers = None
    cdef PayloadView view
    cdef PyObject** stack
    cdef PyObject* kwnames = NULL
    cdef const Handle* handles = Process.argument_handles(session.process.segment(), r[0], &deps, &refs)
    if state_of(r.state.load()) == kWaiting:
        raise impossible("it waits for an argument that is not done")
    for i in range(<Py_ssize_t>deps + refs):
        if not lives(handles[i]):
            raise impossible("objects among its arguments are gone: finished tasks keep large ones for a short time only")
    if deps:
        values = [dependency(handles[i]) for i in range(deps)]
    if r.args_bytes == kArgsInHeap:
        view = Process.view_payload(session.process.segment(), r.args_heap.offset)
        codec = view.codec
        size = view.header.codec_bytes
        references = payload_references(view.header)
        buffers = payload_buffers(h, view.header)
    else:
        codec += (deps + refs) * 8
        references = [make_held_ref(handles[deps + i]) for i in range(refs)]
    slots = count_arguments(codec, size)
    stack = <PyObject**>PyMem_Malloc((slots + 1) * sizeof(PyObject*))
    try:
        decode_call(codec, size, values, references, buffers, stack, slots, &nargs, &kwnames)
        names = <object>kwnames if kwnames != NULL else ()
        taken = [<object>stack[i] for i in range(nargs + <Py_ssize_t>len(names))]
        return tuple(taken[:nargs]), dict(zip(names, taken[nargs:]))
    finally:
        for i in range(nargs + (<Py_ssize_t>len(<tuple>kwnames) if kwnames != NULL else 0)):
            Py_DECREF(<object>stack[i])
        if kwnames != NULL:
            Py_DECREF(<object>kwnames)
        PyMem_Free(stack)


cdef object dependency(Handle h):
    cdef Record* r = record_of(h)
    cdef uint64_t w = r.state.load()
    if state_of(w) == kLost:  # computed again
        from fastray._native.wait import get
        return get(make_held_ref(h))
    if not is_sealed(w):
        raise impossible("an argument of it is not done")
    if state_of(w) == kFailed:
        raise impossible(
            f"it never ran, because an argument failed: replay task "
            f"{session.process.segment().header().session:016x}{r.id:016x} instead"
        ) from error_of(r)
    return read_value(h, r)


def error_of_handle(Handle h):
    """The exception in a failed record, which somebody holds for us."""
    return error_of(record_of(h))


def is_done(ObjectRef ref):
    """True when its value is there, and no error."""
    check_ref(ref)
    return state_of(record_of(ref.handle).state.load()) == kDone


def was_logged(Handle h):
    """True when a call of an actor that keeps a log stood in it once: it ran to an end, and is not read-only."""
    cdef Record* r = record_of(h)
    cdef uint64_t w = r.state.load()
    cdef bytes error
    if not is_sealed(w) or session.process.segment().function(r.function).flags & kReadOnly:
        return False
    if state_of(w) == kDone:
        return True
    error = error_bytes(r)
    return error[0] == kErrorUser


def actor_part(int index, Handle call):
    """What the actor with this index keeps: (handle of its creation, its class's function-table index, does it keep
    a log, reference to the last checkpoint or None, handles of the logged calls since). None when it is another's."""
    cdef Actor* actor = &session.process.segment().actor(index)
    cdef Handle creation = actor.creation.load()
    cdef uint64_t mine = record_of(call).id, n
    if creation == 0 or not lives(creation) or record_of(creation).kind != kActor:
        return None
    cdef uint64_t its = record_of(creation).id
    if its >> 40 == mine >> 40 and its > mine:  # of a later actor that has the entry now
        return None
    cdef Handle checkpoint = actor.checkpoint.load()
    cdef list log = []
    for n in range(actor.log_start.load(), actor.log_end.load()):
        log.append(session.process.segment().actor_log(index, n).load())
    return (creation, record_of(creation).function, bool(actor.flags.load() & kActorCheckpoints),
            None if checkpoint == 0 else make_held_ref(checkpoint), [h for h in log if lives(h)])
