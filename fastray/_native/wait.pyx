# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""`get` and `wait`: the waiting half of the hot path.

The state word of each record says whether it is done; looking costs a few ns. While it is not: spin for a
few microseconds with the GIL held (releasing and taking it back costs more), then mark the record, release
the GIL and sleep in one futex wait. `get(list)` sleeps on the *last* unfinished record of the list, because
each wake-up costs microseconds; a record that fails wakes its owner in any case, so errors come early.
"""
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastray._native.cpp cimport (
    Handle,
    Process,
    Record,
    Wake,
    gen_of,
    index_of,
    is_sealed,
    kDone,
    kFailed,
    kFlagMulti,
    kFlagResultHeap,
    kAway,
    kLost,
    kNoEvent,
    kTask,
    now_ns,
    pause,
    state_of,
    ticks,
    ticks_per_us,
    word_gen,
)
from fastray._native.codec cimport decode_value
from fastray._native.object_ref cimport ObjectRef, check_attached, check_ref, session
from fastray._native.values cimport read_value, read_value_writable

cdef enum:
    LOOK_NS = 2000000  # how often wait_anywhere looks
    SPIN_US = 8              # wait: a short look at the first few
    CHECK_NS = 500000000     # how often a sleeper looks whether the node still lives


cdef int64_t deadline_of(object timeout) except? -2:
    if timeout is None:
        return -1
    cdef double seconds = timeout
    if seconds < 0:
        return -1
    return now_ns() + <int64_t>(min(seconds, 1e9) * 1e9)


cdef int check_node() except -1:
    from fastray.runtime import check_node as check
    check()
    return 0


cdef int session_ended() except -1:
    from fastray.exceptions import StaleReferenceError
    raise StaleReferenceError("the fastray session ended (shutdown) while this call waited for a reference of it")


cdef int wait_handles(const Handle* handles, Py_ssize_t n, uint32_t seen, int64_t deadline) except -1:
    cdef Process* process = session.process
    if process.mark_awaited(handles, n):
        return 1
    process.sweep()
    process.nudge()
    cdef uint64_t event = kNoEvent
    cdef Record* r
    if n > 0 and (session.parent != 0 or session.concurrent):
        r = &session.records[index_of(handles[0])]
        event = process.recorder().note_blocked(r.function if r.kind == kTask else 0, r.id, ticks())
    try:
        return sleep_until(handles, n, seen, deadline)
    finally:
        if session.process == process:
            process.recorder().close(event, ticks() & ~<uint64_t>1)


cdef int sleep_until(const Handle* handles, Py_ssize_t n, uint32_t seen, int64_t deadline) except -1:
    cdef Process* process = session.process
    cdef uint32_t epoch = session.epoch
    cdef int64_t slice_ns
    cdef Wake wake
    while True:
        slice_ns = CHECK_NS
        if deadline >= 0:
            slice_ns = min(slice_ns, deadline - now_ns())
            if slice_ns <= 0:
                return 0
        with nogil:
            wake = process.sleep_on(handles, n, seen, slice_ns)
        if session.epoch != epoch or session.process == NULL:
            session_ended()
        if wake == Wake.kSealed:
            return 1
        if wake == Wake.kKicked:
            process.sweep()  # somebody may need the room
            return 1
        if wake == Wake.kInterrupted:
            PyErr_CheckSignals()
        elif wake == Wake.kTimeout:
            check_node()
            if process.mark_awaited(handles, n):  # asks once more for what is lost
                return 1
            process.nudge()
            process.sweep()


cdef object timed_out(object timeout, Py_ssize_t done, Py_ssize_t total):
    from fastray.exceptions import GetTimeoutError
    return GetTimeoutError(f"get() timed out after {timeout} s: {done} of {total} objects were ready")


cdef object get_one(ObjectRef ref, object timeout, bint writable):
    check_ref(ref)
    cdef Record* r = &session.records[index_of(ref.handle)]
    cdef int64_t deadline
    if not is_sealed(r.state.load()) and not (timeout is None and session.process.spin_until_sealed(ref.handle)):
        deadline = deadline_of(timeout)
        while not is_sealed(r.state.load()):
            if wait_handles(&ref.handle, 1, session.process.wake_word(), deadline) == 0:
                raise timed_out(timeout, 0, 1)
            check_ref(ref)
    if writable:
        return read_value_writable(ref.handle, r)
    return read_value(ref.handle, r)


def get(refs, *, timeout=None, bint writable=False):
    """The value of a reference, or the values of a list of them in order (paper, Table 1; Ray's `get`).

    Args:
        refs: an ObjectRef or a list of them.
        timeout: seconds; None (or a negative number, as in Ray) waits for ever, 0 only looks.
        writable: arrays in the values are private, writable copies instead of read-only views.

    Raises:
        TaskError: the task raised; also an instance of the exception's own class.
        GetTimeoutError: not ready within `timeout` seconds.
        WorkerCrashedError, TaskCancelledError, ObjectLostError: as named.
        ValueError: `refs` is no ObjectRef and no list; TypeError: an element is no ObjectRef.
    """
    if type(refs) is ObjectRef:
        return get_one(<ObjectRef>refs, timeout, writable)
    if type(refs) is not list:
        if hasattr(refs, "next_ready"):  # a stream: its references are there as they are made
            return refs
        refs = as_list(refs)
    if session.process == NULL and not refs:
        check_attached()
    return get_list(<list>refs, timeout, writable)


cdef list as_list(object refs):
    if isinstance(refs, list):
        return list(refs)
    raise ValueError(f"get() takes an ObjectRef or a list of ObjectRefs, got {type(refs).__name__}: {refs!r:.100}")


cdef list get_list(list refs, object timeout, bint writable):
    cdef Py_ssize_t n = PyList_GET_SIZE(refs), i
    cdef list values = PyList_New(n)
    cdef ObjectRef ref
    cdef Record* r
    cdef Record* records = session.records
    cdef uint64_t w
    cdef object value
    cdef int64_t deadline = deadline_of(timeout)
    cdef bint looked = False
    for i in range(n):
        if i >= PyList_GET_SIZE(refs):
            raise ValueError("the list of references was changed during get()")
        value = <object>PyList_GET_ITEM(refs, i)
        if type(value) is not ObjectRef:
            raise TypeError(f"get() takes ObjectRefs: element {i} is a {type(value).__name__}: {value!r:.100}")
        ref = <ObjectRef>value
        if ref.epoch != session.epoch:
            check_ref(ref)
        r = &records[index_of(ref.handle)]
        w = r.state.load()
        if not is_sealed(w):
            wait_for_element(refs, i, n, r, timeout, deadline, &looked)
            w = r.state.load()
        if state_of(w) != kFailed and not w & (kFlagResultHeap | kFlagMulti):
            value = decode_value(r.result, r.result_bytes, None, None)
        elif writable:
            value = read_value_writable(ref.handle, r)
        else:
            value = read_value(ref.handle, r)
        Py_INCREF(value)
        PyList_SET_ITEM(values, i, value)
    return values


cdef int wait_for_element(list refs, Py_ssize_t i, Py_ssize_t n, Record* r, object timeout,
                          int64_t deadline, bint* looked) except -1:
    """Until refs[i] is sealed, sleeping on the last unsealed one; raises early what any of them raised."""
    cdef Py_ssize_t last = min(n, PyList_GET_SIZE(refs)) - 1
    cdef ObjectRef ref = <ObjectRef>refs[i]
    if timeout is None and session.process.spin_until_sealed(ref.handle):
        return 0
    cdef Record* t
    if not looked[0]:  # once per get(): later failures wake us
        looked[0] = True
        raise_failed(refs, i)
    while not is_sealed(r.state.load()):
        last = last_unsealed(refs, i, last)
        ref = <ObjectRef>refs[last]
        if wait_handles(&ref.handle, 1, session.process.wake_word(), deadline) == 0:
            if is_sealed(r.state.load()):
                return 0
            raise timed_out(timeout, i, n)
        check_ref(ref)
        t = &session.records[index_of(ref.handle)]
        if state_of(t.state.load()) != kDone and not is_sealed(r.state.load()):
            raise_failed(refs, i)
    return 0


cdef Py_ssize_t last_unsealed(list refs, Py_ssize_t first, Py_ssize_t last) except -1:
    cdef object value
    while last > first:
        value = refs[last]
        if type(value) is ObjectRef and (<ObjectRef>value).epoch == session.epoch:
            if not is_sealed(session.records[index_of((<ObjectRef>value).handle)].state.load()):
                return last
        last -= 1
    return first


cdef int raise_failed(list refs, Py_ssize_t first) except -1:
    """Raises the error of the first failed one from refs[first] on, if there is any; asks for all that are lost."""
    cdef Py_ssize_t k
    cdef ObjectRef ref
    cdef Record* r
    for k in range(first, PyList_GET_SIZE(refs)):
        value = refs[k]
        if type(value) is not ObjectRef:
            continue
        ref = <ObjectRef>value
        r = &session.records[index_of(ref.handle)]
        if ref.epoch != session.epoch:
            continue
        if state_of(r.state.load()) == kFailed:
            read_value(ref.handle, r)
        if state_of(r.state.load()) == kLost or state_of(r.state.load()) == kAway:
            session.process.recover(ref.handle)
    return 0


def wait(refs, *, num_returns=1, timeout=None, fetch_local=True):
    """Splits a list of references into (ready, not ready), once `num_returns` are ready or after `timeout`
    seconds (paper, Table 1; Ray's `wait`). Both lists keep the order of `refs`; the first has at most
    `num_returns` elements. Without `fetch_local` what is done on another node counts, and is not brought here.

    Raises:
        TypeError: `refs` is not a list, or an element is no ObjectRef.
        ValueError: duplicate references; `num_returns` not in 1..len(refs).
    """
    if type(refs) is ObjectRef:
        raise TypeError("wait() takes a list of ObjectRefs, got a single ObjectRef")
    if not isinstance(refs, (list, tuple)):
        raise TypeError(f"wait() takes a list of ObjectRefs, got {type(refs).__name__}")
    cdef list all_refs = <list>refs if type(refs) is list else list(refs)
    cdef Py_ssize_t n = len(all_refs), need = num_returns
    if need <= 0:
        raise ValueError(f"wait: num_returns must be positive, got {num_returns}")
    if n == 0:
        return [], []
    if need > n:
        raise ValueError(f"wait: num_returns is {need}, but there are only {n} references")
    if check_elements(all_refs, True):
        return wait_streams(list(all_refs), need, deadline_of(timeout))
    if timeout is not None and timeout < 0:
        raise ValueError(f"wait: timeout must not be negative, got {timeout}")
    if not fetch_local and session.process.segment().header().clustered.load():
        return wait_anywhere(all_refs, need, deadline_of(timeout))
    if need == 1:  # the most frequent call of all: one by one
        first = take_first(all_refs, n)
        if first is not None:
            return first
    return wait_list(list(all_refs), n, need, deadline_of(timeout))


cdef tuple wait_anywhere(list refs, Py_ssize_t need, int64_t deadline):
    """Like wait_list, but what is done on another node counts. Nobody is woken by that: it is looked for."""
    cdef Handle none = 0
    cdef uint32_t seen
    while True:
        seen = session.process.wake_word()
        ready = [ref for ref in refs if is_there((<ObjectRef>ref).handle)][:need]
        if len(ready) == need or (deadline >= 0 and now_ns() >= deadline):
            chosen = set(ready)
            return ready, [ref for ref in refs if ref not in chosen]
        with nogil:
            session.process.sleep_on(&none, 0, seen, LOOK_NS)
        PyErr_CheckSignals()


cdef bint is_there(Handle h):
    """Done, here or on another node."""
    cdef uint64_t w = session.records[index_of(h)].state.load()
    return is_sealed(w) or state_of(w) == kAway


cdef tuple take_first(list refs, Py_ssize_t n):
    """([the first that is ready], the rest), or None."""
    cdef Py_ssize_t k
    cdef list rest
    for k in range(n):
        if is_sealed(session.records[index_of((<ObjectRef>PyList_GET_ITEM(refs, k)).handle)].state.load()):
            rest = refs[:]
            return [rest.pop(k)], rest
    return None


cdef uint32_t wait_stamp = 0


cdef bint check_elements(list refs, bint streams) except -1:
    """Types, session and duplicates in one pass: each reference is stamped with the number of this call. True when
    there is a generator among them, which `streams` allows."""
    global wait_stamp
    cdef Py_ssize_t k
    cdef ObjectRef ref
    cdef object value
    wait_stamp += 1
    for k in range(PyList_GET_SIZE(refs)):
        value = <object>PyList_GET_ITEM(refs, k)
        if type(value) is not ObjectRef:
            if streams and hasattr(value, "next_ready"):
                return True
            raise TypeError(f"wait() takes ObjectRefs, got a {type(value).__name__}: {value!r:.100}")
        ref = <ObjectRef>value
        if ref.epoch != session.epoch:
            check_ref(ref)
        if ref.stamp == wait_stamp:
            raise ValueError(f"wait() got the same ObjectRef more than once: {ref!r}")
        ref.stamp = wait_stamp
    return False


cdef object wait_list(list refs, Py_ssize_t n, Py_ssize_t need, int64_t deadline):
    cdef Handle* pending = <Handle*>PyMem_Malloc(n * sizeof(Handle))
    cdef Py_ssize_t k, left
    cdef Py_ssize_t ready
    try:
        while True:
            ready = left = 0
            for k in range(n):
                if is_sealed(session.records[index_of((<ObjectRef>PyList_GET_ITEM(refs, k)).handle)].state.load()):
                    ready += 1
                    if ready == need:
                        return split(refs, n, need)
                else:
                    pending[left] = (<ObjectRef>PyList_GET_ITEM(refs, k)).handle
                    left += 1
            if deadline < 0 and ready + 1 >= need and spin_any(pending, left):
                continue
            if wait_handles(pending, left, session.process.wake_word(), deadline) == 0:
                return split(refs, n, need)
            if session.process == NULL:
                check_ref(<ObjectRef>refs[0])
    finally:
        PyMem_Free(pending)


cdef object wait_streams(list refs, Py_ssize_t need, int64_t deadline):
    """`wait` over references and generators; a generator is ready when its next item is there, or its end."""
    cdef list plain = [ref if type(ref) is ObjectRef else ref._task() for ref in refs]
    cdef Handle* handles = <Handle*>PyMem_Malloc(len(refs) * sizeof(Handle))
    cdef Py_ssize_t left
    cdef uint32_t seen
    try:
        while True:
            check_elements(plain, False)
            seen = session.process.wake_word()
            ready = [ref for ref in refs if is_ready(ref)][:need]
            rest = [ref for ref in refs if not any([ref is r for r in ready])]
            left = 0
            for ref in rest:
                handles[left] = (<ObjectRef>(ref if type(ref) is ObjectRef else ref._task())).handle
                left += 1
            if len(ready) == need or wait_handles(handles, left, seen, deadline) == 0:
                return ready, rest
    finally:
        PyMem_Free(handles)


cdef bint is_ready(object ref) except -1:
    if type(ref) is ObjectRef:
        return is_sealed(session.records[index_of((<ObjectRef>ref).handle)].state.load())
    return ref.next_ready()


cdef bint spin_any(Handle* pending, Py_ssize_t n) noexcept:
    """A short look at the first few: most waits are for something about to be done."""
    cdef uint64_t end = ticks() + <uint64_t>(SPIN_US * ticks_per_us())
    cdef Py_ssize_t k
    while ticks() < end:
        for k in range(min(n, 8)):
            if is_sealed(session.records[index_of(pending[k])].state.load()):
                return True
        pause()
    return False


cdef object split(list refs, Py_ssize_t n, Py_ssize_t need):
    """(ready, rest): states are looked at once more, so that nothing is in both or in none."""
    cdef list ready = [], rest
    cdef Py_ssize_t k = 0
    cdef object ref
    rest = []
    while k < n and len(ready) < need:
        ref = <object>PyList_GET_ITEM(refs, k)
        if is_sealed(session.records[index_of((<ObjectRef>ref).handle)].state.load()):
            ready.append(ref)
        else:
            rest.append(ref)
        k += 1
    if rest:
        rest.extend(refs[k:])
    else:
        rest = refs[k:]
    return ready, rest


def ready_now(list refs, timeout=None):
    """The references of the list that are done; waits for one, for `timeout` seconds or for a `kick`."""
    check_elements(refs, False)
    cdef Py_ssize_t n = len(refs), k, left = 0
    cdef Handle* pending = <Handle*>PyMem_Malloc((n + 1) * sizeof(Handle))
    cdef ObjectRef ref
    cdef list ready = []
    cdef uint32_t seen = session.process.wake_word() if session.process != NULL else 0
    try:
        for k in range(n):
            ref = <ObjectRef>refs[k]
            if is_sealed(session.records[index_of(ref.handle)].state.load()):
                ready.append(ref)
            else:
                pending[left] = ref.handle
                left += 1
        if ready or timeout == 0:
            return ready
        wait_handles(pending, left, seen, deadline_of(timeout))
        if session.process == NULL:
            return ready
        return [ref for ref in refs if is_sealed(session.records[index_of(ref.handle)].state.load())]
    finally:
        PyMem_Free(pending)


def kick():
    """Wakes every thread of this process that waits, so that it looks again."""
    if session.process != NULL:
        Process.wake_process(session.process.segment(), session.slot)
