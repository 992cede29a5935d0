from libc.stdint cimport uint32_t, uint64_t

from libcpp.vector cimport vector

from fastray._native.cpp cimport Handle, Key, Record


cdef class Loaded:
    """A function variant as this worker has it."""
    cdef object function
    cdef object retry_on     # None: not on exceptions; True: on all; or a tuple of types
    cdef str name
    cdef int max_retries
    cdef int returns
    cdef bint streaming
    cdef uint32_t max_calls, calls
    cdef uint64_t ticks      # moving average of its duration
    cdef object group        # concurrency group of an actor's method, or None
    cdef bint read_only      # an actor's method that changes no state
    cdef Key digest          # of its code, in a durable session; 0: its tasks are not durable
    cdef vector[Handle] captured  # objects that its closure refers to
    cdef object seed         # None, True or a number: see fastray/seeding.py

cdef list loaded
cdef Loaded load(uint32_t index)
cdef object call(Handle h, Record* r, Loaded f)
cdef int finish(Handle h, Record* r, Loaded f, object result) except -1
cdef bint failed(Handle h, Record* r, Loaded f, object error) except -1
