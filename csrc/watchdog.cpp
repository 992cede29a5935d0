// See watchdog.h.
#include "watchdog.h"

#include <algorithm>

namespace fastray {

void Watchdog::sees(uint32_t worker, const std::vector<LimitedTask>& running, int64_t now) {
  auto it = workers_.find(worker);
  if (it == workers_.end()) {
    if (running.empty()) return;
    it = workers_.emplace(worker, Worker{}).first;
  }
  std::vector<Running> kept;
  for (const LimitedTask& task : running) {
    const std::vector<Running>& old = it->second.running;
    auto known = std::find_if(old.begin(), old.end(), [&](const Running& r) {
      return r.task.task == task.task && r.task.attempt == task.attempt;
    });
    kept.push_back({task, known == old.end() ? now : known->since});
  }
  it->second.running.swap(kept);
  if (running.empty() && !it->second.stopped && it->second.stop_sent < 0) workers_.erase(it);
}

void Watchdog::stopped(uint32_t worker, bool is) {
  if (is) workers_[worker].stopped = true;
  if (auto it = workers_.find(worker); it != workers_.end()) it->second.stopped = is;
}

void Watchdog::decide(int64_t now, std::vector<WatchAction>* actions) {
  next_ = kNever;
  for (auto& [slot, w] : workers_)
    if (!w.killed) judge(slot, w, now, actions);
}

void Watchdog::judge(uint32_t slot, Worker& w, int64_t now, std::vector<WatchAction>* actions) {
  const Running* late = nullptr;
  for (const Running& r : w.running) {
    if (r.end() > now)
      due(r.end());
    else if (late == nullptr || r.end() < late->end())
      late = &r;
  }
  bool waited = w.stop_sent >= 0 && now - w.stop_sent >= kStopMax;
  if (late != nullptr && (w.stopped || waited)) {
    w.killed = true;
    actions->push_back({WatchAction::kKill, slot, late->task});
  } else if (late != nullptr && w.stop_sent < 0) {
    w.stop_sent = now;
    due(now + kStopMax);
    actions->push_back({WatchAction::kStop, slot, late->task});
  } else if (late == nullptr && w.stop_sent >= 0 && (w.stopped || waited)) {
    w.stop_sent = -1;
    w.stopped = false;
    actions->push_back({WatchAction::kContinue, slot, {}});
  } else if (w.stop_sent >= 0) {
    due(w.stop_sent + kStopMax);
  }
}

}  // namespace fastray
