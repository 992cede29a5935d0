from libc.stdint cimport int64_t

from fastray._native.cpp cimport Handle

cdef int64_t deadline_of(object timeout) except? -2
# 1 when one of the handles is sealed or something else happened that calls for a look; 0 after the deadline.
cdef int wait_handles(const Handle* handles, Py_ssize_t n, int64_t deadline) except -1
