// Actors of a node: their start and restart, their death, and the end of those nobody holds. See
// local_scheduler.h; the words are in types.h and docs/internals/actors.md.
#include <signal.h>
#include <string.h>

#include <algorithm>
#include <utility>

#include "death_policy.h"
#include "local_scheduler.h"

namespace fastray {
namespace {

constexpr size_t kTailBytesMax = 1024;  // of stderr, in the error of each call
constexpr size_t kEventsMax = 8;        // of its process, the same

bool has_worker(uint32_t state) { return state == kActorStarting || state == kActorAlive; }
bool lives(uint32_t state) { return state >= kActorPending && state < kActorDead; }

}  // namespace

// ---- looking ----------------------------------------------------------------------------------------

void LocalScheduler::look_at_actors(int64_t now) {
  actors_due_ = INT64_MAX;
  uint32_t used = segment_.header().actors_used.load(std::memory_order_acquire);
  if (actors_.size() < used) actors_.resize(used);
  for (uint32_t a = 0; a < used; ++a) look_at_actor(a, now);
  check_handles();
}

void LocalScheduler::look_at_actor(uint32_t a, int64_t now) {
  Actor& actor = segment_.actor(a);
  ActorSeen& seen = actors_[a];
  Class& c = segment_.cls(kActorClass + a);
  switch (actor.state.load(std::memory_order_acquire)) {  // SYNC POINT: actor-entry
    case kActorPending:
    case kActorRestarting: {
      bool ending = actor.ending.load(std::memory_order_acquire);
      if (death_policy::ends_unstarted(ending, ending && process_.has_call(c, true))) {
        CrashInfo crash{0, 0, 0, "", static_cast<int>(a), false, ""};
        uint32_t none = kEndNone;
        actor.end.compare_exchange_strong(none, kEndHandlesGone, std::memory_order_acq_rel);
        return bury(a, describe_death(a, crash));
      }
      if (segment_.is_over(c)) return end_actor(a, kEndGroupRemoved);
      if (c.routed) {  // the agent says where; it clears the word when that is here
        if (std::exchange(seen.wanted, false)) state_->actor_unwanted(kActorClass + a);  // its bundle went elsewhere
        if (!seen.told) wake_agent();
        seen.told = true;
        return;
      }
      if (seen.wanted) return;
      if (now < seen.start_at) {
        actors_due_ = std::min(actors_due_, seen.start_at);
        return;
      }
      Units demand{};
      for (uint32_t i = 0; i < kResourcesMax; ++i) demand[i] = static_cast<int64_t>(c.demand[i]);
      state_->actor_wanted(kActorClass + a, demand, c.runtime_env, fds_.listen < 0 ? 0 : c.job, {c.group, c.bundle});
      seen.wanted = true;
      moved_ = true;
      return;
    }
    case kActorAlive:
      return wake_stuck_actor(a);
    case kActorDead:
      if (actor.creation.load(std::memory_order_acquire) == 0) return free_actor(a);
      if (!proc_set::has(c.sleeping, 0) || process_.has_call(c, true)) stand_for_dead(a);  // somebody called it
      return;
  }
}

// Backstop, as for tasks: a call stands at a head, the actor sleeps and nothing moves.
void LocalScheduler::wake_stuck_actor(uint32_t a) {
  Class& c = segment_.cls(kActorClass + a);
  uint32_t slot = segment_.actor(a).slot.load(std::memory_order_acquire);
  uint64_t heads = segment_.proc(slot).heartbeat.load(std::memory_order_relaxed);
  bool moved = heads != actors_[a].heads;
  actors_[a].heads = heads;
  // A waker may have named a worker after its death: such a bit would keep callers from waking this one.
  proc_set::find(c.polling, [&](uint32_t s) {
    if (s != slot) proc_set::take(c.polling, s);
    return false;
  });
  if (moved || !proc_set::has(c.sleeping, slot) || !process_.has_call(c, false)) return;
  if (!proc_set::take(c.sleeping, slot)) return;
  proc_set::add(c.polling, slot);
  Process::wake_process(segment_, slot);
}

// ---- start ------------------------------------------------------------------------------------------

void LocalScheduler::start_actor(const SchedulerAction& action, int64_t now) {
  uint32_t a = action.cls - kActorClass;
  Actor& actor = segment_.actor(a);
  uint32_t state = actor.state.load(std::memory_order_acquire);
  if (state != kActorPending && state != kActorRestarting) return state_->actor_unwanted(action.cls);
  int slot = prepare_fork(action.env, now);
  if (slot < 0) return;
  requests_.back().actor = true;
  Proc& p = segment_.proc(static_cast<uint32_t>(slot));
  workers_[static_cast<uint32_t>(slot)].actor = static_cast<int>(a);
  p.gpus = state_->actor_started(static_cast<uint32_t>(slot), action.cls, now, action.pool);
  p.lease.store(action.cls + 1, std::memory_order_seq_cst);  // SYNC POINT: lease
  actors_[a].wanted = false;
  actor.slot.store(static_cast<uint32_t>(slot), std::memory_order_release);
  actor.state.store(kActorStarting, std::memory_order_release);  // SYNC POINT: actor-entry
}

// ---- the last handle --------------------------------------------------------------------------------

// Owners whose own references are gone, and no ledger names it: it may finish and leave.
void LocalScheduler::check_handles() {
  std::vector<uint32_t> candidates;
  for (uint32_t a = 0; a < actors_.size(); ++a) {
    const Actor& actor = segment_.actor(a);
    if (!lives(actor.state.load(std::memory_order_acquire)) || actor.ending.load(std::memory_order_relaxed)) continue;
    if (actor.flags.load(std::memory_order_relaxed) & kActorDetached) continue;
    Handle h = actor.creation.load(std::memory_order_acquire);
    const Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (h != 0 && word_gen(w) == gen_of(h) && (w & kFlagShared) && r.pins == 0) candidates.push_back(a);
  }
  if (!candidates.empty()) end_without_handles(candidates);
}

// A scan that a release crossed is thrown away, see process_borrow.cpp; the next look does it again.
void LocalScheduler::end_without_handles(const std::vector<uint32_t>& candidates) {
  auto epochs = [&] {
    std::vector<uint32_t> all;
    for (uint32_t a : candidates) {
      const Record& r = segment_.record(segment_.actor(a).creation.load(std::memory_order_acquire));
      uint32_t owner = std::atomic_ref<const uint16_t>(r.owner).load(std::memory_order_acquire);
      // SYNC POINT: release-epoch
      all.push_back(owner < kProcsMax ? segment_.proc(owner).release_epoch.load(std::memory_order_seq_cst) : 0);
    }
    return all;
  };
  std::vector<uint32_t> before = epochs();
  std::unordered_set<Handle> named = process_.named_by_ledgers();
  if (epochs() != before) {
    rung_ = true;
    return;
  }
  for (uint32_t a : candidates) {
    Actor& actor = segment_.actor(a);
    Handle h = actor.creation.load(std::memory_order_acquire);
    if (named.count(h) != 0 || segment_.record(h).pins != 0) continue;
    actor.ending.store(1, std::memory_order_seq_cst);
    actor.name_hash[0] = actor.name_hash[1] = 0;  // another may have the name
    rung_ = true;
    uint32_t slot = actor.slot.load(std::memory_order_acquire);
    if (slot != 0) Process::wake_process(segment_, slot);
  }
}

// ---- death ------------------------------------------------------------------------------------------

// Its worker died: does it start again? Then what waits stays in the queues, else all of it fails.
void LocalScheduler::settle_actor(Worker& w, CrashInfo* crash, bool attached) {
  uint32_t a = static_cast<uint32_t>(w.actor);
  Actor& actor = segment_.actor(a);
  ActorSeen& seen = actors_[a];
  death_policy::ActorFate fate = death_policy::fate_of_actor(
      {actor.end.load(std::memory_order_acquire),
       (actor.flags.load(std::memory_order_acquire) & kActorNoRestart) != 0, attached, crash->hung.task != 0,
       seen.failed_starts, actor.restarts.load(std::memory_order_relaxed), actor.max_restarts});
  seen.failed_starts = fate.failed_starts;
  uint32_t slot = actor.slot.load(std::memory_order_acquire);
  bool alive = actor.state.load(std::memory_order_acquire) == kActorAlive;
  uint64_t calls = segment_.proc(slot).heartbeat.load(std::memory_order_relaxed);
  seen.hasty_deaths = death_policy::hasty_deaths(seen.hasty_deaths, alive, calls);
  seen.start_at = os::now_ns() + death_policy::delay_of_restart(seen.hasty_deaths);
  crash->restarts = fate.restarts;
  actor.end.store(fate.end, std::memory_order_release);
  crash->death = describe_death(a, *crash);
  actor.slot.store(0, std::memory_order_release);
  actor.restarts.store(fate.restarts_made, std::memory_order_release);
  actor.state.store(crash->restarts ? kActorRestarting : kActorDead, std::memory_order_release);
  rung_ = true;
}

std::string LocalScheduler::describe_death(uint32_t a, const CrashInfo& crash) const {
  const Actor& actor = segment_.actor(a);
  ActorDeath d{};
  memcpy(d.id, actor.id, sizeof d.id);
  d.time_ns = crash.time_ns != 0 ? crash.time_ns : os::wall_ns();
  d.peak_bytes = crash.peak_bytes;
  d.uptime_ns = crash.uptime_ns;
  d.oom_kills = crash.oom_kills;
  d.end = actor.end.load(std::memory_order_acquire);
  if (crash.hung.task != 0)
    d.end = kEndTimedOut;
  else if (d.end == kEndNone)
    d.end = kEndCrashed;
  d.pid = crash.pid;
  d.signal = crash.signal;
  d.exit_code = crash.exit_code;
  d.restarts = actor.restarts.load(std::memory_order_relaxed);
  d.max_restarts = actor.max_restarts;
  std::string last, cause;
  uint32_t f = actor.last_call.load(std::memory_order_acquire);
  if (f != 0 && f < kFunctionsMax) last = segment_.function(f).name;
  Offset block = actor.cause.load(std::memory_order_acquire);
  if (block != 0) cause.assign(segment_.at<char>(block) + 8, *segment_.at<uint64_t>(block));
  std::string tail = crash.stderr_tail;
  if (tail.size() > kTailBytesMax) tail.erase(0, tail.size() - kTailBytesMax);
  size_t n = std::min(crash.events.size(), kEventsMax);
  std::string events(reinterpret_cast<const char*>(crash.events.data() + crash.events.size() - n), n * sizeof(EventReport));
  std::string texts[6] = {actor.class_name, actor.name, last, tail, cause, events};
  std::string death(reinterpret_cast<const char*>(&d), sizeof d);
  for (size_t i = 0; i < 6; ++i) {
    reinterpret_cast<ActorDeath*>(death.data())->text_bytes[i] = static_cast<uint32_t>(texts[i].size());
    death += texts[i];
  }
  return death;
}

// Dead for good. The node stands among the sleepers of its class, so that later calls fail too.
void LocalScheduler::bury(uint32_t a, const std::string& death) {
  Actor& actor = segment_.actor(a);
  ActorSeen& seen = actors_[a];
  actor.name_hash[0] = actor.name_hash[1] = 0;
  actor.state.store(kActorDead, std::memory_order_release);  // SYNC POINT: actor-entry
  if (seen.wanted) state_->actor_unwanted(kActorClass + a);
  seen.wanted = false;
  seen.death = death;
  Handle h = actor.creation.load(std::memory_order_acquire);
  process_.seal_creation(h, kFailed);
  stand_for_dead(a);
  if (actor.flags.load(std::memory_order_acquire) & kActorForeign) wake_agent();
  // Log and checkpoint stay for replay() until the creation is freed, which its owner may do now.
  uint32_t owner = std::atomic_ref<uint16_t>(segment_.record(h).owner).load(std::memory_order_acquire);
  if (h == 0 || owner >= kProcsMax) return;
  segment_.proc(owner).release_epoch.fetch_add(1, std::memory_order_seq_cst);
  Process::wake_process(segment_, owner);
}

void LocalScheduler::stand_for_dead(uint32_t a) {
  proc_set::add(segment_.cls(kActorClass + a).sleeping, 0);  // SYNC POINT: sleep-bit
  os::membarrier_all();
  process_.fail_calls(kActorClass + a, actors_[a].death);
}

void LocalScheduler::free_actor(uint32_t a) {
  Actor& actor = segment_.actor(a);
  Class& c = segment_.cls(kActorClass + a);
  process_.fail_calls(kActorClass + a, actors_[a].death);
  proc_set::take(c.sleeping, 0);
  Offset cause = actor.cause.exchange(0, std::memory_order_acq_rel);
  if (cause != 0) process_.allocator().release(cause);
  actors_[a] = ActorSeen{};
  actor.state.store(kActorFree, std::memory_order_release);  // SYNC POINT: actor-entry
}

// The actor whose creation record a message names, when it lives; else -1.
int LocalScheduler::living_actor(Handle creation) {
  if (index_of(creation) == 0 || index_of(creation) >= kRecordsMax) return -1;
  const Record& r = segment_.record(creation);
  if (r.kind != kActor || !is_actor_class(r.cls)) return -1;
  uint32_t a = r.cls - kActorClass;
  const Actor& actor = segment_.actor(a);
  if (actor.creation.load(std::memory_order_acquire) != creation) return -1;
  if (!lives(actor.state.load(std::memory_order_acquire))) return -1;
  if (actors_.size() <= a) actors_.resize(a + 1);
  return static_cast<int>(a);
}

void LocalScheduler::kill_actor(const ControlMessage& m) {
  int living = living_actor(m.handle);
  if (living < 0) return;
  uint32_t a = static_cast<uint32_t>(living);
  const Actor& actor = segment_.actor(a);
  uint32_t state = actor.state.load(std::memory_order_acquire);
  if (m.force) return end_actor(a, kEndKilled);
  if (actor.flags.load(std::memory_order_acquire) & kActorForeign) return forward(m);
  uint32_t slot = actor.slot.load(std::memory_order_acquire);
  if (has_worker(state) && slot != 0 && workers_[slot].used && workers_[slot].pid > 0) kill(workers_[slot].pid, SIGKILL);
}

// For good: its process is killed, or it never gets one.
void LocalScheduler::end_actor(uint32_t a, ActorEnd why) {
  Actor& actor = segment_.actor(a);
  if (actors_.size() <= a) actors_.resize(a + 1);
  uint32_t none = kEndNone;
  actor.flags.fetch_or(kActorNoRestart, std::memory_order_acq_rel);
  actor.end.compare_exchange_strong(none, why, std::memory_order_acq_rel);
  uint32_t state = actor.state.load(std::memory_order_acquire);
  uint32_t slot = actor.slot.load(std::memory_order_acquire);
  if (actor.flags.load(std::memory_order_acquire) & kActorForeign) slot = 0;  // buried here; the agent ends it there
  using death_policy::KillFate;
  KillFate fate = death_policy::fate_of_kill(has_worker(state) && slot != 0 && workers_[slot].used, true);
  if (fate == KillFate::kProcess && workers_[slot].pid > 0) kill(workers_[slot].pid, SIGKILL);  // else forked() does it
  if (fate == KillFate::kBury && lives(state)) {
    CrashInfo crash{0, 0, 0, "", static_cast<int>(a), false, ""};
    bury(a, describe_death(a, crash));
  }
}

}  // namespace fastray
