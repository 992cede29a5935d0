// See scheduler_state.h.
#include "scheduler_state.h"

#include <algorithm>
#include <utility>

namespace fastray {

SchedulerState::SchedulerState(const Limits& limits) : limits_(limits), pools_(1), groups_(1) {
  Pool& node = pools_[0];
  node.used = true;
  node.total = node.free = limits.total;
  int64_t gpus = limits.gpu < 0 ? 0 : limits.total[static_cast<size_t>(limits.gpu)] / kUnit;
  for (int64_t g = 0; g < gpus && g < static_cast<int64_t>(kGpusMax); ++g) node.gpu_free[static_cast<size_t>(g)] = kUnit;
}

// ---- events ----------------------------------------------------------------------------------------

void SchedulerState::class_seen(uint32_t cls, const Units& demand, uint32_t env, uint32_t job, Place place) {
  if (classes_.size() <= cls) classes_.resize(cls + 1);
  if (!is_actor_class(cls)) task_classes_ = std::max(task_classes_, cls + 1);
  Class& c = classes_[cls];
  c.known = true;
  c.demand = demand;
  c.env = env;
  c.job = job;
  c.place = place;
  if (groups_.size() <= place.group) groups_.resize(place.group + 1);
}

void SchedulerState::class_gone(uint32_t cls) {
  if (cls < classes_.size() && classes_[cls].leases == 0) classes_[cls] = Class{};
}

void SchedulerState::worker_starting(uint32_t slot, uint32_t env) {
  if (workers_.size() <= slot) workers_.resize(slot + 1);
  workers_[slot] = Worker{};
  workers_[slot].present = true;
  workers_[slot].env = env;
  slots_.push_back(slot);
}

void SchedulerState::worker_attached(uint32_t slot, int64_t now) {
  workers_[slot].alive = true;
  workers_[slot].since = now;
}

void SchedulerState::worker_died(uint32_t slot) {
  if (slot >= workers_.size() || !workers_[slot].present) return;
  lease_returned(slot, 0);
  workers_[slot].present = workers_[slot].alive = false;
  std::erase(slots_, slot);
}

void SchedulerState::worker_blocked(uint32_t slot, bool blocked) {
  Worker& w = workers_[slot];
  if (w.blocked == blocked) return;
  w.blocked = blocked;
  if (w.cls < 0 || limits_.cpu < 0) return;
  size_t cpu = static_cast<size_t>(limits_.cpu);
  pools_[w.pool].free[cpu] += classes_[static_cast<size_t>(w.cls)].demand[cpu] * (blocked ? 1 : -1);
}

void SchedulerState::worker_idle(uint32_t slot, bool idle, int64_t now) {
  Worker& w = workers_[slot];
  if (idle && !w.idle) w.since = now;
  if (idle != w.idle) w.coming_since = idle ? kNever : now;
  w.idle = idle;
}

void SchedulerState::lease_returned(uint32_t slot, int64_t now) {
  Worker& w = workers_[slot];
  w.revoking = false;
  if (w.cls < 0) return;
  Class& c = classes_[static_cast<size_t>(w.cls)];
  charge(w, c, +1);
  --c.leases;
  w.cls = -1;
  w.pool = 0;
  w.gpus = 0;
  w.since = now;
}

void SchedulerState::actor_wanted(uint32_t cls, const Units& demand, uint32_t env, uint32_t job, Place place) {
  class_seen(cls, demand, env, job, place);
  classes_[cls].backlog = true;
  classes_[cls].unmet_since = -1;
  line_.push_back(cls);
}

void SchedulerState::actor_unwanted(uint32_t cls) {
  std::erase(line_, cls);
  if (cls < classes_.size()) classes_[cls].backlog = false;
}

uint32_t SchedulerState::actor_started(uint32_t slot, uint32_t cls, int64_t now, uint32_t pool) {
  Class& c = classes_[cls];
  Worker& w = workers_[slot];
  (void)gpus_for(c.demand, pools_[pool], &w.gpus, &w.gpu_units);
  w.pool = pool;
  w.actor = true;
  w.cls = static_cast<int32_t>(cls);
  w.granted_at = w.since = now;
  charge(w, c, -1);
  ++c.leases;
  actor_unwanted(cls);
  return w.gpus;
}

// ---- counting --------------------------------------------------------------------------------------

void SchedulerState::charge(Worker& w, const Class& c, int64_t sign) {
  Units units = c.demand;
  if (limits_.cpu >= 0 && w.blocked) units[static_cast<size_t>(limits_.cpu)] = 0;
  take(pools_[w.pool], units, w.gpus, w.gpu_units, sign);
}

bool SchedulerState::zero_demand(const Class& c) const {
  return std::all_of(c.demand.begin(), c.demand.end(), [](int64_t d) { return d == 0; });
}

bool SchedulerState::feasible(uint32_t cls) const {
  if (is_group_class(cls)) return feasible_group(cls - kGroupClass);
  return any_pool(cls, [&](uint32_t pool) { return fits(classes_[cls].demand, pools_[pool].total); });
}

bool SchedulerState::fits(const Units& demand, const Units& free) {
  for (size_t i = 0; i < kResourcesMax; ++i)
    if (demand[i] > 0 && demand[i] > free[i]) return false;
  return true;
}

// Whole GPUs are empty ones; a share goes to the fullest that has room.
bool SchedulerState::gpus_for(const Units& wanted, const Pool& pool, uint32_t* mask, int64_t* units) const {
  *mask = 0;
  *units = 0;
  int64_t demand = limits_.gpu < 0 ? 0 : wanted[static_cast<size_t>(limits_.gpu)];
  if (demand == 0) return true;
  if (demand < kUnit) {
    int best = -1;
    for (uint32_t g = 0; g < kGpusMax; ++g)
      if (pool.gpu_free[g] >= demand && (best < 0 || pool.gpu_free[g] < pool.gpu_free[static_cast<size_t>(best)]))
        best = static_cast<int>(g);
    if (best < 0) return false;
    *mask = 1u << best;
    *units = demand;
    return true;
  }
  int64_t left = demand / kUnit;
  for (uint32_t g = 0; g < kGpusMax && left > 0; ++g) {
    if (pool.gpu_free[g] != kUnit) continue;
    *mask |= 1u << g;
    --left;
  }
  *units = kUnit;
  return left == 0;
}

uint32_t SchedulerState::awake(uint32_t cls) const {
  uint32_t n = 0;
  for (uint32_t s : slots_)
    if (workers_[s].cls == static_cast<int32_t>(cls) && !workers_[s].blocked) ++n;
  return n;
}

bool SchedulerState::has_idle(uint32_t cls) const {
  return std::any_of(slots_.begin(), slots_.end(), [&](uint32_t s) {
    return workers_[s].cls == static_cast<int32_t>(cls) && workers_[s].idle && !workers_[s].revoking;
  });
}

uint64_t SchedulerState::coming_to(uint32_t cls, int64_t now) const {
  return static_cast<uint64_t>(std::count_if(slots_.begin(), slots_.end(), [&](uint32_t s) {
    const Worker& w = workers_[s];
    return w.cls == static_cast<int32_t>(cls) && !w.blocked && !w.revoking && w.coming_since <= now &&
           now - w.coming_since < kComingNs;
  }));
}

bool SchedulerState::has_backlog() const {
  for (uint32_t c = 0; c < task_classes_; ++c)
    if (classes_[c].known && classes_[c].backlog && feasible(c)) return true;
  return std::any_of(line_.begin(), line_.end(), [&](uint32_t c) { return feasible(c); });
}

// How many more leases the class would take now.
uint32_t SchedulerState::wanted(uint32_t cls, int64_t now) const {
  const Class& c = classes_[cls];
  if (!c.known || !feasible(cls)) return 0;
  uint32_t n = awake(cls);
  uint32_t more = c.backlog && !has_idle(cls) && coming_to(cls, now) < c.tasks ? 1 : 0;
  if (cls == 0 && limits_.prestart) {
    if (n >= limits_.cpus) return more;
    // without work it takes only what nobody else is waiting for
    return c.backlog || !somebody_waits() ? limits_.cpus - n : 0;
  }
  uint32_t most = std::max(64u, 8 * limits_.cpus);
  return zero_demand(c) && n >= most ? 0 : more;
}

bool SchedulerState::somebody_waits() const {
  auto waits = [&](uint32_t cls) { return feasible(cls); };
  return std::any_of(line_.begin(), line_.end(), waits) || std::any_of(classes_.begin() + 1, classes_.begin() + task_classes_,
                                       [](const Class& c) { return c.backlog && c.waits; });
}

// Free now, and what the leases under revocation will free.
Units SchedulerState::coming(uint32_t pool) const {
  Units units = pools_[pool].free;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0 || !w.revoking || w.pool != pool) continue;
    for (size_t i = 0; i < kResourcesMax; ++i)
      if (!(w.blocked && static_cast<int>(i) == limits_.cpu)) units[i] += classes_[static_cast<size_t>(w.cls)].demand[i];
  }
  return units;
}

// ---- decisions -------------------------------------------------------------------------------------

void SchedulerState::decide(int64_t now, std::vector<SchedulerAction>* actions) {
  out_ = actions;
  next_ = kNever;
  starting_envs_.clear();
  for (uint32_t s : slots_)
    if (!workers_[s].alive && !workers_[s].actor) starting_envs_.push_back(workers_[s].env);
  find_claimant(now);
  keep_leases(now);
  shed_oversubscribed(now);
  uint32_t n = task_classes_;
  for (size_t g = 0; g < claimants_.size(); ++g) {
    int claimant = claimants_[g];
    if (claimant >= 0 && !is_actor_class(static_cast<uint32_t>(claimant))) serve(static_cast<uint32_t>(claimant), now);
  }
  serve_line(now);
  for (uint32_t i = 0; i < n; ++i) serve((rotate_ + i) % n, now);
  if (n != 0) rotate_ = (rotate_ + 1) % n;
  retire_spares(now);
  stand();
  release_reserved();
}

// One that does not fit lets smaller ones pass, until it is the claimant. What the others are started with is theirs
// from here on: it is charged by actor_started(), after the decision.
void SchedulerState::serve_line(int64_t now) {
  uint32_t started = 0;
  std::vector<uint32_t> line = line_;
  for (uint32_t cls : line) {
    Class& c = classes_[cls];
    if (!feasible(cls)) continue;  // its group is not reserved, or a group will never fit
    if (is_group_class(cls)) {
      serve_group(cls, now);
      continue;
    }
    if (pool_for(cls, false) < 0) {
      make_room(cls, now);
      continue;
    }
    int pool = pool_for(cls, true);
    if (pool < 0) continue;
    if (started == kStartsMax) {
      due(now + kMs);
      break;
    }
    ++started;
    reserve(c, static_cast<uint32_t>(pool));
    if (static_cast<int>(cls) == claimant_of(cls)) {
      int64_t since = std::exchange(c.unmet_since, -1);  // it keeps its place in case it cannot be forked
      find_claimant(now);
      c.unmet_since = since;
    }
    out_->push_back({SchedulerAction::kStart, 0, cls, c.env, 0, static_cast<uint32_t>(pool)});
  }
}

void SchedulerState::reserve(const Class& c, uint32_t pool) {
  Reserved r{pool, c.demand, 0, 0};
  (void)gpus_for(c.demand, pools_[pool], &r.gpus, &r.gpu_units);
  take(pools_[pool], r.demand, r.gpus, r.gpu_units, -1);
  reserved_.push_back(r);
}

void SchedulerState::release_reserved() {
  for (const Reserved& r : reserved_) take(pools_[r.pool], r.demand, r.gpus, r.gpu_units, +1);
  reserved_.clear();
}

// Idle leases of other classes go back after a while.
void SchedulerState::keep_leases(int64_t now) {
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls <= 0 || w.actor || !w.idle || w.revoking || classes_[static_cast<size_t>(w.cls)].backlog) continue;
    if (now - w.since >= kIdleLeaseNs)
      revoke(s);
    else
      due(w.since + kIdleLeaseNs);
  }
}

// Workers that were blocked work again and there are more than CPUs: one at a time gives its lease back.
void SchedulerState::shed_oversubscribed(int64_t now) {
  uint32_t pool = 0;
  while (pool < pools_.size() && (limits_.cpu < 0 || coming(pool)[static_cast<size_t>(limits_.cpu)] >= 0)) ++pool;
  bool over = pool < pools_.size() || (limits_.cpu < 0 && !classes_.empty() && awake(0) > limits_.cpus);
  if (!over) {
    over_since_ = -1;
    return;
  }
  if (over_since_ < 0) over_since_ = now;
  if (now - over_since_ < kIdleLeaseNs) return due(over_since_ + kIdleLeaseNs);
  int best = -1;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0 || w.actor || w.blocked || w.revoking || (pool < pools_.size() && w.pool != pool)) continue;
    if (limits_.cpu >= 0 && classes_[static_cast<size_t>(w.cls)].demand[static_cast<size_t>(limits_.cpu)] == 0) continue;
    const Worker* b = best < 0 ? nullptr : &workers_[static_cast<size_t>(best)];
    bool better = b == nullptr || w.idle > b->idle || (w.idle == b->idle && w.granted_at > b->granted_at);
    if (better) best = static_cast<int>(s);
  }
  if (best >= 0) revoke(static_cast<uint32_t>(best));
  due(now + kMs);
}

int SchedulerState::free_worker(uint32_t env) const {
  int best = -1;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (!w.alive || w.actor || w.cls >= 0 || w.exiting || w.revoking || w.env != env) continue;
    if (best < 0 || static_cast<int>(s) < best) best = static_cast<int>(s);
  }
  return best;
}

void SchedulerState::serve(uint32_t cls, int64_t now) {
  Class& c = classes_[cls];
  uint32_t want = wanted(cls, now);
  while (want > 0) {
    int slot = free_worker(c.env), pool = slot < 0 ? -1 : pool_for(cls, true);
    if (pool < 0) break;
    grant(cls, static_cast<uint32_t>(slot), static_cast<uint32_t>(pool), now);
    c.unmet_since = -1;
    if (static_cast<int>(cls) == claimant_of(cls)) find_claimant(now);  // it has its turn: who waits longest now?
    // one GPU at a time: whoever got it may take all the work, and the next decision is a millisecond away
    want = workers_[static_cast<size_t>(slot)].gpus != 0 ? 0 : wanted(cls, now);
  }
  c.waits = want != 0 && c.backlog;
  if (want == 0) {
    c.unmet_since = -1;
    if (c.backlog) due(now + kComingNs);
    return;
  }
  if (pool_for(cls, false) < 0) return make_room(cls, now);
  int pool = pool_for(cls, true);
  if (pool < 0) return;
  // only workers are missing; those on their way count
  Units left = pools_[static_cast<size_t>(pool)].free;
  bool urgent = c.backlog || awake(cls) == 0 || c.leases < limits_.cpus;
  for (; want > 0 && fits(c.demand, left) && urgent; --want) {
    for (size_t i = 0; i < kResourcesMax; ++i) left[i] -= c.demand[i];
    auto it = std::find(starting_envs_.begin(), starting_envs_.end(), c.env);
    if (it != starting_envs_.end())
      starting_envs_.erase(it);
    else if (slots_.size() < kWorkersMax)
      out_->push_back({SchedulerAction::kFork, 0, cls, c.env, 0});
  }
}

// The worker whose lease goes so that for_cls gets resources: one idle on a class without work, or, when
// for_cls is starved, a busy one that has had its turn. A class that only is below its job's share takes from
// jobs that are above theirs.
int SchedulerState::victim(uint32_t for_cls, bool busy, int64_t now) const {
  const Class& f = classes_[for_cls];
  int64_t most = busy && awake(for_cls) != 0 ? share() : 0;
  int best = -1;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0 || w.actor || w.revoking || w.cls == static_cast<int32_t>(for_cls) || !may_use(for_cls, w.pool)) continue;
    const Class& c = classes_[static_cast<size_t>(w.cls)];
    if (busy ? now - w.granted_at < kStarvedNs : !w.idle || c.backlog) continue;
    if (most != 0 && (c.job == f.job || cpus_of(c.job) <= most)) continue;
    bool helps = false;
    for (size_t i = 0; i < kResourcesMax; ++i) {
      bool freed = c.demand[i] > 0 && !(w.blocked && static_cast<int>(i) == limits_.cpu);
      helps = helps || (freed && f.demand[i] > pools_[w.pool].free[i]);
    }
    helps = helps || (w.gpus != 0 && fits(f.demand, pools_[w.pool].free) && !fits_in(for_cls, pools_[w.pool]));
    if (!helps) continue;
    if (best < 0 || w.granted_at < workers_[static_cast<size_t>(best)].granted_at) best = static_cast<int>(s);
  }
  return best;
}

void SchedulerState::make_room(uint32_t cls, int64_t now) {
  Class& c = classes_[cls];
  if (!c.backlog) return;  // class 0 without work waits until something is free
  if (awake(cls) != 0 && !below_share(cls))
    c.unmet_since = -1;  // it wants more, but it is not starved
  else if (c.unmet_since < 0)
    c.unmet_since = now;
  auto comes = [&](uint32_t pool) { return fits(c.demand, coming(pool)); };
  while (!any_pool(cls, comes)) {
    int slot = victim(cls, false, now);
    if (slot < 0 && c.unmet_since >= 0 && now - c.unmet_since >= kStarvedNs) slot = victim(cls, true, now);
    if (slot < 0) break;
    revoke(static_cast<uint32_t>(slot));
  }
  // what actors, groups and blocked tasks hold comes with an event
  if (c.unmet_since >= 0 && can_come(cls)) due(std::max(now + kMs, c.unmet_since + kStarvedNs));
}

void SchedulerState::grant(uint32_t cls, uint32_t slot, uint32_t pool, int64_t now) {
  Class& c = classes_[cls];
  Worker& w = workers_[slot];
  w.cls = static_cast<int32_t>(cls);
  w.pool = pool;
  (void)gpus_for(c.demand, pools_[pool], &w.gpus, &w.gpu_units);
  w.granted_at = w.since = w.coming_since = now;
  w.idle = false;
  charge(w, c, -1);
  ++c.leases;
  c.standing = false;
  out_->push_back({SchedulerAction::kGrant, slot, cls, c.env, w.gpus, pool});
}

void SchedulerState::revoke(uint32_t slot) {
  workers_[slot].revoking = true;
  out_->push_back({SchedulerAction::kRevoke, slot, static_cast<uint32_t>(workers_[slot].cls), 0, 0});
}

void SchedulerState::retire_spares(int64_t now) {
  uint32_t defaults = 0;
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    defaults += w.alive && !w.actor && w.env == 0 && !w.exiting;
  }
  for (uint32_t s : slots_) {
    Worker& w = workers_[s];
    if (!w.alive || w.actor || w.exiting || w.cls >= 0 || (w.env == 0 && defaults <= limits_.cpus)) continue;
    int64_t end = w.since + (w.env == 0 ? kSpareDefaultNs : limits_.spare_env_ns);
    if (now < end) {
      due(end);
      continue;
    }
    w.exiting = true;
    if (w.env == 0) --defaults;
    out_->push_back({SchedulerAction::kExit, s, 0, w.env, 0});
  }
}

void SchedulerState::stand() {
  for (uint32_t cls = 0; cls < task_classes_; ++cls) {
    Class& c = classes_[cls];
    if (!c.known || c.leases != 0 || c.standing || (c.backlog && feasible(cls))) continue;
    c.standing = true;
    out_->push_back({SchedulerAction::kStand, 0, cls, 0, 0});
  }
}

bool SchedulerState::is_valid() const {
  std::vector<Units> sums;
  for (const Pool& pool : pools_) sums.push_back(pool.free);
  for (size_t p = 1; p < pools_.size(); ++p)
    for (size_t i = 0; i < kResourcesMax; ++i) sums[0][i] += pools_[p].total[i];
  std::vector<uint32_t> leases(classes_.size());
  for (uint32_t s : slots_) {
    const Worker& w = workers_[s];
    if (w.cls < 0) continue;
    ++leases[static_cast<size_t>(w.cls)];
    for (size_t i = 0; i < kResourcesMax; ++i)
      if (!(w.blocked && static_cast<int>(i) == limits_.cpu)) sums[w.pool][i] += classes_[static_cast<size_t>(w.cls)].demand[i];
  }
  for (size_t c = 0; c < classes_.size(); ++c)
    if (leases[c] != classes_[c].leases) return false;
  for (size_t p = 0; p < pools_.size(); ++p)
    if (sums[p] != pools_[p].total) return false;
  return true;
}

}  // namespace fastray
