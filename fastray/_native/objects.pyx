# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""`put` and `empty`: objects that no task makes.

An object is a record in state kDone from the start. `empty` makes the payload first (kPromised, with the memory
to write into), and `put` of that very array seals it where it is.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastray._native.codec cimport Encoder, acquire_encoder, release_encoder
from fastray._native.cpp cimport (
    Handle,
    Offset,
    PayloadShape,
    PayloadView,
    Process,
    Record,
    index_of,
    kDone,
    kFlagResultHeap,
    kObject,
    kPromised,
)
from fastray._native.object_ref cimport ObjectRef, Stored, check_attached, make_ref, make_unsealed, session
from fastray._native.submit cimport table_full
from fastray._native.values cimport store_full, write_value


# ---- put ---------------------------------------------------------------------------------------------

cdef Record* new_object() except NULL:
    cdef Record* r = session.process.allocate_record()
    if r == NULL:
        raise table_full()
    r.id = session.process.next_id()
    r.function = 0
    r.cls = 0
    r.parent = session.parent
    r.kind = kObject
    r.ret = 0
    r.args_bytes = 0
    r.dependencies = r.references = 0
    return r


def put(object value):
    """Stores an object; returns its ObjectRef (paper, Table 1; Ray's `put`).

    Raises:
        TypeError: `value` is an ObjectRef.
        SerializationError: it cannot be pickled.
        ObjectStoreFullError: the store has no room for it.
    """
    check_attached()
    if type(value) is ObjectRef:
        raise TypeError("put() of an ObjectRef would make a reference to a reference: pass the ref itself, or put([ref])")
    cdef Stored stored = unsealed_base(value)
    if stored is not None:
        return seal_in_place(value, stored)
    cdef Record* r = new_object()
    cdef Handle h = session.process.handle_of(r)
    cdef uint64_t flags
    try:
        flags = write_value(h, r, value, False)
    except BaseException:
        session.process.unallocate(r)
        raise
    session.process.publish_state(r, h, kDone, flags)
    return make_ref(h)


# ---- empty -------------------------------------------------------------------------------------------

cdef enum:
    CODEC_ROOM = 192  # for the description of the array, written when it is sealed


def empty(shape, dtype="float64"):
    """A numpy array allocated in the object store; `put()` of it seals it without a copy.

    `shape` is an int or a tuple of ints (elements), `dtype` anything numpy takes but objects. After `put`
    the array is read-only.

    Raises:
        ObjectStoreFullError: no room for it.
        TypeError: the dtype holds Python objects.
    """
    import numpy
    check_attached()
    dtype = numpy.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"fastray.empty cannot hold Python objects (dtype {dtype}): only plain data")
    cdef tuple dims = (shape,) if isinstance(shape, int) else tuple(shape)
    cdef uint64_t size = dtype.itemsize
    for n in dims:
        if n < 0:
            raise ValueError(f"negative dimension in shape {dims}")
        size *= n
    cdef Record* r = new_object()
    cdef Handle h = session.process.handle_of(r)
    cdef PayloadShape payload
    cdef PayloadView view
    payload.handles = NULL
    payload.dependencies = payload.references = 0
    payload.codec = NULL
    payload.codec_bytes = CODEC_ROOM
    payload.buffer_bytes = &size
    payload.buffers = 1
    cdef Offset offset = session.process.make_payload(payload, h, &view)
    if offset == 0:
        session.process.unallocate(r)
        raise store_full(size)
    r.result_heap.offset = offset
    session.process.publish_state(r, h, kPromised, kFlagResultHeap)
    cdef Stored stored = make_unsealed(h, view.buffer(0), size)
    return numpy.ndarray(dims, dtype, stored)


cdef Stored unsealed_base(object value):
    if type(value).__name__ != "ndarray":
        return None
    base = value.base
    if type(base) is not Stored or not (<Stored>base).writable or value.nbytes != (<Stored>base).size:
        return None
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        return None
    return <Stored>base


cdef object seal_in_place(object array, Stored stored):
    cdef Record* r = &session.records[index_of(stored.handle)]
    cdef PayloadView view = Process.view_payload(session.process.segment(), r.result_heap.offset)
    cdef Encoder e = acquire_encoder()
    try:
        e.encode_value(array)
        if e.size > CODEC_ROOM or e.buffers is None or len(e.buffers) != 1:
            stored.writable = False
            return put(array.copy())
        memcpy(view.codec, e.data, e.size)
        r.result_bytes = <uint32_t>e.size
    finally:
        release_encoder(e)
    stored.writable = False
    array.flags.writeable = False
    session.process.publish_state(r, stored.handle, kDone, kFlagResultHeap)
    session.process.hold(stored.handle)
    return make_ref(stored.handle)
