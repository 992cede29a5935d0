# See session.pyx.
from fastray._native.cpp cimport Process, Segment


cdef class Attachment:
    cdef Process* process
    cdef Segment segment
    cdef readonly bint active
    cdef readonly int pid
