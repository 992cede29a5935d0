// The node of the simulation: the loop of local_scheduler*.cpp over the simulated world. See sim_world.h.
//
// Kept beside the real one line by line: what a look sees, when the next look comes, what a death does. What differs
// is where faults enter: a ring may be lost while a tick is due anyway, a look may come late, a fork may fail.
#include <algorithm>

#include "sim_world.h"

namespace fastray::sim {
namespace {
constexpr uint32_t kActorLook = 8;
}  // namespace

// ---- when it looks ---------------------------------------------------------------------------------

// A ring that is lost must not matter while ticks come. A sleeping node's bell is a file: it is not lost.
void World::ring() {
  if (!dormant_ && look_at_ != kNever && look_at_ - now_ <= LoopPace::kTickMax && random_.chance(lose_ring_) && may_fault()) return;
  rung_ = true;
  pace_.rung();
  look_at(now_ + random_.between(2 * kUs, 60 * kUs));
}

void World::look_at(int64_t at) {
  at = std::max(at, busy_until_);
  if (at >= look_at_ && look_at_ > now_) return;
  look_at_ = at;
  events_.push({at, ++numbers_, What::kLook, 0, 0});
}

void World::node_looks() {
  if (busy_until_ > now_) {
    look_at_ = kNever;
    return look_at(busy_until_);
  }
  look_at_ = kNever;
  dormant_ = false;
  step();
  node_waits();
}

void World::step() {
  look();
  actions_.clear();
  ++out_.decisions;
  state_.decide(now_, &actions_);
  check();
  std::vector<SchedulerAction> actions = actions_;
  for (const SchedulerAction& action : actions) apply(action);
  idle_decisions_ = actions.empty() && state_.next_deadline() <= now_ ? idle_decisions_ + 1 : 0;
  if (idle_decisions_ > 20) violated("the node is called again and again at once, and decides nothing");
  for (auto it = delayed_.begin(); it != delayed_.end();) {
    if (it->first > now_) {
      ++it;
      continue;
    }
    int task = it->second;
    it = delayed_.erase(it);
    if (tasks_[static_cast<size_t>(task)].state == Kind::kTaskReady) make_ready(task);
  }
  wake_stuck();
  pace_.stepped(now_, moved_, !actions.empty(), is_quiet());
}

void World::node_waits() {
  int64_t deadline = state_.next_deadline(), until = pace_.next_look(now_, deadline);
  if (pace_.dormant(now_)) {
    look();
    look_at_actors();
    dormant_ = !moved_ && is_quiet();
    if (!dormant_) {
      pace_.disturbed();
      until = pace_.next_look(now_, deadline);
    }
  }
  until = std::min(until, actors_due_);
  for (const auto& [due, task] : delayed_) until = std::min(until, due);
  if (until == kNever) return;
  int64_t wait = std::max<int64_t>(0, (until - now_ + kMs - 1) / kMs * kMs);
  if (random_.chance(late_look_) && may_fault()) wait += random_.between(0, 30 * kMs);
  look_at(now_ + wait + random_.between(1 * kUs, 20 * kUs));
}

bool World::is_quiet() const {
  if (state_.has_backlog() || !forks_.empty() || rung_) return false;
  for (const Worker& w : workers_) {
    if (!w.used) continue;
    if (!w.booted || w.revoke) return false;
    if (w.lease != 0 && !w.sleeping) return false;
  }
  return true;
}

// ---- looking ---------------------------------------------------------------------------------------

void World::look() {
  moved_ = false;
  look_at_classes();
  look_at_workers();
  if (rung_ || now_ >= actors_due_ || ++looks_ % kActorLook == 0) look_at_actors();
  rung_ = false;
}

void World::look_at_classes() {
  for (uint32_t cls : task_classes_) {
    ClassInfo& c = classes_[cls];
    if (!c.used) continue;
    if (is_over(cls)) {
      end_class(cls);
      continue;
    }
    if (!c.seen) {
      state_.class_seen(cls, c.demand, c.env, 0, c.place);
      c.seen = moved_ = true;
    }
    if (state_.leases(cls) == 0 && !c.stand) state_.class_stand_taken(cls);
    bool backlog = has_ready(cls);
    c.stuck = backlog && c.heads == c.heads_seen;
    moved_ = moved_ || c.heads != c.heads_seen;
    c.heads_seen = c.heads;
    state_.class_backlog(cls, backlog, c.ready.size());
  }
}

void World::look_at_workers() {
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    Worker& w = workers_[slot];
    if (!w.used || !w.booted) continue;
    if (!w.seen_booted) {
      w.seen_booted = moved_ = true;
      failed_starts_ = 0;
    }
    if (state_.is_leased(slot) && w.lease == 0) {
      state_.lease_returned(slot, now_);
      returned(slot);
      moved_ = true;
    }
    state_.worker_blocked(slot, w.blocked);
    w.charged_blocked = w.blocked;
    bool idle = w.lease == 0 || w.sleeping;
    state_.worker_idle(slot, idle && !w.blocked, now_);
    if (w.claims != w.claims_seen) state_.worker_claimed(slot);
    w.claims_seen = w.claims;
  }
}

// ---- acting ----------------------------------------------------------------------------------------

void World::apply(const SchedulerAction& action) {
  if (!out_.violation.empty()) return;
  switch (action.kind) {
    case SchedulerAction::kGrant:
      return grant(action);
    case SchedulerAction::kRevoke:
      return revoke(action.worker);
    case SchedulerAction::kFork:
      (void)prepare_fork(action.env);
      return;
    case SchedulerAction::kStart:
      return start_actor(action);
    case SchedulerAction::kExit:
      say("exit %u", action.worker);
      workers_[action.worker].exiting = true;
      return wake(action.worker);
    case SchedulerAction::kReserve:
      say("reserve group %u", action.group);
      groups_[action.group].reserved = true;
      return;
    case SchedulerAction::kStand:
      return stand(action.cls);
  }
}

void World::grant(const SchedulerAction& action) {
  say("grant class %u to %u gpus %x", action.cls, action.worker, action.gpus);
  check_grant(action.worker, action.cls, action.pool);
  workers_[action.worker].pool = action.pool;
  workers_[action.worker].granted_at = now_;
  workers_[action.worker].looked = false;
  charge(action.worker, action.cls, action.gpus);
  Worker& w = workers_[action.worker];
  w.revoke = false;
  w.lease = action.cls + 1;
  classes_[action.cls].stand = false;
  wake(action.worker);
}

void World::revoke(uint32_t slot) {
  say("revoke %u", slot);
  Worker& w = workers_[slot];
  if (w.lease != 0 && w.sleeping) {
    w.sleeping = false;
    w.lease = 0;
    state_.lease_returned(slot, now_);
    returned(slot);
  } else {
    w.revoke = true;
  }
  wake(slot);
}

void World::stand(uint32_t cls) {
  classes_[cls].stand = true;
  if (!has_ready(cls)) return;
  state_.class_backlog(cls, true);
  ring();
}

void World::wake_stuck() {
  for (uint32_t cls : task_classes_) {
    if (!classes_[cls].stuck) continue;
    for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
      Worker& w = workers_[slot];
      if (!w.sleeping || w.lease != cls + 1) continue;
      w.sleeping = false;
      wake(slot);
      moved_ = true;
      break;
    }
  }
}

// ---- birth -----------------------------------------------------------------------------------------

int World::prepare_fork(uint32_t env) {
  if (now_ < fork_after_) return -1;
  if (random_.chance(fork_fails_) && may_fault()) {
    fork_after_ = now_ + 100 * kMs;
    return -1;
  }
  uint32_t slot = 1;
  while (slot < workers_.size() && workers_[slot].used) ++slot;
  if (workers_.size() <= slot) workers_.resize(slot + 1);
  Worker& w = workers_[slot];
  uint32_t life = w.life + 1;
  w = Worker{};
  w.used = true;
  w.life = life;
  w.env = env;
  state_.worker_starting(slot, env);
  forks_.push_back(slot);
  busy_until_ = std::max(busy_until_, now_) + random_.between(300 * kUs, 2 * kMs);
  events_.push({busy_until_, ++numbers_, What::kForked, slot, life});
  return static_cast<int>(slot);
}

void World::forked(uint32_t slot) {
  Worker& w = workers_[slot];
  std::erase(forks_, slot);
  ++out_.forks;
  look_at(now_);
  if (random_.chance(fork_fails_) && may_fault()) {
    say("fork of %u fails", slot);
    w.used = false;
    if (w.actor >= 0) actors_[static_cast<size_t>(w.actor)].state = kActorRestarting;
    state_.worker_died(slot);
    returned(slot);
    fork_after_ = now_ + 100 * kMs;
    return;
  }
  w.forked = w.alive = true;
  say("forked %u env %u actor %d", slot, w.env, w.actor);
  state_.worker_attached(slot, now_);
  if (w.actor >= 0 && actors_[static_cast<size_t>(w.actor)].end != kEndNone) return die(slot, "killed while it was forked");
  after(random_.between(kMs, 10 * kMs), What::kBoot, slot, w.life);
}

// ---- death -----------------------------------------------------------------------------------------

void World::worker_died(uint32_t slot) {
  Worker& w = workers_[slot];
  say("the node sees the end of %u", slot);
  bool attached = w.booted, restarts = false;
  if (w.actor >= 0) restarts = settle_actor(slot, attached);
  if (!attached) {
    failed_starts_ = std::min(failed_starts_ + 1, 7u);
    fork_after_ = now_ + (int64_t{10} << failed_starts_) * kMs;
  }
  w.used = false;
  state_.worker_died(slot);
  returned(slot);
  recover(slot, restarts);
  if (w.actor >= 0 && !restarts) bury(static_cast<uint32_t>(w.actor));
  moved_ = true;
  pace_.disturbed();
  look_at(now_);
}

void World::recover(uint32_t slot, bool restarts) {
  Worker& w = workers_[slot];
  w.sleeping = false;
  if (w.actor >= 0) settle_calls(static_cast<uint32_t>(w.actor), restarts);
  int task = w.task;
  w.task = -1;
  if (task >= 0) {
    orphan_children(task);
    settle_task(task);
  }
  w.lease = 0;
  w.blocked = w.revoke = false;
  for (uint32_t s = 1; s < workers_.size(); ++s)
    if (workers_[s].alive) wake(s);
}

void World::returned(uint32_t slot) {
  workers_[slot].charged = -1;
  workers_[slot].gpus = 0;
  workers_[slot].charged_blocked = false;
}

}  // namespace fastray::sim
