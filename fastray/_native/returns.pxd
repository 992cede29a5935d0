from fastray._native.cpp cimport ErrorCode, Handle, Record

# A generator's values, and its error, into the stream of task h.
cdef int run_stream(Handle h, Record* r, object generator, str name) except -1
# The values of `result` into the promises of task h; raises NumReturnsError when there are not `returns`.
cdef int seal_returns(Handle h, Record* r, int returns, str name, object result) except -1
# The exception of task h as bytes, as the result of function `name`.
cdef bytes dump(object error, str name, Handle h)
# This attempt of task h failed, for the cluster's task table: with an exception; with a code and a text.
cdef int note_raised(Handle h, object error) except -1
cdef int note_failed(Handle h, ErrorCode code, str text) except -1
