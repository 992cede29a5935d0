# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Values in records: writing a result, reading it back, turning an error code into an exception.

A value of up to 48 encoded bytes stands in the record's result line. A longer one is a payload
(csrc/types.h, PayloadHeader): handles of the references in it, codec bytes, then the out-of-band buffers,
which `get` returns as read-only views without copying. A failed record holds an error code and what
belongs to it; `decode_error` is the one place where codes become exceptions.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastray._native.codec cimport (
    Encoder,
    acquire_encoder,
    decode_value,
    decode_value_writable,
    encode_value_inline,
    release_encoder,
)
from fastray._native.cpp cimport (
    Handle,
    Offset,
    PayloadHeader,
    PayloadShape,
    PayloadView,
    Process,
    Record,
    Stream,
    kErrorActorDied,
    kErrorAgent,
    kErrorActorUnavailable,
    kErrorCancelled,
    kErrorCrashed,
    kErrorGroupRemoved,
    kErrorLost,
    kErrorOwnerDied,
    kErrorStoreFull,
    kErrorUser,
    kFailed,
    kStreaming,
    kFlagMulti,
    kFlagRefs,
    kFlagResultHeap,
    kInlineResult,
    index_of,
    now_ns,
    state_of,
)
from fastray._native.object_ref cimport ObjectRef, Stored, check_ref, make_held_ref, make_stored, session


cdef enum:
    FULL_WAIT_NS = 1000000000  # a full store: wait that long for room, then raise
    FULL_STEP_NS = 2000000


# ---- reading ----------------------------------------------------------------------------------------

cdef list payload_references(PayloadHeader* header):
    if header.references == 0:
        return None
    cdef Handle* handles = <Handle*>(header + 1)
    cdef uint32_t i
    return [make_held_ref(handles[header.dependencies + i]) for i in range(header.references)]


cdef list payload_buffers(Handle h, PayloadHeader* header):
    if header.buffers == 0:
        return None
    cdef Offset offset = <unsigned char*>header - session.process.segment().base()
    cdef PayloadView view = Process.view_payload(session.process.segment(), offset)
    cdef uint32_t i
    return [make_stored(h, view.buffer(i), view.buffer_bytes[i], False) for i in range(header.buffers)]


cdef object read_value(Handle h, Record* r):
    cdef uint64_t w = r.state.load()
    cdef PayloadHeader* header
    if state_of(w) == kFailed:
        raise error_of(r)
    if w & kFlagMulti:
        return None  # the task behind several returns or a stream: it only says that it is done
    if not w & kFlagResultHeap:
        return decode_value(r.result, r.result_bytes, None, None)
    cdef PayloadView view = Process.view_payload(session.process.segment(), r.result_heap.offset)
    header = view.header
    if header.references == 0 and header.buffers == 0:
        return decode_value(view.codec, r.result_bytes, None, None)
    return decode_value(view.codec, r.result_bytes, payload_references(header), payload_buffers(h, header))


cdef object read_value_writable(Handle h, Record* r):
    """Like read_value, but the arrays of the value are private copies the caller may write to."""
    cdef uint64_t w = r.state.load()
    if state_of(w) == kFailed or w & kFlagMulti:
        return read_value(h, r)
    if not w & kFlagResultHeap:
        return decode_value_writable(r.result, r.result_bytes, None, None)
    cdef PayloadView view = Process.view_payload(session.process.segment(), r.result_heap.offset)
    cdef list buffers = None
    if view.header.buffers:
        buffers = [bytearray(b) for b in payload_buffers(h, view.header)]
    return decode_value_writable(view.codec, r.result_bytes, payload_references(view.header), buffers)


# ---- writing ----------------------------------------------------------------------------------------

cdef object store_full(uint64_t size):
    from fastray.exceptions import ObjectStoreFullError
    cdef uint64_t capacity = session.process.segment().header().object_store_bytes
    return ObjectStoreFullError(
        f"the object store has no room for {size:,} bytes more (capacity {capacity:,} bytes). Drop references "
        "you no longer need, or start with a larger store: init(object_store_memory=...)."
    )


cdef Offset store_encoded(Handle h, Encoder e) except 0:
    cdef PayloadShape shape
    cdef PayloadView view
    cdef Py_ssize_t i, n_deps = 0, n_refs = 0, n_buffers = 0, total = e.size
    cdef Handle* handles = NULL
    cdef Py_buffer* buffers = NULL
    cdef uint64_t* sizes = NULL
    cdef Offset offset = 0
    cdef Py_ssize_t open_buffers = 0
    if e.dependencies is not None:
        n_deps = len(e.dependencies)
    if e.references is not None:
        n_refs = len(e.references)
    if e.buffers is not None:
        n_buffers = len(e.buffers)
    try:
        if n_deps + n_refs:
            handles = <Handle*>PyMem_Malloc((n_deps + n_refs) * sizeof(Handle))
            for i in range(n_deps):
                handles[i] = (<ObjectRef>e.dependencies[i]).handle
            for i in range(n_refs):
                handles[n_deps + i] = (<ObjectRef>e.references[i]).handle
        if n_buffers:
            buffers = <Py_buffer*>PyMem_Malloc(n_buffers * sizeof(Py_buffer))
            sizes = <uint64_t*>PyMem_Malloc(n_buffers * sizeof(uint64_t))
            for i in range(n_buffers):
                PyObject_GetBuffer(e.buffers[i], &buffers[i], PyBUF_SIMPLE)
                open_buffers += 1
                sizes[i] = buffers[i].len
                total += buffers[i].len
        shape.handles = handles
        shape.dependencies = n_deps
        shape.references = n_refs
        shape.codec = e.data
        shape.codec_bytes = e.size
        shape.buffer_bytes = sizes
        shape.buffers = n_buffers
        offset = session.process.make_payload(shape, h, &view)
        if offset == 0:
            offset = wait_for_room(shape, h, &view, total)
        for i in range(n_buffers):
            copy_buffer(view.buffer(i), <unsigned char*>buffers[i].buf, buffers[i].len)
        return offset
    finally:
        for i in range(open_buffers):
            PyBuffer_Release(&buffers[i])
        PyMem_Free(handles)
        PyMem_Free(buffers)
        PyMem_Free(sizes)


cdef Offset wait_for_room(const PayloadShape& shape, Handle h, PayloadView* view, uint64_t total) except 0:
    """The store is full: asks every process to give back what it can, for a second; then raises."""
    cdef Process* p = session.process
    cdef int64_t deadline = now_ns() + FULL_WAIT_NS
    cdef uint32_t slot
    cdef Handle none = 0
    cdef Offset offset = 0
    while total <= p.segment().header().object_store_bytes and now_ns() < deadline:
        for slot in range(1, p.segment().header().procs_used.load()):
            Process.wake_process(p.segment(), slot)
        with nogil:
            p.sleep_on(&none, 0, p.wake_word(), FULL_STEP_NS)
        PyErr_CheckSignals()
        offset = p.make_payload(shape, h, view)
        if offset != 0:
            return offset
    raise store_full(total)


cdef int copy_buffer(unsigned char* to, unsigned char* source, Py_ssize_t size) except -1:
    if size < 1 << 20:
        memcpy(to, source, size)
    else:
        with nogil:
            memcpy(to, source, size)
    return 0


cdef uint64_t write_value(Handle h, Record* r, object value, bint contain) except? 0xFFFFFFFF:
    cdef Py_ssize_t n = encode_value_inline(<PyObject*>value, r.result, kInlineResult)
    if n >= 0:
        r.result_bytes = <uint32_t>n
        return 0
    cdef Encoder e = acquire_encoder()
    cdef uint64_t flags = 0
    cdef Offset offset
    try:
        e.encode_value(value)
        if e.size <= <Py_ssize_t>kInlineResult and e.references is None and e.buffers is None:
            memcpy(r.result, e.data, e.size)
            r.result_bytes = <uint32_t>e.size
            return 0
        if e.references is not None:
            for ref in e.references:
                check_ref(<ObjectRef>ref)
        offset = store_encoded(h, e)
        r.result_heap.offset = offset
        r.result_bytes = <uint32_t>e.size
        flags = kFlagResultHeap
        if e.references is not None:
            flags |= kFlagRefs
            keep_references(h, e.references, contain)
        return flags
    finally:
        release_encoder(e)


cdef int keep_references(Handle h, list references, bint contain) except -1:
    cdef ObjectRef ref
    for ref in references:
        if not contain:
            session.process.hold(ref.handle)
        elif not session.process.contain(ref.handle, h):
            raise MemoryError("this process borrows more than 1,048,576 objects of others")
    return 0


# ---- errors -----------------------------------------------------------------------------------------

cdef bytes error_bytes(Record* r):
    """The error as it stands in a failed record: one byte of ErrorCode, then what belongs to it."""
    cdef PayloadView view
    cdef Offset offset = 0
    if r.state.load() & kFlagMulti:
        if not session.process.segment().function(r.function).flags & kStreaming:
            return bytes([kErrorCancelled])  # the returns have the error
        offset = (<Stream*>r.result).error
        if offset == 0:
            return bytes([kErrorCancelled])
    elif r.state.load() & kFlagResultHeap:
        offset = r.result_heap.offset
    if offset != 0:
        view = Process.view_payload(session.process.segment(), offset)
        return (<const char*>view.codec)[:view.header.codec_bytes]
    return (<const char*>r.result)[:r.result_bytes]


cdef object error_of(Record* r):
    cdef bytes error = error_bytes(r)
    return decode_error(<const uint8_t*><const char*>error, len(error), r)


cdef object record_crash = None


def record_crashes(recorder):
    """`recorder(index of the record, error)` is called when this process reads the error of a crash."""
    global record_crash
    record_crash = recorder


cdef object decode_error(const uint8_t* data, uint64_t size, Record* r):
    from fastray import exceptions
    if size == 0:
        return exceptions.TaskCancelledError()
    cdef int code = data[0]
    cdef bytes rest = (<const char*>data)[1:size]
    if code == kErrorUser:
        from fastray.serialization import load_exception
        return load_exception(rest)
    if code == kErrorCancelled:
        return exceptions.TaskCancelledError()
    if code == kErrorCrashed:
        from fastray.crash_report import read_crash
        crash = read_crash(rest, session.process.segment().header().session, name_of)
        if record_crash is not None:
            record_crash(index_of(session.process.handle_of(r)), crash)
        return crash
    if code == kErrorStoreFull:
        return store_full(int.from_bytes(rest[:8], "little"))
    if code == kErrorActorDied or code == kErrorActorUnavailable:
        from fastray.actor_errors import actor_error
        return actor_error(rest, code == kErrorActorUnavailable, function_name(r))
    if code == kErrorAgent:
        import pickle
        return pickle.loads(rest)
    if code == kErrorOwnerDied:
        return exceptions.OwnerDiedError()
    if code == kErrorGroupRemoved:
        return exceptions.TaskPlacementGroupRemoved()
    if code == kErrorLost:
        return lost_error(rest)
    return exceptions.RuntimeSystemError(rest.decode("utf-8", "replace"))


cdef str function_name(Record* r):
    return name_of(r.function)


cdef object lost_error(bytes data):
    """What Process::give_up wrote: the reason, the id (8 bytes) and return number (4) of the object, the chain."""
    from fastray.exceptions import ObjectReconstructionFailedError
    cdef uint64_t ident = int.from_bytes(data[1:9], "little"), of_session = session.process.segment().header().session
    cdef uint32_t ret = int.from_bytes(data[9:13], "little")
    name = of_session.to_bytes(8, "big") + ident.to_bytes(8, "big") + ret.to_bytes(4, "big")
    reason = LOST_REASONS.get(data[0], "unknown")
    return ObjectReconstructionFailedError(
        name.hex(), reason, f"its data is gone and {reason}: {data[13:].decode('utf-8', 'replace')}"
    )


LOST_REASONS = {
    1: "no task makes it (it came from put() or a generator)",
    2: "the arguments of its task are gone too (let go of, or their owner died with its file of old lineage)",
    3: "its task may not run again (max_retries)",
}


def name_of(uint32_t function):
    """Name of function-table entry `function`."""
    return (<bytes>session.process.segment().function(function).name).decode("utf-8", "replace")
