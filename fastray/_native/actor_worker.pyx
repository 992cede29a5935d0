# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""An actor's worker: its constructor, its end, calls that run at once, its log and checkpoint.

One call at a time needs nothing of this: `worker.run` claims and executes it as a task. Threads and event loops
(fastray/actor_concurrency.py) take `Call` objects with `next_call` and end them with `finish` or `fail`. The rest
is what fastray/actor_worker.py does once: construct, restore, replay.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastray._native.cpp cimport (
    Actor,
    Handle,
    Offset,
    Process,
    Record,
    Stream,
    index_of,
    kActorAlive,
    kActorClass,
    kActorLogEntries,
    kActorStarting,
    kBlockActor,
    kDone,
    kEndHandlesGone,
    kEventTask,
    kFlagCancel,
    kNoEvent,
    make_handle,
    ticks,
)
from fastray._native.object_ref cimport ObjectRef, make_held_ref, session
from fastray._native.streams cimport append_item
from fastray._native.values cimport decode_error
from fastray._native.returns cimport dump
from fastray._native.worker cimport Loaded, call, failed, finish, load, loaded
from fastray._native.worker import DependencyFailed

cdef enum:
    ROOM_NS = 500000000  # a producer without room looks this often whether its consumer still lives

cdef Actor* mine = NULL
cdef uint32_t index = 0
cdef object running_call = None  # ContextVar of (handle, name) when several calls run at once


def become_actor():
    """(number of restarts, flags, function-table index of the class, of the info) of the actor that this worker is;
    None when it is none."""
    global mine, index
    cdef uint32_t lease = session.process.self().lease.load()
    if lease == 0 or lease - 1 < kActorClass:
        return None
    index = lease - 1 - kActorClass
    mine = &session.process.segment().actor(index)
    cdef Record* r = &session.records[index_of(mine.creation.load())]
    return mine.restarts.load(), mine.flags.load(), r.function, mine.info


def is_actor():
    return mine != NULL


def creation_reference():
    """A reference to the creation record, as handles hold one."""
    return make_held_ref(mine.creation.load())


def info_index():
    """Function-table index of what a handle of this actor needs to know."""
    return mine.info


def restarts():
    return 0 if mine == NULL else mine.restarts.load()


def dependencies():
    """References that are arguments of the constructor: it can run when they are done."""
    cdef Handle h = mine.creation.load()
    cdef uint32_t deps, refs, i
    cdef const Handle* handles = Process.argument_handles(
        session.process.segment(), session.records[index_of(h)], &deps, &refs)
    return [make_held_ref(handles[i]) for i in range(deps)]


def construct():
    """The instance. Raises what the constructor raises, and the error of a dependency that failed."""
    cdef Handle h = mine.creation.load()
    cdef Record* r = &session.records[index_of(h)]
    cdef bytes error
    session.process.self().claim.store(h)  # the node looks how long it takes, if it has a limit
    try:
        return call(h, r, load(r.function))
    except DependencyFailed as failure:
        error = failure.args[0]
    finally:
        session.process.end_task()
    raise decode_error(<const uint8_t*><const char*>error, len(error), r)


def constructed():
    """The actor can be called: handles may know."""
    cdef uint32_t expected = kActorStarting
    session.process.seal_creation(mine.creation.load(), kDone)
    mine.state.compare_exchange_strong(expected, kActorAlive)


def set_end(uint32_t why, bytes cause=None):
    """Says why this process is about to leave, so that the node does not start the actor again."""
    cdef uint32_t none = 0
    cdef Offset block
    cdef uint64_t size
    if cause is not None:
        size = len(cause)
        block = session.process.allocator().allocate(size + 8, make_handle(0, kBlockActor | index))
        if block != 0:
            memcpy(session.process.segment().base() + block, &size, 8)
            memcpy(session.process.segment().base() + block + 8, <const char*>cause, size)
            mine.cause.store(block)
    mine.end.compare_exchange_strong(none, why)


def nothing_left():
    """True when no handle is left and every call made has been run: says so to the node."""
    if mine == NULL or mine.ending.load() == 0:
        return False
    if session.process.has_call(session.process.segment().cls(kActorClass + index), True):
        return False
    set_end(kEndHandlesGone)
    return True


def kick_if_ending():
    """A call has ended: when no handle is left, the loop has to see whether it was the last."""
    if mine.ending.load():
        Process.wake_process(session.process.segment(), session.slot)


def is_cancelled(Handle h):
    return bool(session.records[index_of(h)].state.load() & kFlagCancel)


def construct_local(uint32_t actor):
    """Local mode: the instance of the actor in this entry. Raises what the constructor raises."""
    cdef Handle h = session.process.segment().actor(actor).creation.load()
    cdef Record* r = &session.records[index_of(h)]
    instance = call(h, r, load(r.function))
    session.process.seal_creation(h, kDone)
    session.process.segment().actor(actor).state.store(kActorAlive)
    return instance


def wait_for_work():
    """Sleeps until there may be something to do. False: the actor is over."""
    cdef Process* p = session.process
    cdef uint32_t seen = p.wake_word()
    if p.self().exiting.load():
        return False
    p.sweep()
    with nogil:
        p.sleep_for_work(seen, -1)
    PyErr_CheckSignals()
    return True


# ---- calls that run at once --------------------------------------------------------------------------

def run_concurrently(call_variable):
    global running_call
    running_call = call_variable


def running_index():
    """Record index of the running call, 0 for none: the parent of what is submitted now."""
    if running_call is None:
        return 0
    cell = running_call.get(None)
    return 0 if cell is None else index_of(cell[0])


def next_call(bint spin, bint waits):
    """Claims the next call; None when there is none now. `waits`: it will not start at once."""
    cdef Process* p = session.process
    cdef Handle h = p.poll_for_work(spin)
    if h == 0:
        return None
    cdef Call c = Call.__new__(Call)
    cdef Record* r = &session.records[index_of(h)]
    c.h = h
    c.place = p.enter_flight(index, h, waits)
    c.waits = waits
    c.event = kNoEvent
    if c.place >= 0:
        p.end_task()
    try:
        if r.function < <uint32_t>len(loaded):
            c.f = <Loaded>loaded[r.function]
        if c.f is None:
            c.f = load(r.function)
        c.cell = (h, c.f.name)
    except BaseException as error:
        c.cell = (h, "task")
        c.fail(error)
        return next_call(spin, waits)
    return c


cdef class Call:
    """A call that was claimed. `begin` runs it, or returns its coroutine; `finish` or `fail` ends it."""
    cdef Handle h
    cdef int place
    cdef bint waits
    cdef uint64_t event  # in the flight recorder
    cdef Loaded f
    cdef readonly object cell  # (handle, name): the value of the call variable while it runs

    @property
    def group(self):
        return self.f.group

    @property
    def handle(self):
        return self.h

    @property
    def streaming(self):
        return self.f.streaming

    def cancelled(self):
        return bool(session.records[index_of(self.h)].state.load() & kFlagCancel)

    def begin(self):
        """Calls the method. Raises what it raises; KeyboardInterrupt when it was cancelled before."""
        if self.waits and self.place >= 0:
            session.process.start_flight(index, self.place)
        self.waits = False
        if self.cancelled():
            raise KeyboardInterrupt
        self.event = session.process.recorder().note(kEventTask, session.records[index_of(self.h)].function,
                                                     session.records[index_of(self.h)].id, ticks(), 0)
        return call(self.h, &session.records[index_of(self.h)], self.f)

    def finish(self, result):
        """Seals it with its result."""
        try:
            finish(self.h, &session.records[index_of(self.h)], self.f, result)
            session.process.recorder().close(self.event, ticks() & ~<uint64_t>1)
        except BaseException as error:
            self.fail(error)
            return
        self.leave()

    def fail(self, error):
        """Seals it with an error. True: it is to be begun again instead."""
        session.process.recorder().close(self.event, ticks() | 1)
        if failed(self.h, &session.records[index_of(self.h)], self.f, error):
            return True
        self.leave()
        return False

    def append(self, value, uint32_t number):
        """Item `number` of a stream. False when its consumer is gone."""
        return append_item(self.h, &session.records[index_of(self.h)], value, None, number) != 0

    def has_room(self):
        """False when another item would wait for the consumer of the stream."""
        cdef Stream* s = &Process.stream_of(session.records[index_of(self.h)])
        return s.ahead_max == 0 or s.produced.load() - s.consumed.load() < s.ahead_max

    def wait_for_room(self):
        """Sleeps until the consumer took something; in a thread, beside the event loop."""
        cdef uint32_t seen = session.process.wake_word()
        cdef Handle none = 0
        cdef Stream* s = &Process.stream_of(session.records[index_of(self.h)])
        s.producer_sleeps.store(session.slot + 1)
        if not self.has_room():
            with nogil:
                session.process.sleep_on(&none, 0, seen, ROOM_NS)

    def append_error(self, error, uint32_t number):
        """The exception is the last item of a stream."""
        append_item(self.h, &session.records[index_of(self.h)], None, dump(error, self.f.name, self.h), number)

    def finish_stream(self):
        session.process.recorder().close(self.event, ticks() & ~<uint64_t>1)
        session.process.seal(self.h, kDone, 0)
        self.leave()

    cdef int leave(self) except -1:
        if self.place >= 0:
            session.process.leave_flight(index, self.place)
        else:
            session.process.end_task()
        self.place = -1
        return 0


# ---- log and checkpoint --------------------------------------------------------------------------------

def log_call(Handle h):
    """The call changed the actor: it stands in the log before it is sealed."""
    if not session.process.log_call(index, h):
        raise MemoryError("this process borrows more than 1,048,576 objects: no room for the actor's log")


def log_position():
    """How many calls were logged ever."""
    return mine.log_end.load()


def log_room():
    """How many more calls the log takes before there must be a checkpoint."""
    return kActorLogEntries - (mine.log_end.load() - mine.log_start.load())


def set_checkpoint(ObjectRef ref, uint64_t position):
    """The object holds the state after the first `position` calls of the log."""
    if not session.process.set_checkpoint(index, ref.handle, position):
        raise MemoryError("this process borrows more than 1,048,576 objects: no room for the checkpoint")


def checkpoint():
    """(reference to the object with the last checkpoint, calls of the log before it), or None."""
    cdef Handle h = mine.checkpoint.load()
    return None if h == 0 else (make_held_ref(h), session.process.checkpoint_position(h))


def logged_since(uint64_t position):
    """Handles of the calls of the log from `position` on: what has to run again.

    What stands at its end and is not sealed was in flight: it goes from the log, and comes as a call again.
    """
    cdef uint64_t end = mine.log_end.load(), n
    while end > position and not session.process.sealed(log_entry(end - 1)):
        end -= 1
    mine.log_end.store(end)
    return [log_entry(n) for n in range(position, end)]


cdef Handle log_entry(uint64_t n) noexcept:
    return session.process.segment().actor_log(index, n).load()


def rerun(Handle h):
    """Runs a sealed call again; its result stays what it was. Raises what the method raises."""
    cdef Record* r = &session.records[index_of(h)]
    cdef Loaded f = load(r.function) if r.function >= <uint32_t>len(loaded) or loaded[r.function] is None else loaded[r.function]
    result = call(h, r, f)
    if f.streaming:
        for _ in result:
            pass
