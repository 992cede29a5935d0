from libc.stdint cimport uint8_t, uint64_t

from fastray._native.cpp cimport Handle, Offset, PayloadHeader, PayloadShape, PayloadView, Record
from fastray._native.codec cimport Encoder

# Value of a sealed record; raises what its task raised.
cdef object read_value(Handle h, Record* r)
cdef object read_value_writable(Handle h, Record* r)
# Writes a value into the result line (or a payload) of a record that is ours to fill; the flags to
# seal it with. `contain`: nested references are kept for as long as the record lives.
cdef uint64_t write_value(Handle h, Record* r, object value, bint contain) except? 0xFFFFFFFF
# Payload from what an encoder holds: dependencies, references, codec bytes, buffers.
cdef Offset store_encoded(Handle h, Encoder e) except 0
cdef list payload_references(PayloadHeader* header)
cdef list payload_buffers(Handle h, PayloadHeader* header)
cdef object error_of(Record* r)
cdef object decode_error(const uint8_t* data, uint64_t size, Record* r)
cdef object store_full(uint64_t size)
cdef bytes error_bytes(Record* r)
# For a payload that did not fit: waits a second for room, then raises ObjectStoreFullError.
cdef Offset wait_for_room(const PayloadShape& shape, Handle h, PayloadView* view, uint64_t total) except 0
cdef int copy_buffer(unsigned char* to, unsigned char* source, Py_ssize_t size) except -1
