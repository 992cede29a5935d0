// Invariants of the simulation: books kept a second time, beside those of SchedulerState. See sim_world.h.
//
//   books      what each slot was charged, by the actions and what the node was told; free = total - charges
//   claimant   the class or actor that has stood without a lease, for want of resources, for kStarvedNs: nobody else
//              may be given what it needs
#include <algorithm>
#include <bit>

#include "sim_world.h"

namespace fastray::sim {
namespace {
constexpr int64_t kUnit = SchedulerState::kUnit;
// The rule starts at kStarvedNs, from when the scheduler itself saw the need; several may stand before this one, and each may
// die and stand back for a second.
constexpr int64_t kPatience = 2 * kSecond;
}

// ---- books -----------------------------------------------------------------------------------------

void World::charge(uint32_t slot, uint32_t cls, uint32_t gpus) {
  Worker& w = workers_[slot];
  w.charged = static_cast<int>(cls);
  w.gpus = gpus;
  classes_[cls].unmet_since = -1;
}

Units World::free_by_books() const {
  Units left = node_.total;
  for (const Worker& w : workers_) {
    if (w.charged < 0 || in_bundle(w)) continue;
    const Units& demand = classes_[static_cast<size_t>(w.charged)].demand;
    for (size_t i = 0; i < kResourcesMax; ++i)
      if (!(w.charged_blocked && static_cast<int>(i) == node_.cpu)) left[i] -= demand[i];
  }
  for (uint32_t g = 1; g < groups_.size(); ++g)
    for (size_t i = 0; i < kResourcesMax && groups_[g].reserved; ++i) left[i] -= demand_of_group(g)[i];
  return left;
}

// After each decision, before its actions: SchedulerState has charged its grants already.
void World::check() {
  if (!state_.is_valid()) return violated("SchedulerState is not valid");
  Units left = free_by_books(), beside_starts = left;
  std::vector<uint32_t> served;
  for (const SchedulerAction& a : actions_) {
    if (a.kind == SchedulerAction::kReserve) {
      for (size_t i = 0; i < kResourcesMax; ++i) left[i] -= demand_of_group(a.group)[i];
      for (size_t i = 0; i < kResourcesMax; ++i) beside_starts[i] -= demand_of_group(a.group)[i];
    }
    if (a.kind != SchedulerAction::kGrant && a.kind != SchedulerAction::kStart) continue;
    if (classes_[a.cls].place.group != 0) continue;  // of a bundle
    bool spared = a.kind == SchedulerAction::kGrant && workers_[a.worker].charged_blocked;
    for (size_t i = 0; i < kResourcesMax; ++i) {
      int64_t taken = spared && static_cast<int>(i) == node_.cpu ? 0 : classes_[a.cls].demand[i];
      left[i] -= taken;
      if (a.kind == SchedulerAction::kGrant) beside_starts[i] -= taken;
    }
    check_claimant(a.cls, left, served);
    served.push_back(a.cls);
  }
  note_unmet(left, served);
  if (beside_starts != state_.available()) return violated("free resources differ from the books");
  check_gpus();
}

// Nothing is given that is not there, nor to a worker that cannot use it.
void World::check_grant(uint32_t slot, uint32_t cls, uint32_t pool) {
  const Worker& w = workers_[slot];
  const ClassInfo& c = classes_[cls];
  if (w.charged >= 0) return violated("worker %u gets class %u and has class %d", slot, cls, w.charged);
  if (!w.used) return violated("class %u goes to slot %u, where no worker is", cls, slot);
  if (w.env != c.env) return violated("class %u with environment %u goes to worker %u with %u", cls, c.env, slot, w.env);
  if (w.exiting) return violated("class %u goes to worker %u, which was told to leave", cls, slot);
  if (w.actor >= 0) return violated("class %u goes to worker %u of actor %d", cls, slot, w.actor);
  check_needed(cls);
  if (c.place.group != 0) return check_bundle(slot, cls, pool);
  Units left = free_by_books();
  for (size_t i = 0; i < kResourcesMax; ++i) {
    if (c.demand[i] == 0) continue;
    left[i] -= c.demand[i];
    if (left[i] < 0) return violated("resource %zu: class %u is given %lld more than there is", i, cls,
                                     static_cast<long long>(-left[i]));
  }
}

// Those that were given a lease and have not looked for work yet can take all that stands in the queues.
void World::check_needed(uint32_t cls) {
  if ((cls == 0 && node_.prestart) || is_actor_class(cls)) return;
  auto comes = [&](const Worker& w) {
    return w.charged == static_cast<int>(cls) && !w.looked && !w.revoke && now_ - w.granted_at < SchedulerState::kComingNs;
  };
  size_t coming = static_cast<size_t>(std::count_if(workers_.begin(), workers_.end(), comes));
  if (coming >= classes_[cls].ready.size())
    violated("class %u with %zu tasks gets one more worker, and %zu are coming", cls, classes_[cls].ready.size(), coming);
}

void World::add_gpus(const Worker& w, std::array<int64_t, kGpusMax>* used) const {
  if (w.charged < 0) return;
  int64_t demand = classes_[static_cast<size_t>(w.charged)].demand[static_cast<size_t>(node_.gpu)];
  for (uint32_t g = 0; g < kGpusMax; ++g)
    if (w.gpus >> g & 1) (*used)[g] += std::min(demand, kUnit);
}

void World::check_gpus() {
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    const Worker& w = workers_[slot];
    if (w.charged < 0) continue;
    int64_t demand = classes_[static_cast<size_t>(w.charged)].demand[static_cast<size_t>(node_.gpu)];
    int64_t whole = demand < kUnit ? (demand > 0) : demand / kUnit;
    if (std::popcount(w.gpus) != whole)
      return violated("worker %u has %d GPUs, its class asks for %lld", slot, std::popcount(w.gpus),
                      static_cast<long long>(whole));
  }
  std::array<int64_t, kGpusMax> used{};
  for (const Worker& w : workers_)
    if (!in_bundle(w)) add_gpus(w, &used);
  add_bundle_gpus(&used);
  int64_t gpus = node_.total[static_cast<size_t>(node_.gpu)] / kUnit;
  for (uint32_t g = 0; g < kGpusMax; ++g)
    if (used[g] > (g < gpus ? kUnit : 0)) return violated("GPU %u is shared beyond its units", g);
}

// ---- starvation ------------------------------------------------------------------------------------

// Its resources are in `left`, and on GPUs that are whole, or have the share; `soon`: or will be, when those
// end who run now and are not blocked.
bool World::fits(const ClassInfo& c, Units left, bool soon) const {
  auto ends = [&](const Worker& w) { return soon && w.charged >= 0 && w.actor < 0 && !w.charged_blocked; };
  for (const Worker& w : workers_)
    for (size_t i = 0; i < kResourcesMax && ends(w); ++i) left[i] += classes_[static_cast<size_t>(w.charged)].demand[i];
  for (size_t i = 0; i < kResourcesMax; ++i)
    if (c.demand[i] > left[i] && c.demand[i] > 0) return false;
  int64_t demand = c.demand[static_cast<size_t>(node_.gpu)];
  if (demand == 0) return true;
  std::array<int64_t, kGpusMax> used{};
  for (const Worker& w : workers_)
    if (!ends(w)) add_gpus(w, &used);
  int64_t found = 0, gpus = node_.total[static_cast<size_t>(node_.gpu)] / kUnit;
  for (int64_t g = 0; g < gpus; ++g) found += used[static_cast<size_t>(g)] + std::min(demand, kUnit) <= kUnit;
  return found >= std::max<int64_t>(1, demand / kUnit);
}

// After a decision: who wants a lease, has none that is awake, and did not fit at some decision since.
void World::note_unmet(const Units& left, const std::vector<uint32_t>& served) {
  auto look = [&](uint32_t cls, bool wants) {
    ClassInfo& c = classes_[cls];
    bool awake = std::any_of(workers_.begin(), workers_.end(), [&](const Worker& w) {
      return w.charged == static_cast<int>(cls) && !w.charged_blocked;
    });
    if (!wants || awake || std::count(served.begin(), served.end(), cls) != 0)
      c.unmet_since = -1;
    else if (c.unmet_since < 0 && !fits(c, left, false))
      c.unmet_since = now_;
  };
  for (uint32_t cls : task_classes_) look(cls, classes_[cls].seen && has_ready(cls));
  for (uint32_t a = 0; a < actors_.size(); ++a) look(kActorClass + a, actors_[a].wanted);
}

// `left` is what remains after the grant, `served` who was given something by the same decision before.
void World::check_claimant(uint32_t cls, const Units& left, const std::vector<uint32_t>& served) {
  if (groups_.size() > 1) return;  // a group may be the claimant, and waits for others than these books say
  int64_t oldest = now_ - kPatience;
  int claimant = -1;
  auto look = [&](uint32_t c) {
    int64_t since = classes_[c].unmet_since;
    if (since < 0 || since >= oldest || std::count(served.begin(), served.end(), c) != 0) return;
    if (!fits(classes_[c], left, true)) return;
    oldest = since;
    claimant = static_cast<int>(c);
  };
  for (uint32_t c : task_classes_) look(c);
  for (uint32_t a = 0; a < actors_.size(); ++a) look(kActorClass + a);
  if (claimant < 0 || claimant == static_cast<int>(cls)) return;
  bool gpus_reserved = std::any_of(served.begin(), served.end(), is_actor_class);
  const ClassInfo& c = classes_[static_cast<size_t>(claimant)];
  if (classes_[cls].unmet_since >= 0 && classes_[cls].unmet_since <= c.unmet_since) return;
  for (size_t i = 0; i < kResourcesMax; ++i) {
    bool takes = classes_[cls].demand[i] > 0 && c.demand[i] > 0;
    if (static_cast<int>(i) == node_.gpu && gpus_reserved) continue;
    if (takes && left[i] < c.demand[i])
      return violated("class %u is given resource %zu, for which class %d has waited for %lld ms", cls, i, claimant,
                      static_cast<long long>((now_ - c.unmet_since) / kMs));
  }
}

// ---- at the end ------------------------------------------------------------------------------------

std::string World::unfinished() const {
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const Task& t = tasks_[i];
    if (!t.ended())
      return (t.actor < 0 ? "task " : "call ") + std::to_string(i) + " of class " + std::to_string(t.cls) +
             (t.state == Kind::kTaskReady ? " is ready" : " runs") + " and never ends";
  }
  for (size_t a = 0; a < actors_.size(); ++a)
    if (actors_[a].state != kActorDead && actors_[a].state != kActorFree)
      return "actor " + std::to_string(a) + " lives on without handles, state " + std::to_string(actors_[a].state);
  return "";
}

// Nothing happens any more: then nothing is left to do, nobody holds what he does not need, and no clock runs.
void World::check_rest() {
  std::string left = unfinished();
  if (!left.empty()) return violated("%s", left.c_str());
  if (state_.next_deadline() != kNever)
    return violated("an idle node has a deadline in %lld ms", static_cast<long long>((state_.next_deadline() - now_) / kMs));
  uint32_t alive = 0, leased = 0;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    const Worker& w = workers_[slot];
    if (w.used != w.alive) return violated("the node has not seen the end of worker %u", slot);
    if (w.alive && w.env != 0) return violated("worker %u of environment %u was never told to leave", slot, w.env);
    alive += w.alive;
    leased += w.charged >= 0;
    if (w.charged > 0) return violated("idle worker %u keeps class %d", slot, w.charged);
    if (w.alive && w.charged < 0 && w.lease != 0) return violated("worker %u works on a lease it does not have", slot);
  }
  if (alive > node_.cpus) return violated("%u workers stay, for %u CPUs", alive, node_.cpus);
  for (uint32_t cls : task_classes_)
    if (classes_[cls].seen && state_.leases(cls) == 0 && !classes_[cls].stand)
      return violated("class %u has no lease, and the node does not stand for it", cls);
  for (size_t i = 0; i < kResourcesMax; ++i)
    if (free_by_books()[i] < 0) return violated("resource %zu stays over-committed", i);
  if (leased > node_.cpus) violated("%u leases for %u CPUs", leased, node_.cpus);
}

}  // namespace fastray::sim
