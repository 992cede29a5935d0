# The format of the codec: what codec.pyx writes and decoder.pyx reads.
#
# A call is varint(positional << 1 | has_keywords), [varint(keywords) varint(names_bytes)
# {varint(length) utf-8}...], then the values, positional first. A value is a tag and:
#
#   INT8/32/64, FLOAT   little-endian              BIG       varint n, n bytes two's complement
#   ASCII, UTF8, BYTES  varint n, n bytes          TUPLE, LIST, DICT  varint n, items
#   BUFFER_*            varint buffer              DEPENDENCY, REFERENCE  varint index
#   ARRAY               flags, varint ndim, dims, varint n, dtype.str, then buffer or n, bytes
#   PICKLE              varint n, bytes, varint buffers, each varint index + 1, or 0, n, bytes
#   PICKLE_BUFFER       varint buffer, then as PICKLE

cdef enum:
    NONE = 1
    TRUE = 2
    FALSE = 3
    INT8 = 4
    INT32 = 5
    INT64 = 6
    BIG = 7
    FLOAT = 8
    ASCII = 9
    UTF8 = 10
    BYTES = 11
    TUPLE = 12
    LIST = 13
    DICT = 14
    DEPENDENCY = 15
    REFERENCE = 16
    BUFFER_BYTES = 17
    BUFFER_BYTEARRAY = 18
    BUFFER_STR = 19
    ARRAY = 20
    PICKLE = 21
    PICKLE_BUFFER = 22
    ARRAY_FORTRAN = 1  # flags of ARRAY
    ARRAY_INLINE = 2
    # what put() returns beside 0, written
    PICKLED = 1  # needs pickle
    FULL = 2     # does not fit
