// The tables of actors and of jobs: what callers, workers and the node share of each. See types.h for the words.
#pragma once

#include "types.h"

namespace fastray {

// ---- actors -------------------------------------------------------------------------------------
enum ActorState : uint32_t {
  kActorFree = 0,
  // 1 is entry_writing(slot): its creator fills the entry in
  kActorPending = 2,     // waits for resources and a process
  kActorStarting = 3,    // has a process, the constructor (or the restart) is not through
  kActorAlive = 4,
  kActorRestarting = 5,  // waits for resources and a process again
  kActorDead = 6,        // for good; the entry stays until its creation record is freed
};
enum ActorFlag : uint32_t {
  kActorDetached = 1,      // lives on without handles
  kActorOutOfOrder = 2,    // calls whose dependencies are not done let others pass
  kActorCheckpoints = 4,   // keeps a log of calls
  kActorNoRestart = 8,     // kill(no_restart=True) came
  kActorForeign = 16,      // runs on another node: the node agent sends its calls there (link_actors.cpp)
};
// Why it is dead or restarting; the first that is set stays.
enum ActorEnd : uint32_t {
  kEndNone = 0,
  kEndCrashed = 1,
  kEndInitFailed = 2,    // the constructor raised
  kEndKilled = 3,        // kill()
  kEndExited = 4,        // exit_actor(), __ray_terminate__
  kEndHandlesGone = 5,
  kEndStartFailed = 6,   // its process never came up
  kEndTimedOut = 7,      // a call ran longer than its limit
  kEndJobOver = 8,       // the driver that owned it (or its owner) ended
  kEndNodeGone = 9,      // the node where it ran is gone
  kEndGroupRemoved = 10,  // its placement group was removed
};

// One cache line that callers and the worker read, one that the worker writes, then what is rarely read.
struct alignas(kCacheLine) Actor {
  std::atomic<uint32_t> state;
  std::atomic<uint32_t> flags;
  std::atomic<uint64_t> creation;   // handle of the creation record
  std::atomic<uint32_t> slot;       // process slot of its worker; 0: none
  std::atomic<uint32_t> ending;     // no handle is left: finish what stands in the queues and leave
  std::atomic<uint32_t> end;        // ActorEnd, set by the worker before it leaves, or by the node
  int32_t max_restarts;             // -1: for ever
  std::atomic<uint32_t> restarts;   // how often it was started again
  uint32_t info;                    // function-table index of what a handle needs to know
  std::atomic<Offset> cause;        // block: u64 length, dumped exception of the constructor
  std::atomic<uint64_t> checkpoint; // handle of the object with the last checkpoint; 0: none
  // written by the worker
  alignas(kCacheLine) std::atomic<uint64_t> log_end;  // calls logged ever: entry n is at n % kActorLogEntries
  std::atomic<uint64_t> log_start;  // entries before it are let go of
  std::atomic<Offset> flight;       // block: handles in flight, 0 where a place is free
  std::atomic<uint32_t> flight_places;
  std::atomic<uint32_t> last_call;  // function-table index of the last method started
  uint64_t id[2];                   // of the session and the creation record where it was made: the same on all nodes
  std::atomic<uint32_t> host_pid;   // foreign: of its process, as its node says; 0: none, or not heard of yet
  uint32_t pad[3];
  uint64_t name_hash[2];            // of namespace and name; 0, 0: no name
  char name[96];                    // cut, NUL-terminated
  char name_space[64];
  char class_name[64];
};
static_assert(sizeof(Actor) == 384);
// A handle in Actor::flight that was claimed, but waits for its concurrency group: it has not run.
inline constexpr uint64_t kFlightWaiting = uint64_t{1} << 31;  // records have 25 bits of index
static_assert(kRecordsMax <= kFlightWaiting);

// How an actor ended, for those whose calls failed. Texts follow, of the lengths given: class, name, method of
// the last call, end of stderr, dumped exception of the constructor, EventReports (crash_report.h).
struct ActorDeath {
  uint64_t id[2];        // as Actor::id
  int64_t time_ns;       // wall clock
  uint64_t peak_bytes;   // of its process, as CrashReport has them
  int64_t uptime_ns;
  uint32_t end;          // ActorEnd
  int32_t pid, signal, exit_code;
  uint32_t restarts;
  int32_t max_restarts;
  uint32_t may_have_run; // this call
  uint32_t oom_kills;
  uint32_t text_bytes[6];
};
static_assert(sizeof(ActorDeath) == 96);

// ---- jobs ---------------------------------------------------------------------------------------
// A job is a driver and all that it started. Its number is never used again; its entry, number % kJobsKept, is,
// when it is over. The node writes it (a private node's driver does), others read it as information: see daemon.md.
enum JobState : uint32_t {
  kJobNone = 0,
  kJobRunning = 1,   // its driver is attached
  kJobDetached = 2,  // its driver is gone, detached actors live on
  kJobOver = 3,
};
struct Job {
  std::atomic<uint32_t> state;
  uint32_t number;
  int32_t pid;        // of the driver
  uint32_t slot;      // of the driver
  int64_t start_ns;   // wall clock
  int64_t end_ns;     // of the driver; 0 while it is attached
  char name_space[64];
  char entrypoint[156];
  std::atomic<uint32_t> records_failures;  // init(record_failures=...): crashes are written down too
};
static_assert(sizeof(Job) == 256);
inline constexpr uint32_t kJobsKept = 1024;

}  // namespace fastray
