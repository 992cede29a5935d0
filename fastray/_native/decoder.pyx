# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The reading half of the codec (words: codec.pyx; format: codec_format.pxd).

Decoding trusts nothing: every length is checked against what is left, nesting is bounded, and bytes
that make no sense raise SerializationError. (Bytes of a pickle are as trustworthy as their sender,
as always.) Arrays and pickle buffers are read-only views, whatever buffers they are given, unless
the caller asks for writable ones.

Two small caches, by the bytes, keep keyword calls and dicts cheap: tuples of keyword names, and
short dict keys. Each has kNames entries and is overwritten on collision, so they never grow.

Callers: the worker's loop (decode_call), ObjectRef's get (decode_value), and unpickled references
(take_reference). Others cimport these names from codec.pxd.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int8_t, int32_t, int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastray._native.codec_format cimport *
from fastray._native.codec_python cimport *

from _pickle import loads as _pickle_loads

cdef extern from "Python.h":
    int PyBUF_READ

cdef enum:
    kDepth = 110     # a little more than the encoder nests
    kNames = 256     # entries of a cache, a power of two
    kNameBytes = 32  # longer dict keys are not cached
    kDimensions = 64

cdef struct In:
    const unsigned char* p
    const unsigned char* end
    PyObject* dependencies  # borrowed lists, or None
    PyObject* references
    PyObject* buffers
    bint writable

cdef struct CachedTuple:
    PyObject* key    # the bytes
    PyObject* names  # the tuple

cdef PyObject* key_cache[kNames]
cdef CachedTuple tuple_cache[kNames]
cdef dict dtypes = {}  # dtype.str as bytes -> dtype
cdef object numpy = None


cdef int corrupt(str what) except -1:
    from fastray.exceptions import SerializationError

    raise SerializationError(f"corrupt encoding: {what}")


cdef inline int check_left(In* src, Py_ssize_t n) except -1:
    if n > src.end - src.p:
        corrupt("it ends too early")
    return 0


cdef inline Py_ssize_t take_size(In* src) except -1:
    """A varint: 0 to 2**62."""
    check_left(src, 1)
    cdef uint64_t n = src.p[0]
    src.p += 1
    return <Py_ssize_t>n if n < 0x80 else take_long_size(src, n & 0x7F)


cdef Py_ssize_t take_long_size(In* src, uint64_t n) except -1:
    cdef int shift = 7
    cdef unsigned char c = 0x80
    while c & 0x80:
        check_left(src, 1)
        c = src.p[0]
        src.p += 1
        if shift > 56:
            corrupt("a length is too long")
        n |= <uint64_t>(c & 0x7F) << shift
        shift += 7
    return <Py_ssize_t>n


cdef inline const unsigned char* take_bytes(In* src, Py_ssize_t n) except NULL:
    check_left(src, n)
    cdef const unsigned char* p = src.p
    src.p += n
    return p


cdef inline Py_ssize_t take_length(In* src) except -1:
    """A length of something that takes a byte an item at least."""
    cdef Py_ssize_t n = take_size(src)
    check_left(src, n)
    return n


cdef object item_of(PyObject* items, Py_ssize_t index):
    if items == fr_none or index >= fr_list_size(items):
        corrupt("it names a reference or buffer that is not there")
    return <object>fr_list_item(items, index)


# ---- scalars and containers ---------------------------------------------------------------------


cdef inline object take_int(In* src, int size):
    cdef const unsigned char* p = take_bytes(src, size)
    cdef int32_t x32
    cdef int64_t x
    if size == 1:
        return PyLong_FromLongLong((<int8_t*>p)[0])
    if size == 4:
        memcpy(&x32, p, 4)
        return PyLong_FromLongLong(x32)
    memcpy(&x, p, 8)
    return PyLong_FromLongLong(x)


cdef object take_float(In* src):
    cdef double x
    memcpy(&x, take_bytes(src, 8), 8)
    return PyFloat_FromDouble(x)


cdef inline object take_ascii(In* src):
    cdef Py_ssize_t n = take_length(src)
    cdef const unsigned char* p = take_bytes(src, n)
    if not fr_all_ascii(p, n):
        corrupt("text is not ASCII")
    return fr_ascii_new(p, n)


cdef object take_text(In* src):
    cdef Py_ssize_t n = take_length(src)
    cdef const unsigned char* p = take_bytes(src, n)
    try:
        return PyUnicode_DecodeUTF8(<const char*>p, n, NULL)
    except UnicodeDecodeError:
        corrupt("text is not UTF-8")


cdef object take_key(In* src, int depth):
    """A dict key; short ASCII ones from the cache."""
    if src.end - src.p < 2 or src.p[0] != ASCII or src.p[1] > kNameBytes:
        return take(src, depth)
    src.p += 1
    cdef Py_ssize_t n = take_length(src)
    cdef const unsigned char* p = take_bytes(src, n)
    cdef PyObject** entry = &key_cache[fr_hash(p, n) % kNames]
    cdef PyObject* key = entry[0]
    if key != NULL and fr_length(key) == n and memcmp(fr_ascii_data(key), p, n) == 0:
        return <object>key
    if not fr_all_ascii(p, n):
        corrupt("text is not ASCII")
    text = fr_ascii_new(p, n)
    fr_incref(<PyObject*>text)
    entry[0] = <PyObject*>text
    fr_xdecref(key)
    return text


cdef object take_tuple(In* src, int depth):
    cdef Py_ssize_t i, n = take_length(src)
    items = PyTuple_New(n)
    for i in range(n):
        item = take(src, depth)
        fr_incref(<PyObject*>item)
        fr_tuple_set(items, i, <PyObject*>item)
    return items


cdef object take_list(In* src, int depth):
    cdef Py_ssize_t i, n = take_length(src)
    items = PyList_New(n)
    for i in range(n):
        item = take(src, depth)
        fr_incref(<PyObject*>item)
        fr_list_set(items, i, <PyObject*>item)
    return items


cdef object take_dict(In* src, int depth):
    cdef Py_ssize_t i, n = take_length(src)
    cdef dict items = {}
    for i in range(n):
        key = take_key(src, depth)
        item = take(src, depth)
        if PyDict_SetItem(items, key, item) < 0:
            PyErr_Clear()
            corrupt("a dict key is not hashable")
    return items


cdef object take(In* src, int depth):
    """The next value. Raises SerializationError, or what unpickling raises."""
    cdef unsigned char tag = take_bytes(src, 1)[0]
    cdef Py_ssize_t n
    if tag == INT8:
        return take_int(src, 1)
    if tag == ASCII:
        return take_ascii(src)
    if tag == NONE:
        return None
    if tag == INT32:
        return take_int(src, 4)
    if tag == FLOAT:
        return take_float(src)
    if tag == INT64:
        return take_int(src, 8)
    if tag == TRUE:
        return True
    if tag == FALSE:
        return False
    if tag == BYTES:
        n = take_length(src)
        return PyBytes_FromStringAndSize(<const char*>take_bytes(src, n), n)
    if tag == UTF8:
        return take_text(src)
    if depth >= kDepth:
        corrupt("it nests too deep")
    if tag == TUPLE:
        return take_tuple(src, depth + 1)
    if tag == LIST:
        return take_list(src, depth + 1)
    if tag == DICT:
        return take_dict(src, depth + 1)
    return take_rare(src, tag)


cdef object take_rare(In* src, unsigned char tag):
    cdef Py_ssize_t n
    if tag == PICKLE:
        n = take_length(src)
        return take_pickle(src, PyMemoryView_FromMemory(
            <char*>take_bytes(src, n), n, PyBUF_READ))
    if tag == PICKLE_BUFFER:
        return take_pickle(src, take_buffer(src))
    if tag == ARRAY:
        return take_array(src)
    if tag == DEPENDENCY:
        return item_of(src.dependencies, take_size(src))
    if tag == REFERENCE:
        return item_of(src.references, take_size(src))
    if tag == BIG:
        n = take_length(src)
        data = PyBytes_FromStringAndSize(<const char*>take_bytes(src, n), n)
        return int.from_bytes(data, "little", signed=True)
    if tag == BUFFER_BYTES:
        return bytes(take_buffer(src))
    if tag == BUFFER_BYTEARRAY:
        return bytearray(take_buffer(src))
    if tag == BUFFER_STR:
        try:
            return str(take_buffer(src), "utf-8")
        except UnicodeDecodeError:
            corrupt("text is not UTF-8")
    corrupt(f"no value has tag {tag}")


# ---- arrays and pickles -------------------------------------------------------------------------


cdef object take_buffer(In* src):
    return buffer_at(src, take_size(src))


cdef object buffer_at(In* src, Py_ssize_t index):
    """An out-of-band buffer, read-only unless the caller wants it as it is."""
    cdef Py_buffer view
    exporter = item_of(src.buffers, index)
    PyObject_GetBuffer(exporter, &view, PyBUF_SIMPLE)
    cdef bint readonly = view.readonly
    PyBuffer_Release(&view)
    return exporter if readonly or src.writable else memoryview(exporter).toreadonly()


cdef object take_inline_buffer(In* src):
    cdef Py_ssize_t n = take_length(src)
    data = PyBytes_FromStringAndSize(<const char*>take_bytes(src, n), n)
    return bytearray(data) if src.writable else data


cdef object take_array(In* src):
    global numpy
    cdef unsigned char flags = take_bytes(src, 1)[0]
    cdef Py_ssize_t i, n, ndim = take_length(src)
    if ndim > kDimensions:
        corrupt("an array has too many dimensions")
    cdef tuple shape = tuple([take_size(src) for i in range(ndim)])
    n = take_length(src)
    name = PyBytes_FromStringAndSize(<const char*>take_bytes(src, n), n)
    buffer = take_inline_buffer(src) if flags & ARRAY_INLINE else take_buffer(src)
    if numpy is None:
        import numpy
    try:
        dtype = dtypes.get(name)
        if dtype is None:
            dtype = numpy.dtype(name.decode("ascii"))
            if dtype.kind not in "biufcSUmM" or dtype.itemsize == 0:  # numpy would crash on "O"
                corrupt("no array of such a dtype is written")
            if len(dtypes) < kNames:
                dtypes[name] = dtype
        return numpy.ndarray(shape, dtype, buffer, 0, None, "F" if flags & ARRAY_FORTRAN else "C")
    except Exception as error:
        corrupt(f"an array makes no sense ({error})")


cdef object take_pickle(In* src, object data):
    """`data` unpickled with the buffers that follow; references come by take_reference."""
    cdef Py_ssize_t index, i, n = take_length(src)
    cdef list buffers = []
    for i in range(n):
        index = take_size(src)
        buffers.append(buffer_at(src, index - 1) if index else take_inline_buffer(src))
    cdef PyObject* previous = fr_set_current(src.references)
    try:
        return _pickle_loads(data, buffers=buffers) if n else _pickle_loads(data)
    finally:
        fr_set_current(previous)


def loads_pickle(bytes data, list references):
    """What `noting_references` pickled, with the same references."""
    cdef PyObject* previous = fr_set_current(<PyObject*>references)
    try:
        return _pickle_loads(data)
    finally:
        fr_set_current(previous)


cpdef object take_reference(Py_ssize_t index):
    """Reference number `index` of the value this thread now decodes.

    Raises SerializationError when it decodes none, or none with such a reference.
    """
    if fr_current == NULL or index < 0:
        corrupt("a reference was unpickled outside of its value")
    return item_of(fr_current, index)


# ---- what others call ---------------------------------------------------------------------------


cdef object decode_value(const unsigned char* p, Py_ssize_t n, list references, list buffers):
    """Raises SerializationError, or what unpickling raises."""
    cdef In src = In(p, p + n, fr_none, <PyObject*>references, <PyObject*>buffers, False)
    return take(&src, 0)


cdef object decode_value_writable(const unsigned char* p, Py_ssize_t n, list references,
                                  list buffers):
    """As decode_value."""
    cdef In src = In(p, p + n, fr_none, <PyObject*>references, <PyObject*>buffers, True)
    return take(&src, 0)


cdef int decode_call(const unsigned char* p, Py_ssize_t n, list dependencies, list references,
                     list buffers, PyObject** stack, Py_ssize_t cap, Py_ssize_t* nargs,
                     PyObject** kwnames) except -1:
    """Raises SerializationError, or what unpickling raises; then nothing is left to release."""
    cdef In src = In(p, p + n, <PyObject*>dependencies, <PyObject*>references,
                     <PyObject*>buffers, False)
    cdef Py_ssize_t i = 0, total
    nargs[0] = 0
    kwnames[0] = NULL
    cdef Py_ssize_t head = take_size(&src)
    cdef Py_ssize_t positional = head >> 1
    cdef tuple names = take_names(&src) if head & 1 else None
    total = positional if names is None else positional + len(names)
    if total > cap:
        corrupt("a call has more arguments than announced")
    try:
        while i < total:
            value = take(&src, 0)
            fr_incref(<PyObject*>value)
            stack[i] = <PyObject*>value
            i += 1
    except:
        while i > 0:
            i -= 1
            fr_xdecref(stack[i])
        raise
    nargs[0] = positional
    if names is not None:
        fr_incref(<PyObject*>names)
        kwnames[0] = <PyObject*>names
    return 0


cdef Py_ssize_t count_arguments(const unsigned char* p, Py_ssize_t n) noexcept:
    cdef In src = In(p, p + n, fr_none, fr_none, fr_none, False)
    cdef Py_ssize_t head, keywords = 0
    if n > 0 and p[0] < 0x80 and not p[0] & 1:  # the usual: few arguments, no keywords
        return p[0] >> 1 if p[0] >> 1 < n else -1
    try:
        head = take_size(&src)
        if head & 1:
            keywords = take_size(&src)
        # each argument takes a byte at least
        return -1 if head >> 1 > n or keywords > n else (head >> 1) + keywords
    except Exception:
        return -1


cdef tuple take_names(In* src):
    """The keyword names of a call, the same tuple for the same bytes."""
    cdef Py_ssize_t i, size, count = take_length(src), n = take_length(src)
    cdef const unsigned char* p = take_bytes(src, n)
    cdef CachedTuple* entry = &tuple_cache[fr_hash(p, n) % kNames]
    if (entry.key != NULL and fr_bytes_size(entry.key) == n
            and memcmp(fr_bytes_data(entry.key), p, n) == 0
            and fr_tuple_size(entry.names) == count):
        return <tuple>entry.names
    cdef In block = In(p, p + n, fr_none, fr_none, fr_none, False)
    cdef list found = []
    for i in range(count):
        found.append(fr_intern(take_text(&block)))
    if block.p != block.end or len(set(found)) != count:
        corrupt("keyword names make no sense")
    names = tuple(found)
    key = PyBytes_FromStringAndSize(<const char*>p, n)
    cdef PyObject* old_key = entry.key
    cdef PyObject* old_names = entry.names
    fr_incref(<PyObject*>key)
    fr_incref(<PyObject*>names)
    entry.key, entry.names = <PyObject*>key, <PyObject*>names
    fr_xdecref(old_key)
    fr_xdecref(old_names)
    return names


# ---- for tests and rare callers -----------------------------------------------------------------


def loads(bytes data, list references=None, list buffers=None, bint writable=False):
    """One value back from what codec.dumps returned. Raises SerializationError."""
    cdef const unsigned char* p = data
    if writable:
        return decode_value_writable(p, len(data), references, buffers)
    return decode_value(p, len(data), references, buffers)


def loads_call(bytes data, list dependencies=None, list references=None, list buffers=None):
    """(args, kwargs) back from what codec.dumps_call returned. Raises SerializationError."""
    cdef const unsigned char* p = data
    cdef Py_ssize_t i, nargs = 0, n = count_arguments(p, len(data))
    cdef PyObject* kwnames = NULL
    if n < 0:
        corrupt("a call's head makes no sense")
    cdef PyObject** stack = <PyObject**>PyMem_Malloc((n + 1) * sizeof(PyObject*))
    if stack == NULL:
        raise MemoryError
    try:
        decode_call(p, len(data), dependencies, references, buffers, stack, n, &nargs, &kwnames)
        names = <tuple>kwnames if kwnames != NULL else ()
        fr_xdecref(kwnames)
        values = [<object>stack[i] for i in range(nargs + len(names))]
        for i in range(len(values)):
            fr_xdecref(stack[i])
        return tuple(values[:nargs]), dict(zip(names, values[nargs:]))
    finally:
        PyMem_Free(stack)
