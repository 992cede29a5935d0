# C-level interface of the decoder; codec.pxd hands these names on, cimport them from there.
from cpython.object cimport PyObject

# `references` and `buffers` (and `dependencies`: the values) may be None when there are none.
cdef object decode_value(const unsigned char* p, Py_ssize_t n, list references, list buffers)
# The same for get(writable=True): arrays are writable where the buffers given are.
cdef object decode_value_writable(const unsigned char* p, Py_ssize_t n, list references,
                                  list buffers)
# Fills `stack` with new references, `kwnames` with a new reference or NULL. On error it has
# released what it took: *nargs is 0 and *kwnames NULL.
cdef int decode_call(const unsigned char* p, Py_ssize_t n, list dependencies, list references,
                     list buffers, PyObject** stack, Py_ssize_t cap, Py_ssize_t* nargs,
                     PyObject** kwnames) except -1
# Stack slots a call needs (positional + keyword), or -1 when the bytes are corrupt.
cdef Py_ssize_t count_arguments(const unsigned char* p, Py_ssize_t n) noexcept

cpdef object take_reference(Py_ssize_t index)
