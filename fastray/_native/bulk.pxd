from fastray._native.cpp_link cimport Bulk


cdef class BulkValue:
    cdef Bulk bulk
