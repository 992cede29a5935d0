// Actors of the simulation: start, constructor, ordered calls, checkpoints, death, the last handle. See sim_world.h;
// the real ones are local_scheduler_actors.cpp, process_actors.cpp and actor_worker.py.
#include <algorithm>

#include "sim_world.h"

namespace fastray::sim {

using death_policy::CallFate;

namespace {
bool lives(uint32_t state) { return state >= kActorPending && state < kActorDead; }
bool has_worker(uint32_t state) { return state == kActorStarting || state == kActorAlive; }
}  // namespace

bool World::has_call(const SimActor& actor) const {
  if (!actor.first.empty()) return true;
  return std::any_of(actor.queues.begin(), actor.queues.end(), [](const auto& q) { return !q.empty(); });
}

// ---- the node's looks ------------------------------------------------------------------------------

void World::look_at_actors() {
  actors_due_ = kNever;
  for (uint32_t a = 0; a < actors_.size(); ++a) look_at_actor(a);
  for (uint32_t a = 0; a < actors_.size(); ++a) {  // check_handles()
    SimActor& actor = actors_[a];
    if (!lives(actor.state) || actor.ending || actor.handles) continue;
    actor.ending = rung_ = true;
    if (actor.slot != 0) wake(static_cast<uint32_t>(actor.slot));
  }
}

void World::look_at_actor(uint32_t a) {
  SimActor& actor = actors_[a];
  if (actor.state == kActorDead) {
    if (!actor.stand || has_call(actor)) fail_calls(a);
    return;
  }
  if (actor.state == kActorAlive) {  // wake_stuck_actor(); its heartbeat says whether it moves
    Worker& w = workers_[static_cast<size_t>(actor.slot)];
    if (w.sleeping && has_call(actor)) {
      w.sleeping = false;
      wake(static_cast<uint32_t>(actor.slot));
    }
    return;
  }
  if (actor.state != kActorPending && actor.state != kActorRestarting) return;
  if (death_policy::ends_unstarted(actor.ending, has_call(actor))) {
    if (actor.end == kEndNone) actor.end = kEndHandlesGone;
    return bury(a);
  }
  if (actor.wanted) return;
  if (now_ < actor.start_at) {
    actors_due_ = std::min(actors_due_, actor.start_at);
    return;
  }
  state_.actor_wanted(kActorClass + a, classes_[kActorClass + a].demand, classes_[kActorClass + a].env);
  actor.wanted = moved_ = true;
}

void World::start_actor(const SchedulerAction& action) {
  uint32_t a = action.cls - kActorClass;
  SimActor& actor = actors_[a];
  if (actor.state != kActorPending && actor.state != kActorRestarting) return state_.actor_unwanted(action.cls);
  for (const Worker& w : workers_)
    if (w.alive && w.actor == static_cast<int>(a)) violated("actor %u gets a second process", a);
  int slot = prepare_fork(action.env);
  if (slot < 0) return;
  say("start actor %u in %d", a, slot);
  check_grant(static_cast<uint32_t>(slot), action.cls, action.pool);
  Worker& w = workers_[static_cast<size_t>(slot)];
  w.actor = static_cast<int>(a);
  uint32_t gpus = state_.actor_started(static_cast<uint32_t>(slot), action.cls, now_);
  charge(static_cast<uint32_t>(slot), action.cls, gpus);
  w.lease = action.cls + 1;
  actor.wanted = false;
  actor.slot = slot;
  actor.state = kActorStarting;
}

// ---- its process -----------------------------------------------------------------------------------

// The constructor, then restore and replay of the calls since the checkpoint; then it takes calls.
void World::construct(uint32_t slot) {
  Worker& w = workers_[slot];
  SimActor& actor = actors_[static_cast<size_t>(w.actor)];
  actor.constructed = actor.running = false;
  actor.applied = actor.saved;
  actor.replay = actor.checkpoint_calls == 0 ? 0 : actor.done - actor.saved;
  if (actor.replay > actor.checkpoint_calls + actor.failed_saves)
    violated("actor %d runs %llu calls again, a checkpoint is due every %u", w.actor,
             static_cast<unsigned long long>(actor.replay), actor.checkpoint_calls);
  if (actor.checkpoint_calls == 0) actor.applied = actor.done;
  std::fill(actor.last_begun.begin(), actor.last_begun.end(), 0);
  w.step = 0;
  after(random_.between(kMs / 10, 2 * kMs), What::kActorStep, slot, w.life);
}

void World::actor_step(uint32_t slot) {
  Worker& w = workers_[slot];
  if (!w.alive) return;
  if (w.stopped) return after(kMs, What::kActorStep, slot, w.life);
  SimActor& actor = actors_[static_cast<size_t>(w.actor)];
  if (actor.constructed) return finish_call(slot);
  if (actor.init_fails) {
    if (actor.end == kEndNone) actor.end = kEndInitFailed;
    return die(slot, "as its constructor raised");
  }
  if (actor.replay > 0) {
    --actor.replay;
    ++actor.applied;
    return after(100 * kUs, What::kActorStep, slot, w.life);
  }
  actor.constructed = true;
  actor.state = kActorAlive;
  say("actor %d is alive", w.actor);
  actor_looks(slot);
}

void World::actor_looks(uint32_t slot) {
  Worker& w = workers_[slot];
  uint32_t a = static_cast<uint32_t>(w.actor);
  SimActor& actor = actors_[a];
  if (!actor.constructed) return;
  w.sleeping = false;
  // with concurrency groups it claims ahead, one a time: it may die between two
  if (actor.flight.size() < (actor.ahead ? 3u : 1u) && claim_call(a)) {
    ++w.claims;
    if (!actor.running) begin_call(slot);
    if (actor.ahead) after(random_.between(2 * kUs, 2 * kMs), What::kWorkerLooks, slot, w.life);
    return;
  }
  if (actor.running) return;
  if (actor.ending && !has_call(actor) && actor.flight.empty()) {
    if (actor.end == kEndNone) actor.end = kEndHandlesGone;
    return die(slot, "as nobody holds it");
  }
  w.sleeping = true;
}

bool World::claim_call(uint32_t a) {
  SimActor& actor = actors_[a];
  std::deque<int>* source = actor.first.empty() ? nullptr : &actor.first;
  for (size_t i = 0; i < actor.queues.size() && source == nullptr; ++i) {
    auto& queue = actor.queues[(actor.next_caller + i) % actor.queues.size()];
    if (!queue.empty()) source = &queue;
  }
  if (source == nullptr) return false;
  ++actor.next_caller;
  int call = source->front();
  source->pop_front();
  tasks_[static_cast<size_t>(call)].state = Kind::kTaskRuns;
  actor.flight.push_back(call);
  return true;
}

void World::begin_call(uint32_t slot) {
  Worker& w = workers_[slot];
  SimActor& actor = actors_[static_cast<size_t>(w.actor)];
  int call = actor.flight.front();
  Task& t = tasks_[static_cast<size_t>(call)];
  ++t.starts;
  uint32_t seq = t.seq + 1;
  say("actor %d begins call %d, number %u of caller %u", w.actor, call, t.seq, t.caller);
  if (seq <= actor.last_begun[t.caller] || seq <= actor.last_done[t.caller])
    violated("actor %d begins call %d (number %u of caller %u) after number %u", w.actor, call, t.seq, t.caller,
             std::max(actor.last_begun[t.caller], actor.last_done[t.caller]) - 1);
  if (actor.checkpoint_calls == 0 && t.max_retries >= 0 && t.starts > static_cast<uint32_t>(t.max_retries) + 1)
    violated("call %d starts %u times with max_task_retries %d", call, t.starts, t.max_retries);
  actor.last_begun[t.caller] = seq;
  actor.running = true;
  after(t.duration, What::kActorStep, slot, w.life);
}

void World::finish_call(uint32_t slot) {
  Worker& w = workers_[slot];
  SimActor& actor = actors_[static_cast<size_t>(w.actor)];
  if (!actor.running) return;
  int call = actor.flight.front();
  Task& t = tasks_[static_cast<size_t>(call)];
  if (t.poison) return die(slot, "by its call");
  actor.flight.pop_front();
  actor.running = false;
  actor.last_done[t.caller] = t.seq + 1;
  ++actor.applied;
  ++actor.done;
  if (actor.applied != actor.done)
    violated("actor %d knows of %llu calls, %llu were answered", w.actor, static_cast<unsigned long long>(actor.applied),
             static_cast<unsigned long long>(actor.done));
  seal(call, Kind::kTaskDone);
  if (actor.checkpoint_calls != 0 && actor.done - actor.saved >= actor.checkpoint_calls) {
    if (random_.chance(dies_booting_) && may_fault()) {
      ++actor.failed_saves;
      return die(slot, "while it saves");
    }
    actor.saved = actor.done;
    actor.failed_saves = 0;
  }
  if (!actor.flight.empty()) return begin_call(slot);
  actor_looks(slot);
}

// ---- its callers -----------------------------------------------------------------------------------

void World::push_call(uint32_t a, int call) {
  SimActor& actor = actors_[a];
  actor.queues[tasks_[static_cast<size_t>(call)].caller].push_back(call);
  if (actor.stand) {
    actor.stand = false;
    return ring();
  }
  if (actor.slot == 0) return;
  uint32_t slot = static_cast<uint32_t>(actor.slot);
  if (!workers_[slot].sleeping) return;
  workers_[slot].sleeping = false;
  wake(slot);
  if (dormant_) ring();
}

void World::fail_calls(uint32_t a) {
  SimActor& actor = actors_[a];
  actor.stand = true;
  auto fail = [&](std::deque<int>& queue) {
    for (; !queue.empty(); queue.pop_front()) seal(queue.front(), Kind::kTaskFailed);
  };
  fail(actor.first);
  for (auto& queue : actor.queues) fail(queue);
}

// ---- death -----------------------------------------------------------------------------------------

bool World::settle_actor(uint32_t slot, bool attached) {
  SimActor& actor = actors_[static_cast<size_t>(workers_[slot].actor)];
  death_policy::ActorFate fate = death_policy::fate_of_actor({actor.end, (actor.flags & kActorNoRestart) != 0, attached,
                                                              false, actor.failed_starts, actor.restarts,
                                                              actor.max_restarts});
  if (actor.max_restarts >= 0 && fate.restarts_made > static_cast<uint32_t>(actor.max_restarts))
    violated("actor %d starts again %u times with max_restarts %d", workers_[slot].actor, fate.restarts_made,
             actor.max_restarts);
  if (fate.restarts && (actor.end != kEndNone || (actor.flags & kActorNoRestart)))
    violated("actor %d starts again after its end", workers_[slot].actor);
  if (!fate.restarts && actor.end == kEndNone && !(actor.flags & kActorNoRestart) &&
      (actor.max_restarts < 0 || actor.restarts < static_cast<uint32_t>(actor.max_restarts)) &&
      actor.failed_starts < death_policy::kFailedStartsMax)
    violated("actor %d is buried with restarts left", workers_[slot].actor);
  actor.failed_starts = fate.failed_starts;
  bool alive = actor.state == kActorAlive;
  actor.hasty_deaths = death_policy::hasty_deaths(actor.hasty_deaths, alive, workers_[slot].claims);
  actor.start_at = now_ + death_policy::delay_of_restart(actor.hasty_deaths);
  actor.end = fate.end;
  actor.restarts = fate.restarts_made;
  actor.slot = 0;
  actor.constructed = actor.running = false;
  actor.state = fate.restarts ? kActorRestarting : kActorDead;
  out_.restarts += fate.restarts;
  rung_ = true;
  return fate.restarts;
}

void World::settle_calls(uint32_t a, bool restarts) {
  SimActor& actor = actors_[a];
  std::deque<int> held;
  held.swap(actor.flight);
  std::sort(held.begin(), held.end());  // by id
  bool began = !held.empty();
  std::vector<int> again;
  for (int call : held) {
    Task& t = tasks_[static_cast<size_t>(call)];
    bool waited = !began || t.starts == t.attempts;
    CallFate fate = death_policy::fate_of_call({t.cancel, waited, false, actor.checkpoint_calls != 0, t.max_retries,
                                                t.attempts}, restarts);
    say("call %d: fate %d, waited %d", call, static_cast<int>(fate), waited);
    if (fate == CallFate::kRunsAgain) ++t.attempts;
    if (restarts && waited && fate != CallFate::kWaits && !t.cancel) violated("call %d had not begun and is lost", call);
    if (restarts && actor.checkpoint_calls != 0 && !waited && fate != CallFate::kRunsAgain && !t.cancel)
      violated("call %d of an actor with checkpoints does not run again", call);
    if (fate == CallFate::kRunsAgain || fate == CallFate::kWaits) {
      t.state = Kind::kTaskReady;
      again.push_back(call);
    } else {
      seal(call, fate == CallFate::kCancelled ? Kind::kTaskCancelled : Kind::kTaskFailed);
    }
  }
  for (int call : again) actor.first.push_back(call);
  std::sort(actor.first.begin(), actor.first.end());  // Reaper::sort_calls()
}

void World::bury(uint32_t a) {
  SimActor& actor = actors_[a];
  say("actor %u is dead, end %u", a, actor.end);
  actor.state = kActorDead;
  if (actor.wanted) state_.actor_unwanted(kActorClass + a);
  actor.wanted = false;
  fail_calls(a);
}

void World::kill_actor(uint32_t a, bool no_restart) {
  SimActor& actor = actors_[a];
  if (!lives(actor.state)) return;
  say("kill(actor %u, no_restart=%d)", a, no_restart);
  if (no_restart) {
    actor.flags |= kActorNoRestart;
    if (actor.end == kEndNone) actor.end = kEndKilled;
  }
  uint32_t slot = static_cast<uint32_t>(actor.slot);
  using death_policy::KillFate;
  switch (death_policy::fate_of_kill(has_worker(actor.state) && slot != 0 && workers_[slot].used, no_restart)) {
    case KillFate::kNothing:
      return;
    case KillFate::kProcess:
      return workers_[slot].forked ? die(slot, "by kill()") : void();
    case KillFate::kBury:
      return bury(a);
  }
}

}  // namespace fastray::sim
