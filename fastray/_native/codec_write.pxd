# Limits of the codec, and how it puts bytes down: into fixed room or an Encoder's growing scratch.
# The functions return 0, or FULL when the room is fixed and used up. Words: codec.pyx, its only user.
from cpython.mem cimport PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastray._native.codec_format cimport FULL, PICKLED
from fastray._native.codec_python cimport (
    fr_refcount, fr_tuple_item, fr_tuple_size, fr_utf8_size, fr_utf8_write)

cdef enum:
    kDepth = 100            # nesting of native containers; deeper values are pickled
    kShared = 1 << 16       # bytes of shared immutables that may be written again
    kSharedText = 256       # shorter strings are not counted as shared
    kOutOfBand = 1 << 16    # bytes, bytearray, str, pickles from here on are buffers
    kInlineBuffer = 256     # arrays and pickle buffers up to here are copied into the encoding
    kScratch = 4096         # first capacity of an Encoder
    kScratchKept = 1 << 20  # an Encoder on the free list keeps no more
    kEncodersKept = 16
    kMutables = 8           # shared mutables a value may hold before it is pickled
    kBuffersCompared = 8    # how many of the last buffers may be this one
    kDtypes = 256           # entries of the dtype cache
    kEncoded = 0x7FFFFFFF   # a longer encoding is pickled, as one buffer

cdef struct Out:
    unsigned char* p
    unsigned char* end
    unsigned char** data   # of the Encoder: where its scratch and its capacity stand
    Py_ssize_t* capacity
    PyObject* encoder      # borrowed; NULL: fixed room, only what needs no allocation
    Py_ssize_t shared      # bytes of shared immutables that may still be written twice
    int mutables           # how many of `seen` are in use
    PyObject* seen[kMutables]  # mutables of this value that somebody else holds too, borrowed


cdef inline void open_out(Out* out, unsigned char* p, Py_ssize_t room) noexcept:
    """Fixed room."""
    out.p, out.end = p, p + room
    out.encoder = NULL
    out.shared = kShared
    out.mutables = 0


cdef inline bint may_be_alias(Out* out, PyObject* value) noexcept:
    """Whether this mutable was in the value before, or whether that is too much to remember."""
    cdef int i
    if fr_refcount(value) <= 1:
        return False
    for i in range(out.mutables):
        if out.seen[i] == value:
            return True
    if out.mutables == kMutables:
        return True
    out.seen[out.mutables] = value
    out.mutables += 1
    return False


cdef inline bint is_repeated(Out* out, PyObject* value, Py_ssize_t n, int depth) noexcept:
    """Whether writing this shared immutable in full (again?) would go beyond kShared."""
    if depth == 0 or fr_refcount(value) <= 1:
        return False
    out.shared -= n
    return out.shared < 0


cdef inline int grow(Out* out, Py_ssize_t n) except -1:
    if out.encoder == NULL:
        return FULL
    cdef Py_ssize_t used = out.p - out.data[0]
    cdef Py_ssize_t capacity = max(out.capacity[0] * 2, used + n, <Py_ssize_t>kScratch)
    if used + n > kEncoded:
        return FULL
    cdef unsigned char* data = <unsigned char*>PyMem_Realloc(out.data[0], capacity)
    if data == NULL:
        raise MemoryError
    out.data[0], out.capacity[0] = data, capacity
    out.p, out.end = data + used, data + capacity
    return 0


cdef inline int room(Out* out, Py_ssize_t n) except -1:
    if out.end - out.p >= n:
        return 0
    return grow(out, n)


cdef inline void put_size(Out* out, uint64_t n) noexcept:
    # Callers have made room for the 10 bytes a varint takes at most.
    while n >= 0x80:
        out.p[0] = <unsigned char>(n | 0x80)
        out.p += 1
        n >>= 7
    out.p[0] = <unsigned char>n
    out.p += 1


cdef inline Py_ssize_t size_bytes(uint64_t n) noexcept:
    cdef Py_ssize_t bytes_ = 1
    while n >= 0x80:
        n >>= 7
        bytes_ += 1
    return bytes_


cdef inline int put_head(Out* out, unsigned char tag, Py_ssize_t n, Py_ssize_t more) except -1:
    """A tag, a varint, and room for `more` bytes."""
    cdef int status = room(out, 1 + size_bytes(n) + more)
    if status:
        return status
    out.p[0] = tag
    out.p += 1
    put_size(out, n)
    return 0


cdef inline int put_bytes(Out* out, unsigned char tag, const char* data, Py_ssize_t n) except -1:
    cdef int status = put_head(out, tag, n, n)
    if status:
        return status
    memcpy(out.p, data, n)
    out.p += n
    return 0


cdef inline int put_byte(Out* out, unsigned char tag) except -1:
    cdef int status = room(out, 1)
    if status:
        return status
    out.p[0] = tag
    out.p += 1
    return 0


cdef inline int put_fixed(Out* out, unsigned char tag, const void* x, Py_ssize_t n) except -1:
    cdef int status = room(out, 1 + n)
    if status:
        return status
    out.p[0] = tag
    memcpy(out.p + 1, x, n)
    out.p += 1 + n
    return 0


cdef inline int put_names(Out* out, PyObject* kwnames) except -1:
    """The keyword names of a call: count, length in bytes, then each."""
    cdef Py_ssize_t i, size, total = 0, n = fr_tuple_size(kwnames)
    for i in range(n):
        size = fr_utf8_size(fr_tuple_item(kwnames, i))
        if size < 0:
            return PICKLED
        total += size + size_bytes(size)
    cdef inline int status = room(out, size_bytes(n) + size_bytes(total) + total)
    if status:
        return status
    put_size(out, n)
    put_size(out, total)
    for i in range(n):
        size = fr_utf8_size(fr_tuple_item(kwnames, i))
        put_size(out, size)
        fr_utf8_write(fr_tuple_item(kwnames, i), out.p)
        out.p += size
    return 0


cdef inline int put_call_head(Out* out, Py_ssize_t nargs, PyObject* kwnames) except -1:
    cdef bint keywords = kwnames != NULL and fr_tuple_size(kwnames) > 0
    cdef uint64_t head = <uint64_t>nargs << 1 | keywords
    cdef inline int status = room(out, size_bytes(head))
    if status:
        return status
    put_size(out, head)
    return put_names(out, kwnames) if keywords else 0
