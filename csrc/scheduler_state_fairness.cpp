// Who comes first when there is not enough: the claimant, and the shares of jobs. See scheduler_state.h.
#include <algorithm>

#include "scheduler_state.h"

namespace fastray {

void SchedulerState::find_claimant(int64_t now) {
  claimants_.assign(groups_.size(), -1);
  std::vector<int64_t> oldest(groups_.size(), kNever);
  auto look = [&](uint32_t c) {
    int64_t since = classes_[c].unmet_since;
    uint32_t group = classes_[c].place.group;
    if (since < 0 || since >= oldest[group] || now - since < kStarvedNs || !can_come(c)) return;
    oldest[group] = since;
    claimants_[group] = static_cast<int>(c);
  };
  for (uint32_t c = 0; c < task_classes_; ++c) look(c);
  for (uint32_t c : line_) look(c);
}

// What the class waits for is free or held by tasks that run: not by an actor, nor by a task that is blocked.
bool SchedulerState::can_come(uint32_t cls) const {
  return any_pool(cls, [&](uint32_t p) {
    Pool pool = pools_[p];
    for (uint32_t s : slots_) {
      const Worker& w = workers_[s];
      if (w.cls >= 0 && w.pool == p && !w.actor && !w.blocked)
        take(pool, classes_[static_cast<size_t>(w.cls)].demand, w.gpus, w.gpu_units, +1);
    }
    return fits_in(cls, pool);
  });
}

// Units of CPU a job may have while several have work that waits; kNever when there are no two.
int64_t SchedulerState::share() const {
  std::vector<uint32_t> jobs;
  for (const Class& c : classes_)
    if (c.known && c.backlog && c.place.group == 0 && std::find(jobs.begin(), jobs.end(), c.job) == jobs.end()) jobs.push_back(c.job);
  if (limits_.cpu < 0 || jobs.size() < 2) return kNever;
  return limits_.total[static_cast<size_t>(limits_.cpu)] / static_cast<int64_t>(jobs.size());
}

int64_t SchedulerState::cpus_of(uint32_t job) const {
  int64_t units = 0;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0 || w.pool != 0 || w.blocked || w.revoking) continue;
    const Class& c = classes_[static_cast<size_t>(w.cls)];
    if (c.job == job) units += c.demand[static_cast<size_t>(limits_.cpu)];
  }
  return units;
}

// One more lease would still leave its job within its share.
bool SchedulerState::below_share(uint32_t cls) const {
  const Class& c = classes_[cls];
  if (c.place.group != 0) return false;
  int64_t most = share();
  return most != kNever && cpus_of(c.job) + c.demand[static_cast<size_t>(limits_.cpu)] <= most;
}

}  // namespace fastray
