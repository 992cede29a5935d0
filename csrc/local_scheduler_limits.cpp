// Tasks with a time limit: what runs where, and the signals for what ran too long. See watchdog.h and
// local_scheduler.h. Without a limited function in the session a look costs one load.
#include <signal.h>

#include "local_scheduler.h"

namespace fastray {

// What the worker announced or lists as in flight, claimed by it and with a limit. The list of a living actor may
// grow under us: whatever is read, only a record that says "claimed by this worker" counts.
std::vector<LimitedTask> LocalScheduler::limited_tasks(uint32_t slot) const {
  std::vector<LimitedTask> found;
  auto consider = [&](Handle h) {
    if (h == 0 || (h & kFlightWaiting) || index_of(h) >= kRecordsMax) return;
    const Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    bool constructs = r.kind == kActor;  // announced while its constructor runs; nobody claims it
    if (word_gen(w) != gen_of(h) || (!constructs && (state_of(w) != kClaimed || word_holder(w) != slot))) return;
    uint32_t f = std::atomic_ref<const uint32_t>(r.function).load(std::memory_order_relaxed);
    uint32_t limit_ms = f < kFunctionsMax && (constructs || r.kind == kTask) ? segment_.function(f).timeout_ms : 0;
    if (limit_ms != 0) found.push_back({h, static_cast<uint32_t>((w & kAttemptMask) >> kAttemptShift), limit_ms});
  };
  Handle claim = segment_.proc(slot).claim.load(std::memory_order_acquire);
  consider(claim);
  if (workers_[slot].actor < 0) return found;
  const Actor& a = segment_.actor(static_cast<uint32_t>(workers_[slot].actor));
  Offset flight = a.flight.load(std::memory_order_acquire);  // SYNC POINT: actor-flight
  uint32_t places = flight == 0 ? 0 : a.flight_places.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < places; ++i) {
    Handle h = segment_.at<std::atomic<uint64_t>>(flight)[i].load(std::memory_order_acquire);
    if (h != claim) consider(h);
  }
  return found;
}

void LocalScheduler::watch_limits(int64_t now) {
  if (segment_.header().limits_used.load(std::memory_order_relaxed) == 0) return;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    bool alive = workers_[slot].used && workers_[slot].pid > 0 &&
                 segment_.proc(slot).state.load(std::memory_order_acquire) == kProcAlive;  // SYNC POINT: proc-alive
    if (alive) watchdog_.sees(slot, limited_tasks(slot), now);
  }
  std::vector<WatchAction> actions;
  watchdog_.decide(now, &actions);
  for (const WatchAction& action : actions) {
    Worker& w = workers_[action.worker];
    if (action.kind == WatchAction::kKill) w.hung = action.task;
    // The pid cannot have been reused: only this loop takes the worker's exit status.
    int signal = action.kind == WatchAction::kStop ? SIGSTOP : action.kind == WatchAction::kKill ? SIGKILL : SIGCONT;
    kill(w.pid, signal);
  }
}

}  // namespace fastray
