// Who comes first when there is not enough: the claimant, and the shares of jobs. See scheduler_state.h.
#include <algorithm>

#include "scheduler_state.h"

namespace fastray {

void SchedulerState::find_claimant(int64_t now) {
  claimant_ = -1;
  int64_t oldest = kNever;
  auto look = [&](uint32_t c) {
    int64_t since = classes_[c].unmet_since;
    if (since < 0 || since >= oldest || now - since < kStarvedNs || !can_come(classes_[c])) return;
    oldest = since;
    claimant_ = static_cast<int>(c);
  };
  for (uint32_t c = 0; c < task_classes_; ++c) look(c);
  for (uint32_t c : line_) look(c);
}

// What the class waits for is free or held by tasks that run: not by an actor, nor by a task that is blocked.
bool SchedulerState::can_come(const Class& c) const {
  Units units = free_;
  std::array<int64_t, kGpusMax> gpus = gpu_free_;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0 || w.actor || w.blocked) continue;
    for (size_t i = 0; i < kResourcesMax; ++i) units[i] += classes_[static_cast<size_t>(w.cls)].demand[i];
    for (uint32_t g = 0; g < kGpusMax; ++g)
      if (w.gpus >> g & 1) gpus[g] += w.gpu_units;
  }
  if (!fits(c, units)) return false;
  int64_t demand = limits_.gpu < 0 ? 0 : c.demand[static_cast<size_t>(limits_.gpu)];
  int64_t each = std::min(demand, kUnit), wanted = demand < kUnit ? 1 : demand / kUnit;
  return demand == 0 || std::count_if(gpus.begin(), gpus.end(), [&](int64_t free) { return free >= each; }) >= wanted;
}

bool SchedulerState::fits_beside_claimant(uint32_t cls) const {
  const Class& c = classes_[cls];
  if (claimant_ < 0 || static_cast<uint32_t>(claimant_) == cls) return fits(c, free_);
  Units left = free_;
  for (size_t i = 0; i < kResourcesMax; ++i) left[i] -= classes_[static_cast<size_t>(claimant_)].demand[i];
  return fits(c, left);
}

// Units of CPU a job may have while several have work that waits; kNever when there are no two.
int64_t SchedulerState::share() const {
  std::vector<uint32_t> jobs;
  for (const Class& c : classes_)
    if (c.known && c.backlog && std::find(jobs.begin(), jobs.end(), c.job) == jobs.end()) jobs.push_back(c.job);
  if (limits_.cpu < 0 || jobs.size() < 2) return kNever;
  return limits_.total[static_cast<size_t>(limits_.cpu)] / static_cast<int64_t>(jobs.size());
}

int64_t SchedulerState::cpus_of(uint32_t job) const {
  int64_t units = 0;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0 || w.blocked || w.revoking) continue;
    const Class& c = classes_[static_cast<size_t>(w.cls)];
    if (c.job == job) units += c.demand[static_cast<size_t>(limits_.cpu)];
  }
  return units;
}

// One more lease would still leave its job within its share.
bool SchedulerState::below_share(uint32_t cls) const {
  const Class& c = classes_[cls];
  int64_t most = share();
  return most != kNever && cpus_of(c.job) + c.demand[static_cast<size_t>(limits_.cpu)] <= most;
}

}  // namespace fastray
