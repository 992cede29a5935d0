# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Streaming generators: a task whose results come one by one.

The task's result line is a `Stream` (csrc/types.h), a list of item records; csrc/process_returns.cpp links and
takes them. A task that is run again skips the items already there, so the consumer sees each index once. An
exception becomes the last item; a crash for good, the stream's own error.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastray._native.cpp cimport (
    Handle,
    Process,
    Record,
    Stream,
    Wake,
    index_of,
    is_sealed,
    kDone,
    kErrorUser,
    kFlagCancel,
    kFailed,
    kFlagDetached,
    state_of,
)
from fastray._native.object_ref cimport ObjectRef, check_ref, make_held_ref, make_ref, session
from fastray._native.values cimport error_of, write_value
from fastray._native.wait cimport deadline_of, wait_handles


cdef enum:
    CHECK_NS = 500000000  # a producer without room looks this often whether its consumer still lives


cdef inline Stream* stream_of(Record* r) noexcept:
    return &Process.stream_of(r[0])


cdef object make_stream(Record* r, Handle h, uint32_t ahead_max):
    cdef Stream* s = stream_of(r)
    s.first.store(0)
    s.produced.store(0)
    s.consumed.store(0)
    s.cursor.store(0)
    s.ahead_max = ahead_max
    s.producer_sleeps.store(0)
    s.error = 0
    s.last.store(0)
    cdef ObjectRefGenerator g = ObjectRefGenerator.__new__(ObjectRefGenerator)
    g.task = make_ref(h)
    return g


cdef class ObjectRefGenerator:
    """Iterates over the ObjectRefs of a streaming task as they are made; also `async for` (Ray's ObjectRefGenerator)."""

    cdef ObjectRef task
    cdef bint failed

    def __init__(self):
        raise TypeError("generators come from f.remote() of a task with num_returns='streaming'")

    def __iter__(self):
        return self

    def __next__(self):
        ref = self._next(None)
        if ref is None:
            raise StopIteration
        return ref

    def _next(self, timeout):
        """The next reference; None at the end. Raises GetTimeoutError when none came in `timeout` seconds."""
        cdef Record* t
        cdef Stream* s
        cdef Handle item
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t seen
        while True:
            check_ref(self.task)
            seen = session.process.wake_word()
            t = &session.records[index_of(self.task.handle)]
            s = stream_of(t)
            item = session.process.take_item(self.task.handle)
            if item != 0:
                return make_ref(item)
            if is_sealed(t.state.load()):
                if s.produced.load() > s.consumed.load():
                    continue
                if state_of(t.state.load()) == kFailed and not self.failed:
                    self.failed = True
                    raise error_of(t)  # once, after the items made before
                return None
            if wait_handles(&self.task.handle, 1, seen, deadline) == 0:
                from fastray.exceptions import GetTimeoutError
                raise GetTimeoutError(f"no new item of {self.task!r} within {timeout} s")

    def completed(self):
        """A reference that is done when the whole task is (its value is None)."""
        check_ref(self.task)
        return make_held_ref(self.task.handle)

    def is_finished(self):
        """True when the task has ended and every item was taken."""
        check_ref(self.task)
        cdef Record* t = &session.records[index_of(self.task.handle)]
        cdef bint sealed = is_sealed(t.state.load())
        return sealed and stream_of(t).produced.load() == stream_of(t).consumed.load()

    def _task(self):
        """The reference that is done when the task is."""
        return self.task

    def next_ready(self):
        """True when `next()` would not wait."""
        check_ref(self.task)
        cdef Record* t = &session.records[index_of(self.task.handle)]
        cdef bint sealed = is_sealed(t.state.load())
        return sealed or stream_of(t).produced.load() > stream_of(t).consumed.load()

    def __aiter__(self):
        return self

    async def __anext__(self):
        import asyncio
        if not self.next_ready():
            loop = asyncio.get_running_loop()
            ref = await loop.run_in_executor(None, self._next, None)
        else:
            ref = self._next(None)
        if ref is None:
            raise StopAsyncIteration
        return ref

    def __reduce__(self):
        raise TypeError("an ObjectRefGenerator cannot be passed on: pass the references it yields")

    def __repr__(self):
        return f"ObjectRefGenerator({self.task.hex()})"


# ---- worker side -------------------------------------------------------------------------------------

cdef int append_item(Handle task, Record* t, object value, bytes error, uint32_t index) except -1:
    """Adds item `index`; 0 when the consumer is gone (the generator should be closed), else 1."""
    cdef Stream* s = stream_of(t)
    if t.state.load() & kFlagDetached:
        return 0
    if index < s.produced.load():
        return 1  # an attempt that died had made it
    cdef Record* r = session.process.begin_item(task, index)
    if r == NULL:
        raise MemoryError("no record for a stream item")
    cdef Handle h = session.process.handle_of(r)
    cdef uint64_t flags = 0
    try:
        if error is None:
            flags = write_value(h, r, value, True)
        else:
            session.process.write_error(r[0], kErrorUser, <const char*>error, len(error), &flags, h)
    except BaseException:
        session.process.unallocate(r)
        raise
    session.process.append_item(task, r, kDone if error is None else kFailed, flags)
    return wait_for_room(t, s)


cdef int wait_for_room(Record* t, Stream* s) except -1:
    """Backpressure: sleeps while the consumer is `ahead_max` items behind."""
    cdef Handle none = 0
    cdef uint32_t seen
    if s.ahead_max == 0:
        return 1
    s.producer_sleeps.store(session.slot + 1)
    try:
        while True:
            seen = session.process.wake_word()
            if s.produced.load() - s.consumed.load() < s.ahead_max:
                return 1
            if t.state.load() & (kFlagDetached | kFlagCancel):
                return 0
            with nogil:
                session.process.sleep_on(&none, 0, seen, CHECK_NS)
            PyErr_CheckSignals()
    finally:
        s.producer_sleeps.store(0)
