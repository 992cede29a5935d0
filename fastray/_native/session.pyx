# cython: language_level=3, freethreading_compatible=False
"""A process's attachment to a node, and the tables that are filled in rarely: functions, classes, resources.

`Attachment` is made by `fastray.runtime` (driver) or `fastray.worker`, once per session, and handed to what
needs it; `activate` also makes it the one that the fast paths of this package use.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strncpy
from libcpp.string cimport string

from fastray._native.cpp cimport (
    Actor,
    Class,
    Function,
    Handle,
    Header,
    Job,
    ObjectAllocator,
    Offset,
    Proc,
    Process,
    Record,
    Segment,
    SegmentLimits,
    entry_writing,
    index_of,
    is_sealed,
    kActorClass,
    kActorDetached,
    kActorForeign,
    kBlockBlob,
    kClassesMax,
    kEntryUsed,
    kFetchClass,
    kFunctionsMax,
    kJobRunning,
    kJobsKept,
    kMagic,
    kPromise,
    kResourcesMax,
    kWireVersion,
    make_handle,
    membarrier_register,
    proc_set_add,
    random_u64,
    state_of,
)
from fastray._native.filed cimport forget_serving, serve_filed, stop_serving
from fastray._native.object_ref cimport ObjectRef, attach_session, check_ref, detach_session, make_held_ref, session

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int us)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

WIRE = (kMagic, kWireVersion)  # what both ends of an attachment must have in common
UNIT = 10000  # resources are counted in 1/10000 of a unit

cdef enum:
    EMPTY = 0


cdef int check(string problem) except -1:
    if problem.size() != 0:
        raise OSError(problem.decode("utf-8", "replace"))
    return 0


def create_segment(uint64_t object_store_bytes, dict resources, uint32_t cpus, uint64_t durable_bytes=0):
    """A new session's shared memory; its file descriptor. `resources` in 1/10000 of a unit; `durable_bytes` for the
    index of a durable session."""
    cdef SegmentLimits limits
    cdef Segment segment
    limits.object_store_bytes = object_store_bytes
    limits.session = random_u64()
    limits.durable_bytes = durable_bytes
    check(Segment.create(limits, &segment))
    cdef Header* header = &segment.header()
    header.membarrier = membarrier_register()
    header.cpus = cpus
    import os
    header.lineage_tasks = int(os.environ.get("FASTRAY_LINEAGE_TASKS", header.lineage_tasks))
    header.lineage_file_bytes = min(int(os.environ.get("FASTRAY_LINEAGE_FILE_BYTES", header.lineage_file_bytes)), 1 << 30)
    if len(resources) > <int>kResourcesMax:
        raise ValueError(f"at most {kResourcesMax} kinds of resources, got {len(resources)}")
    cdef int i
    for i, (name, total) in enumerate(resources.items()):
        encoded = name.encode()
        if len(encoded) > 55:
            raise ValueError(f"resource name longer than 55 bytes: {name!r}")
        strncpy(header.resources[i].name, encoded, 55)
        header.resources[i].total = total
    header.resources_used.store(len(resources))
    header.functions_used.store(1)  # 0 is "none"
    # class 0, the one whose workers start before there is work: one CPU and no runtime_env
    cdef Class* default_class = &segment.cls(0)
    for i, name in enumerate(resources):
        default_class.demand[i] = UNIT if name == "CPU" else 0
    default_class.state.store(kEntryUsed)
    header.classes_used.store(1)
    cdef int fd = segment.fd()
    kept = os.dup(fd)
    segment.detach()
    return kept


def session_of(int segment_fd):
    """The id of the session whose segment this is."""
    cdef Segment segment
    import os
    check(Segment.attach(os.dup(segment_fd), &segment))
    session_id = segment.header().session
    segment.detach()
    return session_id


cdef class Attachment:
    def __cinit__(self, int segment_fd, int kind, int slot, int bell_fd):
        import os
        check(Segment.attach(os.dup(segment_fd), &self.segment))  # its own: closed with it
        self.process = new Process()
        self.pid = os.getpid()
        check(self.process.attach(self.segment, kind, slot, bell_fd))

    def activate(self, bint local=False):
        """The fast paths use this attachment from now on."""
        attach_session(self.process, local)
        serve_filed(self.process)
        self.active = True

    def deactivate(self):
        """References of this session are stale from now on; the memory is given back unless arrays view it.

        True when it was, and this process reads it no more."""
        import sys
        if not self.active:
            return False
        cdef bint viewed = session.stored != 0
        cdef int tries = 0
        detach_session()
        self.active = False
        stop_serving(self.process)
        Process.wake_process(self.segment, self.process.slot())
        while self.process.self().sleepers.load() != 0 and tries < 1000:  # threads that wait in get()
            with nogil:
                usleep(100)
            tries += 1
        # another thread may be in the middle of reading a value: then the mapping stays too
        if not viewed and len(sys._current_frames()) <= 2:  # this thread and the one that prints logs
            del self.process
            self.process = new Process()
            self.segment.detach()
            return True
        self.segment.close_fd()
        return False

    def detach(self):
        """The end of an attachment that was never activated: gives the memory back."""
        del self.process
        self.process = new Process()
        self.segment.detach()

    def abandon(self):
        """In a forked child: forgets the session without touching it."""
        if self.active:
            detach_session()
            self.active = False
            forget_serving()
        self.process.abandon()

    # ---- this process and its node ----------------------------------------------------------------

    @property
    def slot(self):
        return self.process.slot()

    @property
    def incarnation(self):
        return self.process.self().incarnation

    @property
    def job(self):
        """Number of the job this process works for; 0 for an observer."""
        return self.process.self().job

    @property
    def session_id(self):
        return self.segment.header().session

    @property
    def node_ready(self):
        return bool(self.segment.header().node_ready.load())

    def durable_address(self):
        """Where the index of a durable session is mapped here; 0 in a session that is none."""
        cdef Offset at = self.segment.header().durable
        return <size_t>(self.segment.base() + at) if at else 0

    @property
    def clustered(self):
        """True while an agent joins this node to a cluster."""
        return self.segment.header().agent_slot.load() != 0

    def ring(self):
        self.process.ring_bell()

    def counters(self):
        """Figures of this process: references it borrows; of what it owns: tasks dropped before their end,
        records dropped but lent to others, finished tasks that keep their arguments, those of them on disk."""
        self.process.sweep()
        return {"borrowed": self.process.borrowed(), "pending_dropped": self.process.owned_pending(),
                "lent": self.process.owned_lent(), "lineage": self.process.owned_lineage(),
                "filed": self.process.owned_filed()}

    def store_usage(self):
        """Bytes and blocks of the node's object store."""
        usage = ObjectAllocator.usage(self.segment)
        return {"object_bytes": usage.object_bytes, "region_bytes": usage.region_bytes, "blocks": usage.blocks,
                "capacity_bytes": self.segment.header().object_store_bytes}

    def resources(self):
        """Total resources by name, in 1/10000 of a unit."""
        cdef Header* header = &self.segment.header()
        return {header.resources[i].name.decode(): header.resources[i].total
                for i in range(header.resources_used.load())}

    def processes(self):
        """(slot, kind, pid, incarnation, lease class or None, running handle, job) of each process alive."""
        cdef Header* header = &self.segment.header()
        cdef uint32_t slot
        cdef Proc* p
        rows = []
        for slot in range(header.procs_used.load()):
            p = &self.segment.proc(slot)
            if p.state.load() == 2:
                rows.append((slot, p.kind, p.pid, p.incarnation, p.lease.load() - 1 if p.lease.load() else None,
                             p.claim.load(), p.job))
        return rows

    def own_environment(self):
        """Function-table index of this worker's runtime_env, 0 without one."""
        return self.process.self().runtime_env

    def is_actor(self):
        """True in a worker that was forked for an actor."""
        return self.process.self().lease.load() > kActorClass

    def own_demand(self):
        """What this worker's lease gives it, by resource, in 1/10000 of a unit."""
        cdef uint32_t lease = self.process.self().lease.load()
        names = list(self.resources())
        if lease == 0:
            return {}
        return {names[i]: self.segment.cls(lease - 1).demand[i] for i in range(len(names))}

    def own_gpus(self):
        """Bit mask of the GPU indices leased to this process."""
        return self.process.self().gpus

    def begin_private_job(self, str name_space, str entrypoint, int64_t start_ns):
        """The driver of a private node says what its job is; a daemon's node does it for its drivers."""
        cdef Job* job = &self.segment.job(self.job)
        cdef bytes space = name_space.encode("utf-8", "replace")[:63], entry = entrypoint.encode("utf-8", "replace")[:155]
        job.number = self.job
        job.pid = self.pid
        job.slot = self.process.slot()
        job.start_ns = start_ns
        memcpy(job.name_space, <const char*>space, len(space))
        memcpy(job.entrypoint, <const char*>entry, len(entry))
        job.state.store(kJobRunning)
        self.segment.header().jobs_used.store(self.job)

    def record_failures(self):
        """Crashes of this job's tasks are written down by its workers, whether somebody asks or not."""
        self.segment.job(self.job).records_failures.store(1)

    def jobs(self):
        """(number, state, pid of the driver, start, end in ns of wall clock or 0, namespace, entry point) of each job
        the node remembers, the latest last. States: 1 running, 2 its detached actors live on, 3 over."""
        cdef uint32_t last = self.segment.header().jobs_used.load(), number
        cdef Job* job
        rows = []
        for number in range(last - min(last, kJobsKept) + 1, last + 1):
            job = &self.segment.job(number)
            if job.state.load() != 0 and job.number == number:
                rows.append((number, job.state.load(), job.pid, job.start_ns, job.end_ns,
                             (<bytes>job.name_space).decode("utf-8", "replace"),
                             (<bytes>job.entrypoint).decode("utf-8", "replace")))
        return rows

    def actors(self):
        """((session, record id), state, pid, class, name, namespace, detached, restarts, job, end) of each actor with an entry."""
        cdef Header* header = &self.segment.header()
        cdef uint32_t a, slot
        cdef Actor* actor
        rows = []
        for a in range(header.actors_used.load()):
            actor = &self.segment.actor(a)
            if not 2 <= actor.state.load() <= 6:
                continue
            slot = actor.slot.load()
            rows.append(((actor.id[0], actor.id[1]), actor.state.load(),
                         self.segment.proc(slot).pid if slot and not actor.flags.load() & kActorForeign else 0,
                         (<bytes>actor.class_name).decode("utf-8", "replace"),
                         (<bytes>actor.name).decode("utf-8", "replace"),
                         (<bytes>actor.name_space).decode("utf-8", "replace"),
                         bool(actor.flags.load() & kActorDetached), actor.restarts.load(),
                         self.segment.cls(kActorClass + a).job, actor.end.load()))
        return rows

    def actor_log(self, uint32_t a):
        """(first, end) of the calls in the log of the actor in entry `a`: those since its checkpoint."""
        return self.segment.actor(a).log_start.load(), self.segment.actor(a).log_end.load()

    def classes_in_use(self):
        """How many scheduling classes of tasks have an entry."""
        cdef uint32_t c
        return sum([self.segment.cls(c).state.load() != EMPTY for c in range(self.segment.header().classes_used.load())])

    def functions_in_use(self):
        """How many functions, actor classes and runtime_envs of jobs have an entry; those that all jobs share do not
        count."""
        cdef uint32_t f
        return sum([self.segment.function(f).state.load() != EMPTY and self.segment.function(f).job != 0
                    for f in range(1, self.segment.header().functions_used.load())])

    # ---- scheduling classes --------------------------------------------------------------------------

    def register_class(self, dict demand, uint32_t runtime_env=0, uint32_t placement=0, job=None, tuple place=(0, 0, 0),
                       bint here=False):
        """Index of the class with this demand (1/10000 of a unit, by resource name), runtime_env and place in a
        group (zeros: none).

        With `placement` (function-table index of pickled wishes) its tasks are the node agent's to place, unless they are
        to stay `here`. `job`: of the node agent, whose tasks they are.
        """
        cdef Header* header = &self.segment.header()
        names = list(self.resources())
        wanted = [demand.get(name, 0) for name in names]
        wanted += [0] * (<int>kResourcesMax - len(wanted))
        cdef uint32_t c, i, expected, used, agent = self.segment.header().agent_slot.load()
        cdef uint32_t of_job = self.process.self().job if job is None else job
        cdef Class* cls
        for c in range(kFetchClass):  # those from there on are the node agent's
            cls = &self.segment.cls(c)
            expected = EMPTY
            if cls.state.compare_exchange_strong(expected, entry_writing(self.process.slot())):
                cls.runtime_env = runtime_env
                cls.job = of_job
                cls.routed = placement != 0 and not here
                cls.placement = placement
                cls.group, cls.group_life, cls.bundle = place
                for i in range(kResourcesMax):
                    cls.demand[i] = wanted[i]
                # who has to learn of it: nobody has a lease on it yet
                proc_set_add(cls.sleeping, agent if cls.routed else 0)
                cls.state.store(kEntryUsed)
                used = header.classes_used.load()
                while used < c + 1 and not header.classes_used.compare_exchange_strong(used, c + 1):
                    pass
                self.process.ring_bell()
                return c
            while cls.state.load() & 0xFF == 1:
                sched_yield()  # a few stores by a live process; the reaper resets a dead one's
            if cls.runtime_env != runtime_env or cls.placement != placement or (job is not None and cls.job != job):
                continue
            if (cls.group, cls.group_life, cls.bundle) != place:
                continue
            if all(cls.demand[i] == wanted[i] for i in range(kResourcesMax)):
                return c
        from fastray.exceptions import FunctionTableFullError
        raise FunctionTableFullError(f"more than {kClassesMax} different combinations of resources and runtime_env")

    # ---- functions -------------------------------------------------------------------------------------

    def register_function(self, bytes blob, bytes digest, str name, uint32_t flags, int32_t max_retries,
                          int32_t returns, uint32_t max_calls, uint16_t cls, uint32_t timeout_ms=0,
                          bint shared=False, owner_job=None):
        """Index of the function variant in the function table; the same content has one entry in a job.

        It goes with the job (`owner_job`: that of the node agent's tasks), unless `shared`: then it is the same for all
        jobs and stays.
        """
        cdef Header* header = &self.segment.header()
        cdef uint64_t low = int.from_bytes(digest[:8], "little"), high = int.from_bytes(digest[8:16], "little")
        cdef uint32_t f, expected, free = 0, job = 0 if shared else self.process.self().job
        if owner_job is not None:
            job = owner_job
        cdef Function* entry
        for f in range(1, header.functions_used.load()):
            entry = &self.segment.function(f)
            if entry.state.load() == EMPTY:
                free = f
            elif (entry.state.load() == kEntryUsed and entry.job == job and entry.hash[0] == low
                    and entry.hash[1] == high):
                return f
        while True:
            f = free if free != 0 else header.functions_used.fetch_add(1)
            free = 0
            if f >= kFunctionsMax:
                header.functions_used.store(kFunctionsMax)
                from fastray.exceptions import FunctionTableFullError
                raise FunctionTableFullError(f"more than {kFunctionsMax} different functions were exported")
            entry = &self.segment.function(f)
            expected = EMPTY
            if entry.state.compare_exchange_strong(expected, entry_writing(self.process.slot())):
                break
        self.fill_function(entry, f, blob, low, high, name)
        entry.flags = flags
        entry.max_retries = max_retries
        entry.returns = returns
        entry.max_calls = max_calls
        entry.cls = cls
        entry.timeout_ms = timeout_ms
        if timeout_ms:
            header.limits_used.store(1)
        entry.job = job
        entry.state.store(kEntryUsed)
        return f

    cdef int fill_function(self, Function* entry, uint32_t f, bytes blob, uint64_t low, uint64_t high,
                           str name) except -1:
        cdef Offset offset = self.process.allocator().allocate(len(blob) + 1, make_handle(0, kBlockBlob | f))
        if offset == 0:
            entry.state.store(EMPTY)
            from fastray.exceptions import ObjectStoreFullError
            raise ObjectStoreFullError(f"no room for the {len(blob):,} bytes of function {name}")
        memcpy(self.segment.base() + offset, <const char*>blob, len(blob))
        entry.blob = offset
        entry.blob_bytes = len(blob)
        entry.hash[0] = low
        entry.hash[1] = high
        memset(entry.name, 0, 64)
        cut = name.encode("utf-8", "replace")[:63]
        memcpy(entry.name, <const char*>cut, len(cut))
        return 0

    def function_blob(self, uint32_t f):
        """The bytes registered as function `f` (or runtime_env `f`)."""
        cdef Function* entry = &self.segment.function(f)
        if f == 0 or f >= kFunctionsMax or entry.state.load() != kEntryUsed:
            raise KeyError(f"function table has no entry {f}")
        return (<const char*>(self.segment.base() + entry.blob))[:entry.blob_bytes]

    def function_name(self, uint32_t f):
        return (<bytes>self.segment.function(f).name).decode("utf-8", "replace")

    def function_options(self, uint32_t f):
        """(max_retries, returns, flags, max_calls) of function `f`."""
        cdef Function* entry = &self.segment.function(f)
        return entry.max_retries, entry.returns, entry.flags, entry.max_calls

    # ---- tasks ------------------------------------------------------------------------------------------

    def cancel(self, ObjectRef ref):
        """(True when cancelled before its start, slot of the worker that runs it or -1, handle of the task)."""
        check_ref(ref)
        cdef Handle h = ref.handle
        cdef Record* r = &session.records[index_of(h)]
        if r.kind == kPromise:
            h = r.args_heap.offset  # the task that makes it
        cdef int running = -1
        done = self.process.cancel(h, &running)
        return bool(done), running, h

    def cancel_handle(self, Handle h):
        cdef int running = -1
        done = self.process.cancel(h, &running)
        return bool(done), running, h

    def children(self, uint32_t slot, Handle parent):
        """Handles of the unfinished tasks that the process in `slot` submitted from task `parent`."""
        return list(self.process.children_of(slot, index_of(parent)))

    def task_state(self, ObjectRef ref):
        """Name of the state, attempts, name of the function: for `fastray why` and tests."""
        check_ref(ref)
        cdef Record* r = &session.records[index_of(ref.handle)]
        names = ("free", "waiting", "ready", "running", "done", "failed", "promised", "lost", "away")
        return names[<int>state_of(r.state.load())], r.attempts, self.function_name(r.function)

    def handle_of(self, ObjectRef ref):
        """The handle of a reference of this session. Raises StaleReferenceError for another one's."""
        check_ref(ref)
        return ref.handle

    def borrow(self, Handle h):
        """A reference to a record that somebody else keeps alive at this moment."""
        return make_held_ref(h)


def current_attachment_active():
    return session.process != NULL
