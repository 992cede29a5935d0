// Placement groups of the simulation: made, reserved, removed at any moment, with tasks inside. See sim_world.h; the
// real ones are local_scheduler_groups.cpp.
//
//   place   of a class: its group and bundle
//   over    a class whose group was removed: its tasks fail
#include <algorithm>

#include "sim_world.h"

namespace fastray::sim {
namespace {
constexpr size_t kCpu = 0, kGpu = 1, kCustom = 2;
constexpr int64_t kUnit = SchedulerState::kUnit;
}  // namespace

// From numbers of its own, so that seeds without groups play as they did. Some groups never fit.
void World::plan_groups(uint64_t seed) {
  Random draw(seed ^ 0x67726F757073ull);
  if (!draw.chance(350)) return;
  groups_.resize(2 + draw.below(2));
  for (uint32_t g = 1; g < groups_.size(); ++g) {
    static const int64_t kCpus[] = {kUnit / 2, kUnit, kUnit, 2 * kUnit}, kGpus[] = {kUnit / 2, kUnit, 2 * kUnit};
    for (uint32_t n = 1 + draw.below(3); n > 0; --n) {
      BundleUnits b{static_cast<uint32_t>(groups_[g].bundles.size()), {}};
      b.units[kCpu] = std::min(draw.one_of(kCpus), node_.total[kCpu]);
      if (draw.chance(300)) b.units[kGpu] = std::min(draw.one_of(kGpus), node_.total[kGpu]);
      if (draw.chance(200)) b.units[kCustom] = std::min(kUnit, node_.total[kCustom]);
      groups_[g].bundles.push_back(b);
    }
    for (uint32_t n = 1 + draw.below(2); n > 0; --n) {
      uint32_t bundle = draw.below(groups_[g].bundles.size());
      ClassInfo c;
      c.used = true;
      c.place = {g, draw.chance(500) ? -1 : static_cast<int32_t>(bundle)};
      c.demand = groups_[g].bundles[bundle].units;
      if (draw.chance(500)) c.demand[kCpu] /= 2;
      if (c.demand[kGpu] > kUnit || draw.chance(500)) c.demand[kGpu] = std::min(c.demand[kGpu], kUnit / 2);
      c.env = draw.chance(200) ? 1 : 0;
      task_classes_.push_back(static_cast<uint32_t>(classes_.size()));
      classes_.push_back(c);
    }
    after(draw.between(0, quiet_at_ / 2), What::kMakeGroup, g);
    after(draw.chance(500) ? draw.between(0, quiet_at_) : quiet_at_ + 5 * kSecond, What::kRemoveGroup, g);
  }
}

bool World::is_over(uint32_t cls) const {
  uint32_t g = classes_[cls].place.group;
  return g != 0 && groups_[g].removed;
}

void World::make_group(uint32_t g) {
  if (groups_[g].removed) return;
  say("group %u is made", g);
  state_.bundles_wanted(g, groups_[g].bundles);
  rung_ = true;
  look_at(now_);
}

void World::remove_group(uint32_t g) {
  say("group %u is removed", g);
  groups_[g].removed = true;
  groups_[g].reserved = false;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    const Worker& w = workers_[slot];
    if (!w.used || w.charged < 0 || classes_[static_cast<size_t>(w.charged)].place.group != g) continue;
    uint32_t lease = static_cast<uint32_t>(w.charged) + 1;
    revoke(slot);
    if (workers_[slot].lease == lease) die(slot, "with its group");
  }
  state_.bundles_removed(g);
  rung_ = true;
  pace_.disturbed();
  look_at(now_);
}

void World::end_class(uint32_t cls) {
  ClassInfo& c = classes_[cls];
  c.stuck = false;
  if (state_.knows_class(cls)) {
    state_.class_backlog(cls, false);
    state_.class_gone(cls);
  }
  c.stand = true;
  std::vector<int> ready;
  ready.swap(c.ready);
  for (int task : ready) seal(task, Kind::kTaskFailed);
}

// ---- books -----------------------------------------------------------------------------------------

Units World::demand_of_group(uint32_t g) const {
  Units sum{};
  for (const BundleUnits& b : groups_[g].bundles)
    for (size_t i = 0; i < kResourcesMax; ++i) sum[i] += b.units[i];
  return sum;
}

// It is charged to a bundle, not to the node.
bool World::in_bundle(const Worker& w) const {
  return w.charged >= 0 && groups_[classes_[static_cast<size_t>(w.charged)].place.group].reserved;
}

// A lease inside: of a bundle that its class may use, and that has room.
void World::check_bundle(uint32_t slot, uint32_t cls, uint32_t pool) {
  const Place& place = classes_[cls].place;
  if (!groups_[place.group].reserved) return violated("class %u runs in group %u, which is not reserved", cls, place.group);
  uint32_t number = state_.bundle_of(pool);
  if (place.bundle >= 0 && number != static_cast<uint32_t>(place.bundle))
    return violated("class %u of bundle %d runs in bundle %u", cls, place.bundle, number);
  Units left = groups_[place.group].bundles[number].units;
  for (uint32_t s = 1; s < workers_.size(); ++s) {
    const Worker& w = workers_[s];
    if (s == slot || !in_bundle(w) || w.pool != pool) continue;
    for (size_t i = 0; i < kResourcesMax; ++i)
      if (!(w.charged_blocked && i == kCpu)) left[i] -= classes_[static_cast<size_t>(w.charged)].demand[i];
  }
  for (size_t i = 0; i < kResourcesMax; ++i)
    if (classes_[cls].demand[i] > 0 && classes_[cls].demand[i] > left[i])
      return violated("class %u is given more of resource %zu than bundle %u of group %u has", cls, i, number, place.group);
}

// What bundles have of each GPU. A worker inside has GPUs of its bundle only.
void World::add_bundle_gpus(std::array<int64_t, kGpusMax>* used) {
  for (uint32_t g = 1; g < groups_.size(); ++g) {
    if (!groups_[g].reserved) continue;
    for (const BundleUnits& b : groups_[g].bundles)
      for (uint32_t gpu = 0; gpu < kGpusMax; ++gpu)
        if (state_.gpus_of_bundle(g, b.number) >> gpu & 1) (*used)[gpu] += std::min(b.units[kGpu], kUnit);
  }
  for (const Worker& w : workers_) {
    if (!in_bundle(w)) continue;
    uint32_t group = classes_[static_cast<size_t>(w.charged)].place.group;
    uint32_t of_bundle = state_.gpus_of_bundle(group, state_.bundle_of(w.pool));
    if ((w.gpus & ~of_bundle) != 0) violated("a worker in group %u has GPUs %x, its bundle %x", group, w.gpus, of_bundle);
  }
}

}  // namespace fastray::sim
