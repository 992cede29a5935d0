from libc.stdint cimport uint16_t, uint32_t


cdef class TaskFunction:
    """What a task needs of its function, ready to be written into a record."""
    cdef uint32_t epoch      # session in which `function` is valid; 0: not exported
    cdef uint32_t function   # index in the function table
    cdef uint16_t cls        # scheduling class
    cdef uint16_t returns    # number of return values
    cdef bint streaming
    cdef bint plain          # one return value, nothing to count: the fast path takes it
    cdef public bint cached  # calls may be answered from a cache: _cached(args, kwargs) submits them
    cdef public bint counted # calls are counted: _admit() before, _submitted(result) after
    cdef uint32_t ahead_max  # stream: items made but not taken, at most
    cdef uint32_t group, group_life  # the placement group it runs in: entry (0: none) and life; then it is not plain
    cdef int args_min, args_max  # positional arguments a call without keywords may have; args_max -1: any number
    cdef set shapes              # (number, keyword names) of calls that were checked and fit


cdef object table_full()
