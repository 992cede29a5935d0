# C-level interface of the codec; the essay is at the top of codec.pyx.
from cpython.object cimport PyObject

from fastray._native.decoder cimport (
    count_arguments, decode_call, decode_value, decode_value_writable, take_reference)
from fastray._native.codec_write cimport Out


cdef class Encoder:
    cdef unsigned char* data
    cdef Py_ssize_t size, capacity
    cdef list dependencies  # None, or the references that are arguments themselves
    cdef list references    # None, or the references inside values
    cdef list buffers       # None, or objects that export a C-contiguous PyBUF_SIMPLE buffer
    cdef Py_ssize_t positional  # of the call being encoded, for messages
    cdef PyObject* keywords     # borrowed
    cdef int reset(self) except -1
    cdef int encode_call(self, PyObject* const* args, Py_ssize_t nargs,
                         PyObject* kwnames) except -1
    cdef int encode_value(self, object value) except -1
    cdef int open(self, Out* out) except -1
    cdef str name_of(self, Py_ssize_t argument)
    cdef int put_any(self, Out* out, PyObject* value, Py_ssize_t argument) except -1
    cdef int put_pickled(self, Out* out, object value, Py_ssize_t argument) except -1
    cdef bytes pickled(self, object value, list pickle_buffers, Py_ssize_t argument)
    cdef int put_array(self, Out* out, object array) except -1
    cdef int put_array_parts(self, Out* out, tuple shape, bytes name, unsigned char flags,
                             object exporter, Py_buffer* view) except -1
    cdef Py_ssize_t add_buffer(self, object exporter) except -1
    cdef int truncate(self, Py_ssize_t references, Py_ssize_t buffers) except -1


cdef Encoder acquire_encoder()
cdef void release_encoder(Encoder encoder)

# Straight into memory: never raise, allocate nothing. Bytes written, or -1 when the value does not
# fit in `cap` or needs an Encoder.
cdef Py_ssize_t encode_call_inline(PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames,
                                   unsigned char* out, Py_ssize_t cap) noexcept
cdef Py_ssize_t encode_value_inline(PyObject* value, unsigned char* out, Py_ssize_t cap) noexcept

cpdef Py_ssize_t note_reference(object ref) except -2
