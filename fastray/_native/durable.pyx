# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Durable sessions, where tasks run: results of earlier sessions instead of running, results into the log.

The worker's loop calls `recall` before a task and `keep_result` or `keep_returns` before it is sealed, when
`session.durable` is set; keys, index and log are C++ (csrc/durable.h). `Logs` is the driver's side, used by
fastray/recovery/durable.py.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.vector cimport vector

from fastray._native.codec cimport Encoder, acquire_encoder, release_encoder
from fastray._native.cpp cimport (
    Content,
    Durable,
    DurableArea,
    DurableLogs,
    EntryFlag,
    EntryView,
    Handle,
    Key,
    LogPart,
    Offset,
    PayloadHeader,
    PayloadShape,
    PayloadView,
    Process,
    Record,
    absorb,
    gen_of,
    index_of,
    is_sealed,
    kDone,
    kEntryInline,
    kEntryKindMask,
    kEntryPayload,
    kEntryReturns,
    kFlagMulti,
    kFlagRefs,
    kFlagResultHeap,
    now_ns,
    word_gen,
)
from fastray._native.object_ref cimport session
from fastray._native.decoder import loads_call
from fastray._native.values cimport copy_buffer, payload_buffers, payload_references, store_encoded, wait_for_room
from fastray._native.wait cimport wait_handles
from fastray._native.worker cimport Loaded

cdef enum:
    REFERENCES_NS = 200000000  # a task waits that long for references in its arguments, if it may have a result
    LONG_BYTES = 1 << 20       # copied without the GIL


# ---- a task starts ------------------------------------------------------------------------------------

cdef bint recall(Handle h, Record* r, Loaded f) except -1:
    cdef Durable* d = session.durable
    cdef EntryView entry
    cdef Key arguments
    if f.digest.lo != 0 and d.holds_code(h):
        arguments = arguments_key(h, r)
        if arguments.lo == 0:
            d.begin(h, arguments, NULL, 0, arguments)
            return False
    cdef Content known = d.begin(h, f.digest, f.captured.data(), f.captured.size(), arguments)
    if f.streaming or known == Content.kNever or not d.may_recall(h):
        return False
    if known == Content.kNotYet:
        await_references(h)
        known = d.begin(h, f.digest, f.captured.data(), f.captured.size(), arguments)
    if known != Content.kKnown or not d.recall(h, &entry):
        return False
    cdef uint64_t flags = 0
    if r.state.load() & kFlagMulti:
        write_returns(h, r, entry)
    else:
        flags = write_entry(h, r, entry.flags & kEntryKindMask, entry.data, entry.bytes)
    session.process.seal(h, kDone, flags)
    return True


cdef Key arguments_key(Handle h, Record* r):
    """What stands for arguments with functions or classes in them, whose pickles differ from run to run; 0 when
    nothing can."""
    from fastray.recovery.code_digest import digest_of
    cdef PayloadView view = Process.view_payload(session.process.segment(), r.args_heap.offset)
    cdef bytes codec = (<const char*>view.codec)[:view.header.codec_bytes]
    cdef Key key
    try:
        dependencies = [f"dependency {i}" for i in range(view.header.dependencies)]
        call = loads_call(codec, dependencies, payload_references(view.header), payload_buffers(h, view.header))
        return key_of(digest_of(call, opaque=False))
    except Exception:
        return key


cdef Key key_of(bytes digest) noexcept:
    cdef Key key
    memcpy(&key, <const char*>digest, sizeof(Key))
    key.lo |= 1
    return key


cdef int await_references(Handle h) except -1:
    """Sleeps until the references in the arguments are done, at most REFERENCES_NS: only then is the key known."""
    cdef int64_t deadline = now_ns() + REFERENCES_NS
    cdef vector[Handle] left = session.durable.open_references(h)
    cdef Handle last
    while not left.empty():
        last = left.back()
        if wait_handles(&last, 1, session.process.wake_word(), deadline) == 0:
            return 0
        left = session.durable.open_references(h)
    return 0


cdef uint64_t write_entry(Handle h, Record* r, int kind, const uint8_t* data, uint64_t size) except? 0xFFFFFFFF:
    """A kept value into the result line or a payload of h; the flags to seal it with."""
    if kind == kEntryInline:
        memcpy(r.result, data, size)
        r.result_bytes = <uint32_t>size
        return 0
    cdef PayloadHeader header
    cdef vector[uint64_t] sizes
    cdef PayloadShape shape
    cdef PayloadView view
    cdef uint32_t i
    memcpy(&header, data, sizeof(PayloadHeader))
    cdef uint64_t at = sizeof(PayloadHeader) + (header.codec_bytes + 7 & ~<uint64_t>7)
    sizes.resize(header.buffers)
    if header.buffers:
        memcpy(sizes.data(), data + at, 8 * header.buffers)
    at += 8 * header.buffers
    shape.handles = NULL
    shape.dependencies = shape.references = 0
    shape.codec = data + sizeof(PayloadHeader)
    shape.codec_bytes = header.codec_bytes
    shape.buffer_bytes = sizes.data()
    shape.buffers = header.buffers
    cdef Offset offset = session.process.make_payload(shape, h, &view)
    if offset == 0:
        offset = wait_for_room(shape, h, &view, header.total_bytes)
    for i in range(header.buffers):
        at = at + 63 & ~<uint64_t>63
        copy_buffer(view.buffer(i), <unsigned char*>data + at, sizes[i])
        at += sizes[i]
    r.result_heap.offset = offset
    r.result_bytes = header.codec_bytes
    return kFlagResultHeap


cdef int write_returns(Handle h, Record* r, const EntryView& entry) except -1:
    """Several kept values into the promises of h, then all are sealed."""
    cdef const Handle* promises = Process.promise_handles(session.process.segment(), r[0])
    cdef uint64_t head, at = 0
    cdef uint32_t i
    cdef Record* p
    cdef list flags = []
    for i in range(r.ret):
        memcpy(&head, entry.data + at, 8)
        p = &session.records[index_of(promises[i])]
        if word_gen(p.state.load()) != gen_of(promises[i]) or is_sealed(p.state.load()):
            flags.append(None)
        else:
            flags.append(write_entry(promises[i], p, head >> 56, entry.data + at + 8, head & 0xFFFFFFFFFFFFFF))
        at += 8 + (head & 0xFFFFFFFFFFFFFF)
    for i in range(r.ret):
        if flags[i] is not None:
            session.process.seal_promise(promises[i], kDone, flags[i])
    return 0


# ---- a task ends --------------------------------------------------------------------------------------

cdef int keep_result(Handle h, Record* r, uint64_t flags) except -1:
    cdef LogPart part
    cdef EntryFlag kind = kEntryInline
    if flags & kFlagRefs or not session.durable.wants(h):
        return 0
    if flags & kFlagResultHeap:
        kind = kEntryPayload
        part = payload_part(r)
    else:
        part.data = r.result
        part.bytes = r.result_bytes
    return keep(h, kind, &part, 1)


cdef LogPart payload_part(Record* r) noexcept:
    cdef LogPart part
    cdef PayloadView view = Process.view_payload(session.process.segment(), r.result_heap.offset)
    part.data = view.header
    part.bytes = view.header.total_bytes
    return part


cdef int keep(Handle h, EntryFlag kind, const LogPart* parts, int n) except -1:
    cdef bint kept
    if parts[n - 1].bytes < LONG_BYTES:
        kept = session.durable.keep(h, kind, parts, n)
    else:
        with nogil:
            kept = session.durable.keep(h, kind, parts, n)
    if not kept:
        say_that_nothing_is_kept()
    return 0


cdef int say_that_nothing_is_kept() except -1:
    if session.durable.warn_once():
        from fastray.recovery.durable import warn_not_kept
        warn_not_kept(session.durable.problem().decode("utf-8", "replace"))
    return 0


cdef int keep_returns(Handle h, const Handle* promises, list values, list flags) except -1:
    cdef vector[LogPart] parts
    cdef vector[uint64_t] heads
    cdef LogPart part
    cdef Py_ssize_t i, n = len(values)
    cdef list dropped = []  # payloads of values that nobody asked for
    if not session.durable.wants(h):
        return 0
    heads.resize(n + 1)
    try:
        for i in range(n):
            written = flags[i]
            if written is None:
                data = encoded_alone(promises[i], values[i], dropped)
                if data is None:
                    return 0
                part.data, part.bytes = <const char*><bytes>data, len(data)
                heads[i] = <uint64_t>kEntryPayload << 56 | part.bytes
                dropped.append(data)
            elif written & kFlagRefs:
                return 0
            elif written & kFlagResultHeap:
                part = payload_part(&session.records[index_of(promises[i])])
                heads[i] = <uint64_t>kEntryPayload << 56 | part.bytes
            else:
                part.data = session.records[index_of(promises[i])].result
                part.bytes = session.records[index_of(promises[i])].result_bytes
                heads[i] = part.bytes
            push_head(parts, &heads[i])
            parts.push_back(part)
        if n == 0:
            push_head(parts, &heads[0])
        return keep(h, kEntryReturns, parts.data(), <int>parts.size())
    finally:
        dropped.clear()


cdef int push_head(vector[LogPart]& parts, uint64_t* head) except -1:
    cdef LogPart part
    part.data = head
    part.bytes = 8
    parts.push_back(part)
    return 0


cdef bytes encoded_alone(Handle h, object value, list dropped):
    """The image of a payload with the value; None when it holds references."""
    cdef Encoder e = acquire_encoder()
    cdef Offset offset
    cdef PayloadView view
    try:
        e.encode_value(value)
        if e.references is not None:
            return None
        offset = store_encoded(h, e)
        try:
            view = Process.view_payload(session.process.segment(), offset)
            return (<const char*>view.header)[:view.header.total_bytes]
        finally:
            session.process.allocator().release(offset)
    finally:
        release_encoder(e)


# ---- the process --------------------------------------------------------------------------------------

def open_log():
    """Tasks that run in this process are durable from now on, if the session is; "" or what went wrong."""
    cdef Durable* d
    if session.process.segment().header().durable == 0:
        return ""
    d = new Durable()
    cdef string problem = d.open(session.process)
    session.durable = d
    return problem.decode("utf-8", "replace")


def close_log(bint forked=False):
    """Ends it; `forked`: in a child, which leaves the file to its parent."""
    if session.durable == NULL:
        return
    if forked:
        session.durable.abandon()
    else:
        session.durable.close()
    del session.durable
    session.durable = NULL


cdef class Logs:
    """The logs of a durable path, as they are read at the start of a session (csrc/durable_index.h)."""
    cdef DurableLogs logs
    cdef readonly int writer  # pid of a process that still writes one of them; 0: none

    def __cinit__(self, str path, int wait_ms):
        import os
        cdef string name = os.fsencode(path)
        cdef string problem
        cdef int writer = 0
        with nogil:
            problem = self.logs.load(name, wait_ms, &writer)
        self.writer = writer
        check(problem)

    def compact(self, bint always=False):
        """Rewrites what tasks may still take, when that is less than half. Raises OSError."""
        cdef string problem
        with nogil:
            problem = self.logs.compact(always)
        check(problem)

    @property
    def counts(self):
        """files, bytes, entries, and of the entries those that tasks may take."""
        counts = self.logs.counts()
        return {"files": counts.files, "bytes": counts.bytes, "entries": counts.entries, "live": counts.live,
                "live_bytes": counts.live_bytes}

    @property
    def area_bytes(self):
        """What the index needs in the segment."""
        return self.logs.area_bytes()

    def fill(self, size_t address):
        """Writes the index into the segment's area at `address`, before others attach."""
        self.logs.fill(<DurableArea*>address)


cdef int check(const string& problem) except -1:
    if problem.size() != 0:
        raise OSError(problem.decode("utf-8", "replace"))
    return 0


def content_key(data):
    """16 bytes that stand for the bytes of a buffer (C-contiguous)."""
    cdef Py_buffer view
    cdef Key key
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len < LONG_BYTES:
            key = absorb(key, view.buf, view.len)
        else:
            with nogil:
                key = absorb(key, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return key.lo.to_bytes(8, "little") + key.hi.to_bytes(8, "little")
