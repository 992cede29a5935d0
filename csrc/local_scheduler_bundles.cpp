// Placement groups of a cluster, as one of its nodes holds them. See local_scheduler.h;
// docs/internals/placement_groups.md has the whole.
//
//   kSetGroup  from the agent: the state of a group and which of its bundles this node is to hold, all of it, each time
//   held       all of these are reserved: the agent tells the store so
//   open       all nodes have agreed, and what is reserved may be used
//
// So a message may come twice or follow one that was lost with its agent: the node does what is missing.
#include <signal.h>
#include <string.h>

#include <algorithm>

#include "local_scheduler.h"

namespace fastray {
namespace {

bool names(const std::vector<BundleUnits>& bundles, uint32_t number) {
  return std::any_of(bundles.begin(), bundles.end(), [&](const BundleUnits& b) { return b.number == number; });
}

}  // namespace

void LocalScheduler::set_group(const char* text, size_t bytes) {
  GroupRequest r;
  std::vector<BundleUnits> bundles;
  const char* spec;
  if (!read_group(text, bytes, &r, &bundles, &spec)) return;
  bool ends = r.state == kGroupRefused || r.state == kGroupRemoved;
  uint32_t g = find_group(r.id);
  if (g == 0 && ends) return;
  if (g == 0) {
    r.flags |= kGroupShared | kGroupMirror;
    g = take_group(r, spec);
    if (g == 0) {  // when one is recycled
      unmade_.emplace_back(text, bytes);
      sweep_at_ = 0;
      return;
    }
    segment_.group(g).state.store(kGroupPending, std::memory_order_release);  // SYNC POINT: group-state
  }
  Group& group = segment_.group(g);
  uint32_t before = group.state.load(std::memory_order_relaxed);
  if (before == kGroupRemoved || before == kGroupRefused) return;  // removed here: the agent tells the store
  if (r.state == kGroupRemoved) return remove_group(g, os::now_ns());
  if (r.state == kGroupRefused) {
    group.ended_ns = os::now_ns();
  } else {
    group.asked = r.attempt + 1;
    set_bundles(g, bundles, r.job);
    if (r.state == kGroupReady && group.ready_ns == 0) group.ready_ns = os::now_ns();
  }
  group.state.store(r.state, std::memory_order_release);  // SYNC POINT: group-state
  group_changed(g);
}

void LocalScheduler::set_bundles(uint32_t g, const std::vector<BundleUnits>& wanted, uint32_t job) {
  int64_t now = os::now_ns();
  std::vector<BundleUnits> held = state_->held_bundles(g), missing;
  for (const BundleUnits& b : held)
    if (!names(wanted, b.number)) release_bundle(g, b.number, now);
  for (const BundleUnits& b : wanted) {
    if (!names(held, b.number))
      missing.push_back(b);
    else if (b.open)
      state_->bundle_opened(g, b.number);
  }
  if (missing.empty()) {
    state_->bundles_unwanted(g);
    segment_.group(g).held.store(segment_.group(g).asked, std::memory_order_release);  // SYNC POINT: group-state
  } else {
    state_->bundles_wanted(g, missing, job);
  }
  count_reserved(g);
}

// What runs in it is killed, and runs again where the bundle is now, if it may.
void LocalScheduler::release_bundle(uint32_t g, uint32_t number, int64_t now) {
  uint32_t pool = state_->pool_of_bundle(g, number);
  for (uint32_t slot = 1; pool != 0 && slot < workers_.size(); ++slot) {
    if (!workers_[slot].used || !state_->is_leased(slot) || state_->pool_of_worker(slot) != pool) continue;
    if (workers_[slot].actor < 0) revoke(slot, now);  // one that sleeps loses no more than its lease
    bool keeps = segment_.proc(slot).lease.load(std::memory_order_acquire) != 0;
    if (keeps && workers_[slot].pid > 0) kill(workers_[slot].pid, SIGKILL);
  }
  state_->bundle_released(g, number);
  pace_.disturbed();
}

void LocalScheduler::count_reserved(uint32_t g) {
  Units sum{};
  for (const BundleUnits& b : state_->held_bundles(g))
    for (size_t i = 0; i < kResourcesMax; ++i) sum[i] += b.units[i];
  for (size_t i = 0; i < kResourcesMax; ++i) segment_.group(g).reserved[i] = static_cast<uint64_t>(sum[i]);
}

// The agent has taken a class of a group over: its bundle is not here any more.
void LocalScheduler::leave_routed(uint32_t c) {
  if (state_->knows_class(c)) {
    state_->class_backlog(c, false);
    state_->class_gone(c);  // refused while somebody has a lease
  }
  classes_[c].stuck = false;
  if (proc_set::take(segment_.cls(c).sleeping, 0)) wake_agent();
}

}  // namespace fastray
