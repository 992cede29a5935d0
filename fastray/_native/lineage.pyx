# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Lineage as this process sees it: the records behind a reference, and giving the data of results back.

The work is in csrc/process_lineage.cpp; `fastray.recovery.lineage` makes sense of the rows.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastray._native.cpp cimport (
    Handle,
    Process,
    Record,
    gen_of,
    index_of,
    kActor,
    kFlagRefs,
    kFlagResultHeap,
    kItem,
    kObject,
    kPromise,
    kTask,
    state_of,
    word_gen,
)
from fastray._native.object_ref cimport ObjectRef, check_ref, session
from fastray._native.values import name_of

STATES = ("freed", "waiting", "ready", "running", "done", "failed", "promised", "lost")


def evict(ObjectRef ref, bint also_lost):
    """True when the memory of this result was given back; see `fastray.evict`."""
    check_ref(ref)
    return bool(session.process.evict(ref.handle, also_lost))


def handle_of(ObjectRef ref):
    check_ref(ref)
    return ref.handle


def row(Handle h):
    """(kind, state, function, bytes of its payload, attempts, max_retries, arguments) of a record; arguments are
    handles, or None when the task has let go of them. A freed record has the state "freed"."""
    cdef Record* r = &session.records[index_of(h)]
    cdef uint64_t w = r.state.load()
    cdef uint32_t deps = 0, refs = 0, i
    cdef const Handle* handles
    cdef uint64_t size = 0
    if word_gen(w) != gen_of(h):
        if session.process.is_filed(h):  # lineage over its budget: in this process's file
            return "task", "lost", "filed task", 0, 0, -1, []
        return "freed", "freed", "", 0, 0, 0, []
    kind = {kTask: "task", kObject: "put", kPromise: "return", kItem: "item", kActor: "actor"}[<int>r.kind]
    if w & kFlagResultHeap:
        size = Process.view_payload(session.process.segment(), r.result_heap.offset).header.total_bytes
    arguments = []
    if r.kind == kPromise:
        arguments = [r.args_heap.offset]
    elif r.kind == kTask:
        handles = Process.argument_handles(session.process.segment(), r[0], &deps, &refs)
        arguments = [handles[i] for i in range(deps)]
        if deps + refs and not w & kFlagRefs:
            arguments = None
    name = "" if r.kind == kObject else name_of(r.function)
    return (kind, STATES[<int>state_of(w)], name, size, r.attempts,
            session.process.segment().function(r.function).max_retries, arguments)
