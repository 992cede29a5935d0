// The reaper: what a process held when it died is finished, undone or taken over. Part of the node process.
//
//   dead      its death is confirmed by the kernel (waitpid or pidfd): it will write nothing any more
//   settle    a task it ran (Proc::claim) or acted on (Proc::acting) becomes ready again or failed
//   adopt     the node becomes the owner of its records; they are freed when nobody borrows them
//   guard     a reference the node itself holds on each adopted record until all are counted
//   delayed   a task that has killed workers, or raised, again and again: ready, but in no queue until its time
//   over      a job whose driver is gone: its tasks fail instead of running again
//   orphan    an adopted record chunk: goes back to the pool when all of its records are free
//
// Each step looks at shared memory only and changes it by single swaps, so a step that was cut short is done
// again from its start. Nobody waits for the reaper: all it does is what any process could do to a record,
// with the node's slot as holder. Order matters in two places, both said at recover().
#pragma once

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "crash_report.h"
#include "process.h"
#include "watchdog.h"

namespace fastray {

struct CrashInfo {
  int32_t pid;
  int32_t signal;     // 0: it exited
  int32_t exit_code;
  std::string stderr_tail;
  // Of an actor's worker:
  int actor = -1;
  bool restarts = false;
  std::string death{};  // ActorDeath and its texts
  LimitedTask hung{};  // killed by the node because this task ran too long
  uint64_t peak_bytes = 0;
  int64_t uptime_ns = 0, time_ns = 0;
  uint32_t oom_kills = 0;
  std::vector<EventReport> events{};
  uint32_t job = 0;
  bool recorded = false;  // this job's failures are written down

  AttemptReport attempt(Handle task) const {
    return {pid, signal, exit_code, hung.task == task ? hung.limit_ms : 0};
  }
  // What is noted of a task that died with it, see failure_log.h. `began`: it ran.
  Failure run_of(const Record& r, bool began) const;
  std::string describe(Handle task) const;
};

class Reaper {
 public:
  explicit Reaper(Process* node) : node_(*node), segment_(node->segment()) {}
  // Everything the process in `slot` held. Afterwards the slot is empty.
  void recover(uint32_t slot, const CrashInfo& crash);
  // A ready task that stands in no queue: queued after the delay that its attempts earn.
  void delay(Handle h);
  // Queues the delayed tasks whose time has come. The time of the next one, INT64_MAX for none.
  void push_due(int64_t now);
  int64_t next_due() const;
  // Tasks that crashed for good and are to be written down, held for that (a return value stands for its task).
  struct Crashed {
    Handle h;
    uint32_t env, job;
  };
  std::vector<Crashed>& crashed() { return crashed_; }
  // Slow tick: frees what was adopted and is not borrowed any more, and memory of the dead that is not used any more.
  void sweep();

  // What is left of a job that is over, see reaper_jobs.cpp.
  struct Remains {
    std::vector<uint32_t> running;  // slots of workers that run one of its tasks
    std::vector<uint32_t> actors;   // actors it owned
  };
  void job_is_over(uint32_t job) { over_.insert(job); }
  // `owners`: the node, and drivers of the job that are gone but for their mapping.
  Remains drop_job(uint32_t job, const std::vector<uint32_t>& owners);
  bool names_job(uint32_t job) const;
  void forget_job(uint32_t job);

  bool has_adopted() const {
    return !orphans_.empty() || !node_.zombies_.empty() || !node_.limbo_.empty() || !node_.contained_.empty();
  }

 private:
  struct Delayed {
    int64_t due;
    Handle task;
  };
  struct Orphan {
    uint32_t chunk;
    uint32_t busy;  // a record in it that was not free at the last look
  };

  // reaper.cpp
  template <class Visit>
  void for_each_class(Visit&& visit);  // of tasks and of actors
  void leave_sets(uint32_t slot);
  void settle(uint32_t slot, Handle h, const CrashInfo& crash, bool waited = false);
  void settle_call(Record& r, Handle h, uint64_t w, const CrashInfo& crash, bool waited);
  void sort_calls(uint32_t a);
  std::vector<Handle> held_by(uint32_t slot, int actor);
  void claimed_by(uint32_t slot, std::vector<Handle>* held);
  bool take_over(Record& r, Handle h, uint32_t slot, uint64_t* w);
  void fail(Record& r, Handle h, ErrorCode code, const CrashInfo* crash);
  void note_crash(const Record& r, Handle h, ErrorCode code, const CrashInfo& crash);
  void hold_crashed(Record& r, Handle h, const CrashInfo& crash);
  void requeue(Record& r, Handle h, uint64_t w, const CrashInfo& crash);
  void announce(Record& r, Handle h);
  void repair_results(Record& r, Handle h, uint64_t w);
  void finish_return(Record& r, Handle h);
  void retire_queues(uint32_t slot);
  void clear_tables(uint32_t slot);
  void repair_sets();
  void wake_everyone();

  // reaper_records.cpp
  void repair_stream(uint32_t slot, Handle task);
  bool free_private(Record& r, uint64_t w);
  std::vector<uint32_t> chunks_of(uint32_t slot, bool only_home) const;
  void adopt_records(uint32_t slot);
  void count_references(const std::vector<Handle>& adopted);
  void count_one(Handle h);
  void adopt_stream(Record& r);
  void take_ledger(uint32_t slot);
  void go_on(const std::vector<Handle>& adopted);
  void abort_unwanted(uint32_t slot);
  bool abort(Handle h);
  std::unordered_set<Handle> named_by_ledgers(uint32_t dead);
  void adopt_chunks(uint32_t slot);
  bool give_back(Orphan& orphan);

  // reaper_jobs.cpp
  bool is_over(const Record& r, uint32_t dead) const;

  // reaper_blocks.cpp
  static bool is_live(void* self, Handle h, Offset block);
  bool hangs_as_edge(const Record& r, Handle h, Offset block) const;

  Process& node_;
  Segment segment_;
  std::vector<Orphan> orphans_;
  std::vector<Delayed> delayed_;
  AttemptLog attempts_;
  std::vector<Crashed> crashed_;
  std::unordered_set<uint32_t> over_;
};

}  // namespace fastray
