# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""References to records, and the buffers that keep records alive.

An `ObjectRef` is a handle (record index + generation) and the session it belongs to: 32 bytes, no
dictionary, not tracked by the garbage collector. Each instance is one *hold* on its record; dropping the
last one lets the owner free it. `Stored` is the same for the memory of a payload: a numpy array over it
keeps it, it keeps the record.

The session is this process's attachment to a node. It is set once by `fastray.runtime` and read by every
fast path of this package; nothing above this package sees it.
"""
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport Py_EQ, Py_NE, PyObject
from cpython.ref cimport Py_DECREF

from fastray._native.codec cimport note_reference
from fastray._native import codec as _codec
from fastray._native.cpp cimport Handle, Process, Record, index_of, kDone, kFlagResultHeap, kItem, kPromise

session.process = NULL
session.records = NULL
session.epoch = 0
session.slot = 0
session.local = False
session.parent = 0
session.depth = 0
session.durable = NULL


cdef void attach_session(Process* process, bint local) noexcept:
    session.local = local
    session.process = process
    session.records = process.segment().records()
    session.slot = process.slot()
    session.epoch += 1
    session.stored = 0
    session.parent = 0
    session.concurrent = False
    session.depth = 0


cdef void detach_session() noexcept:
    session.epoch += 1  # from now on every reference of it is stale
    session.process = NULL
    session.records = NULL


cdef int check_attached() except -1:
    if session.process != NULL:
        return 0
    from fastray.runtime import ensure_attached
    ensure_attached()
    return 0


cdef int check_ref(ObjectRef ref) except -1:
    if ref.epoch == session.epoch and session.process != NULL:
        return 0
    from fastray.exceptions import StaleReferenceError
    raise StaleReferenceError(
        f"{ref!r} belongs to a fastray session that has ended (shutdown() was called, or this process was "
        "forked from the one that made it). Its value is gone: submit the task or put() the object again."
    )


cdef class ObjectRef:
    """A reference to the (future) result of a task or of `put` (paper, section 3.1; Ray's ObjectRef).

    Hashable and comparable by identity of the object. Pass it to tasks, `get`, `wait`; `await` it; turn it
    into a `concurrent.futures.Future` with `future()`.
    """

    def __init__(self):
        raise TypeError("ObjectRef cannot be made by hand: they come from f.remote() and put()")

    def __hash__(self):
        return <Py_hash_t>(self.handle * 0x9E3779B97F4A7C15ull >> 1)

    def __richcmp__(self, other, int op):
        if op != Py_EQ and op != Py_NE:
            return NotImplemented
        if type(other) is not ObjectRef:
            return NotImplemented
        cdef ObjectRef b = <ObjectRef>other
        same = (<ObjectRef>self).handle == b.handle and (<ObjectRef>self).epoch == b.epoch
        return same if op == Py_EQ else not same

    def binary(self):
        """The 20-byte id: 8 of the session, 8 of (owner, sequence), 4 of the return number."""
        a, b, c = ids_of(self)
        return a.to_bytes(8, "big") + b.to_bytes(8, "big") + c.to_bytes(4, "big")

    def hex(self):
        """The id as 40 hexadecimal digits."""
        return self.binary().hex()

    def task_id(self):
        """The id of the task that makes it (16 bytes in hexadecimal)."""
        return self.binary()[:16].hex()

    def is_nil(self):
        return False

    def __repr__(self):
        if self.epoch != session.epoch or session.process == NULL:
            return f"ObjectRef(stale, {self.handle:016x})"
        return f"ObjectRef({self.hex()})"

    def __reduce__(self):
        check_ref(self)
        cdef Py_ssize_t index = note_reference(self)
        if index >= 0:
            return _codec.take_reference, (index,)
        from fastray.exceptions import OutOfBandSerializationError
        raise OutOfBandSerializationError(
            f"{self!r} is being pickled outside of a fastray call (pickle, cloudpickle, copy). A pickled "
            "reference cannot keep its object alive: pass it as an argument, return it, or put() it instead."
        )

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    @classmethod
    def __class_getitem__(cls, item):
        return cls

    def future(self):
        """A `concurrent.futures.Future` that gets the value, or the task's exception."""
        from fastray.futures import future_of
        return future_of(self)

    def as_future(self, _internal=False):
        """An `asyncio.Future` of the running loop."""
        import asyncio
        return asyncio.wrap_future(self.future())

    def __await__(self):
        return self.as_future().__await__()


cdef tuple ids_of(ObjectRef ref):
    check_ref(ref)
    cdef Record* r = &session.records[index_of(ref.handle)]
    cdef uint64_t ident = r.id
    cdef uint32_t ret = r.ret + 1 if r.kind == kPromise or r.kind == kItem else 0
    return session.process.segment().header().session, ident, ret


cdef extern from *:
    """
    /* An ObjectRef has no Python attributes and is not collected: its life needs neither Cython's tp_new
       (zeroing, argument checks) nor its tp_dealloc (saving the exception state). 20 ns each. */
    #define FASTRAY_NEW(type) ((PyObject*)_PyObject_New((PyTypeObject*)(type)))
    static void (*fastray_drop_ref)(PyObject*) = NULL;
    static void fastray_ref_dealloc(PyObject* self) {
        fastray_drop_ref(self);
        PyObject_Free(self);
    }
    static void fastray_use_dealloc(PyObject* type, void (*drop)(PyObject*)) {
        fastray_drop_ref = drop;
        ((PyTypeObject*)type)->tp_dealloc = fastray_ref_dealloc;
    }
    """
    PyObject* FASTRAY_NEW(object type) except NULL
    void fastray_use_dealloc(object type, void (*drop)(PyObject*) noexcept)


cdef void drop_ref(PyObject* self) noexcept:
    cdef Handle h = (<ObjectRef>self).handle
    if h != 0 and (<ObjectRef>self).epoch == session.epoch and session.process != NULL:
        session.process.drop(h)


cdef inline ObjectRef make_ref(Handle h):
    cdef PyObject* made = FASTRAY_NEW(ObjectRef)
    cdef ObjectRef ref = <ObjectRef>made
    Py_DECREF(ref)
    ref.stamp = 0
    ref.handle = h
    ref.epoch = session.epoch
    return ref


cdef int hold(Handle h) except -1:
    if not session.process.hold(h):
        raise MemoryError("this process borrows more than 1,048,576 objects of others: drop references you no longer need")
    return 0


cdef ObjectRef make_held_ref(Handle h):
    hold(h)
    return make_ref(h)




cdef class Stored:
    """Memory of a stored object. Read-only, but while `fastray.empty` fills it."""

    def __init__(self):
        raise TypeError("Stored buffers come from get() and fastray.empty()")

    def __dealloc__(self):
        if self.handle != 0 and self.epoch == session.epoch and session.process != NULL:
            if self.writable:  # never sealed: nobody has seen it
                session.process.publish_state(&session.records[index_of(self.handle)], self.handle, kDone,
                                              kFlagResultHeap)
            session.process.drop(self.handle)
            session.stored -= 1

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.epoch != session.epoch or session.process == NULL:
            raise BufferError("the fastray session this array belongs to has ended: copy arrays you keep")
        PyBuffer_FillInfo(buffer, self, self.data, self.size, not self.writable, flags)

    def __len__(self):
        return self.size


cdef Stored make_stored(Handle h, unsigned char* data, Py_ssize_t size, bint writable):
    hold(h)
    cdef Stored s = make_unsealed(h, data, size)
    s.writable = writable
    return s


cdef Stored make_unsealed(Handle h, unsigned char* data, Py_ssize_t size):
    cdef Stored s = Stored.__new__(Stored)
    session.stored += 1
    s.handle = h
    s.epoch = session.epoch
    s.data = data
    s.size = size
    s.writable = True
    return s


fastray_use_dealloc(ObjectRef, drop_ref)
_codec.register_ref_type(ObjectRef)
