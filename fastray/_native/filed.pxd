from fastray._native.cpp cimport Process

cdef void serve_filed(Process* process) noexcept    # a session begins
cdef void stop_serving(Process* process) noexcept   # it has ended, `process` lives still
cdef void forget_serving() noexcept                 # in a forked child
