// Every shared struct, id and limit of fastray, and the words the other files use.
//
//   segment      one memfd, mapped by every process of a node; holds everything below as offsets
//   process slot an entry of the process table; slot + incarnation is a *holder* (never a pid)
//   record       task spec + state + result, 128 bytes; the future, the result and the lineage in one
//   handle       generation << 32 | record index: names one life of a record
//   owner        the process that called .remote() or put(); the only one that frees the record
//   class        resources + runtime_env + strategy: a scheduling class; has one queue per producer
//   lease        a worker's right to claim from the queues of one class
//   edge         16 bytes: "when this record is done, look at that one"
//   payload      bytes in the data area (arguments, results) too long for the record itself
//
// Two cache lines a record: the *spec line* is written by the owner before it publishes and read by
// the worker; the *result line* carries the state word, which everyone synchronises on.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fastray {

using Offset = uint64_t;  // bytes from the start of the segment; 0 is "none"
using Handle = uint64_t;  // generation << 32 | record index; 0 is "none"

inline constexpr uint32_t kWireVersion = 4;
inline constexpr uint64_t kMagic = 0x3159415254534146ull;  // "FASTRAY1"

// ---- limits ---------------------------------------------------------------------------------
inline constexpr uint32_t kProcsMax = 4096;          // processes of a node (12 bits of a state word)
inline constexpr uint32_t kClassesMax = 1024;        // scheduling classes of tasks
inline constexpr uint32_t kRouteClass = kClassesMax - 1;  // of the node agent: tasks whose arguments are elsewhere
inline constexpr uint32_t kFetchClass = kClassesMax - 2;  // and values somebody here asks for (see bridge.h)
inline constexpr uint32_t kActorsMax = 4096;         // actors of a node, alive or still held by a handle
inline constexpr uint32_t kActorLogEntries = 4096;   // calls between two checkpoints of an actor
inline constexpr uint32_t kRecordsMax = 1u << 25;    // 33.5 million records: 4 GiB when all in use
inline constexpr uint32_t kChunkRecords = 4096;      // records a process takes at a time
inline constexpr uint32_t kChunksMax = kRecordsMax / kChunkRecords;
inline constexpr uint32_t kFunctionsMax = 1u << 18;  // function variants (function + options)
inline constexpr uint32_t kQueuesMax = 1u << 17;     // task queues: one per (producer, class) in use
inline constexpr uint32_t kLedgerEntries = 1u << 20; // borrowed references of one process
inline constexpr uint32_t kResourcesMax = 16, kGpusMax = 32;  // kinds of resources, GPUs of a node
inline constexpr uint32_t kLineageTasksMax = 1u << 20;  // finished tasks of a process that keep arguments in memory
inline constexpr uint64_t kLineageFileBytesMax = uint64_t{1} << 30;  // and on disk: see process_filed.cpp
inline constexpr size_t kInlineArgs = 32, kInlineResult = 48;  // bytes in the record itself
inline constexpr size_t kInheritedBytes = 32;        // a nested task of a durable session (durable.h)
inline constexpr size_t kCacheLine = 64;

constexpr Handle make_handle(uint32_t index, uint32_t gen) { return uint64_t{gen} << 32 | index; }
constexpr uint32_t index_of(Handle h) { return static_cast<uint32_t>(h); }
constexpr uint32_t gen_of(Handle h) { return static_cast<uint32_t>(h >> 32); }

// ---- the state word ---------------------------------------------------------------------------
// gen:32 | holder:12 | attempt:6 | flags:10 | state:4
// holder is the claiming process slot in kClaimed, the number of the dependency waited for (modulo
// 4096) in kWaiting, kWalking in a sealed record until its edges are walked, 0 otherwise.
enum State : uint32_t {
  kFree = 0,     // on its owner's free list
  kWaiting = 1,  // a dependency is not done
  kReady = 2,    // in a queue: whoever swaps this to kClaimed runs it
  kClaimed = 3,  // a worker runs it
  kDone = 4,     // sealed: result line holds the value
  kFailed = 5,   // sealed: result line holds an error
  kPromised = 6, // result comes from another record's run (several returns, stream items)
  kLost = 7,     // was kDone, its data is gone: computed again when somebody asks (see process_lineage.cpp)
  kAway = 8,     // done, its value is on another node, where Away says: brought when somebody asks (process_away.cpp)
};

enum Flag : uint64_t {
  kFlagDetached = 1u << 4,   // owner dropped it before it was done: nobody will ask
  kFlagBorrowed = 1u << 5,   // some ledger names (or named) it
  kFlagShared = 1u << 6,     // owner holds it more than once: count in Record::pins
  kFlagArgHeap = 1u << 7,    // arguments are a payload
  kFlagResultHeap = 1u << 8, // result is a payload
  kFlagAwaited = 1u << 9,    // owner sleeps (or may) until it is done
  kFlagEdges = 1u << 10,     // Record::edges is not empty: completion must walk it
  kFlagCancel = 1u << 11,    // cancellation asked for
  kFlagRefs = 1u << 12,      // arguments or result name other records: freeing unpins them
  kFlagMulti = 1u << 13,     // several returns or a stream: has promises
};
inline constexpr uint64_t kStateMask = 0xF;
inline constexpr uint64_t kFlagsMask = 0x3FF0;
inline constexpr int kAttemptShift = 14;
inline constexpr uint64_t kAttemptMask = uint64_t{0x3F} << kAttemptShift;
inline constexpr int kHolderShift = 20;
inline constexpr uint64_t kHolderMask = uint64_t{0xFFF} << kHolderShift;
inline constexpr int kGenShift = 32;

constexpr State state_of(uint64_t w) { return static_cast<State>(w & kStateMask); }
constexpr uint32_t word_gen(uint64_t w) { return static_cast<uint32_t>(w >> kGenShift); }
constexpr uint32_t word_holder(uint64_t w) { return (w & kHolderMask) >> kHolderShift; }
constexpr bool is_sealed(uint64_t w) { return state_of(w) == kDone || state_of(w) == kFailed; }
// No run of it is going on or due: its owner may free it.
constexpr bool is_settled(uint64_t w) { return is_sealed(w) || state_of(w) == kLost || state_of(w) == kAway; }
// Holder of a sealed (or away) record whose edges are still being walked: it must not be freed yet.
inline constexpr uint32_t kWalking = 0xFFF;
constexpr bool is_walked(uint64_t w) {
  return (is_sealed(w) || state_of(w) == kAway) && word_holder(w) == kWalking;
}
// Holder of a promised record that was away and is asked for: the node agent brings it.
inline constexpr uint32_t kAsked = 0xFFE;
constexpr bool is_asked(uint64_t w) { return state_of(w) == kPromised && word_holder(w) == kAsked; }
// The word of a record that was freed: the next generation, never 0.
constexpr uint64_t next_life(uint64_t w) {
  uint32_t gen = word_gen(w) + 1;
  return uint64_t{gen == 0 ? 1u : gen} << kGenShift;
}
constexpr uint64_t with_state(uint64_t w, State s, uint32_t holder) {
  return (w & ~(kStateMask | kHolderMask)) | s | uint64_t{holder} << kHolderShift;
}

// ---- the record -------------------------------------------------------------------------------
enum Kind : uint8_t {
  kTask = 0,
  kObject = 1,   // put()
  kPromise = 2,  // return value number `ret` of the task in `parent`
  kItem = 3,     // item number `ret` of a stream; made by the worker, adopted by the consumer
  kActor = 4,    // the creation of an actor: arguments of its constructor; what handles refer to
};

inline constexpr uint8_t kArgsInHeap = 0xFF;
// Owner of a record on its way back to the process whose chunk it is in (see recycle_returned).
inline constexpr uint16_t kOwnerReturned = 0xFFFF;
// Owner of a stream's item that was not taken yet: it lives and dies with the stream.
inline constexpr uint16_t kOwnerStream = 0xFFFE;

// A payload (arguments or result in the data area): this header, then `handles` 8-byte handles
// (dependencies first), then `codec_bytes` of codec, then the out-of-band buffers, each at a
// multiple of 64 bytes; their lengths stand in a table of `buffers` u64 after the codec bytes.
struct PayloadHeader {
  uint64_t total_bytes;
  uint32_t codec_bytes;
  uint32_t dependencies;  // top-level references, resolved before the task runs
  uint32_t references;    // references nested in values
  uint32_t buffers;
};
static_assert(sizeof(PayloadHeader) == 24);

struct HeapRef {
  Offset offset;
  uint64_t bytes;
};

// A count with one writer at a time; others may read it as a hint. Every access is relaxed.
struct RelaxedCount {
  std::atomic<uint32_t> value;
  operator uint32_t() const { return value.load(std::memory_order_relaxed); }
  RelaxedCount& operator=(uint32_t n) { return value.store(n, std::memory_order_relaxed), *this; }
  uint32_t operator++() { return *this = *this + 1u; }
  uint32_t operator--() { return *this = *this - 1u; }
  void operator+=(uint32_t n) { *this = *this + n; }
};
static_assert(sizeof(RelaxedCount) == 4);

struct alignas(kCacheLine) Record {
  // spec line: written by the owner before publishing, then read-only (but `pins`, `attempts`)
  uint64_t id;         // incarnation of the first owner << 40 | its sequence number
  uint32_t function;   // index in the function table
  uint16_t owner;      // process slot, or kOwnerReturned
  uint16_t cls;        // scheduling class
  uint32_t parent;     // record index of the submitting task; of the producer for promises; or 0
  RelaxedCount pins;   // the owner's: how often it holds it, when kFlagShared; others read a hint
  uint8_t kind;
  uint8_t depth;       // nesting depth of the task
  uint16_t ret;        // number of this return value / number of returns of a task
  uint8_t args_bytes;  // length in args[], or kArgsInHeap
  uint8_t attempts;    // reaper-private: attempts that died, saturating
  uint8_t dependencies;  // inline only: handles at the front of args[]
  uint8_t references;    // inline only: handles after those
  union {
    uint8_t args[kInlineArgs];
    HeapRef args_heap;
  };
  // result line
  alignas(kCacheLine) std::atomic<uint64_t> state;
  std::atomic<uint32_t> edges;  // head of the list of edges, an offset / 16 in the edge area
  uint32_t result_bytes;        // when inline
  union {
    uint8_t result[kInlineResult];
    HeapRef result_heap;
  };
};
static_assert(sizeof(Record) == 128 && offsetof(Record, state) == 64 && offsetof(Record, args) == 32);

// What stands in the result line of a task with several returns or a stream, until it is sealed.
struct Returns {
  static constexpr uint32_t kInline = 5;
  uint64_t list;             // payload of `ret` handles when there are more than kInline
  uint64_t handles[kInline]; // the promises, in order
};
struct Stream {
  std::atomic<uint64_t> first;     // handle of item 0, which names the next one
  std::atomic<uint32_t> produced;  // items published: the store that publishes
  std::atomic<uint32_t> consumed;  // items the consumer took
  std::atomic<uint64_t> cursor;    // consumer: the item taken last, kept for its link; 0 at the start
  uint32_t ahead_max;              // produced - consumed stays below this; 0: no limit
  std::atomic<uint32_t> producer_sleeps;
  uint64_t error;                  // payload with the error when the task itself failed
  std::atomic<uint64_t> last;      // producer: item number `produced` - 1
};
// Where the value of a record in state kAway is.
struct Away {
  uint64_t node;    // number of the node that has it
  uint64_t handle;  // of the record there, which somebody there holds for us
  uint64_t bytes;   // about so long
};
// What stands in the arguments of a stream's item.
struct Item {
  std::atomic<uint64_t> next;  // handle of the item after it
  uint64_t number;
};
static_assert(sizeof(Away) <= kInlineResult && sizeof(Returns) <= kInlineResult && sizeof(Stream) <= kInlineResult && sizeof(Item) <= kInlineArgs);

// First byte of a result in state kFailed.
enum ErrorCode : uint8_t {
  kErrorUser = 1,       // followed by a dumped exception
  kErrorCrashed = 2,    // followed by a CrashReport and what belongs to it (crash_report.h)
  kErrorCancelled = 3,  // nothing follows
  kErrorStoreFull = 4,  // followed by the bytes wanted (u64)
  kErrorOwnerDied = 5,
  kErrorSystem = 6,     // followed by a UTF-8 message
  kErrorActorDied = 7,  // followed by an ActorDeath and its texts
  kErrorActorUnavailable = 8,  // the same: it died and starts again
  kErrorLost = 9,       // followed by a LostReason and a UTF-8 message
  kErrorAgent = 10,     // followed by a pickled FastrayError: what the node agent says
  kErrorGroupRemoved = 11,  // its placement group was: nothing follows
};
enum LostReason : uint8_t {
  kLostNoTask = 1,    // no task makes it: put(), an item of a stream
  kLostLineage = 2,   // its task's arguments are gone
  kLostAttempts = 3,  // its task has used up its attempts, or may not run again
};
// Blocks of the data area that hang on no record carry a handle with index 0 and say here what they are.
enum BlockUse : uint32_t {
  kBlockRing = 1u << 30,   // of the queue named
  kBlockBlob = 2u << 30,   // of the function named
  kBlockActor = 3u << 30,  // cause of death or list of calls in flight of the actor named
  kBlockUseMask = 3u << 30,
};

// An edge, in a payload block of the process that registered it; freed with the record it hangs on.
enum EdgeKind : uint32_t {
  kEdgeRecord = 0,   // a task that has it as a dependency
  kEdgeProcess = 1,  // a process that sleeps for it
  kEdgePromise = 2,  // a lost return value of this task, which was running already
};
struct Edge {
  uint32_t next;    // offset / 16 in the segment's data area, 0 ends the list
  uint32_t target;  // record index, or process slot
  uint32_t gen;     // generation of the target record
  uint16_t stage;   // dependency number it waits for
  uint16_t kind;
};
static_assert(sizeof(Edge) == 16);

// ---- the process table ------------------------------------------------------------------------
enum ProcState : uint32_t {
  kProcEmpty = 0,
  kProcStarting = 1,  // slot taken, process not attached yet
  kProcAlive = 2,
  kProcDead = 3,      // kernel-confirmed; the reaper is at work or left records to adopt
};
enum ProcKind : uint32_t { kProcNode = 0, kProcDriver = 1, kProcWorker = 2, kProcAgent = 3 };
inline constexpr uint32_t kPrivateDriver = 1;  // slot of the driver that started the node; 0 is the node's

struct alignas(kCacheLine) Proc {
  // read-mostly line
  std::atomic<uint32_t> state;
  uint32_t incarnation;  // unique on the node, never 0
  uint32_t kind;
  int32_t pid;
  std::atomic<uint32_t> lease;    // class + 1, or 0: written by the node, read every claim
  std::atomic<uint32_t> revoke;   // give the lease back at the next task boundary
  uint32_t runtime_env;           // function-table index of its runtime_env, or 0
  uint32_t gpus;                  // bit mask of the GPU indices leased
  std::atomic<uint32_t> exiting;  // asked to leave
  uint32_t job;                   // number of the job it works for; 0: none (the node, an observer)
  uint32_t pad0[6];
  // written by the process itself
  alignas(kCacheLine) std::atomic<uint64_t> claim;  // handle of the task it claims or runs
  std::atomic<uint64_t> heartbeat;                  // tasks started
  std::atomic<uint32_t> blocked;                    // waits inside a task: its CPU is free
  uint32_t depth;                                   // nesting depth of the running task
  std::atomic<uint64_t> freeing;                    // payload offset on its way to another arena
  std::atomic<uint64_t> acting;                     // handle of a record it cancels or returns
  std::atomic<uint64_t> recovering;                 // handle of the lost record it recovers
  std::atomic<uint32_t> cpu;                        // CPU + 1 it ran on last: a hint for spinning
  uint32_t pad1[3];
  // written by everyone: wake-ups
  alignas(kCacheLine) std::atomic<uint32_t> futex;
  std::atomic<uint32_t> sleepers;       // threads in futex_wait
  std::atomic<uint32_t> release_epoch;  // bumped when a borrower lets go of something it owns
  std::atomic<uint32_t> returned;       // bumped when someone returned a record to its chunks
  std::atomic<uint64_t> wanted;         // lost record whose arguments only this process has (in its file)
  std::atomic<uint32_t> answer_futex;   // bumped after that: its thread for answers sleeps on it
  uint32_t pad2[9];
  // which record chunks may hold records it owns
  alignas(kCacheLine) std::atomic<uint64_t> chunks[kChunksMax / 64];
};
static_assert(sizeof(Proc) == 3 * 64 + kChunksMax / 8);

// A ledger entry: this process borrows `record`; `container` is 0 or the record whose result holds it.
struct LedgerEntry {
  std::atomic<uint64_t> record;
  std::atomic<uint64_t> container;
};
struct Ledger {
  std::atomic<uint32_t> used;  // entries ever used: scans stop here
  uint32_t pad[15];
  LedgerEntry entries[kLedgerEntries];
};

// ---- classes, queues, functions -----------------------------------------------------------------
// A set of process slots: 64 words and a summary of which are not zero (see bitmap.h).
struct ProcSet {
  std::atomic<uint64_t> summary;
  std::atomic<uint64_t> words[kProcsMax / 64];
};

// Positions only grow; the ring doubles when full. See task_queue.h.
struct alignas(kCacheLine) Queue {
  std::atomic<uint64_t> tail;  // producer
  std::atomic<uint64_t> ring;  // version:16 | log2 capacity:6 | offset / 64:42
  uint16_t owner;
  uint16_t cls;
  std::atomic<uint32_t> depth; // nesting depth of what was pushed last
  std::atomic<uint32_t> in_use;
  uint32_t pad[7];
  alignas(kCacheLine) std::atomic<uint64_t> head;  // consumers
};
static_assert(sizeof(Queue) == 128);

// Class and function entries: 0 empty, entry_writing(slot) being written, 2 in use. The writer stands in
// the word that claims the entry, so that a death at any instruction leaves it named.
inline constexpr uint32_t kEntryUsed = 2;
constexpr uint32_t entry_writing(uint32_t slot) { return 1 | slot << 8; }

// Who makes a class puts slot 0 (the node) into `sleeping` before state becomes kEntryUsed, and rings the
// bell: the node has no lease on it yet and has to learn of it.
struct Class {
  std::atomic<uint32_t> state;  // 0 empty, entry_writing(slot), 2 in use
  uint32_t runtime_env;         // function-table index of the pickled runtime_env, or 0
  uint64_t demand[kResourcesMax];  // in 1/10000 of a unit, by resource index
  std::atomic<uint32_t> leases;    // workers leased to it (the node writes)
  std::atomic<uint32_t> changes;   // bumped when a process becomes a producer
  uint32_t routed;                 // 1: not for workers here, the node agent says where its tasks run
  uint32_t placement;              // then: function-table index of the pickled wishes (demand, strategy, labels)
  uint32_t job;                    // whose it is; 0: everybody's
  uint32_t group, group_life;      // its placement group (types_group.h), 0: none
  int32_t bundle;                  // of it, -1: any
  alignas(kCacheLine) ProcSet sleeping;   // leased workers that sleep; whoever clears a bit must wake
  alignas(kCacheLine) ProcSet polling;    // leased workers that look for work, or were just woken
  alignas(kCacheLine) ProcSet producers;  // processes with a queue of this class
  std::atomic<uint32_t> queues[kProcsMax];  // queue index by producer slot
};

enum FunctionFlag : uint32_t {
  kRetryExceptions = 1,  // retry on user exceptions too (all of them, or those in the blob)
  kStreaming = 2,
  kBlobIsRuntimeEnv = 4,
  kReadOnly = 8,         // a method that changes no state: not in the actor's log
};
struct alignas(kCacheLine) Function {
  std::atomic<uint32_t> state;  // 0 empty, entry_writing(slot), 2 in use
  uint32_t flags;
  uint64_t hash[2];      // content hash of blob + options
  Offset blob;           // payload: pickled function and options
  uint64_t blob_bytes;
  int32_t max_retries;   // -1: for ever
  int32_t returns;       // number of return values
  uint32_t max_calls;    // 0: no limit
  uint16_t cls;
  uint16_t writer;       // process slot while state is 1
  uint32_t timeout_ms;   // longest run of a task, 0: no limit
  char name[64];         // for messages, cut, NUL-terminated
  uint32_t job;          // whose it is, freed with it; 0: everybody's, stays
};
static_assert(sizeof(Function) == 128);

// ---- actors -------------------------------------------------------------------------------------
// Classes from here on belong to actors, by actor index; their queues are ordered (see actors.md).
inline constexpr uint32_t kActorClass = kClassesMax;
static_assert(kActorClass + kActorsMax <= UINT16_MAX);
constexpr bool is_actor_class(uint32_t cls) { return cls >= kActorClass; }

// ---- the segment ------------------------------------------------------------------------------
struct Resource {
  char name[56];
  uint64_t total;  // in 1/10000 of a unit
};

struct Header {
  uint64_t magic;
  uint32_t wire_version;
  uint32_t page_bytes;
  uint64_t session;        // random: part of every id
  uint64_t segment_bytes;
  uint64_t object_store_bytes;
  Offset procs, recorders, failures, ledgers, classes, queues, functions, actors, actor_logs, jobs, groups, chunk_owners, returned, records, regions, data;
  uint64_t data_bytes;
  Offset durable, inherited;  // durable sessions only (durable_index.h, durable.h); else 0
  std::atomic<uint32_t> incarnations;
  std::atomic<uint32_t> functions_used;
  std::atomic<uint32_t> classes_used;
  std::atomic<uint32_t> queues_used;
  std::atomic<uint32_t> queues_retired;  // a hint: queues of the dead that others of their class can use; may drift
  std::atomic<uint32_t> actors_used;     // entries ever used: scans stop here
  std::atomic<uint32_t> jobs_used;       // number of the last job
  std::atomic<uint32_t> chunks_used;
  std::atomic<uint32_t> procs_used;      // slots ever used: scans stop here
  std::atomic<uint32_t> resources_used;
  uint32_t cpus;                         // whole CPUs of the node: workers of the default class
  std::atomic<uint32_t> dormant;         // the node sleeps without a tick: ring its bell
  std::atomic<uint32_t> deaths;          // bumped after each recovered death
  std::atomic<uint32_t> node_ready;      // 1 once the node runs
  uint32_t membarrier;                   // sleepers fence for everyone (see os.h)
  uint32_t lineage_tasks;                // budgets of each process: kLineageTasksMax, kLineageFileBytesMax, or less
  uint64_t lineage_file_bytes;
  std::atomic<uint32_t> agent_slot;      // process slot of the node agent; 0: there is none
  std::atomic<uint32_t> clustered;       // 1 once there was one: values may be away
  uint64_t node_number;                  // of this node in its cluster; 0 as long as it is in none
  std::atomic<uint32_t> limits_used;     // 1 once a function has a timeout_ms: the node looks for hung workers
  std::atomic<uint32_t> groups_changed;  // bumped when the node changes a placement group: for the agent
  Resource resources[kResourcesMax];
};

}  // namespace fastray
