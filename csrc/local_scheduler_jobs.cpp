// Jobs of a node: their beginning, their end, and the end of what is left of them. See local_scheduler.h.
//
//   doomed   a worker that is killed because its job is over
//   remains  tasks, actors and records of a job that is over; when there are none, its classes and functions go
#include <signal.h>
#include <string.h>
#include <time.h>

#include <algorithm>

#include "local_scheduler.h"

namespace fastray {
namespace {

int64_t wall_ns() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

void copy_text(char* to, size_t room, const char* from, size_t bytes) {
  memset(to, 0, room);
  memcpy(to, from, std::min(bytes, room - 1));
}

bool lives(const Actor& actor) {
  uint32_t state = actor.state.load(std::memory_order_acquire);
  return state >= kActorPending && state < kActorDead;
}

}  // namespace

// A private node has one job; in a daemon every runtime_env is some job's.
uint32_t LocalScheduler::job_of_env(uint32_t env) const {
  return env == 0 || env >= kFunctionsMax ? 1 : segment_.function(env).job;
}

void LocalScheduler::begin_job(const Driver& d, const char* text, size_t bytes) {
  Job& job = segment_.job(d.job);
  size_t name_space = strnlen(text, bytes);
  size_t rest = std::min(name_space + 1, bytes);
  job.number = d.job;
  job.pid = d.pid;
  job.slot = d.slot;
  job.start_ns = wall_ns();
  job.end_ns = 0;
  copy_text(job.name_space, sizeof job.name_space, text, name_space);
  job.records_failures.store(0, std::memory_order_relaxed);
  copy_text(job.entrypoint, sizeof job.entrypoint, text + rest, bytes - rest);
  job.state.store(kJobRunning, std::memory_order_release);
  tell_agent();
}

bool LocalScheduler::is_over(uint32_t job) const {
  return std::find(ended_jobs_.begin(), ended_jobs_.end(), job) != ended_jobs_.end();
}

void LocalScheduler::end_job(const Driver& d) {
  if (d.job == 0) return;
  ended_jobs_.push_back(d.job);
  reaper_->job_is_over(d.job);
  remove_groups_of(d.job, os::now_ns(), true);
  Job& job = segment_.job(d.job);
  if (job.number != d.job) return;
  job.end_ns = wall_ns();
  job.state.store(kJobDetached, std::memory_order_release);
  tell_agent();
}

// After the death of its driver or of one of its workers: what the dead one owned is the node's now, and ends; that
// kills more workers, and so on, until those are left that a detached actor needs.
void LocalScheduler::drop_job(uint32_t job) {
  std::vector<uint32_t> owners{process_.slot()};
  for (const auto& [id, d] : drivers_)
    if (d.job == job && d.left && !d.settled) owners.push_back(d.slot);
  uint32_t agent = segment_.header().agent_slot.load(std::memory_order_acquire);
  if (agent != 0) owners.push_back(agent);
  Reaper::Remains remains = reaper_->drop_job(job, owners);
  for (uint32_t slot : remains.running)
    if (slot < workers_.size() && workers_[slot].actor < 0) doom(slot);
  for (uint32_t a : remains.actors) {
    const Actor& actor = segment_.actor(a);
    bool detached = actor.flags.load(std::memory_order_acquire) & kActorDetached;
    if (detached || !lives(actor)) continue;
    uint32_t slot = actor.slot.load(std::memory_order_acquire);
    end_actor(a, kEndJobOver);
    if (slot != 0 && slot < workers_.size() && workers_[slot].used) workers_[slot].doomed = true;
  }
  if (!has_actors(job))
    for (uint32_t slot = 1; slot < workers_.size(); ++slot)
      if (workers_[slot].used && workers_[slot].job == job) doom(slot);
  for (uint32_t c = 0; c < classes_.size(); ++c)
    if (segment_.cls(c).job == job) skip_stale(c);
  retire_jobs();
}

void LocalScheduler::doom(uint32_t slot) {
  Worker& w = workers_[slot];
  w.doomed = true;
  if (w.used && w.pid > 0) kill(w.pid, SIGKILL);  // else forked() does it
}

// Aborted tasks stand in queues until somebody claims past them, and would look like work.
void LocalScheduler::skip_stale(uint32_t cls) {
  Class& c = segment_.cls(cls);
  proc_set::find(c.producers, [&](uint32_t slot) {
    uint32_t number = c.queues[slot].load(std::memory_order_acquire);
    if (number == 0) return false;
    Queue& q = segment_.queue(number);
    for (;;) {
      uint64_t tail = q.tail.load(std::memory_order_acquire);  // SYNC POINT: queue-tail
      uint64_t head = q.head.load(std::memory_order_acquire);
      if (head >= tail) break;
      Handle h = task_queue::peek(segment_, q, head);
      if (h == 0) continue;
      uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);
      if ((state_of(w) == kReady || state_of(w) == kWaiting) && word_gen(w) == gen_of(h)) break;
      q.head.compare_exchange_strong(head, head + 1, std::memory_order_acq_rel);
    }
    return false;
  });
}

// ---- what is left ----------------------------------------------------------------------------------------

bool LocalScheduler::has_workers(uint32_t job, bool doomed_only) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const Worker& w) {
    return w.used && w.job == job && (w.doomed || !doomed_only);
  });
}

template <class Visit>
void LocalScheduler::for_actors_of(uint32_t job, Visit&& visit) const {
  uint32_t used = segment_.header().actors_used.load(std::memory_order_acquire);
  for (uint32_t a = 0; a < used; ++a)
    if (segment_.cls(kActorClass + a).job == job) visit(segment_.actor(a));
}

// Actors that will go on: those that are being ended do not count.
bool LocalScheduler::has_actors(uint32_t job) const {
  bool any = false;
  for_actors_of(job, [&](const Actor& actor) {
    any = any || (lives(actor) && actor.end.load(std::memory_order_acquire) != kEndJobOver);
  });
  return any;
}

void LocalScheduler::retire_jobs() {
  size_t before = ended_jobs_.size();
  for (size_t i = 0; i < ended_jobs_.size();)
    if (retire(ended_jobs_[i]))
      ended_jobs_.erase(ended_jobs_.begin() + static_cast<std::ptrdiff_t>(i));
    else
      ++i;
  if (ended_jobs_.size() < before) process_.allocator().trim(0);  // what the node took over, and nobody needs
}

bool LocalScheduler::retire(uint32_t job) {
  remove_groups_of(job, os::now_ns(), false);  // those of actors that have ended since
  if (has_workers(job, false)) return false;
  for (const auto& [id, d] : drivers_)
    if (d.job == job && d.slot != 0 && !d.settled) return false;
  bool named = false;
  for_actors_of(job, [&](const Actor& actor) {
    named = named || actor.state.load(std::memory_order_acquire) != kActorFree;
  });
  if (named || reaper_->names_job(job)) return false;
  Job& entry = segment_.job(job);
  if (entry.number == job) entry.state.store(kJobOver, std::memory_order_release);
  for (uint32_t c = 0; c < classes_.size(); ++c) {
    if (segment_.cls(c).job != job) continue;
    state_->class_gone(c);
    classes_[c] = ClassSeen{};
  }
  reaper_->forget_job(job);
  return true;
}

}  // namespace fastray
