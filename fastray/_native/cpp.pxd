# Every foreign declaration of fastray's Cython, in one place. The words are explained in csrc/types.h;
# the classes in the header named. Nothing here raises; all of it may be called without the GIL unless
# csrc/process.h says that one thread at a time may use it (then: hold the GIL).

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

# ---- csrc/types.h, csrc/segment.h, csrc/process.h -------------------------------------------------

cdef extern from "types.h" namespace "fastray" nogil:
    ctypedef uint64_t Offset
    ctypedef uint64_t Handle
    uint32_t kProcsMax, kClassesMax, kFunctionsMax, kResourcesMax, kActorsMax, kActorLogEntries, kActorClass
    uint32_t kRouteClass, kFetchClass, kRecordsMax
    size_t kInlineArgs, kInlineResult
    uint8_t kArgsInHeap
    uint64_t kFlagsMask
    uint64_t kFlightWaiting
    Handle make_handle(uint32_t index, uint32_t gen)
    uint32_t index_of(Handle h)
    uint32_t gen_of(Handle h)
    uint32_t word_gen(uint64_t w)
    uint32_t word_holder(uint64_t w)
    cbool is_asked(uint64_t w)
    cbool is_sealed(uint64_t w)
    cbool is_actor_class(uint32_t cls)
    enum State:
        kFree, kWaiting, kReady, kClaimed, kDone, kFailed, kPromised, kLost, kAway
    enum Flag:
        kFlagDetached, kFlagBorrowed, kFlagShared, kFlagArgHeap, kFlagResultHeap, kFlagAwaited
        kFlagEdges, kFlagCancel, kFlagRefs, kFlagMulti
    enum Kind:
        kTask, kObject, kPromise, kItem, kActor
    enum ErrorCode:
        kErrorUser, kErrorCrashed, kErrorCancelled, kErrorStoreFull, kErrorOwnerDied, kErrorSystem
        kErrorActorDied, kErrorActorUnavailable, kErrorLost, kErrorAgent, kErrorGroupRemoved
    enum BlockUse:
        kBlockRing, kBlockBlob, kBlockActor
    enum FunctionFlag:
        kRetryExceptions, kStreaming, kBlobIsRuntimeEnv, kReadOnly
    enum ActorState:
        kActorFree, kActorPending, kActorStarting, kActorAlive, kActorRestarting, kActorDead
    enum ActorFlag:
        kActorDetached, kActorOutOfOrder, kActorCheckpoints, kActorNoRestart, kActorForeign
    enum ActorEnd:
        kEndNone, kEndCrashed, kEndInitFailed, kEndKilled, kEndExited, kEndHandlesGone, kEndStartFailed, kEndTimedOut
    State state_of(uint64_t w)
    uint32_t kEntryUsed, kWireVersion
    uint64_t kMagic
    uint32_t entry_writing(uint32_t slot)

    cdef cppclass Atomic32 "std::atomic<uint32_t>":
        uint32_t load()
        void store(uint32_t v)
        uint32_t fetch_add(uint32_t v)
        cbool compare_exchange_strong(uint32_t& expected, uint32_t desired)
    cdef cppclass Atomic64 "std::atomic<uint64_t>":
        uint64_t load()
        void store(uint64_t v)
        uint64_t fetch_or(uint64_t v)
    cdef struct HeapRef:
        Offset offset
        uint64_t bytes
    cdef cppclass Record:
        uint64_t id
        uint32_t function
        uint16_t owner, cls
        uint32_t parent
        uint8_t kind, depth
        uint16_t ret
        uint8_t args_bytes, attempts, dependencies, references
        uint8_t args[32]
        HeapRef args_heap
        Atomic64 state
        Atomic32 edges
        uint32_t result_bytes
        uint8_t result[48]
        HeapRef result_heap
    cdef struct PayloadHeader:
        uint64_t total_bytes
        uint32_t codec_bytes, dependencies, references, buffers
    cdef struct Returns:
        uint64_t list
        uint64_t handles[5]
    cdef cppclass Stream:
        Atomic64 first
        Atomic32 produced
        Atomic32 consumed
        Atomic64 cursor
        uint32_t ahead_max
        Atomic32 producer_sleeps
        uint64_t error
        Atomic64 last
    cdef cppclass Proc:
        Atomic32 state
        uint32_t incarnation, kind
        int32_t pid
        Atomic32 lease, revoke
        uint32_t runtime_env, gpus
        Atomic32 exiting
        uint32_t job
        Atomic64 claim
        Atomic64 heartbeat
        Atomic32 blocked
        uint32_t depth
        Atomic32 futex
        Atomic32 sleepers
    cdef cppclass ProcSet:
        pass
    cdef cppclass Away:
        uint64_t node, handle, bytes
    cdef cppclass Class:
        Atomic32 state
        uint32_t runtime_env
        uint64_t demand[16]
        Atomic32 leases
        uint32_t routed, placement, job, group, group_life
        int32_t bundle
        ProcSet sleeping
        Atomic32 queues[4096]
    cdef cppclass Queue:
        Atomic64 tail, head
    cdef cppclass Function:
        Atomic32 state
        uint32_t flags
        uint64_t hash[2]
        Offset blob
        uint64_t blob_bytes
        int32_t max_retries, returns
        uint32_t max_calls
        uint16_t cls, writer
        uint32_t timeout_ms
        char name[64]
        uint32_t job
    cdef cppclass Actor:
        Atomic32 state, flags
        Atomic64 creation
        Atomic32 slot, ending, end
        int32_t max_restarts
        Atomic32 restarts
        uint32_t info
        Atomic64 cause, checkpoint, log_end, log_start, flight
        Atomic32 flight_places, last_call
        uint64_t id[2]
        Atomic32 host_pid
        uint64_t name_hash[2]
        char name[96], name_space[64], class_name[64]
    cdef cppclass ActorDeath:
        uint64_t id[2]
        int64_t time_ns
        uint64_t peak_bytes
        int64_t uptime_ns
        uint32_t end
        int32_t pid, signal, exit_code
        uint32_t restarts
        int32_t max_restarts
        uint32_t may_have_run, oom_kills
        uint32_t text_bytes[6]
    enum JobState:
        kJobNone, kJobRunning, kJobDetached, kJobOver
    uint32_t kJobsKept
    cdef cppclass Job:
        Atomic32 state
        uint32_t number
        int32_t pid
        uint32_t slot
        int64_t start_ns, end_ns
        char name_space[64]
        char entrypoint[156]
        Atomic32 records_failures
    uint32_t kGroupsMax, kGroupIdBytes, kGroupRemoved, kGroupShared
    cdef cppclass Group:
        Atomic32 state, life
        uint32_t job, flags
        uint8_t id[24]
        uint64_t creator, spec, spec_bytes, reserved[16]
        int64_t made_ns, ready_ns
        char name[96], name_space[64]
        Atomic32 held
    cdef struct Resource:
        char name[56]
        uint64_t total
    cdef cppclass Header:
        uint64_t session
        uint64_t object_store_bytes
        Atomic32 functions_used, classes_used, actors_used, jobs_used, resources_used, procs_used, dormant, deaths, node_ready
        Offset durable
        uint32_t cpus, membarrier, lineage_tasks
        uint64_t lineage_file_bytes
        Atomic32 limits_used, agent_slot, clustered, groups_changed
        uint64_t node_number
        Resource resources[16]

cdef extern from "flight_recorder.h" namespace "fastray" nogil:
    uint64_t kNoEvent
    enum EventKind:
        kEventTask, kEventBlocked
    cdef cppclass FlightEvent:
        Atomic64 begin, end, record, what
    cdef cppclass FlightRecorder:
        Atomic64 written
        FlightEvent events[32]
        uint64_t oldest()
        uint64_t note(EventKind kind, uint64_t detail, uint64_t record, uint64_t begin, uint64_t end)
        uint64_t note_blocked(uint64_t detail, uint64_t record, uint64_t begin)
        void close(uint64_t number, uint64_t end)

cdef extern from "failure_log.h" namespace "fastray" nogil:
    uint32_t kFailures
    cdef cppclass Failure:
        uint64_t task, parent
        int64_t began_ns, ended_ns
        uint32_t job
        int32_t pid
        uint16_t attempt
        uint8_t code, actor
        uint32_t text_bytes
        char name[64]
        char text[392]
    cdef cppclass TaskMark:
        Atomic64 incarnation, events, started
    cdef cppclass FailureLog:
        Atomic64 written, taken
        TaskMark marks[4096]
        cbool read(uint64_t n, Failure* out)

cdef extern from "os.h" namespace "fastray::os" nogil:
    uint64_t ticks()
    double ticks_per_us()
    void pause()
    int64_t now_ns()
    int64_t wall_ns()
    uint64_t random_u64()
    cbool membarrier_register()

cdef extern from "segment.h" namespace "fastray" nogil:
    cdef cppclass SegmentLimits "fastray::Segment::Limits":
        uint64_t object_store_bytes, session, durable_bytes
    cdef cppclass Segment:
        @staticmethod
        string create(const SegmentLimits& limits, Segment* out)
        @staticmethod
        string attach(int fd, Segment* out)
        void detach()
        void close_fd()
        int fd()
        uint8_t* base()
        Header& header()
        Record* records()
        Record& record(Handle h)
        Proc& proc(uint32_t slot)
        FlightRecorder& recorder(uint32_t slot)
        FailureLog& failures()
        Queue& queue(uint32_t q)
        Class& cls(uint32_t c)
        Function& function(uint32_t f)
        Actor& actor(uint32_t a)
        Job& job(uint32_t number)
        Group& group(uint32_t g)
        Atomic64& actor_log(uint32_t a, uint64_t n)
        T* at[T](Offset offset)

cdef extern from "content_key.h" namespace "fastray" nogil:
    cdef cppclass Key:
        uint64_t lo, hi
    Key absorb(Key k, const void* data, size_t n)

cdef extern from "durable_log.h" namespace "fastray" nogil:
    enum EntryFlag:
        kEntryKindMask, kEntryInline, kEntryPayload, kEntryReturns, kEntryTaken
    cdef cppclass EntryView:
        uint8_t flags
        const uint8_t* data
        uint64_t bytes
    cdef struct LogPart:
        const void* data
        uint64_t bytes

cdef extern from "durable_index.h" namespace "fastray" nogil:
    cdef cppclass DurableArea:
        pass
    cdef cppclass DurableCounts "fastray::DurableLogs::Counts":
        uint64_t files, bytes, entries, live, live_bytes
        uint32_t generation
    cdef cppclass DurableLogs:
        string load(const string& path, int wait_ms, int* writer)
        const DurableCounts& counts()
        string compact(cbool always)
        uint64_t area_bytes()
        void fill(DurableArea* area)

cdef extern from "proc_set.h" namespace "fastray::proc_set" nogil:
    void proc_set_add "fastray::proc_set::add"(ProcSet& s, uint32_t slot)
    cbool proc_set_take "fastray::proc_set::take"(ProcSet& s, uint32_t slot)

cdef extern from "object_allocator.h" namespace "fastray" nogil:
    cdef struct AllocatorUsage "fastray::ObjectAllocator::Usage":
        uint64_t object_bytes, region_bytes, blocks
    cdef cppclass ObjectAllocator:
        Offset allocate(size_t bytes, Handle owner_record)
        void release(Offset block)
        void collect()
        void trim()
        @staticmethod
        AllocatorUsage usage(const Segment& segment)

cdef extern from "death_policy.h" namespace "fastray::death_policy" nogil:
    int64_t delay_of_retry(uint32_t attempts)
cdef extern from "process.h" namespace "fastray" nogil:
    cdef enum class Wake:
        kSealed, kKicked, kTimeout, kInterrupted
    cdef cppclass PayloadShape:
        const Handle* handles
        uint32_t dependencies, references
        const uint8_t* codec
        uint64_t codec_bytes
        const uint64_t* buffer_bytes
        uint32_t buffers
    cdef cppclass PayloadView:
        PayloadHeader* header
        Handle* handles
        uint8_t* codec
        uint64_t* buffer_bytes
        uint8_t* buffer(uint32_t i)
    cdef cppclass Process:
        Process()
        string attach(const Segment& segment, uint32_t kind, int slot, int bell_fd)
        void abandon()
        const Segment& segment()
        Proc& self()
        FlightRecorder& recorder()
        uint32_t slot()
        ObjectAllocator& allocator()
        Record* allocate_record()
        uint32_t index_of_record(const Record* r)
        Handle handle_of(const Record* r)
        uint64_t next_id()
        cbool hold(Handle h)
        void drop(Handle h)
        void unallocate(Record* r)
        void sweep()
        void remember_lineage(Handle task)
        void sweep_lineage(size_t most)
        cbool evict(Handle h, cbool also_lost)
        void recover(Handle h)
        cbool revive(Handle promise)
        cbool is_filed(Handle h)
        void on_filing(void (*began)() noexcept nogil)
        void answer_wanted()
        uint32_t answer_word()
        void sleep_until_wanted(uint32_t seen)
        @staticmethod
        void wake_answerer(Proc& owner)
        size_t owned_filed()
        Offset make_payload(const PayloadShape& shape, Handle for_record, PayloadView* view)
        @staticmethod
        PayloadView view_payload(const Segment& segment, Offset offset)
        @staticmethod
        const Handle* argument_handles(const Segment& segment, const Record& r, uint32_t* deps, uint32_t* refs)
        cbool publish(Record* r, Handle h, uint64_t flags)
        cbool publish_waiting(Record* r, Handle h, uint64_t flags)
        void publish_state(Record* r, Handle h, State state, uint64_t flags)
        cbool seal(Handle h, State state, uint64_t flags)
        cbool seal_promise(Handle h, State state, uint64_t flags)
        void end_task()
        void set_depth(uint32_t depth)
        cbool retry(Handle h)
        cbool retry_later(Handle h)
        cbool push_ready(Handle h)
        cbool run_again(Handle h)
        cbool cancel(Handle h, int* running)
        void write_error(Record& r, ErrorCode code, const void* more, size_t n, uint64_t* flags, Handle h)
        uint64_t write_failure(Record& r, Handle h, ErrorCode code, const void* more, size_t n)
        cbool fail(Record& r, Handle h, ErrorCode code, const void* more, size_t n)
        void note_failure(const Record& r, ErrorCode code, const char* text, size_t n)
        @staticmethod
        const Handle* promise_handles(const Segment& segment, const Record& r)
        cbool sealed(Handle h)
        cbool is_away(Handle h)
        @staticmethod
        Away away_of(const Record& r)
        size_t claim_many(uint32_t cls, size_t n, vector[Handle]* claimed)
        void take_asked(vector[Handle]* asked)
        uint64_t waiting_in(uint32_t cls)
        cbool put_back(Handle h, uint32_t cls)
        cbool unask(Handle h)
        cbool lose_host(Handle creation)
        Wake sleep_for_classes(const uint32_t* classes, size_t n, uint32_t seen, int64_t timeout_ns)
        cbool spin_until_sealed(Handle h)
        cbool mark_awaited(const Handle* handles, size_t n)
        Wake sleep_on(const Handle* handles, size_t n, uint32_t seen, int64_t timeout_ns)
        void nudge()
        void ring_bell()
        Handle poll_for_work(cbool spin)
        void spread(uint64_t estimate_ticks)
        Wake sleep_for_work(uint32_t seen, int64_t timeout_ns)
        uint32_t wake_word()
        cbool lease_is_over()
        cbool contain(Handle record, Handle container)
        cbool make_promises(Record& r, Handle h)
        void drop_promises(Record& r, uint32_t made)
        @staticmethod
        Stream& stream_of(Record& r)
        Record* begin_item(Handle task, uint32_t number)
        void append_item(Handle task, Record* item, State state, uint64_t flags)
        Handle take_item(Handle task)
        size_t borrowed()
        size_t owned_pending()
        size_t owned_lent()
        size_t owned_lineage()
        int take_actor()
        void untake_actor(uint32_t a)
        int find_name(const uint64_t* hash, const char* name_space, const char* name, int mine)
        void publish_actor(uint32_t a, Record* r, Handle h, uint64_t flags)
        void seal_creation(Handle h, State state)
        int enter_flight(uint32_t a, Handle h, cbool waits)
        void start_flight(uint32_t a, uint32_t place)
        void leave_flight(uint32_t a, uint32_t place)
        cbool log_call(uint32_t a, Handle h)
        uint64_t checkpoint_position(Handle checkpoint)
        cbool set_checkpoint(uint32_t a, Handle checkpoint, uint64_t position)
        cbool has_call(const Class& c, cbool waiting)
        vector[Handle] children_of(uint32_t owner, uint32_t parent)
        @staticmethod
        void wake_process(const Segment& segment, uint32_t slot)

cdef extern from "durable.h" namespace "fastray" nogil:
    cdef enum class Content:
        kKnown, kNotYet, kNever
    cdef struct DurableRunning "fastray::Durable::Running":
        uint64_t id
    cdef cppclass Durable:
        Durable()
        string open(Process* process)
        void abandon()
        void close()
        Content begin(Handle h, const Key& digest, const Handle* captured, size_t n, const Key& arguments)
        cbool holds_code(Handle h)
        vector[Handle] open_references(Handle h)
        cbool recall(Handle h, EntryView* out)
        cbool may_recall(Handle h)
        cbool wants(Handle h)
        cbool keep(Handle h, EntryFlag kind, const LogPart* parts, int n)
        const string& problem()
        cbool warn_once()
        void inherit(uint32_t record)
        void end()
        DurableRunning running()
        void resume(const DurableRunning& r)

# ---- csrc/local_scheduler.h (for node.pyx) -----------------------------------------------------------

cdef extern from "local_scheduler.h" namespace "fastray" nogil:
    cdef cppclass SchedulerFds "fastray::LocalScheduler::Fds":
        int segment, bell, driver, log, listen
        uint32_t python
        cbool numbered
    cdef cppclass NodeRequest:
        uint32_t kind "kind"
        uint32_t slot, env
        cbool actor
        int stdout_fd, stderr_fd, control_fd, readable
        vector[Handle] crashed
        string text
    cdef cppclass LocalScheduler:
        string start(const SchedulerFds& fds)
        NodeRequest run()
        void forked(const NodeRequest& request, int pid)
        void become_child(const NodeRequest& request)
        void set_ready()
        void preload_later(const string& modules)
        cbool watch_for_python(int fd)
        void unwatch(int fd)
        void spare(int pid)
        void end()
        string runtime_env(uint32_t index)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    int PR_SET_NAME, PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER

# ---- csrc/sim_world.h (for simulation.pyx) -----------------------------------------------------------

cdef extern from "sim_world.h" namespace "fastray::sim" nogil:
    cdef cppclass SimLimits "fastray::sim::Limits":
        uint32_t faults_max, tasks_max, actors_max
        cbool trace
    cdef cppclass SimOutcome "fastray::sim::Outcome":
        string violation, trace
        uint64_t digest, events, decisions, tasks, calls, forks, deaths, restarts, faults
        int64_t virtual_ns
    SimOutcome run_node(uint64_t seed, const SimLimits& limits) except +
