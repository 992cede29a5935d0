# The node process's side of csrc/local_scheduler.h; see node.pyx.
from fastray._native.cpp cimport LocalScheduler as CLocalScheduler
from fastray._native.cpp cimport NodeRequest, SchedulerFds


cdef class LocalScheduler:
    cdef CLocalScheduler* loop
    cdef NodeRequest request
    cdef SchedulerFds fds
