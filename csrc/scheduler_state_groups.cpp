// Groups of bundles and their pools. See scheduler_state.h; docs/internals/placement_groups.md has the whole.
#include <algorithm>

#include "scheduler_state.h"

namespace fastray {

// ---- events ----------------------------------------------------------------------------------------

void SchedulerState::bundles_wanted(uint32_t group, const std::vector<BundleUnits>& bundles, uint32_t job) {
  if (groups_.size() <= group) groups_.resize(group + 1);
  groups_[group].bundles = bundles;
  Units sum{};
  for (const BundleUnits& b : bundles)
    for (size_t i = 0; i < kResourcesMax; ++i) sum[i] += b.units[i];
  uint32_t cls = kGroupClass + group;
  actor_unwanted(cls);
  class_seen(cls, sum, 0, job);
  classes_[cls].backlog = true;
  classes_[cls].unmet_since = -1;
  line_.push_back(cls);
}

void SchedulerState::bundles_removed(uint32_t group) {
  if (group >= groups_.size()) return;
  actor_unwanted(kGroupClass + group);
  for (uint32_t p : groups_[group].pools) give_back(p);
  groups_[group] = Group{};
}

void SchedulerState::give_back(uint32_t p) {
  Pool& pool = pools_[p];
  for (size_t i = 0; i < kResourcesMax; ++i) pools_[0].free[i] += pool.free[i];
  for (uint32_t g = 0; g < kGpusMax; ++g) pools_[0].gpu_free[g] += pool.gpu_free[g];
  for (uint32_t s : slots_)
    if (workers_[s].pool == p) workers_[s].pool = 0;
  pool = Pool{};
}

void SchedulerState::bundle_released(uint32_t group, uint32_t number) {
  uint32_t p = pool_of_bundle(group, number);
  if (p == 0) return;
  give_back(p);
  std::erase(groups_[group].pools, p);
}

void SchedulerState::bundle_opened(uint32_t group, uint32_t number) {
  uint32_t p = pool_of_bundle(group, number);
  if (p != 0) pools_[p].open = true;
}

uint32_t SchedulerState::pool_of_bundle(uint32_t group, uint32_t number) const {
  if (group < groups_.size())
    for (uint32_t p : groups_[group].pools)
      if (pools_[p].bundle == number) return p;
  return 0;
}

std::vector<BundleUnits> SchedulerState::held_bundles(uint32_t group) const {
  std::vector<BundleUnits> held;
  if (group < groups_.size())
    for (uint32_t p : groups_[group].pools) held.push_back({pools_[p].bundle, pools_[p].total, pools_[p].open});
  return held;
}

// ---- reserving -------------------------------------------------------------------------------------

void SchedulerState::take(Pool& pool, const Units& units, uint32_t gpus, int64_t gpu_units, int64_t sign) {
  for (size_t i = 0; i < kResourcesMax; ++i) pool.free[i] += sign * units[i];
  for (uint32_t g = 0; g < kGpusMax; ++g)
    if (gpus >> g & 1) pool.gpu_free[g] += sign * gpu_units;
}

// A pool for each bundle, taken from `from`; those that need most of the GPUs choose first. False: no room.
bool SchedulerState::lay_out(const Group& group, Pool* from, std::vector<Pool>* laid_out) const {
  std::vector<size_t> order(group.bundles.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  auto gpus = [&](size_t i) { return limits_.gpu < 0 ? 0 : group.bundles[i].units[static_cast<size_t>(limits_.gpu)]; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return gpus(a) > gpus(b); });
  laid_out->assign(order.size(), Pool{});
  for (size_t i : order) {
    Pool& pool = (*laid_out)[i];
    const BundleUnits& bundle = group.bundles[i];
    if (!fits(bundle.units, from->free) || !gpus_for(bundle.units, *from, &pool.gpus, &pool.gpu_units)) return false;
    take(*from, bundle.units, pool.gpus, pool.gpu_units, -1);
    pool.used = true;
    pool.open = bundle.open;
    pool.bundle = bundle.number;
    pool.total = bundle.units;
    take(pool, bundle.units, pool.gpus, pool.gpu_units, +1);
  }
  return true;
}

bool SchedulerState::feasible_group(uint32_t group) const {
  Pool idle;
  idle.free = limits_.total;
  int64_t gpus = limits_.gpu < 0 ? 0 : limits_.total[static_cast<size_t>(limits_.gpu)] / kUnit;
  for (int64_t g = 0; g < gpus && g < static_cast<int64_t>(kGpusMax); ++g) idle.gpu_free[static_cast<size_t>(g)] = kUnit;
  std::vector<Pool> laid_out;
  return lay_out(groups_[group], &idle, &laid_out);
}

void SchedulerState::serve_group(uint32_t cls, int64_t now) {
  if (pool_for(cls, false) < 0) return make_room(cls, now);
  if (pool_for(cls, true) < 0) return;
  uint32_t number = cls - kGroupClass;
  Group& group = groups_[number];
  std::vector<Pool> laid_out;
  (void)lay_out(group, &pools_[0], &laid_out);
  for (Pool& pool : laid_out) {
    auto free = std::find_if(pools_.begin() + 1, pools_.end(), [](const Pool& p) { return !p.used; });
    if (free == pools_.end()) free = pools_.insert(free, Pool{});
    group.pools.push_back(static_cast<uint32_t>(free - pools_.begin()));
    *free = pool;
  }
  actor_unwanted(cls);
  classes_[cls].unmet_since = -1;
  if (static_cast<int>(cls) == claimant_of(cls)) find_claimant(now);
  out_->push_back({SchedulerAction::kReserve, 0, 0, 0, 0, 0, number});
}

uint32_t SchedulerState::gpus_of_bundle(uint32_t group, uint32_t number) const {
  for (uint32_t p : groups_[group].pools)
    if (pools_[p].bundle == number) return pools_[p].gpus;
  return 0;
}

// ---- choosing --------------------------------------------------------------------------------------

bool SchedulerState::may_use(uint32_t cls, uint32_t pool) const {
  return any_pool(cls, [&](uint32_t p) { return p == pool; });
}

bool SchedulerState::fits_in(uint32_t cls, const Pool& pool) const {
  if (is_group_class(cls)) {
    Pool copy = pool;
    std::vector<Pool> laid_out;
    return lay_out(groups_[cls - kGroupClass], &copy, &laid_out);
  }
  uint32_t mask;
  int64_t units;
  return fits(classes_[cls].demand, pool.free) && gpus_for(classes_[cls].demand, pool, &mask, &units);
}

// The pool where it fits now: of several the one with the fewest leases. With `beside_claimant`, without what the
// claimant of these pools waits for. -1: none.
int SchedulerState::pool_for(uint32_t cls, bool beside_claimant) const {
  int claimant = claimant_of(cls), best = -1;
  if (!beside_claimant || claimant == static_cast<int>(cls)) claimant = -1;
  auto leases = [&](int pool) {
    return std::count_if(slots_.begin(), slots_.end(), [&](uint32_t s) {
      return workers_[s].cls >= 0 && workers_[s].pool == static_cast<uint32_t>(pool);
    });
  };
  (void)any_pool(cls, [&](uint32_t p) {
    if (!fits_in(cls, pools_[p])) return false;
    if (claimant >= 0 && may_use(static_cast<uint32_t>(claimant), p)) {
      Units left = pools_[p].free;
      for (size_t i = 0; i < kResourcesMax; ++i) left[i] -= classes_[static_cast<size_t>(claimant)].demand[i];
      if (!fits(classes_[cls].demand, left)) return false;
    }
    if (best < 0 || leases(static_cast<int>(p)) < leases(best)) best = static_cast<int>(p);
    return false;
  });
  return best;
}

}  // namespace fastray
