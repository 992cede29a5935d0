# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Values and arguments that go from store to store by Flight: their bytes, as views into the store.

    parts    the codec and the buffers of a payload, one after the other: what a ticket of fastray/transfer/bulk.py
             counts bytes over, on both sides
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastray._native.cpp cimport (
    Handle,
    Offset,
    PayloadView,
    Process,
    Record,
    gen_of,
    index_of,
    is_sealed,
    kFlagArgHeap,
    kFlagResultHeap,
    kFree,
    kRecordsMax,
    state_of,
    word_gen,
)
from fastray._native.object_ref cimport session


def payload_parts(Handle h, bint arguments):
    """Codec and buffers of a sealed value, or of the arguments of a task, as memoryviews into the store. The caller
    holds the record.

    Raises KeyError for what is no such record: another node named it."""
    if index_of(h) >= kRecordsMax:
        raise KeyError(f"record {h:016x} cannot be")
    cdef Record* r = &session.records[index_of(h)]
    cdef uint64_t w = r.state.load()
    cdef bint there = word_gen(w) == gen_of(h) and state_of(w) != kFree
    if arguments and there and w & kFlagArgHeap:
        return views(r.args_heap.offset, r.args_heap.bytes, False)
    if not arguments and there and is_sealed(w) and w & kFlagResultHeap:
        return views(r.result_heap.offset, r.result_bytes, False)
    raise KeyError(f"record {h:016x} has no {'arguments' if arguments else 'value'} in the store")


cdef list views(Offset payload, uint32_t codec_bytes, bint writable):
    cdef PayloadView view = Process.view_payload(session.process.segment(), payload)
    cdef uint32_t i
    return [part(view.codec, codec_bytes, writable),
            *[part(view.buffer(i), view.buffer_bytes[i], writable) for i in range(view.header.buffers)]]


cdef object part(uint8_t* data, size_t size, bint writable):
    if size == 0:
        return memoryview(b"")
    whole = memoryview(<uint8_t[:size]>data).cast("B")
    return whole if writable else whole.toreadonly()


cdef class BulkValue:
    """A value, or the arguments of a task, to be copied in before it is sealed."""
    @property
    def local(self):
        return self.bulk.local

    @property
    def remote(self):
        return self.bulk.remote

    @property
    def is_arguments(self):
        return self.bulk.task != 0

    def parts(self):
        """Writable memoryviews of the codec and the buffers, in the store."""
        cdef PayloadView view = Process.view_payload(session.process.segment(), self.bulk.payload)
        return views(self.bulk.payload, view.header.codec_bytes, True)
