from libc.stdint cimport uint64_t

from fastray._native.cpp cimport Handle, Record
from fastray._native.worker cimport Loaded

# A task of a durable session starts: True when it is sealed with the result of an earlier session.
cdef bint recall(Handle h, Record* r, Loaded f) except -1
# Its result is written, not sealed: into the log, if it may be.
cdef int keep_result(Handle h, Record* r, uint64_t flags) except -1
# The same for several: `flags[i]` is None where the value was not written, because nobody asks for it.
cdef int keep_returns(Handle h, const Handle* promises, list values, list flags) except -1
