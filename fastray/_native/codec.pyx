# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The codec: arguments and results as bytes, hot path of every task.

Words
  tag        the byte a value starts with; lengths after it are varints (7 bits a byte, low first)
  native     exactly None, bool, int, float, str, bytes, or tuple/list/dict of native values;
             type(x) decides, so a subclass, a numpy scalar or a namedtuple is not native
  pickled    anything else: pickle 5 of the *whole* value, buffers out of band (see pickling.py)
  dependency an ObjectRef that is itself an argument: the worker passes its value
  reference  an ObjectRef inside a value: travels as a reference
  buffer     bytes that travel beside the encoding, copied once or not at all

The format is at the top of codec_format.pxd, reading it is decoder.pyx.

Identity: the same immutable twice may come back as two. A list, dict, bytearray or array that is in
a value twice must come back as one, so the first kMutables of them that anybody else holds (reference
count above one) are remembered; when one comes again the whole value is pickled, whose memo keeps the
aliasing. That is also what stops self-containing values.
Shared tuples and long strings may be written twice only up to kShared bytes, so that a small value
can never blow up into a large encoding.

Callers: ObjectRef and RemoteFunction encode with *_inline into a record first, and with an Encoder
when that returns -1; the worker's loop calls decode_call. While a value is pickled its Encoder is
the thread's current one, which is how ObjectRef.__reduce__ (note_reference) finds it; loading has
the same arrangement (take_reference). Both are saved and restored, so a reducer may call fastray.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastray._native.codec_format cimport *
from fastray._native.codec_python cimport *
from fastray._native.codec_write cimport *

import sys
from _pickle import PickleBuffer, dumps as _pickle_dumps

from fastray._native import pickling
from fastray._native.decoder import loads, loads_call, loads_pickle, take_reference  # part of our interface

cdef PyTypeObject* ref_type = NULL
cdef PyTypeObject* array_type = NULL  # numpy.ndarray, once somebody imported numpy
cdef list free_encoders = []
cdef dict dtypes = {}  # id -> (dtype, its name or None when arrays of it are pickled)


def register_ref_type(cls):
    """Name the type whose instances (exactly) are object references; returns the one before."""
    global ref_type
    before = <object>ref_type if ref_type != NULL else None  # for good: instances may be anywhere
    Py_INCREF(cls)
    ref_type = <PyTypeObject*>cls if cls is not None else NULL
    return before


def unpicklable(value, cause, str name):
    """A SerializationError that names the argument and the culprit inside it."""
    from fastray import serialization

    return serialization.unpicklable_error(value, name, cause)


# ---- native values ------------------------------------------------------------------------------------


cdef inline int put_int(Out* out, PyObject* value) except -1:
    cdef int64_t x
    if not fr_int64(value, &x):
        return put_big(out, value)
    if -128 <= x <= 127:
        return put_fixed(out, INT8, &x, 1)
    if -0x80000000 <= x <= 0x7FFFFFFF:
        return put_fixed(out, INT32, &x, 4)
    return put_fixed(out, INT64, &x, 8)


cdef int put_big(Out* out, PyObject* value) except -1:
    if out.encoder == NULL:
        return FULL
    x = <object>value
    cdef bytes data = x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)
    return put_bytes(out, BIG, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline int put_str(Out* out, PyObject* value, int depth) except -1:
    cdef bint ascii = fr_is_ascii(value)  # first: it readies the text
    cdef Py_ssize_t n = fr_length(value)
    if n >= kSharedText and is_repeated(out, value, n, depth):
        return PICKLED
    if ascii and (n < kOutOfBand or out.encoder == NULL):
        return put_bytes(out, ASCII, fr_ascii_data(value), n)
    cdef Py_ssize_t size = n if ascii else fr_utf8_size(value)
    if size < 0:
        return PICKLED
    if n >= kOutOfBand and out.encoder != NULL:
        text = (<str>value).encode()
        return put_head(out, BUFFER_STR, (<Encoder>out.encoder).add_buffer(text), 0)
    cdef int status = put_head(out, UTF8, size, size)
    if status:
        return status
    fr_utf8_write(value, out.p)
    out.p += size
    return 0


cdef inline int put_byte_string(Out* out, PyObject* value, int depth) except -1:
    cdef Py_ssize_t n = fr_bytes_size(value)
    if n >= kSharedText:
        if n >= kOutOfBand and out.encoder != NULL:
            return put_head(out, BUFFER_BYTES,
                            (<Encoder>out.encoder).add_buffer(<object>value), 0)
        if is_repeated(out, value, n, depth):
            return PICKLED
    return put_bytes(out, BYTES, fr_bytes_data(value), n)


cdef int put_tuple(Out* out, PyObject* value, int depth) except -1:
    cdef Py_ssize_t i, n = fr_tuple_size(value)
    if depth >= kDepth or n > 0 and is_repeated(out, value, 64, depth):
        return PICKLED
    cdef int status = put_head(out, TUPLE, n, n)
    for i in range(n):
        if status:
            return status
        status = put(out, fr_tuple_item(value, i), depth + 1)
    return status


cdef int put_list(Out* out, PyObject* value, int depth) except -1:
    cdef Py_ssize_t i, n = fr_list_size(value)
    if depth >= kDepth or may_be_alias(out, value):
        return PICKLED
    cdef int status = put_head(out, LIST, n, n)
    for i in range(n):
        if status:
            return status
        if i >= fr_list_size(value):  # changed by another thread: numpy may let the GIL go
            return PICKLED
        status = put(out, fr_list_item(value, i), depth + 1)
    return status


cdef int put_dict(Out* out, PyObject* value, int depth) except -1:
    cdef Py_ssize_t at = 0, n = fr_dict_size(value), seen = 0
    cdef PyObject* key = NULL
    cdef PyObject* item = NULL
    if depth >= kDepth or may_be_alias(out, value):
        return PICKLED
    cdef int status = put_head(out, DICT, n, 2 * n)
    while not status and fr_dict_next(value, &at, &key, &item):
        seen += 1
        status = put(out, key, depth + 1)
        if not status:
            status = put(out, item, depth + 1)
    return status if status or seen == n else <int>PICKLED


cdef int put(Out* out, PyObject* value, int depth) except -1:
    """Write a native value: 0, or PICKLED or FULL with `out.p` anywhere."""
    cdef PyTypeObject* t = fr_type(value)
    if t == &PyLong_Type:
        return put_int(out, value)
    if t == &PyUnicode_Type:
        return put_str(out, value, depth)
    if t == &PyFloat_Type:
        x = fr_double(value)
        return put_fixed(out, FLOAT, &x, 8)
    if value == fr_none:
        return put_byte(out, NONE)
    if t == &PyTuple_Type:
        return put_tuple(out, value, depth)
    if t == &PyDict_Type:
        return put_dict(out, value, depth)
    if t == &PyList_Type:
        return put_list(out, value, depth)
    if t == &PyBytes_Type:
        return put_byte_string(out, value, depth)
    if value == fr_true:
        return put_byte(out, TRUE)
    if value == fr_false:
        return put_byte(out, FALSE)
    return PICKLED if out.encoder == NULL else put_other(out, value, t)


cdef int put_other(Out* out, PyObject* value, PyTypeObject* t) except -1:
    encoder = <Encoder>out.encoder
    if t == ref_type:
        return put_head(out, REFERENCE, note(encoder, <object>value), 0)
    if may_be_alias(out, value):
        return PICKLED
    if t == &PyByteArray_Type and fr_bytearray_size(value) >= kOutOfBand:
        return put_head(out, BUFFER_BYTEARRAY, encoder.add_buffer(<object>value), 0)
    if array_type == NULL and "numpy" in sys.modules:
        find_numpy()
    if t == array_type and not (pickling.custom and <object>t in pickling.custom):
        return encoder.put_array(out, <object>value)
    return PICKLED


cdef Py_ssize_t encode_call_inline(PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames,
                                   unsigned char* out, Py_ssize_t cap) noexcept:
    cdef Out o
    open_out(&o, out, cap)
    cdef Py_ssize_t i, total = nargs
    if kwnames != NULL:
        total += fr_tuple_size(kwnames)
    if put_call_head(&o, nargs, kwnames):
        return -1
    for i in range(total):
        o.mutables = 0
        if put(&o, args[i], 0):
            return -1
    return o.p - out


cdef Py_ssize_t encode_value_inline(PyObject* value, unsigned char* out, Py_ssize_t cap) noexcept:
    cdef Out o
    open_out(&o, out, cap)
    return -1 if put(&o, value, 0) else o.p - out


# ---- the Encoder --------------------------------------------------------------------------------


cdef Encoder acquire_encoder():
    """One that nobody uses; give it back with release_encoder."""
    return free_encoders.pop() if free_encoders else Encoder.__new__(Encoder)


cdef void release_encoder(Encoder encoder):
    encoder.reset()
    if encoder.capacity <= kScratchKept and len(free_encoders) < kEncodersKept:
        free_encoders.append(encoder)


cdef class Encoder:
    """Growable scratch for one encoding; `data[:size]` and the lists are valid until reset()."""

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int reset(self) except -1:
        self.size = 0
        self.dependencies = self.references = self.buffers = None
        return 0

    cdef int open(self, Out* out) except -1:
        open_out(out, self.data, self.capacity)
        out.data, out.capacity, out.encoder = &self.data, &self.capacity, <PyObject*>self
        return 0

    cdef int encode_call(self, PyObject* const* args, Py_ssize_t nargs,
                         PyObject* kwnames) except -1:
        """Encode a call. Raises SerializationError, which names the argument."""
        self.reset()
        self.positional, self.keywords = nargs, kwnames
        cdef Out out
        self.open(&out)
        cdef Py_ssize_t i, total = nargs + (fr_tuple_size(kwnames) if kwnames != NULL else 0)
        if put_call_head(&out, nargs, kwnames):
            raise unpicklable(<object>kwnames, ValueError("a surrogate"), "keywords")
        for i in range(total):
            if ref_type != NULL and fr_type(args[i]) == ref_type:
                if self.dependencies is None:
                    self.dependencies = []
                put_head(&out, DEPENDENCY, len(self.dependencies), 0)
                self.dependencies.append(<object>args[i])
            else:
                self.put_any(&out, args[i], i)
        self.size = out.p - self.data
        return 0

    cdef int encode_value(self, object value) except -1:
        """Encode one value. Raises SerializationError."""
        self.reset()
        cdef Out out
        self.open(&out)
        self.put_any(&out, <PyObject*>value, -1)
        self.size = out.p - self.data
        return 0

    cdef str name_of(self, Py_ssize_t argument):
        if argument < 0:
            return "value"
        if argument < self.positional:
            return f"argument {argument}"
        return <str>fr_tuple_item(self.keywords, argument - self.positional)

    cdef int put_any(self, Out* out, PyObject* value, Py_ssize_t argument) except -1:
        """Write natively, else start again and pickle."""
        cdef Py_ssize_t start = out.p - self.data
        cdef Py_ssize_t references = 0 if self.references is None else len(self.references)
        cdef Py_ssize_t buffers = 0 if self.buffers is None else len(self.buffers)
        out.shared, out.mutables = kShared, 0
        if put(out, value, 0) == 0:
            return 0
        out.p = self.data + start
        self.truncate(references, buffers)
        return self.put_pickled(out, <object>value, argument)

    cdef int put_pickled(self, Out* out, object value, Py_ssize_t argument) except -1:
        cdef list pickle_buffers = []
        cdef bytes data = self.pickled(value, pickle_buffers, argument)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        if n < kOutOfBand:
            put_bytes(out, PICKLE, PyBytes_AS_STRING(data), n)
        else:
            put_head(out, PICKLE_BUFFER, self.add_buffer(data), 0)
        room(out, 10)
        put_size(out, len(pickle_buffers))
        for pickle_buffer in pickle_buffers:
            raw = pickle_buffer.raw()
            n = raw.nbytes
            if n > kInlineBuffer:
                room(out, 10)
                put_size(out, self.add_buffer(raw) + 1)
            else:
                data = bytes(raw)
                put_bytes(out, 0, PyBytes_AS_STRING(data), n)
        return 0

    cdef bytes pickled(self, object value, list pickle_buffers, Py_ssize_t argument):
        """Pickle, by value where plain pickle fails or names __main__."""
        cdef Py_ssize_t references = 0 if self.references is None else len(self.references)
        cdef Py_ssize_t buffers = 0 if self.buffers is None else len(self.buffers)
        cdef bytes data = None
        cdef PyObject* previous = fr_set_current(<PyObject*>self)
        try:
            try:
                if pickling.custom or "cloudpickle" in sys.modules:
                    data = pickling.dumps_plain(value, pickle_buffers.append)
                else:
                    data = _pickle_dumps(value, 5, buffer_callback=pickle_buffers.append)
                if data is not None and fr_names_main(
                        PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
                    data = None
            except Exception:
                data = None  # cloudpickle tries, and its error tells more
            if data is None:
                self.truncate(references, buffers)
                pickle_buffers.clear()
                data = pickling.dumps_by_value(value, pickle_buffers.append)
            return data
        except Exception as error:
            raise unpicklable(value, error, self.name_of(argument)) from error
        finally:
            fr_set_current(previous)

    cdef int put_array(self, Out* out, object array) except -1:
        """An exact ndarray: contiguous ones as they are, others as a C-contiguous copy."""
        cdef bytes name = dtype_name(array.dtype)
        cdef unsigned char flags = 0
        cdef Py_buffer view
        if name is None:
            return PICKLED
        exporter = array.view("i8") if array.dtype.kind in "mM" else array
        try:
            PyObject_GetBuffer(exporter, &view, PyBUF_SIMPLE)
        except (BufferError, ValueError):
            flags = ARRAY_FORTRAN if array.flags.f_contiguous else 0
            exporter = exporter.T if flags else exporter.copy(order="C")
            PyObject_GetBuffer(exporter, &view, PyBUF_SIMPLE)
        try:
            return self.put_array_parts(out, array.shape, name, flags, exporter, &view)
        finally:
            PyBuffer_Release(&view)

    cdef int put_array_parts(self, Out* out, tuple shape, bytes name, unsigned char flags,
                             object exporter, Py_buffer* view) except -1:
        if view.len <= kInlineBuffer:
            flags |= ARRAY_INLINE
        room(out, 40 + 10 * len(shape) + len(name) + kInlineBuffer)
        out.p[0], out.p[1] = ARRAY, flags
        out.p += 2
        put_size(out, len(shape))
        for length in shape:
            put_size(out, length)
        put_size(out, len(name))
        memcpy(out.p, PyBytes_AS_STRING(name), len(name))
        out.p += len(name)
        if not flags & ARRAY_INLINE:
            put_size(out, self.add_buffer(exporter))
            return 0
        put_size(out, view.len)
        memcpy(out.p, view.buf, view.len)
        out.p += view.len
        return 0

    cdef Py_ssize_t add_buffer(self, object exporter) except -1:
        """Index of a buffer; the same object again soon is the same buffer."""
        if self.buffers is None:
            self.buffers = []
        cdef Py_ssize_t i, n = len(self.buffers)
        for i in range(n - 1, max(n - 1 - kBuffersCompared, -1), -1):
            if self.buffers[i] is exporter:
                return i
        self.buffers.append(exporter)
        return n

    cdef int truncate(self, Py_ssize_t references, Py_ssize_t buffers) except -1:
        """Forget what was added since; None again when nothing is left."""
        if self.references is not None:
            self.references = self.references[:references] if references else None
        if self.buffers is not None:
            self.buffers = self.buffers[:buffers] if buffers else None
        return 0


cdef int find_numpy() except -1:
    global array_type
    cls = getattr(sys.modules["numpy"], "ndarray", None)  # None while it is being imported
    if cls is not None:
        Py_INCREF(cls)
        array_type = <PyTypeObject*>cls
    return 0


cdef bytes dtype_name(object dtype):
    cdef object key = <size_t><PyObject*>dtype
    entry = dtypes.get(key)
    if entry is None:
        if len(dtypes) >= kDtypes:
            dtypes.clear()
        entry = dtypes[key] = (dtype, pickling.dtype_name(dtype))
    return <bytes>(<tuple>entry)[1]


cdef Py_ssize_t note(Encoder encoder, object ref) except -1:
    if encoder.references is None:
        encoder.references = []
    encoder.references.append(ref)
    return len(encoder.references) - 1


cpdef Py_ssize_t note_reference(object ref) except -2:
    """Index of `ref` in the value this thread now encodes; -1 when it encodes none."""
    return -1 if fr_current == NULL else note(<Encoder>fr_current, ref)


def noting_references(dumps):
    """(`dumps()`, the references that were pickled in it): pickling outside of a value, references allowed."""
    cdef Encoder encoder = acquire_encoder()
    cdef PyObject* previous = fr_set_current(<PyObject*>encoder)
    try:
        return dumps(), encoder.references or []
    finally:
        fr_set_current(previous)
        release_encoder(encoder)


def try_pickle(value):
    """Pickle `value` as an argument would be and drop it: how serialization.py looks for the culprit."""
    noting_references(lambda: pickling.dumps(value, [].append))


# ---- for tests and rare callers -----------------------------------------------------------------


def dumps(value):
    """(bytes, references, buffers) of one value. Raises SerializationError."""
    cdef Encoder encoder = acquire_encoder()
    try:
        encoder.encode_value(value)
        return encoder.data[:encoder.size], encoder.references or [], encoder.buffers or []
    finally:
        release_encoder(encoder)


def dumps_call(tuple args, dict kwargs):
    """(bytes, dependencies, references, buffers) of a call. Raises SerializationError."""
    cdef tuple names = tuple(kwargs)
    cdef tuple values = args + tuple(kwargs.values())
    cdef Encoder encoder = acquire_encoder()
    try:
        encoder.encode_call(fr_tuple_items(<PyObject*>values), len(args), <PyObject*>names)
        return (encoder.data[:encoder.size], encoder.dependencies or [],
                encoder.references or [], encoder.buffers or [])
    finally:
        release_encoder(encoder)


def dumps_inline(value, Py_ssize_t cap):
    """What encode_value_inline writes into `cap` bytes, or None."""
    cdef bytearray out = bytearray(cap + 1)
    cdef Py_ssize_t n = encode_value_inline(<PyObject*>value, out, cap)
    return None if n < 0 else bytes(out[:n])


def dumps_call_inline(tuple args, dict kwargs, Py_ssize_t cap):
    """What encode_call_inline writes into `cap` bytes, or None."""
    cdef tuple names = tuple(kwargs)
    cdef tuple values = args + tuple(kwargs.values())
    cdef bytearray out = bytearray(cap + 1)
    cdef Py_ssize_t n = encode_call_inline(
        fr_tuple_items(<PyObject*>values), len(args), <PyObject*>names, out, cap)
    return None if n < 0 else bytes(out[:n])
