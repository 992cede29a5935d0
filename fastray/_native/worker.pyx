# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""The worker's loop: claim a task, call its function, seal the result.

`run` is the main thread of a worker process. It spins briefly for work, then sleeps; the lease (which
class's queues it may claim from) is given and taken by the node. `execute` is one task: decode the
arguments straight from the record, call, write the result into the record, seal. Signals (SIGUSR1:
cancellation) are handled by Python code in `fastray.worker`; it asks `current_task_cancelled`.
"""
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastray._native.codec cimport count_arguments, decode_call
from fastray._native.durable cimport keep_result, recall
from fastray._native.cpp cimport (
    DurableRunning,
    Handle,
    PayloadView,
    Process,
    Record,
    Wake,
    delay_of_retry,
    index_of,
    ErrorCode,
    kActorClass,
    kArgsInHeap,
    kDone,
    kErrorCancelled,
    kErrorUser,
    kEventTask,
    kFailed,
    kFlagCancel,
    kFlagDetached,
    kFlagMulti,
    kFlagRefs,
    kFlagResultHeap,
    kNoEvent,
    make_handle,
    state_of,
    ticks,
)
from fastray._native.object_ref cimport ObjectRef, make_held_ref, session
from fastray._native.returns cimport dump, note_failed, note_raised, run_stream, seal_returns
from fastray._native.values cimport error_bytes, payload_buffers, payload_references, read_value, write_value

cdef extern from "Python.h":
    PyObject* PyObject_Vectorcall(PyObject* callable, PyObject** args, size_t nargs, PyObject* kwnames)

cdef enum:
    STACK_SLOTS = 16   # calls with more arguments take their slots from the heap


cdef class Loaded:
    """A function variant as this worker has it."""


cdef list loaded = []        # by index in the function table
cdef bint leaving = False
cdef Handle current = 0
cdef str current_name = ""
cdef object running_call = None  # ContextVar of (handle, name) in an actor that runs several calls
cdef bint is_actor = False
cdef object log_call = None  # actors with checkpoints: called with the handle before a call is sealed
cdef object after_call = None  # and after its end
cdef uint32_t gpus = 0       # bit mask of the GPUs the tasks here see
cdef object broken = None
cdef bint refused = False    # a task has failed with it
cdef list unfinished = []    # output streams with a line begun (logs.unfinished)


def forget_functions():
    """A new session: function-table indices mean something else."""
    loaded.clear()


cdef Handle running() except? 0:
    """The task that this thread or coroutine runs, 0 for none."""
    if running_call is None:
        return current
    call = running_call.get(None)
    return 0 if call is None else call[0]


def current_task_name():
    """Name of the running task's function; an empty string between tasks."""
    if running_call is not None:
        call = running_call.get(None)
        return "" if call is None else call[1]
    return current_name if current != 0 else ""


def current_task_cancelled():
    """True when the running task was asked to stop."""
    cdef Handle h = running()
    if h == 0 or session.process == NULL:
        return False
    return bool(session.records[index_of(h)].state.load() & kFlagCancel)


def current_task():
    """(id of the running task as an int, attempt, handle), or None."""
    cdef Handle h = running()
    if h == 0:
        return None
    cdef Record* r = &session.records[index_of(h)]
    return r.id, r.attempts, h


def current_actor_index():
    """Local mode: the actor whose call is being run."""
    return session.records[index_of(current)].cls - kActorClass


def serve_actor(call_variable, log, after):
    """From now on this worker is an actor. `call_variable` is a ContextVar when it runs several calls at once;
    `log(handle)` is called before a call is sealed and `after()` after it, when it keeps checkpoints."""
    global is_actor, running_call, log_call, after_call
    is_actor = True
    running_call, log_call, after_call = call_variable, log, after
    session.concurrent = call_variable is not None


def leave():
    """The loop ends after the running task (max_calls, tests)."""
    global leaving
    leaving = True


cdef int use_gpus() except -1:
    """The lease brought other GPUs: CUDA_VISIBLE_DEVICES says which."""
    global gpus
    from fastray.worker import show_gpus
    gpus = session.process.self().gpus
    show_gpus(gpus)
    return 0


def watch_output(list streams):
    """`streams` names the output streams that hold back the beginning of a line."""
    global unfinished
    unfinished = streams


def refuse_tasks(error):
    """This worker cannot work (its runtime_env failed): every task it claims fails with `error`. When there are no more it
    leaves: the next one tries again."""
    global broken
    broken = error


cdef Loaded load(uint32_t index):
    from fastray.worker import load_function
    if index >= <uint32_t>len(loaded):
        loaded.extend([None] * (index + 1 - len(loaded)))
    cdef Loaded f = Loaded.__new__(Loaded)
    (f.function, f.retry_on, f.name, f.max_retries, f.returns, f.streaming, f.max_calls, f.group,
     f.read_only, digest, f.captured, f.seed) = load_function(index)
    f.digest.lo, f.digest.hi = digest
    f.calls = 0
    f.ticks = ~<uint64_t>0 >> 16  # unknown: taken as long, so that a backlog behind it wakes others
    loaded[index] = f
    return f


def run():
    """Runs tasks until told to leave."""
    cdef Process* p = session.process
    cdef Handle h
    cdef uint32_t seen
    while not leaving:
        h = p.poll_for_work(True)
        if h != 0:
            execute(h)
            if after_call is not None:
                after_call()
            if p.self().revoke.load():
                p.lease_is_over()
            continue
        if p.self().exiting.load() or refused:
            return
        if p.lease_is_over():
            continue
        seen = p.wake_word()
        if is_actor and actor_is_over():
            return
        p.sweep()
        with nogil:
            p.sleep_for_work(seen, -1)
        check_signals()


cdef bint actor_is_over() except -1:
    from fastray._native.actor_worker import nothing_left
    return nothing_left()


cdef int check_signals() except -1:
    try:
        PyErr_CheckSignals()
    except KeyboardInterrupt:  # a cancellation that came after its task's end
        pass
    return 0


def run_ready():
    """Local mode: runs what is ready, in this process, whatever its class."""
    global current
    cdef Process* p = session.process
    cdef Handle h, outer = current
    cdef uint32_t parent = session.parent, depth = session.depth, c = 0
    cdef DurableRunning durable
    if session.durable != NULL:
        durable = session.durable.running()
    cdef uint32_t actors = p.segment().header().actors_used.load()
    while c < kActorClass + actors:
        if c == p.segment().header().classes_used.load():
            c = kActorClass
        p.self().lease.store(c + 1)
        h = p.poll_for_work(False) if c < kActorClass + actors else 0
        if h == 0:
            c += 1
            continue
        execute(h)
        c = 0  # it may have made others ready
    p.self().lease.store(0)
    current = outer
    session.parent = parent
    session.depth = depth
    if session.durable != NULL:
        session.durable.resume(durable)


# ---- one task ---------------------------------------------------------------------------------------

cdef int execute(Handle h) except -1:
    while run_once(h):  # an actor's call that is retried: it keeps its place among the calls
        pass
    return 0


cdef bint run_once(Handle h) except -1:
    global current, current_name, refused
    cdef bint again = False
    cdef Process* p = session.process
    cdef Record* r = &session.records[index_of(h)]
    cdef Loaded f = None
    cdef uint64_t flags = 0, started, ended, event = kNoEvent
    cdef object result
    try:
        if r.function < <uint32_t>len(loaded):
            f = <Loaded>loaded[r.function]
        if f is None:
            f = load(r.function)
        p.spread(f.ticks)
        if p.self().gpus != gpus:
            use_gpus()
        if broken is not None:
            refused = True
            raise broken.with_traceback(None)
        current = h
        current_name = f.name
        session.parent = index_of(h)
        session.depth = r.depth + 1
        p.set_depth(r.depth + 1)
        if r.state.load() & kFlagCancel:  # it came while nothing ran here yet
            raise KeyboardInterrupt
        started = ticks()
        event = p.recorder().note(kEventTask, r.function, r.id, started, 0)
        if session.durable == NULL or not recall(h, r, f):
            result = call(h, r, f)
            finish(h, r, f, result)
        ended = ticks()
        p.recorder().close(event, ended & ~<uint64_t>1)
        f.ticks = (f.ticks >> 2) * 3 + (ended - started >> 2) if f.calls else ended - started
    except BaseException as error:
        p.recorder().close(event, ticks() | 1)
        current_name = current_name or "task"
        again = failed(h, r, f, error)
    current = 0
    session.parent = 0
    session.depth = 0
    if not again:
        p.end_task()
    if f is not None:
        f.calls += 1
        if f.max_calls and f.calls >= f.max_calls:
            leave()
    return again


cdef object call(Handle h, Record* r, Loaded f):
    """Decodes the arguments and calls the function."""
    if f.seed is not None:
        seed_task(r.id, f.seed)
    cdef PyObject* room[STACK_SLOTS + 1]
    cdef PyObject** stack = room
    cdef PyObject* kwnames = NULL
    cdef PyObject* result = NULL
    cdef Py_ssize_t nargs = 0, slots, i, total
    cdef const unsigned char* codec = r.args
    cdef Py_ssize_t size = r.args_bytes
    cdef PayloadView view
    cdef list values = None, references = None, buffers = None
    if r.args_bytes == kArgsInHeap:
        view = Process.view_payload(session.process.segment(), r.args_heap.offset)
        codec = view.codec
        size = view.header.codec_bytes
        references = payload_references(view.header)
        buffers = payload_buffers(h, view.header)
        if view.header.dependencies:
            values = dependency_values(view.handles, view.header.dependencies)
    elif r.dependencies or r.references:
        codec += (r.dependencies + r.references) * 8
        values = dependency_values(<Handle*>r.args, r.dependencies)
        references = [make_held_ref((<Handle*>r.args)[r.dependencies + i]) for i in range(r.references)]
    slots = count_arguments(codec, size)
    if slots > STACK_SLOTS:
        stack = <PyObject**>PyMem_Malloc((slots + 1) * sizeof(PyObject*))
    try:
        decode_call(codec, size, values, references, buffers, stack + 1, slots, &nargs, &kwnames)
        values = references = buffers = None
        result = PyObject_Vectorcall(<PyObject*>f.function, stack + 1, nargs | OFFSET, kwnames)
        return take(result)
    finally:
        total = nargs
        if kwnames != NULL:
            total += len(<tuple>kwnames)
            Py_DECREF(<object>kwnames)
        for i in range(total):
            Py_DECREF(<object>stack[i + 1])
        if stack != room:
            PyMem_Free(stack)


cdef int seed_task(uint64_t record, object seed) except -1:
    from fastray.seeding import seed_task as seed_here
    seed_here(record, seed)
    return 0


cdef extern from *:
    """
    #define FASTRAY_OFFSET PY_VECTORCALL_ARGUMENTS_OFFSET
    """
    size_t OFFSET "FASTRAY_OFFSET"


cdef inline object take(PyObject* result):
    """The result of a C API call as an owned object; raises what it raised."""
    if result == NULL:
        raise_pending()
    cdef object value = <object>result
    Py_DECREF(value)
    return value


cdef extern from *:
    """
    static int fastray_raise_pending(void) { return -1; }
    """
    int raise_pending "fastray_raise_pending"() except -1


class DependencyFailed(BaseException):
    """A dependency ended in an error: the task is not run, its error is that one (raw bytes)."""


cdef list dependency_values(const Handle* handles, uint32_t n):
    """The values of the references that are arguments themselves."""
    cdef list values = []
    cdef Record* r
    cdef uint32_t i
    for i in range(n):
        r = &session.records[index_of(handles[i])]
        if state_of(r.state.load()) == kFailed:
            raise DependencyFailed(error_bytes(r))
        values.append(read_value(handles[i], r))
    return values


# ---- its end ----------------------------------------------------------------------------------------

cdef int flush_output() except -1:
    """Before the task is sealed: whoever sees its result may end the session at once."""
    while unfinished:
        unfinished.pop().flush()
    return 0


cdef int finish(Handle h, Record* r, Loaded f, object result) except -1:
    cdef uint64_t flags = 0, w = r.state.load()
    if unfinished:
        flush_output()
    if w & kFlagMulti:
        if f.streaming:
            run_stream(h, r, result, current_task_name())
        else:
            seal_returns(h, r, f.returns, f.name, result)
    elif session.durable != NULL:
        flags = write_value(h, r, result, True)
        keep_result(h, r, flags)
    elif not w & kFlagDetached:
        flags = write_value(h, r, result, True)
    if log_call is not None and not f.read_only:
        log_call(h)
    session.process.seal(h, kDone, flags)
    return 0


cdef bint failed(Handle h, Record* r, Loaded f, object error) except -1:
    """Retries, or seals with the error. True: it is to run again here and now (an actor's call)."""
    cdef Process* p = session.process
    cdef bytes dumped
    if unfinished:
        flush_output()
    cdef bint cancelled = bool(r.state.load() & kFlagCancel)
    if isinstance(error, DependencyFailed):
        dumped = error.args[0]
        note_failed(h, <ErrorCode>(<uint8_t>dumped[0]), why_dependency_failed(dumped))
        p.seal(h, kFailed, p.write_failure(r[0], h, <ErrorCode>(<uint8_t>dumped[0]),
                                           <const char*>dumped + 1, len(dumped) - 1))
        return 0
    if isinstance(error, KeyboardInterrupt):
        p.fail(r[0], h, kErrorCancelled, NULL, 0)
        return 0
    if is_actor:
        from fastray.actor_worker import check_exit
        check_exit(error)  # does not return when it is one
    if isinstance(error, SystemExit):
        from fastray.worker import leave_at_once, left_here
        if session.local:  # this process is the driver
            error = left_here(error.code)
        else:
            leave_at_once(error.code)
    if log_call is not None and f is not None and not f.read_only:  # it may have changed the state before
        log_call(h)
    if f is not None and may_retry(f, error) and not cancelled:
        if f.max_retries < 0 or r.attempts < f.max_retries:
            note_raised(h, error)
            if is_actor:
                return p.run_again(h)
            if session.local or delay_of_retry(r.attempts + 1) == 0:
                p.retry(h)
            elif p.retry_later(h):
                from fastray.worker import retry_later
                if not retry_later(h):
                    p.push_ready(h)
            return 0
    dumped = dump(error, f.name if f is not None else current_name, h)
    p.seal(h, kFailed, p.write_failure(r[0], h, kErrorUser, <const char*>dumped, len(dumped)))
    return 0


cdef str why_dependency_failed(bytes dumped):
    from fastray.serialization import cause_text
    return "an argument failed: " + cause_text(dumped[1:]) if dumped[0] == kErrorUser else "an argument failed"


cdef bint may_retry(Loaded f, object error):
    if f.retry_on is None or not isinstance(error, Exception):
        return False
    return f.retry_on is True or isinstance(error, f.retry_on)
