// Workers and tasks of the simulation: queues, sleeping and waking, running, blocking on children, dying. See
// sim_world.h; the real ones are process_tasks.cpp, process_wait.cpp and worker.pyx.
#include <algorithm>

#include "sim_world.h"

namespace fastray::sim {

using death_policy::TaskFate;

// ---- queues ----------------------------------------------------------------------------------------

bool World::has_ready(uint32_t cls) const { return !classes_[cls].ready.empty(); }

void World::make_ready(int task) {
  Task& t = tasks_[static_cast<size_t>(task)];
  t.state = Kind::kTaskReady;
  t.slot = -1;
  classes_[t.cls].ready.push_back(task);
  notify(t.cls);
}

// The deepest first, then first come.
int World::claim(uint32_t cls) {
  std::vector<int>& ready = classes_[cls].ready;
  if (ready.empty()) return -1;
  auto deeper = [&](int a, int b) { return tasks_[static_cast<size_t>(a)].depth < tasks_[static_cast<size_t>(b)].depth; };
  auto it = std::max_element(ready.begin(), ready.end(), deeper);
  int task = *it;
  ready.erase(it);
  ++classes_[cls].heads;
  return task;
}

// A submitter wakes one sleeper, unless somebody is awake who seems to keep up. The node stands for a class without
// a lease.
void World::notify(uint32_t cls) {
  ClassInfo& c = classes_[cls];
  bool awake = false;
  uint32_t sleeper = 0;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    const Worker& w = workers_[slot];
    if (w.lease != cls + 1) continue;
    if (!w.sleeping) awake = true;
    if (w.sleeping && sleeper == 0) sleeper = slot;
  }
  if (c.stand) {
    c.stand = false;
    return ring();
  }
  if (sleeper == 0 || (awake && random_.chance(skip_wake_))) return;
  workers_[sleeper].sleeping = false;
  wake(sleeper);
  if (dormant_) ring();
}

void World::wake(uint32_t slot) {
  after(random_.between(2 * kUs, 80 * kUs), What::kWorkerLooks, slot, workers_[slot].life);
}

// ---- a worker --------------------------------------------------------------------------------------

void World::boot(uint32_t slot) {
  Worker& w = workers_[slot];
  if (!w.alive) return;
  if (random_.chance(dies_booting_) && may_fault()) return die(slot, "while it starts");
  if (w.stopped) return after(kMs, What::kBoot, slot, w.life);
  w.booted = true;
  if (w.actor >= 0) return construct(slot);
  worker_looks(slot);
}

void World::worker_looks(uint32_t slot) {
  Worker& w = workers_[slot];
  if (!w.alive || !w.booted || w.stopped || w.blocked) return;
  if (w.actor >= 0) return actor_looks(slot);
  if (w.task >= 0) return;
  w.sleeping = false;
  if (w.revoke) {
    w.revoke = false;
    w.lease = 0;
    ring();
  }
  if (w.exiting) return die(slot, "as it was told");
  if (w.lease == 0) return;
  w.looked = true;
  int task = claim(w.lease - 1);
  if (task >= 0) return start_task(slot, task);
  w.sleeping = true;
}

void World::start_task(uint32_t slot, int task) {
  Worker& w = workers_[slot];
  Task& t = tasks_[static_cast<size_t>(task)];
  if (t.state != Kind::kTaskReady) violated("task %d is claimed in state %d", task, static_cast<int>(t.state));
  if (t.cls + 1 != w.lease) violated("task %d of class %u runs on a lease for %u", task, t.cls, w.lease - 1);
  if (classes_[t.cls].env != w.env) violated("task %d runs in environment %u, not %u", task, w.env, classes_[t.cls].env);
  say("worker %u starts task %d, attempt %u", slot, task, t.attempts + 1);
  t.state = Kind::kTaskRuns;
  t.slot = static_cast<int>(slot);
  ++t.starts;
  if (t.max_retries >= 0 && t.starts > static_cast<uint32_t>(t.max_retries) + 1)
    violated("task %d starts %u times with max_retries %d", task, t.starts, t.max_retries);
  w.task = task;
  ++w.claims;
  w.step = 0;
  w.waits_for.clear();
  after(t.duration / 2, What::kStep, slot, w.life);
}

// Half-way it submits its children and waits for them; then the rest; then its result.
void World::task_step(uint32_t slot) {
  Worker& w = workers_[slot];
  if (!w.alive || w.task < 0 || w.blocked) return;
  if (w.stopped) return after(kMs, What::kStep, slot, w.life);
  int task = w.task;
  size_t index = static_cast<size_t>(task);
  if (tasks_[index].poison) return die(slot, "by its task");
  if (tasks_[index].cancel) return end_task(slot, Kind::kTaskCancelled);
  if (w.step == 0) {
    w.step = 1;
    for (uint32_t n = tasks_[index].children; n > 0; --n) {
      int child = new_task(child_classes_[random_.below(child_classes_.size())], task, tasks_[index].driver);
      workers_[slot].waits_for.push_back(child);
      make_ready(child);
    }
  }
  if (wait_for_children(slot)) return;
  Worker& again = workers_[slot];
  if (again.step == 2) return end_task(slot, Kind::kTaskDone);
  again.step = 2;
  after(tasks_[index].duration / 2, What::kStep, slot, again.life);
}

// True when it blocks: its CPU is free, and the node hears of it unless somebody else of its class would.
bool World::wait_for_children(uint32_t slot) {
  Worker& w = workers_[slot];
  std::erase_if(w.waits_for, [&](int child) { return tasks_[static_cast<size_t>(child)].ended(); });
  if (w.waits_for.empty()) return false;
  w.blocked = true;
  say("worker %u blocks", slot);
  for (uint32_t s = 1; s < workers_.size(); ++s) {
    Worker& other = workers_[s];
    if (s == slot || other.lease != w.lease || !other.sleeping) continue;
    if (!has_ready(w.lease - 1)) return true;
    other.sleeping = false;  // nudge()
    wake(s);
    return true;
  }
  ring();
  return true;
}

void World::end_task(uint32_t slot, Kind state) {
  Worker& w = workers_[slot];
  int task = w.task;
  orphan_children(task);
  w.task = -1;
  w.waits_for.clear();
  seal(task, state);
  worker_looks(slot);
}

void World::seal(int task, Kind state) {
  Task& t = tasks_[static_cast<size_t>(task)];
  if (t.ended()) return violated("%s %d ends twice", t.actor < 0 ? "task" : "call", task);
  static const char* const kNames[] = {"ready", "runs", "done", "failed", "cancelled"};
  say("%s %d is %s", t.actor < 0 ? "task" : "call", task, kNames[static_cast<size_t>(state)]);
  t.state = state;
  t.slot = -1;
  if (t.parent < 0 || t.orphan) return;
  const Task& parent = tasks_[static_cast<size_t>(t.parent)];
  if (parent.state == Kind::kTaskRuns && parent.slot > 0) {
    uint32_t slot = static_cast<uint32_t>(parent.slot);
    after(random_.between(2 * kUs, 80 * kUs), What::kUnblock, slot, workers_[slot].life);
  }
}

// ---- death -----------------------------------------------------------------------------------------

// The process is gone; its bits, its lease and its claim stay until the node has seen it.
void World::die(uint32_t slot, const char* why) {
  Worker& w = workers_[slot];
  if (!w.alive) return;
  say("worker %u dies %s", slot, why);
  w.alive = false;
  ++out_.deaths;
  after(random_.between(20 * kUs, 50 * kUs + notice_max_), What::kNotice, slot, w.life);
}

// What the dead one ran.
void World::settle_task(int task) {
  Task& t = tasks_[static_cast<size_t>(task)];
  if (t.ended()) return;
  if (!t.cancel && is_over(t.cls)) return seal(task, Kind::kTaskFailed);
  switch (death_policy::fate_of_task(t.cancel, t.max_retries, t.attempts)) {
    case TaskFate::kCancelled:
      return seal(task, Kind::kTaskCancelled);
    case TaskFate::kCrashed:
      if (t.max_retries < 0 || t.attempts < static_cast<uint32_t>(t.max_retries))
        violated("task %d fails after %u attempts with max_retries %d", task, t.attempts, t.max_retries);
      return seal(task, Kind::kTaskFailed);
    case TaskFate::kRunsAgain:
      break;
  }
  ++t.attempts;
  int64_t delay = death_policy::delay_of_retry(t.attempts);
  if (delay == 0) return make_ready(task);
  t.state = Kind::kTaskReady;
  t.slot = -1;
  delayed_.push_back({now_ + delay, task});
}

// Nobody can ask for the children of an attempt that is over: what has not begun is dropped, the rest runs to its end.
void World::orphan_children(int parent) {
  for (size_t i = static_cast<size_t>(parent) + 1; i < tasks_.size(); ++i) {
    Task& t = tasks_[i];
    if (t.parent != parent || t.ended() || t.orphan) continue;
    t.orphan = true;
    if (t.state != Kind::kTaskReady) continue;
    std::erase(classes_[t.cls].ready, static_cast<int>(i));
    seal(static_cast<int>(i), Kind::kTaskCancelled);
  }
}

}  // namespace fastray::sim
