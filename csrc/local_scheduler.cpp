// The loop. See local_scheduler.h.
#include "local_scheduler.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace fastray {

std::string LocalScheduler::start(const Fds& fds) {
  fds_ = fds;
  std::string problem = Segment::attach(fds.segment, &segment_);
  if (problem.empty()) problem = process_.attach(segment_, kProcNode, 0, fds.bell);
  if (problem.empty()) problem = open_everything(fds);
  if (!problem.empty()) return problem;
  reaper_ = std::make_unique<Reaper>(&process_);
  (void)os::ticks_per_us();  // measured here once, not in each worker
  oom_kills_ = os::oom_kills();
  Header& header = segment_.header();
  SchedulerState::Limits limits;
  limits.cpus = std::max(header.cpus, 1u);
  limits.cpu = -1;
  limits.prestart = fds.listen < 0;  // a daemon's workers are each a job's
  if (fds.listen >= 0) limits.spare_env_ns = SchedulerState::kSpareDefaultNs;
  uint32_t resources = header.resources_used.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < resources; ++i) {
    limits.total[i] = static_cast<int64_t>(header.resources[i].total);
    if (strcmp(header.resources[i].name, "CPU") == 0) limits.cpu = static_cast<int>(i);
    if (strcmp(header.resources[i].name, "GPU") == 0) limits.gpu = static_cast<int>(i);
  }
  if (limits.cpu < 0) return "the segment names no CPU resource";
  state_ = std::make_unique<SchedulerState>(limits);
  return fds.listen >= 0 ? open_listener() : open_private_driver();
}

std::string LocalScheduler::open_everything(const Fds& fds) {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  if (fds.listen >= 0) sigaddset(&children, SIGTERM);
  sigprocmask(SIG_BLOCK, &children, nullptr);
  signals_ = signalfd(-1, &children, SFD_NONBLOCK | SFD_CLOEXEC);
  if (epoll_ < 0 || signals_ < 0) return std::string("epoll or signalfd: ") + strerror(errno);
  bool ok = watch(fds.bell, EPOLLIN, kBell, 0) && watch(signals_, EPOLLIN, kChildren, 0);
  return ok ? "" : std::string("epoll_ctl: ") + strerror(errno);
}

void LocalScheduler::set_ready() {
  segment_.header().node_ready.store(1, std::memory_order_release);
  os::futex_wake(&segment_.header().node_ready, INT32_MAX);
  uint32_t procs = segment_.header().procs_used.load(std::memory_order_acquire);
  for (uint32_t s = 1; s < procs; ++s) Process::wake_process(segment_, s);
}

NodeRequest LocalScheduler::run() {
  for (;;) {
    int64_t now = os::now_ns();
    if (!leaving_ && requests_.empty()) step(now);
    if (leaving_) {
      kill_all();
      return NodeRequest{};
    }
    if (!requests_.empty()) {
      NodeRequest request = std::move(requests_.front());
      requests_.pop_front();
      return request;
    }
    wait(now);
  }
}

// ---- looking ---------------------------------------------------------------------------------------

void LocalScheduler::step(int64_t now) {
  look(now);
  actions_.clear();
  state_->decide(now, &actions_);
  for (const SchedulerAction& action : actions_) apply(action, now);
  if (!actions_.empty()) write_lease_counts();
  if (!reaper_->crashed().empty()) record_crashes(now);
  reaper_->push_due(now);
  wake_stuck();
  if (now >= sweep_at_) {
    reaper_->sweep();
    process_.sweep_logs();
    retire_jobs();
    sweep_at_ = now + kSweepNs;
    recycle_groups(now);
    if (!unmade_.empty()) sweep_at_ = now + kRemovedKeptNs;
  }
  look_at_leavers(now);
  pace_.stepped(now, moved_, !actions_.empty(), is_quiet());
  if (!preload_.empty() && pace_.dormant(now)) {
    NodeRequest request;
    request.kind = NodeRequest::kPreload;
    request.text.swap(preload_);
    requests_.push_back(std::move(request));
  }
}

// Importing takes its time and the loop stands still meanwhile: when nothing else is to do.
void LocalScheduler::preload_later(const std::string& modules) {
  if (!preload_.empty()) preload_ += '\n';
  preload_ += modules;
}

void LocalScheduler::look(int64_t now) {
  bool classes_moved = look_at_classes();
  moved_ = look_at_workers(now) || classes_moved;
  write_lease_counts();
  watch_limits(now);
  if (rung_ || now >= actors_due_ || ++looks_ % kActorLook == 0) look_at_actors(now);
  rung_ = false;
}

// Tasks of such a runtime_env wait: workers forked for them now would only wait too.
bool LocalScheduler::is_being_set_up(uint32_t env) const {
  auto prepares = [&](const Worker& w) { return w.used && w.setting_up == env; };
  return any_setting_up_ && env != 0 && std::any_of(workers_.begin(), workers_.end(), prepares);
}

bool LocalScheduler::look_at_classes() {
  bool moved = false;
  uint32_t used = segment_.header().classes_used.load(std::memory_order_acquire);
  if (classes_.size() < used) classes_.resize(used);
  for (uint32_t c = 0; c < used; ++c) {
    Class& cls = segment_.cls(c);
    if (cls.state.load(std::memory_order_acquire) != kEntryUsed) continue;  // SYNC POINT: class-entry
    if (segment_.is_over(cls)) {
      end_class(c);
      continue;
    }
    if (cls.routed) {  // the node agent's
      if (cls.group != 0) leave_routed(c);
      continue;
    }
    if (!state_->knows_class(c)) {
      Units demand{};
      for (uint32_t i = 0; i < kResourcesMax; ++i) demand[i] = static_cast<int64_t>(cls.demand[i]);
      state_->class_seen(c, demand, cls.runtime_env, fds_.listen < 0 ? 0 : cls.job, {cls.group, cls.bundle});
      moved = true;
    }
    if (state_->leases(c) == 0 && !proc_set::has(cls.sleeping, 0)) state_->class_stand_taken(c);
    bool backlog = process_.backlog(cls) && !is_being_set_up(cls.runtime_env);
    uint64_t heads = 0, tails = 0;
    proc_set::find(cls.producers, [&](uint32_t slot) {
      uint32_t q = cls.queues[slot].load(std::memory_order_acquire);
      if (q == 0) return false;
      heads += segment_.queue(q).head.load(std::memory_order_relaxed);
      tails += segment_.queue(q).tail.load(std::memory_order_relaxed);
      return false;
    });
    classes_[c].stuck = backlog && heads == classes_[c].heads;
    moved = moved || heads != classes_[c].heads;
    classes_[c].heads = heads;
    state_->class_backlog(c, backlog, tails > heads ? tails - heads : 1);
    // A waker may have named a worker after its lease had gone: such a bit would keep others asleep.
    proc_set::find(cls.polling, [&](uint32_t slot) {
      if (segment_.proc(slot).lease.load(std::memory_order_acquire) != c + 1) proc_set::take(cls.polling, slot);
      return false;
    });
  }
  return moved;
}

bool LocalScheduler::look_at_workers(int64_t now) {
  bool moved = false;
  any_setting_up_ = false;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    Worker& w = workers_[slot];
    if (!w.used) continue;
    any_setting_up_ = any_setting_up_ || w.setting_up != 0;
    Proc& p = segment_.proc(slot);
    if (p.state.load(std::memory_order_acquire) != kProcAlive) continue;  // SYNC POINT: proc-alive
    if (w.heartbeat == 0) {
      w.heartbeat = 1;
      w.setting_up = 0;
      failed_starts_ = 0;
      moved = true;
    }
    uint64_t heartbeat = p.heartbeat.load(std::memory_order_relaxed) + 1;
    bool claimed = heartbeat != w.heartbeat;
    moved = moved || claimed;
    w.heartbeat = heartbeat;
    uint32_t lease = p.lease.load(std::memory_order_acquire);
    if (state_->is_leased(slot) && lease == 0) {
      state_->lease_returned(slot, now);
      moved = true;
    }
    bool blocked = p.blocked.load(std::memory_order_acquire) != 0;
    state_->worker_blocked(slot, blocked);
    bool idle = lease == 0 || proc_set::has(segment_.cls(lease - 1).sleeping, slot);
    state_->worker_idle(slot, idle && !blocked, now);
    if (claimed) state_->worker_claimed(slot);
  }
  return moved;
}

// ---- acting ----------------------------------------------------------------------------------------

void LocalScheduler::apply(const SchedulerAction& action, int64_t now) {
  switch (action.kind) {
    case SchedulerAction::kGrant:
      return grant(action);
    case SchedulerAction::kRevoke:
      return revoke(action.worker, now);
    case SchedulerAction::kFork:
      (void)prepare_fork(action.env, now);
      return;
    case SchedulerAction::kStart:
      return start_actor(action, now);
    case SchedulerAction::kExit:
      segment_.proc(action.worker).exiting.store(1, std::memory_order_seq_cst);
      return Process::wake_process(segment_, action.worker);
    case SchedulerAction::kReserve:
      return group_reserved(action.group);
    case SchedulerAction::kStand:
      return stand(action.cls);
  }
}

void LocalScheduler::grant(const SchedulerAction& action) {
  Proc& p = segment_.proc(action.worker);
  p.gpus = action.gpus;
  p.revoke.store(0, std::memory_order_seq_cst);
  // SYNC POINT: lease (seq_cst: the worker reads its futex, then the lease, then sleeps)
  p.lease.store(action.cls + 1, std::memory_order_seq_cst);
  proc_set::take(segment_.cls(action.cls).sleeping, 0);
  Process::wake_process(segment_, action.worker);
}

// A sleeper whose bit we got cannot be woken for a task by anybody else: its lease ends at once.
void LocalScheduler::revoke(uint32_t slot, int64_t now) {
  Proc& p = segment_.proc(slot);
  uint32_t lease = p.lease.load(std::memory_order_acquire);
  if (lease != 0 && proc_set::take(segment_.cls(lease - 1).sleeping, slot)) {
    p.lease.store(0, std::memory_order_seq_cst);  // SYNC POINT: lease
    state_->lease_returned(slot, now);
    Process::wake_process(segment_, slot);
    return;
  }
  p.revoke.store(1, std::memory_order_seq_cst);
  Process::wake_process(segment_, slot);
}

void LocalScheduler::stand(uint32_t cls) {
  Class& c = segment_.cls(cls);
  proc_set::add(c.sleeping, 0);  // SYNC POINT: sleep-bit
  os::membarrier_all();
  if (!process_.backlog(c)) return;
  state_->class_backlog(cls, true);
  process_.ring_bell();
}

// Submitters compare them with the sleepers: one too many, and they believe that somebody is awake for ever.
void LocalScheduler::write_lease_counts() {
  for (uint32_t c = 0; c < classes_.size(); ++c) {
    std::atomic<uint32_t>& leases = segment_.cls(c).leases;
    if (state_->knows_class(c) && leases.load(std::memory_order_relaxed) != state_->leases(c))
      leases.store(state_->leases(c), std::memory_order_relaxed);
  }
}

// Backstop: work, a sleeping worker with the lease for it, and nothing moved for a whole tick.
void LocalScheduler::wake_stuck() {
  for (uint32_t c = 0; c < classes_.size(); ++c) {
    if (!classes_[c].stuck) continue;
    Class& cls = segment_.cls(c);
    int slot = proc_set::find(cls.sleeping, [&](uint32_t s) { return s != 0 && proc_set::take(cls.sleeping, s); });
    if (slot < 0) continue;
    proc_set::add(cls.polling, static_cast<uint32_t>(slot));
    Process::wake_process(segment_, static_cast<uint32_t>(slot));
    moved_ = true;
  }
}

// ---- waiting ---------------------------------------------------------------------------------------

bool LocalScheduler::is_quiet() const {
  if (state_->has_backlog() || !requests_.empty() || !unmade_.empty() || rung_ || !reaper_->crashed().empty()) return false;
  for (const auto& [id, d] : drivers_)
    if (d.left && d.control >= 0) return false;  // it waits for the last of its logs
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    if (!workers_[slot].used) continue;
    const Proc& p = segment_.proc(slot);
    if (p.state.load(std::memory_order_acquire) != kProcAlive) return false;
    if (p.revoke.load(std::memory_order_seq_cst) != 0) return false;
    uint32_t lease = p.lease.load(std::memory_order_acquire);
    if (lease != 0 && !proc_set::has(segment_.cls(lease - 1).sleeping, slot)) return false;
  }
  return true;
}

int64_t LocalScheduler::timeout(int64_t now) {
  int64_t deadline = state_->next_deadline();
  if (reaper_->has_adopted() || !ended_jobs_.empty()) deadline = std::min(deadline, std::max(now, sweep_at_));
  return pace_.next_look(now, deadline);
}

void LocalScheduler::wait(int64_t now) {
  int64_t until = timeout(now);
  Header& header = segment_.header();
  if (pace_.dormant(now)) {
    // SYNC POINT: dormant (the barrier orders it before the last look; wakers read it after their swap)
    header.dormant.store(1, std::memory_order_seq_cst);
    os::membarrier_all();
    look(now);
    look_at_actors(now);
    if (moved_ || !is_quiet()) {  // a lease that was given back here was seen by no decision yet
      pace_.disturbed();
      until = pace_.next_look(now, until);
    }
  }
  until = std::min({until, watchdog_.next_deadline(), reaper_->next_due(), actors_due_});
  int milliseconds = -1;
  if (until != SchedulerState::kNever) milliseconds = static_cast<int>(std::max<int64_t>(0, (until - now + kMs - 1) / kMs));
  epoll_event events[64];
  int n = epoll_wait(epoll_, events, 64, milliseconds);
  header.dormant.store(0, std::memory_order_seq_cst);
  for (int i = 0; i < n; ++i) handle(events[i].data.u64, events[i].events);
}

void LocalScheduler::handle(uint64_t data, uint32_t events) {
  Tag tag = static_cast<Tag>(data >> 32);
  uint32_t slot = static_cast<uint32_t>(data);
  uint64_t rings;
  switch (tag) {
    case kBell:
      if (read(fds_.bell, &rings, sizeof rings) < 0 && errno != EAGAIN) leaving_ = true;
      pace_.rung();
      rung_ = true;
      return;
    case kListen:
      return accept_drivers();
    case kDriver:
      return on_driver_socket(slot);
    case kDriverDeath:
      return leave(slot, true, false);
    case kLogs:
      (void)events;
      if (drivers_.count(slot) != 0) after_flush(drivers_[slot].job);
      return;
    case kChildren:
      return reap();
    case kPython: {
      NodeRequest request;
      request.kind = NodeRequest::kReadable;
      request.readable = static_cast<int>(slot);
      requests_.push_back(std::move(request));
      return;
    }
    case kStdout:
    case kStderr:
      return read_pipe(slot, tag);
    case kWorkerControl:
      if (workers_[slot].control >= 0 && !receive(workers_[slot].control, nullptr))
        epoll_ctl(epoll_, EPOLL_CTL_DEL, workers_[slot].control, nullptr);
      return;
  }
}

}  // namespace fastray
