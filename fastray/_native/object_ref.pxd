from libc.stdint cimport uint32_t, uint64_t

from fastray._native.cpp cimport Durable, Handle, Process, Record


# What this process is attached to. One per process; `epoch` grows with each attach, so that a
# reference of an earlier session is recognised (and never touches the new one).
cdef struct Session:
    Process* process    # NULL: not attached
    Record* records
    uint32_t epoch
    uint32_t slot
    bint local          # local mode: tasks run in this process, when submitted
    uint32_t parent     # record index of the running task, 0 in a driver
    uint32_t stored     # buffers alive that view the segment
    bint concurrent     # several calls run here at once: `parent` is that of none
    uint32_t depth      # its nesting depth + 1: that of tasks submitted now
    Durable* durable    # where tasks run in a durable session (durable.pyx); else NULL

cdef Session session

cdef class ObjectRef:
    cdef Handle handle
    cdef uint32_t epoch
    cdef uint32_t stamp  # the wait() call that saw it last

cdef class Stored:
    """Bytes of a payload, exported by the buffer protocol; keeps the record."""
    cdef Handle handle
    cdef uint32_t epoch
    cdef unsigned char* data
    cdef Py_ssize_t size
    cdef bint writable

cdef ObjectRef make_ref(Handle h)          # takes over one hold
cdef ObjectRef make_held_ref(Handle h)     # takes one hold
cdef Stored make_stored(Handle h, unsigned char* data, Py_ssize_t size, bint writable)
cdef Stored make_unsealed(Handle h, unsigned char* data, Py_ssize_t size)  # takes over the hold
cdef int check_ref(ObjectRef ref) except -1
cdef int check_attached() except -1
cdef void attach_session(Process* process, bint local) noexcept
cdef void detach_session() noexcept
