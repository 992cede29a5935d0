from libc.stdint cimport int64_t, uint32_t

from fastray._native.cpp cimport Handle

cdef int64_t deadline_of(object timeout) except? -2
# `seen`: the process's wake word from before the caller looked. 1 when one of the handles is sealed or something else happened that calls for a look; 0 after the deadline.
cdef int wait_handles(const Handle* handles, Py_ssize_t n, uint32_t seen, int64_t deadline) except -1
