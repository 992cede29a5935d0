from libc.stdint cimport uint32_t

from fastray._native.cpp cimport Handle, Record

cdef object make_stream(Record* r, Handle h, uint32_t ahead_max)

# Worker side: one item made (or, last, the dumped exception). 0: the consumer is gone.
cdef int append_item(Handle task, Record* t, object value, bytes error, uint32_t index) except -1
