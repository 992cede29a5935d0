// A run of the simulation: the plan drawn from the seed, the event queue, drivers, faults. See sim_world.h.
#include <stdarg.h>
#include <stdio.h>

#include <algorithm>

#include "sim_world.h"

namespace fastray::sim {
namespace {

constexpr size_t kCpu = 0, kGpu = 1, kCustom = 2;
constexpr int64_t kUnit = SchedulerState::kUnit;
constexpr int64_t kRestMax = 60 * kSecond;   // after the last fault, all is done by then
constexpr uint64_t kEventsMax = 300'000;

SchedulerState::Limits node_limits(Random& random) {
  SchedulerState::Limits limits;
  limits.cpus = 1 + random.below(4);
  limits.cpu = kCpu;
  limits.gpu = kGpu;
  limits.total[kCpu] = limits.cpus * kUnit;
  limits.total[kGpu] = random.below(4) * kUnit;
  limits.total[kCustom] = random.below(3) * kUnit;
  return limits;
}

}  // namespace

Outcome run_node(uint64_t seed, const Limits& limits) { return World(seed, limits).run(); }

World::World(uint64_t seed, const Limits& limits)
    : random_(seed), limits_(limits), node_(node_limits(random_)), state_(node_) {
  plan(seed);
}

// ---- the plan --------------------------------------------------------------------------------------

// Each seed has its own weather: some have no faults, some only one kind, some all.
void World::plan(uint64_t seed) {
  quiet_at_ = random_.between(20 * kMs, 400 * kMs);
  auto sometimes = [&](uint32_t most) { return random_.chance(500) ? random_.below(most) : 0; };
  lose_ring_ = sometimes(400);
  late_look_ = sometimes(200);
  fork_fails_ = sometimes(100);
  dies_booting_ = sometimes(200);
  poison_ = sometimes(100);
  nested_ = sometimes(400);
  skip_wake_ = sometimes(900);
  notice_max_ = random_.chance(300) ? 20 * kMs : kMs;
  duration_max_ = random_.one_of({200 * kUs, 2 * kMs, 20 * kMs});
  fault_every_ = random_.chance(250) ? 0 : random_.between(kMs, 50 * kMs);
  drivers_ = 1 + random_.below(3);
  driver_gone_.resize(drivers_);
  uint32_t n = 1 + random_.below(5);
  classes_.resize(n);
  for (uint32_t cls = 0; cls < n; ++cls) {
    task_classes_.push_back(cls);
    plan_class(cls);
    const Units& demand = classes_[cls].demand;
    if (demand[kGpu] == 0 && demand[kCustom] == 0) child_classes_.push_back(cls);
  }
  plan_groups(seed);
  plan_actors();
  plan_submissions();
  plan_faults();
  look_at(0);
}

void World::plan_class(uint32_t cls) {
  ClassInfo& c = classes_[cls];
  c.used = true;
  c.demand[kCpu] = kUnit;
  if (cls == 0) return;
  c.demand = feasible_demand(false);
  c.env = random_.chance(250) ? 1 + random_.below(2) : 0;
}

Units World::feasible_demand(bool actor) {
  Units demand{};
  static const int64_t kCpus[] = {0, kUnit / 2, kUnit, kUnit, 2 * kUnit}, kGpus[] = {0, kUnit / 4, kUnit / 2, kUnit, 2 * kUnit};
  demand[kCpu] = std::min(random_.one_of(kCpus), node_.total[kCpu]);
  if (actor && random_.chance(500)) demand[kCpu] = 0;
  if (random_.chance(400)) demand[kGpu] = std::min(random_.one_of(kGpus), node_.total[kGpu]);
  if (random_.chance(300)) demand[kCustom] = std::min<int64_t>(random_.below(3) * kUnit, node_.total[kCustom]);
  return demand;
}

void World::plan_actors() {
  uint32_t n = std::min(random_.chance(500) ? random_.below(5) : 0, limits_.actors_max);
  if (n == 0) return;
  actors_.resize(n);
  classes_.resize(kActorClass + n);
  for (uint32_t a = 0; a < n; ++a) {
    SimActor& actor = actors_[a];
    ClassInfo& c = classes_[kActorClass + a];
    c.demand = feasible_demand(true);
    c.env = random_.chance(200) ? 1 : 0;
    static const int32_t kRestarts[] = {0, 1, 3, -1, -1};
    actor.max_restarts = random_.one_of(kRestarts);
    actor.checkpoint_calls = random_.chance(400) ? 1 + random_.below(8) : 0;
    actor.init_fails = random_.chance(40);
    actor.ahead = random_.chance(250);
    actor.queues.resize(drivers_);
    actor.last_begun.resize(drivers_);
    actor.last_done.resize(drivers_);
    after(random_.between(kUs, quiet_at_), What::kDropHandles, a);
    if (random_.chance(200)) after(random_.between(kUs, quiet_at_), What::kKillActor, a, random_.below(2));
    actor.state = kActorPending;
  }
}

void World::plan_submissions() {
  left_to_submit_ = std::min(5 + random_.below(random_.chance(200) ? 300 : 60), limits_.tasks_max);
  for (uint32_t d = 0; d < drivers_; ++d) {
    after(random_.between(0, 20 * kMs), What::kSubmit, d);
    if (d > 0 && random_.chance(300)) after(random_.between(kMs, quiet_at_), What::kDriverLeaves, d);
  }
  for (uint32_t n = random_.below(4); n > 0; --n) after(random_.between(kMs, quiet_at_), What::kCancel);
  if (!random_.chance(200)) return;  // while spare workers leave
  for (uint32_t n = 1 + random_.below(6); n > 0; --n) after(random_.between(900 * kMs, 1500 * kMs), What::kSubmitLate);
}

void World::plan_faults() {
  if (fault_every_ == 0) return;
  for (int64_t at = random_.between(0, 2 * fault_every_); at < quiet_at_; at += random_.between(0, 2 * fault_every_) + 1)
    after(at, What::kFault);
}

bool World::may_fault() {
  if (now_ >= quiet_at_ || out_.faults >= limits_.faults_max) return false;
  ++out_.faults;
  return true;
}

// ---- events ----------------------------------------------------------------------------------------

void World::after(int64_t delay, What what, uint32_t a, uint32_t b) {
  events_.push({now_ + delay, ++numbers_, what, a, b});
}

Outcome World::run() {
  while (!events_.empty() && out_.violation.empty()) {
    Event e = events_.top();
    events_.pop();
    now_ = e.at;
    ++out_.events;
    out_.digest = (out_.digest ^ static_cast<uint64_t>(e.at) ^ static_cast<uint64_t>(e.what) << 56 ^ uint64_t{e.a} << 32) * 0x100000001B3ull;
    if (now_ > quiet_at_ + kRestMax || out_.events > kEventsMax) {
      std::string left = unfinished();
      violated("no rest %lld s after the last fault, %llu events: %s", static_cast<long long>((now_ - quiet_at_) / kSecond),
               static_cast<unsigned long long>(out_.events), left.empty() ? "all is done" : left.c_str());
      break;
    }
    handle(e);
  }
  if (out_.violation.empty()) check_rest();
  out_.virtual_ns = now_;
  return std::move(out_);
}

void World::handle(const Event& e) {
  bool of_worker = e.what == What::kForked || e.what == What::kBoot || e.what == What::kWorkerLooks ||
                   e.what == What::kStep || e.what == What::kUnblock || e.what == What::kNotice ||
                   e.what == What::kActorStep || e.what == What::kResume;
  if (of_worker && workers_[e.a].life != e.b) return;  // of a process before this one
  switch (e.what) {
    case What::kLook:
      return e.at == look_at_ ? node_looks() : void();
    case What::kForked:
      return forked(e.a);
    case What::kBoot:
      return boot(e.a);
    case What::kWorkerLooks:
      return worker_looks(e.a);
    case What::kStep:
      return task_step(e.a);
    case What::kActorStep:
      return actor_step(e.a);
    case What::kUnblock:
      workers_[e.a].blocked = false;
      return task_step(e.a);
    case What::kNotice:  // the node is in the middle of a fork: later
      if (busy_until_ > now_) return after(busy_until_ - now_, What::kNotice, e.a, e.b);
      return worker_died(e.a);
    case What::kMakeGroup:
    case What::kRemoveGroup:
      if (busy_until_ > now_) return after(busy_until_ - now_, e.what, e.a, e.b);
      return e.what == What::kMakeGroup ? make_group(e.a) : remove_group(e.a);
    case What::kResume:
      workers_[e.a].stopped = false;
      return worker_looks(e.a);
    case What::kSubmit:
      return submit(e.a);
    case What::kSubmitLate:
      return make_ready(new_task(task_classes_[random_.below(task_classes_.size())], -1, 0));
    case What::kFault:
      return fault();
    case What::kDriverLeaves:
      return driver_leaves(e.a);
    case What::kCancel:
      return cancel_one();
    case What::kKillActor:
      return kill_actor(e.a, e.b != 0);
    case What::kDropHandles:
      say("the last handle of actor %u goes", e.a);
      actors_[e.a].handles = false;
      return ring();
  }
}

// ---- drivers ---------------------------------------------------------------------------------------

void World::submit(uint32_t driver) {
  if (driver_gone_[driver] || left_to_submit_ == 0) return;
  for (uint32_t n = std::min(1 + random_.below(8), left_to_submit_); n > 0; --n) {
    --left_to_submit_;
    if (!actors_.empty() && random_.chance(400))
      submit_call(driver);
    else
      make_ready(new_task(task_classes_[random_.below(task_classes_.size())], -1, static_cast<int>(driver)));
  }
  after(random_.between(0, quiet_at_ / 8), What::kSubmit, driver);
}

int World::new_task(uint32_t cls, int parent, int driver) {
  Task t;
  t.cls = cls;
  static const int32_t kRetries[] = {0, 1, 3, 3, -1};
  t.max_retries = random_.one_of(kRetries);
  t.poison = t.max_retries >= 0 && random_.chance(poison_);
  t.duration = random_.between(2 * kUs, duration_max_);
  t.parent = parent;
  t.driver = driver;
  t.depth = parent < 0 ? 0 : tasks_[static_cast<size_t>(parent)].depth + 1;
  if (random_.chance(nested_) && t.depth < 3) t.children = 1 + random_.below(3);
  tasks_.push_back(t);
  ++out_.tasks;
  return static_cast<int>(tasks_.size()) - 1;
}

void World::submit_call(uint32_t driver) {
  uint32_t a = random_.below(actors_.size());
  if (!actors_[a].handles) return;
  Task t;
  t.cls = kActorClass + a;
  static const int32_t kRetries[] = {0, 0, 1, -1};
  t.max_retries = random_.one_of(kRetries);
  t.poison = actors_[a].checkpoint_calls == 0 && t.max_retries >= 0 && random_.chance(poison_ / 2);
  t.duration = random_.between(2 * kUs, duration_max_);
  t.actor = static_cast<int>(a);
  t.caller = driver;
  t.seq = static_cast<uint32_t>(tasks_.size());
  tasks_.push_back(t);
  ++out_.calls;
  push_call(a, static_cast<int>(tasks_.size()) - 1);
}

// What it submitted and has not begun is dropped; the rest runs to its end for nobody.
void World::driver_leaves(uint32_t driver) {
  say("driver %u leaves", driver);
  driver_gone_[driver] = true;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    Task& t = tasks_[i];
    if (t.actor >= 0 || t.parent >= 0 || t.driver != static_cast<int>(driver) || t.state != Kind::kTaskReady) continue;
    std::erase(classes_[t.cls].ready, static_cast<int>(i));
    seal(static_cast<int>(i), Kind::kTaskCancelled);
  }
}

void World::cancel_one() {
  if (tasks_.empty()) return;
  size_t i = random_.below(tasks_.size());
  Task& t = tasks_[i];
  if (t.ended() || t.actor >= 0) return;
  say("cancel task %zu", i);
  if (t.state == Kind::kTaskReady) {
    std::erase(classes_[t.cls].ready, static_cast<int>(i));
    return seal(static_cast<int>(i), Kind::kTaskCancelled);
  }
  t.cancel = true;
  if (random_.chance(500) && t.slot > 0) die(static_cast<uint32_t>(t.slot), "as its task is cancelled by force");
}

// ---- faults ----------------------------------------------------------------------------------------

// Any process dies, at whatever it is, or stands still for a while.
void World::fault() {
  std::vector<uint32_t> alive;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot)
    if (workers_[slot].alive) alive.push_back(slot);
  if (alive.empty() || !may_fault()) return;
  uint32_t slot = alive[random_.below(alive.size())];
  if (random_.chance(150)) {
    say("worker %u is stopped", slot);
    workers_[slot].stopped = true;
    return after(random_.between(kMs, 60 * kMs), What::kResume, slot, workers_[slot].life);
  }
  die(slot, "by SIGKILL");
}

// ---- words -----------------------------------------------------------------------------------------

void World::say(const char* format, ...) {
  if (!limits_.trace) return;
  char line[300];
  int head = snprintf(line, sizeof line, "%12.3f ms  ", static_cast<double>(now_) / 1e6);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line + head, sizeof line - static_cast<size_t>(head), format, arguments);
  va_end(arguments);
  out_.trace += line;
  out_.trace += '\n';
}

void World::violated(const char* format, ...) {
  if (!out_.violation.empty()) return;
  char line[300];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  out_.violation = line;
  say("VIOLATED: %s", line);
}

}  // namespace fastray::sim
