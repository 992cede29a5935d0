# See session.pyx.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastray._native.cpp cimport Function, Process, Segment


cdef class Attachment:
    cdef Process* process
    cdef Segment segment
    cdef readonly bint active
    cdef readonly int pid
    cdef int fill_function(self, Function* entry, uint32_t f, bytes blob, uint64_t low, uint64_t high, str name) except -1
