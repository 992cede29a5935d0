# cython: language_level=3, freethreading_compatible=False
"""What waits on a node, for its heartbeats: read from shared memory, a picture of one moment. Called by the node's
agent (fastray/cluster/load.py).
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastray._native.cpp cimport Class, Segment, kEntryUsed
from fastray._native.session cimport Attachment


def class_queues(Attachment attachment not None):
    """(class, tasks that wait, tasks taken so far, workers with a lease) of each scheduling class of tasks in use.

    Queues are a hint: an entry may stand there twice, and what was taken counts what was skipped too.
    """
    cdef Segment* segment = &attachment.segment
    cdef uint32_t c, slot, q, procs = segment.header().procs_used.load()
    cdef uint64_t head, tail, waiting, taken
    cdef Class* cls
    rows = []
    for c in range(segment.header().classes_used.load()):
        cls = &segment.cls(c)
        if cls.state.load() != kEntryUsed:
            continue
        waiting = taken = 0
        for slot in range(procs):
            q = cls.queues[slot].load()
            if q == 0:
                continue
            tail = segment.queue(q).tail.load()
            head = segment.queue(q).head.load()
            taken += head
            if tail > head:
                waiting += tail - head
        rows.append((c, waiting, taken, cls.leases.load()))
    return rows
