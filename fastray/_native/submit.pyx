# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""`f.remote(x)`: the submitting half of the hot path.

`remote_fastcall` is the method behind `.remote`. A call whose arguments fit into the record (32 bytes:
numbers, short strings, small tuples of them) takes one record from our free list, encodes in place,
publishes and makes the reference: about 50 ns. Everything else goes to `submit_generic`.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastray._native.codec cimport Encoder, acquire_encoder, encode_call_inline, release_encoder
from fastray._native.cpp cimport (
    Group,
    Handle,
    Process,
    Record,
    Stream,
    gen_of,
    index_of,
    kActor,
    kActorClass,
    kArgsInHeap,
    kFlagArgHeap,
    kFlagMulti,
    kFlagRefs,
    kFlagShared,
    kGroupRemoved,
    kInlineArgs,
    kInlineResult,
    kTask,
)
from fastray._native.object_ref cimport (
    ObjectRef,
    check_attached,
    check_ref,
    make_ref,
    session,
)
from fastray._native.streams cimport make_stream
from fastray._native.values cimport store_encoded

cdef extern from "Python.h":
    PyObject** PySequence_Fast_ITEMS(object sequence)

cdef extern from *:
    """
    static PyMethodDef fastray_remote_def = {
        "remote", NULL, METH_FASTCALL | METH_KEYWORDS,
        "Submits one call as a task; returns its ObjectRef (paper, Table 1; Ray's f.remote)."};
    /* Cython offers no METH_FASTCALL | METH_KEYWORDS method: a tuple per call would cost 15 ns. */
    static int fastray_add_remote(PyObject* target, void* function) {
        PyTypeObject* type = (PyTypeObject*)target;
        fastray_remote_def.ml_meth = (PyCFunction)function;
        PyObject* method = PyDescr_NewMethod(type, &fastray_remote_def);
        if (method == NULL) return -1;
        int status = PyDict_SetItemString(type->tp_dict, "remote", method);
        Py_DECREF(method);
        PyType_Modified(type);
        return status;
    }
    """
    int fastray_add_remote(object type, void* function) except -1


cdef enum:
    SHAPES_MAX = 1024


cdef object table_full():
    from fastray.exceptions import TooManyTasksError
    return TooManyTasksError(
        "no room for another task: 33,554,432 records are in use or memory is exhausted. get() results and "
        "drop references to finished tasks before submitting more."
    )


cdef inline void fill(Record* r, TaskFunction f, uint8_t kind) noexcept:
    r.id = session.process.next_id()
    r.function = f.function
    r.cls = f.cls
    r.parent = session.parent if not session.concurrent else running_call()
    if r.parent != 0 and session.durable != NULL:
        session.durable.inherit(session.process.index_of_record(r))
    r.kind = kind
    r.depth = <uint8_t>session.depth
    r.ret = f.returns
    r.attempts = 0


cdef uint32_t running_call() noexcept:
    """Record index of the call that this thread or coroutine runs, in an actor that runs several."""
    from fastray._native.actor_worker import running_index
    return running_index()


cdef class TaskFunction:
    """Base of RemoteFunction and ActorMethod: holds what the fast path needs in C fields."""

    def __cinit__(self):
        self.epoch = 0
        self.args_min = 0
        self.args_max = -1
        self.shapes = set()

    def _takes(self, int args_min, int args_max):
        """How many positional arguments a call without keywords has; args_max -1: any number."""
        self.args_min = args_min
        self.args_max = args_max

    def _exported(self, uint32_t function, uint16_t cls, uint16_t returns, bint streaming, uint32_t ahead_max,
                  uint32_t group=0, uint32_t group_life=0):
        """From now on, in this session, calls use function-table entry `function`."""
        self.function = function
        self.cls = cls
        self.returns = returns
        self.streaming = streaming
        self.plain = returns == 1 and not streaming and not self.counted and not self.cached and group == 0
        self.group = group
        self.group_life = group_life
        self.ahead_max = ahead_max
        self.epoch = session.epoch


cdef int prepare(TaskFunction self) except -1:
    """Slow start of a call: attaches if need be and exports the function to this session."""
    check_attached()
    if self.epoch != session.epoch:
        self._export()
    return 0


cdef int check_shape(TaskFunction f, Py_ssize_t nargs, PyObject* kwnames) except -1:
    """Raises TypeError when the function cannot be called so; remembers what fits."""
    shape = (nargs, <object>kwnames if kwnames != NULL else ())
    if shape not in f.shapes:
        f._check_call(nargs, shape[1])
        if len(f.shapes) < SHAPES_MAX:
            f.shapes.add(shape)
    return 0


cdef PyObject* remote_fastcall(PyObject* self, PyObject** args, Py_ssize_t nargs, PyObject* kwnames) except NULL:
    cdef TaskFunction f = <TaskFunction>self
    cdef Record* r
    cdef Handle h
    cdef Py_ssize_t n
    cdef ObjectRef ref
    if f.epoch != session.epoch or session.process == NULL:
        prepare(f)
    if kwnames != NULL or nargs < f.args_min or (f.args_max >= 0 and nargs > f.args_max):
        check_shape(f, nargs, kwnames)
    if not f.plain:
        return new_reference(submit_generic(f, args, nargs, kwnames))
    r = session.process.allocate_record()
    if r == NULL:
        raise table_full()
    n = encode_call_inline(args, nargs, kwnames, r.args, kInlineArgs)
    if n < 0:
        session.process.unallocate(r)
        return new_reference(submit_generic(f, args, nargs, kwnames))
    fill(r, f, kTask)
    r.args_bytes = <uint8_t>n
    r.dependencies = 0
    r.references = 0
    h = session.process.handle_of(r)
    ref = make_ref(h)
    if not session.process.publish(r, h, 0):
        ref.handle = 0
        session.process.unallocate(r)
        raise table_full()
    if session.local:
        run_ready()
    return new_reference(ref)


cdef int run_ready() except -1:
    """Local mode: what was just submitted runs here and now."""
    from fastray._native.worker import run_ready as run
    run()
    return 0


cdef inline PyObject* new_reference(object o):
    Py_INCREF(o)
    return <PyObject*>o


# ---- the general case --------------------------------------------------------------------------------

cdef object submit_generic(TaskFunction f, PyObject** args, Py_ssize_t nargs, PyObject* kwnames):
    if f.cached:
        return f._cached(*call_of(args, nargs, kwnames))
    if f.group != 0:
        check_group(f)
    if f.counted:
        f._admit()
    result = submit_record(f, args, nargs, kwnames)
    if f.counted:
        f._submitted(result)
    return result


cdef int check_group(TaskFunction f) except -1:
    """Its group may have been removed, and its class be another's by now."""
    cdef Group* group = &session.process.segment().group(f.group)
    if group.life.load() == f.group_life and group.state.load() != kGroupRemoved:
        return 0
    from fastray.exceptions import TaskPlacementGroupRemoved
    raise TaskPlacementGroupRemoved()


cdef tuple call_of(PyObject** args, Py_ssize_t nargs, PyObject* kwnames):
    """(args, kwargs) of a call."""
    cdef Py_ssize_t i
    cdef tuple names = <tuple>kwnames if kwnames != NULL else ()
    return (tuple([<object>args[i] for i in range(nargs)]),
            {names[i]: <object>args[nargs + i] for i in range(len(names))})


cdef object submit_record(TaskFunction f, PyObject** args, Py_ssize_t nargs, PyObject* kwnames):
    cdef Record* r = session.process.allocate_record()
    if r == NULL:
        raise table_full()
    cdef Handle h = session.process.handle_of(r)
    cdef uint64_t flags = 0
    cdef Encoder e = acquire_encoder()
    cdef bint published = False
    try:
        e.encode_call(args, nargs, kwnames)
        fill(r, f, kTask)
        flags = place_arguments(r, h, e)
        if f.streaming:
            flags |= kFlagMulti
            result = make_stream(r, h, f.ahead_max)
        elif f.returns != 1:
            result = make_promises(r, h)
            flags |= kFlagMulti
            if f.returns > 1:
                flags |= kFlagShared
        else:
            result = make_ref(h)
        if e.dependencies is not None:
            published = session.process.publish_waiting(r, h, flags)
        else:
            published = session.process.publish(r, h, flags)
        if not published:
            raise table_full()
        if session.local:
            run_ready()
        if not f.streaming and f.returns == 0:
            session.process.drop(h)
            return None
        return result
    except BaseException:
        if not published:
            abandon_record(r, h, flags, f.streaming)
        raise
    finally:
        release_encoder(e)


cdef int abandon_record(Record* r, Handle h, uint64_t flags, bint streaming) except -1:
    """Nothing was published: gives back what the record took so far."""
    if flags & kFlagArgHeap:
        session.process.allocator().release(r.args_heap.offset)
    if flags & kFlagMulti and not streaming:
        session.process.drop_promises(r[0], r.ret)
    session.process.unallocate(r)
    return 0


cdef uint64_t place_arguments(Record* r, Handle h, Encoder e, bint lineage=True) except? 0xFFFFFFFF:
    """Arguments into the record, or into a payload; holds every reference they name. Returns flags."""
    cdef Py_ssize_t n_deps = 0 if e.dependencies is None else len(e.dependencies)
    cdef Py_ssize_t n_refs = 0 if e.references is None else len(e.references)
    cdef Handle* handles = <Handle*>r.args
    cdef Py_ssize_t i
    cdef ObjectRef ref
    cdef uint64_t flags = 0
    for i in range(n_deps):
        check_ref(<ObjectRef>e.dependencies[i])
    for i in range(n_refs):
        check_ref(<ObjectRef>e.references[i])
    if e.buffers is None and (n_deps + n_refs) * 8 + e.size <= <Py_ssize_t>kInlineArgs:
        for i in range(n_deps):
            handles[i] = (<ObjectRef>e.dependencies[i]).handle
        for i in range(n_refs):
            handles[n_deps + i] = (<ObjectRef>e.references[i]).handle
        memcpy(r.args + (n_deps + n_refs) * 8, e.data, e.size)
        r.args_bytes = <uint8_t>e.size
        r.dependencies = <uint8_t>n_deps
        r.references = <uint8_t>n_refs
    else:
        r.args_heap.offset = store_encoded(h, e)
        r.args_heap.bytes = e.size
        r.args_bytes = kArgsInHeap
        r.dependencies = r.references = 0
        flags = kFlagArgHeap
    if n_deps + n_refs:
        flags |= kFlagRefs
        if lineage:
            session.process.sweep_lineage(2)
            session.process.remember_lineage(h)
        for i in range(n_deps):
            ref = <ObjectRef>e.dependencies[i]
            session.process.hold(ref.handle)
        for i in range(n_refs):
            ref = <ObjectRef>e.references[i]
            session.process.hold(ref.handle)
    return flags


cdef list make_promises(Record* r, Handle h):
    """References to the single return values."""
    if not session.process.make_promises(r[0], h):
        raise table_full()
    cdef const Handle* promises = Process.promise_handles(session.process.segment(), r[0])
    cdef uint16_t i
    return [make_ref(promises[i]) for i in range(r.ret)]


# ---- actors ------------------------------------------------------------------------------------------

def create_actor(uint32_t actor, uint32_t function, tuple args, dict kwargs, uint64_t record_id=0):
    """Publishes the creation of the actor in entry `actor` (see actors.pyx); the reference that handles hold.

    `function` is the class's entry in the function table; `record_id` comes from `actors.next_id`, if it was needed
    before. Raises as a call with these arguments does.
    """
    cdef list values = [*args, *kwargs.values()]
    cdef tuple names = tuple(kwargs)
    cdef Record* r = session.process.allocate_record()
    if r == NULL:
        raise table_full()
    cdef Handle h = session.process.handle_of(r)
    cdef uint64_t flags
    cdef Encoder e = acquire_encoder()
    try:
        e.encode_call(<PyObject**>PySequence_Fast_ITEMS(values), len(args), <PyObject*>names if names else NULL)
        r.id = record_id or session.process.next_id()
        r.function = function
        r.cls = <uint16_t>(kActorClass + actor)
        r.parent = session.parent
        r.kind = kActor
        r.depth = <uint8_t>session.depth
        r.ret = 1
        r.attempts = 0
        flags = place_arguments(r, h, e, False)
    except BaseException:
        session.process.unallocate(r)
        raise
    finally:
        release_encoder(e)
    session.process.publish_actor(actor, r, h, flags)
    return make_ref(h)


fastray_add_remote(TaskFunction, <void*>remote_fastcall)
