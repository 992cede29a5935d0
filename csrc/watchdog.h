// Which workers are in a task for longer than its limit: decisions, pure.
//
//   limit     `timeout_s` of the function (Function::timeout_ms), counted from when the node first sees the task
//   stop      SIGSTOP, then another look: a task that ended meanwhile costs nobody anything
//   hung      stopped, and the task still not sealed: SIGKILL; what follows is a crash as any other
//
// No clock, no shared memory, no signal: local_scheduler_limits.cpp says what runs, calls decide(now) and sends
// the signals; tests/native/watchdog_test.cpp plays transcripts.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "types.h"

namespace fastray {

struct LimitedTask {
  Handle task;
  uint32_t attempt;
  uint32_t limit_ms;
};

struct WatchAction {
  enum Kind : uint8_t { kStop, kKill, kContinue } kind;
  uint32_t worker;
  LimitedTask task;  // of a kKill: the one that ran too long
};

class Watchdog {
 public:
  static constexpr int64_t kMs = 1000000;
  static constexpr int64_t kStopMax = 1000 * kMs;  // a process that is traced may never be seen to stop
  static constexpr int64_t kNever = INT64_MAX;

  // All tasks with a limit that the worker runs at this moment.
  void sees(uint32_t worker, const std::vector<LimitedTask>& running, int64_t now);
  // The kernel says that the worker is stopped (by whomever), or goes on.
  void stopped(uint32_t worker, bool is);
  void died(uint32_t worker) { workers_.erase(worker); }
  void decide(int64_t now, std::vector<WatchAction>* actions);
  // When decide() has to be called again though nothing happens.
  int64_t next_deadline() const { return next_; }

 private:
  struct Running {
    LimitedTask task;
    int64_t since;
    int64_t end() const { return since + task.limit_ms * kMs; }
  };
  struct Worker {
    std::vector<Running> running;
    bool stopped = false, killed = false;
    int64_t stop_sent = -1;
  };
  void due(int64_t t) { next_ = t < next_ ? t : next_; }
  void judge(uint32_t slot, Worker& w, int64_t now, std::vector<WatchAction>* actions);

  std::map<uint32_t, Worker> workers_;  // those with something to remember
  int64_t next_ = kNever;
};

}  // namespace fastray
