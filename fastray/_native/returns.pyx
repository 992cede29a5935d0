# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Results of tasks that have several: the values of a tuple into their promises, a generator's items into a
stream. Called by the worker's loop (worker.pyx) when a record has kFlagMulti."""
from libc.stdint cimport uint32_t, uint64_t

from fastray._native.cpp cimport (
    ErrorCode,
    Handle,
    Process,
    Record,
    gen_of,
    index_of,
    is_sealed,
    kDone,
    kErrorUser,
    kFlagCancel,
    kFlagResultHeap,
    word_gen,
)
from fastray._native.durable cimport keep_returns
from fastray._native.object_ref cimport session
from fastray._native.streams cimport append_item
from fastray._native.values cimport write_value


cdef int run_stream(Handle h, Record* r, object generator, str name) except -1:
    cdef uint32_t index = 0
    try:
        for value in generator:
            if append_item(h, r, value, None, index) == 0:
                generator.close()
                return 0
            index += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and r.state.load() & kFlagCancel:
            raise
        append_item(h, r, None, dump(error, name, h), index)  # the exception is the stream's last item
    return 0


cdef int seal_returns(Handle h, Record* r, int returns, str name, object result) except -1:
    """One value for each promise; they are checked and written before the first is sealed."""
    cdef const Handle* promises = Process.promise_handles(session.process.segment(), r[0])
    cdef int i
    values = check_returns(returns, name, result) if returns else []
    cdef list flags = []
    cdef int written = 0
    try:
        while written < returns:
            flags.append(write_return(promises[written], values[written]))
            written += 1
        if session.durable != NULL:
            keep_returns(h, promises, values, flags)
    except BaseException:
        for i in range(written):
            if flags[i] is not None and flags[i] & kFlagResultHeap:
                session.process.allocator().release(session.records[index_of(promises[i])].result_heap.offset)
        raise
    for i in range(returns):
        if flags[i] is not None:
            session.process.seal_promise(promises[i], kDone, flags[i])
    return 0


cdef object write_return(Handle h, object value):
    """One return value into its promise; the flags to seal it with, or None when there is nothing to seal."""
    cdef Record* p = &session.records[index_of(h)]
    if word_gen(p.state.load()) != gen_of(h):
        return None  # dropped by its owner
    if is_sealed(p.state.load()):  # by an attempt that died later: the first result stands
        return None
    session.process.revive(h)  # it was lost: now it is there again
    return write_value(h, p, value, True)


cdef list check_returns(int returns, str name, object result):
    from fastray.exceptions import NumReturnsError
    try:
        values = list(result)
    except TypeError:
        raise NumReturnsError(
            f"{name}() has num_returns={returns} but returned one {type(result).__name__}: return a tuple "
            f"or list of {returns} values"
        ) from None
    if len(values) != returns:
        raise NumReturnsError(f"{name}() has num_returns={returns} but returned {len(values)} values")
    return values


cdef object record_failure = None


def record_failures(recorder):
    """`recorder(handle, error)` is called for each task that raised and is not retried, before others see it."""
    global record_failure
    record_failure = recorder


cdef int note_raised(Handle h, object error) except -1:
    """This attempt raised: for the cluster's task table."""
    from fastray.task_error import describe_cause
    return note_failed(h, kErrorUser, describe_cause(error))


cdef int note_failed(Handle h, ErrorCode code, str text) except -1:
    cdef bytes encoded = text.encode("utf-8", "replace")
    session.process.note_failure(session.records[index_of(h)], code, encoded, len(encoded))
    return 0


cdef bytes dump(object error, str name, Handle h):
    from fastray.serialization import dump_exception
    cdef uint64_t record = session.records[index_of(h)].id
    note_raised(h, error)
    if record_failure is not None:
        record_failure(h, error)
    return dump_exception(error, name, f"{session.process.segment().header().session:016x}{record:016x}")
