// Placement groups of a node: made, reserved, removed; and the end of their classes. See local_scheduler.h;
// docs/internals/placement_groups.md has the whole.
//
//   over      a class whose group was removed: what is pushed into its queues fails; the node stands among its
//             sleepers, so that it hears of it
//   recycle   when no record names a class that is over any more, its number and its group's entry are free again
#include <signal.h>
#include <string.h>

#include <algorithm>
#include <utility>

#include "local_scheduler.h"

namespace fastray {
namespace {

constexpr uint32_t kRemovedKept = 64;  // groups that are over, for those who ask: more are recycled
constexpr int64_t kRecycleMin = 1000000000, kRecycleMax = 64000000000;  // between two looks for what is not used

bool is_there(uint32_t state) { return state != kGroupFree && state != kGroupRefused && state != kGroupRemoved; }

}  // namespace

// ---- made ------------------------------------------------------------------------------------------

uint32_t LocalScheduler::find_group(const uint8_t* id) const {
  for (uint32_t g = 1; g < kGroupsMax; ++g) {
    const Group& group = segment_.group(g);
    if (group.state.load(std::memory_order_relaxed) != kGroupFree && memcmp(group.id, id, sizeof group.id) == 0) return g;
  }
  return 0;
}

// False: it makes no sense.
bool LocalScheduler::read_group(const char* text, size_t bytes, GroupRequest* r, std::vector<BundleUnits>* bundles,
                                const char** spec) {
  if (bytes < sizeof *r) return false;
  memcpy(r, text, sizeof *r);
  size_t row = 8 * (1 + size_t{r->resources});
  if (r->bundles > bytes || r->resources > kResourcesMax || bytes != sizeof *r + r->bundles * row + r->spec_bytes) return false;
  const char* at = text + sizeof *r;
  bundles->resize(r->bundles);
  for (BundleUnits& b : *bundles) {
    uint64_t words[1 + kResourcesMax] = {};
    memcpy(words, at, row);
    at += row;
    b.number = static_cast<uint32_t>(words[0]);
    b.open = r->state == 0 || (words[0] & kBundleOpen) != 0;
    for (size_t i = 0; i < kResourcesMax; ++i) b.units[i] = static_cast<int64_t>(words[1 + i]);
  }
  *spec = at;
  return true;
}

void LocalScheduler::create_group(const char* text, size_t bytes) {
  GroupRequest r;
  std::vector<BundleUnits> bundles;
  const char* spec;
  if (!read_group(text, bytes, &r, &bundles, &spec) || find_group(r.id) != 0) return;
  if (fds_.numbered) r.flags |= kGroupShared;
  bool taken = false, asked = (r.flags & kGroupShared) && r.name[0] != 0;  // the store knows all names of a cluster
  for (uint32_t other = 1; other < kGroupsMax && r.name[0] != 0 && !asked; ++other) {
    const Group& o = segment_.group(other);
    taken = taken || (is_there(o.state.load(std::memory_order_relaxed)) && strncmp(o.name, r.name, sizeof r.name) == 0 &&
                      strncmp(o.name_space, r.name_space, sizeof r.name_space) == 0);
  }
  uint32_t g = take_group(r, spec);
  if (g == 0) {  // when one is recycled
    unmade_.emplace_back(text, bytes);
    sweep_at_ = 0;
    return;
  }
  Group& group = segment_.group(g);
  group.ended_ns = taken ? group.made_ns : 0;
  // SYNC POINT: group-state (release: the entry before its state)
  group.state.store(taken ? kGroupRefused : asked ? kGroupAsked : kGroupPending, std::memory_order_release);
  if (!taken && !(r.flags & (kGroupForeign | kGroupShared))) state_->bundles_wanted(g, bundles, fds_.listen < 0 ? 0 : r.job);
  group_changed(g);
}

// An entry, filled in but for its state; 0: the table is full.
uint32_t LocalScheduler::take_group(const GroupRequest& r, const char* spec) {
  uint32_t g = 1;
  while (g < kGroupsMax && segment_.group(g).state.load(std::memory_order_relaxed) != kGroupFree) ++g;
  if (g == kGroupsMax) return 0;
  Group& group = segment_.group(g);
  group.life.fetch_add(1, std::memory_order_relaxed);
  group.job = r.job;
  group.flags = r.flags;
  group.creator = r.creator;
  memcpy(group.id, r.id, sizeof group.id);
  memcpy(group.name, r.name, sizeof group.name);
  memcpy(group.name_space, r.name_space, sizeof group.name_space);
  memset(group.reserved, 0, sizeof group.reserved);
  group.made_ns = os::now_ns();
  group.ready_ns = group.ended_ns = 0;
  group.held.store(0, std::memory_order_relaxed);
  group.asked = 0;
  group.spec = process_.allocator().allocate(r.spec_bytes + 1, make_handle(0, kBlockActor), Purpose::kBookkeeping);
  group.spec_bytes = group.spec == 0 ? 0 : r.spec_bytes;
  if (group.spec != 0) memcpy(segment_.at<char>(group.spec), spec, r.spec_bytes);
  return g;
}

void LocalScheduler::group_reserved(uint32_t g) {
  Group& group = segment_.group(g);
  count_reserved(g);
  if (group.flags & kGroupShared) {  // the agent says when all nodes have agreed
    group.held.store(group.asked, std::memory_order_release);  // SYNC POINT: group-state
  } else {
    group.ready_ns = os::now_ns();
    group.state.store(kGroupReady, std::memory_order_release);  // SYNC POINT: group-state
  }
  group_changed(g);
}

void LocalScheduler::group_changed(uint32_t g) {
  rung_ = moved_ = true;
  wake_users();
  if (!(segment_.group(g).flags & kGroupShared)) return;
  segment_.header().groups_changed.fetch_add(1, std::memory_order_release);  // SYNC POINT: group-state
  wake_agent();
}

// Those who may wait for a group: drivers, and workers in a task.
void LocalScheduler::wake_users() {
  uint32_t procs = segment_.header().procs_used.load(std::memory_order_acquire);
  for (uint32_t s = 1; s < procs; ++s) {
    const Proc& p = segment_.proc(s);
    if (p.kind == kProcDriver || p.claim.load(std::memory_order_relaxed) != 0) Process::wake_process(segment_, s);
  }
}

// ---- removed ---------------------------------------------------------------------------------------

// Whatever runs in it is killed; what waits in its classes fails, and what comes later. Its resources are the node's
// again, those that a process holds when that is dead.
void LocalScheduler::remove_group(uint32_t g, int64_t now) {
  Group& group = segment_.group(g);
  if (!is_there(group.state.load(std::memory_order_relaxed))) return;
  group.state.store(kGroupRemoved, std::memory_order_release);  // SYNC POINT: group-state
  group.ended_ns = now;
  memset(group.reserved, 0, sizeof group.reserved);
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    if (!workers_[slot].used || workers_[slot].actor >= 0 || !state_->is_leased(slot)) continue;
    uint32_t c = static_cast<uint32_t>(state_->class_of_worker(slot));
    if (segment_.cls(c).group != g || !segment_.is_over(segment_.cls(c))) continue;
    revoke(slot, now);  // one that sleeps loses no more than its lease
    bool keeps = segment_.proc(slot).lease.load(std::memory_order_acquire) == c + 1;
    if (keeps && workers_[slot].pid > 0) kill(workers_[slot].pid, SIGKILL);
  }
  uint32_t actors = segment_.header().actors_used.load(std::memory_order_acquire);
  for (uint32_t a = 0; a < actors; ++a) {
    const Class& c = segment_.cls(kActorClass + a);
    uint32_t state = segment_.actor(a).state.load(std::memory_order_acquire);  // SYNC POINT: actor-entry
    if (c.group == g && segment_.is_over(c) && state >= kActorPending && state < kActorDead) end_actor(a, kEndGroupRemoved);
  }
  state_->bundles_removed(g);
  pace_.disturbed();
  group_changed(g);
}

void LocalScheduler::remove_group_named(const char* text, size_t bytes) {
  uint8_t id[sizeof Group::id] = {};
  memcpy(id, text, std::min(bytes, sizeof id));
  uint32_t g = find_group(id);
  if (g != 0) remove_group(g, os::now_ns());
}

// Those that nobody keeps: not detached, their job is over, and the actor that made them. Of a job whose driver was on
// another node (`here` is false) the store ends all but the last.
void LocalScheduler::remove_groups_of(uint32_t job, int64_t now, bool here) {
  for (uint32_t g = 1; g < kGroupsMax; ++g) {
    const Group& group = segment_.group(g);
    if (group.state.load(std::memory_order_relaxed) == kGroupFree || group.job != job) continue;
    if (!here && (group.flags & kGroupShared) && group.creator == 0) continue;
    if (!(group.flags & kGroupDetached) && !has_creator(group)) remove_group(g, now);
  }
}

bool LocalScheduler::has_creator(const Group& group) const {
  if (group.creator == 0) return false;
  uint32_t actors = segment_.header().actors_used.load(std::memory_order_acquire);
  for (uint32_t a = 0; a < actors; ++a) {
    const Actor& actor = segment_.actor(a);
    uint32_t state = actor.state.load(std::memory_order_acquire);  // SYNC POINT: actor-entry
    if (actor.creation.load(std::memory_order_acquire) == group.creator)
      return state >= kActorPending && state < kActorDead && actor.end.load(std::memory_order_acquire) != kEndJobOver;
  }
  return false;
}

// ---- classes that are over ---------------------------------------------------------------------------

// Each look: what stands in its queues fails.
void LocalScheduler::end_class(uint32_t c) {
  Class& cls = segment_.cls(c);
  classes_[c].stuck = false;
  if (state_->knows_class(c)) {
    state_->class_backlog(c, false);
    state_->class_gone(c);  // refused while somebody has a lease: he is being killed
  }
  if (proc_set::has(cls.sleeping, 0) && !process_.backlog(cls)) return;
  proc_set::add(cls.sleeping, 0);  // SYNC POINT: sleep-bit
  os::membarrier_all();
  process_.fail_queued(c, kErrorGroupRemoved, nullptr, 0);
}

// Rare: goes over all records that are in use.
void LocalScheduler::recycle_groups(int64_t now) {
  if (now < recycle_at_ && unmade_.empty()) return;
  std::vector<uint32_t> removed;
  for (uint32_t g = 1; g < kGroupsMax; ++g) {
    const Group& group = segment_.group(g);
    uint32_t state = group.state.load(std::memory_order_relaxed);
    if (state == kGroupRefused && now - group.ended_ns > kRemovedKeptNs) free_group(g);
    if (state == kGroupRemoved) removed.push_back(g);
  }
  size_t kept = unmade_.empty() ? kRemovedKept : 0;
  if (removed.size() <= kept) return;
  std::sort(removed.begin(), removed.end(), [&](uint32_t a, uint32_t b) { return segment_.group(a).ended_ns < segment_.group(b).ended_ns; });
  std::vector<bool> named = process_.named_classes();
  size_t before = removed.size(), left = before;
  for (uint32_t g : removed) {
    if (left <= kept / 2 || now - segment_.group(g).ended_ns < kRemovedKeptNs) break;
    if (recycle_group(g, named)) --left;
  }
  recycle_wait_ = left < before ? kRecycleMin : std::min(kRecycleMax, std::max(kRecycleMin, 2 * recycle_wait_));
  recycle_at_ = now + recycle_wait_;
  std::vector<std::string> again;
  again.swap(unmade_);
  for (const std::string& text : again)
    if (reinterpret_cast<const GroupRequest*>(text.data())->state == 0)
      create_group(text.data(), text.size());
    else
      set_group(text.data(), text.size());
}

bool LocalScheduler::recycle_group(uint32_t g, const std::vector<bool>& named) {
  uint32_t actors = segment_.header().actors_used.load(std::memory_order_acquire);
  for (uint32_t a = 0; a < actors; ++a)
    if (segment_.cls(kActorClass + a).group == g && segment_.actor(a).state.load(std::memory_order_acquire) != kActorFree) return false;
  for (uint32_t c = 0; c < classes_.size(); ++c) {
    const Class& cls = segment_.cls(c);
    if (cls.state.load(std::memory_order_acquire) != kEntryUsed || cls.group != g) continue;  // SYNC POINT: class-entry
    if (named[c] || state_->knows_class(c) || process_.backlog(cls)) return false;
  }
  for (uint32_t c = 0; c < classes_.size(); ++c) {
    Class& cls = segment_.cls(c);
    if (cls.state.load(std::memory_order_acquire) != kEntryUsed || cls.group != g) continue;
    proc_set::take(cls.sleeping, 0);
    cls.group = 0;
    cls.job = 0;
    classes_[c] = ClassSeen{};
    cls.state.store(0, std::memory_order_release);  // SYNC POINT: class-entry
  }
  free_group(g);
  return true;
}

void LocalScheduler::free_group(uint32_t g) {
  Group& group = segment_.group(g);
  group.state.store(kGroupFree, std::memory_order_release);  // SYNC POINT: group-state
  Offset spec = std::exchange(group.spec, 0);
  if (spec != 0) process_.allocator().release(spec);
}

}  // namespace fastray
