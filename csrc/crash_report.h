// How a worker died, as it travels: from the node, through a failed record, to the exception of whoever asks
// (fastray/crash_report.py reads it).
//
//   CrashReport      the death at the last attempt; `earlier` AttemptReports, `events` EventReports and the tail of
//                    stderr follow
//   AttemptReport    one line for each attempt before; the node keeps them while the task may still fail
//   EventReport      an event of the dead worker's flight recorder, in nanoseconds
#pragma once

#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "flight_recorder.h"
#include "types_actor.h"

namespace fastray {

struct AttemptReport {
  int32_t pid, signal, exit_code;
  uint32_t timeout_ms;  // not 0: it ran longer than this, and the node killed it
};
static_assert(sizeof(AttemptReport) == 16);

struct EventReport {
  int64_t ago_ns;   // from its begin to the moment when the node noticed the death
  int64_t took_ns;  // -1: it had not ended
  uint64_t record;  // Record::id
  uint64_t what;    // detail << 9 | ended by an exception << 8 | EventKind
};
static_assert(sizeof(EventReport) == 32);

struct CrashReport {
  AttemptReport last;
  uint32_t attempts;
  uint32_t function;
  uint64_t task;        // Record::id
  uint64_t peak_bytes;  // most memory it had, as the kernel counts (ru_maxrss)
  int64_t uptime_ns;
  int64_t time_ns;      // wall clock, when the node noticed
  uint32_t oom_kills;   // by the kernel on this machine since the node looked last; 0 unless the signal was SIGKILL
  uint32_t earlier, events;
  uint32_t pad;
};
static_assert(sizeof(CrashReport) == 72);

// What the dead process's recorder says, oldest first; at most the last `most`.
std::vector<EventReport> read_events(const FlightRecorder& recorder, uint64_t now_ticks, double ticks_per_us,
                                     uint32_t most = kFlightEvents);

// Attempts of tasks that may run again. Bounded: the tasks remembered longest ago are forgotten first.
class AttemptLog {
 public:
  static constexpr size_t kTasksMax = 1024, kAttemptsMax = 16;
  void add(uint64_t task, const AttemptReport& attempt);
  std::vector<AttemptReport> take(uint64_t task);
  size_t size() const { return by_task_.size(); }

 private:
  std::unordered_map<uint64_t, std::vector<AttemptReport>> by_task_;
  std::deque<uint64_t> order_;
};

}  // namespace fastray
