# cython: language_level=3, freethreading_compatible=False
"""The thread that answers for filed lineage while its owner does something else.

    filed    specs of finished tasks in a file that only their owner reads (csrc/process_filed.cpp)
    answer   another process needs one of them: the owner makes its record again

A process gets the thread when it files its first task, so nobody else pays for it. It sleeps on `Proc::answer_futex`
and acts with the GIL held, as every thread that calls into fastray. Called by session.pyx.
"""
import _thread

from libc.stdint cimport uint32_t

from fastray._native.cpp cimport Process
from fastray._native.object_ref cimport session

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*call)(void*) noexcept, void* argument) nogil

cdef extern from "<unistd.h>":
    int usleep(unsigned int microseconds) nogil

cdef enum:
    LOOK_US = 100

cdef bint running = False


cdef void serve_filed(Process* process) noexcept:
    process.on_filing(filing_began)


cdef void filing_began() noexcept nogil:
    Py_AddPendingCall(start, NULL)  # not here: the process is in the middle of something. No room: it answers late


cdef int start(void* _nothing) noexcept with gil:
    global running
    if running or session.process == NULL:
        return 0
    try:
        _thread.start_new_thread(answer, ())
        running = True
    except RuntimeError:  # no thread to be had: it answers when it calls into fastray
        pass
    return 0


def answer():
    """The thread."""
    global running
    cdef Process* process = session.process
    cdef uint32_t seen
    while process != NULL and session.process == process:
        seen = process.answer_word()
        process.answer_wanted()
        with nogil:
            process.sleep_until_wanted(seen)
    running = False


cdef void stop_serving(Process* process) noexcept:
    while running:
        Process.wake_answerer(process.self())
        with nogil:
            usleep(LOOK_US)


cdef void forget_serving() noexcept:
    global running
    running = False
