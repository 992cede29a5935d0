// Workers of a node: their birth, what they print, their messages, their death; and the node's own end.
// See local_scheduler.h.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "local_scheduler.h"

namespace fastray {
namespace {

void close_fd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

}  // namespace

bool LocalScheduler::watch(int fd, uint32_t events, Tag tag, uint32_t id) {
  epoll_event e{};
  e.events = events;
  e.data.u64 = uint64_t{tag} << 32 | id;
  return epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &e) == 0;
}

// ---- birth -----------------------------------------------------------------------------------------

// Takes a slot and makes the pipes; Python forks. Returns the slot; -1: not now, decide() will ask again.
int LocalScheduler::prepare_fork(uint32_t env, int64_t now) {
  if (now < fork_after_) return -1;
  NodeRequest request;
  request.kind = NodeRequest::kFork;
  request.env = env;
  int out[2] = {-1, -1}, err[2] = {-1, -1}, control[2] = {-1, -1};
  bool ok = pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0 &&
            socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) == 0;
  int slot = ok ? Process::reserve_slot(segment_, kProcWorker) : -1;
  if (slot < 0) {
    for (int* fd : {&out[0], &out[1], &err[0], &err[1], &control[0], &control[1]}) close_fd(*fd);
    fork_after_ = now + 100 * kMs;
    return -1;
  }
  request.slot = static_cast<uint32_t>(slot);
  segment_.proc(request.slot).runtime_env = env;
  segment_.proc(request.slot).job = job_of_env(env);
  if (workers_.size() <= request.slot) workers_.resize(request.slot + 1);
  Worker& w = workers_[request.slot];
  w = Worker{};
  w.used = true;
  w.born_ns = now;
  w.job = job_of_env(env);
  w.control = control[0];
  w.out.fd = out[0];
  w.err.fd = err[0];
  w.err.stream = 2;
  for (int fd : {out[0], err[0], control[0]}) fcntl(fd, F_SETFL, O_NONBLOCK);
  request.stdout_fd = out[1];
  request.stderr_fd = err[1];
  request.control_fd = control[1];
  state_->worker_starting(request.slot, env);
  requests_.push_back(std::move(request));
  return slot;
}

std::string LocalScheduler::runtime_env(uint32_t index) const {
  if (index == 0 || index >= kFunctionsMax) return "";
  const Function& f = segment_.function(index);
  if (f.state.load(std::memory_order_acquire) != kEntryUsed || f.blob == 0) return "";
  return std::string(segment_.at<char>(f.blob), f.blob_bytes);
}

void LocalScheduler::forked(const NodeRequest& request, int pid) {
  for (int fd : {request.stdout_fd, request.stderr_fd, request.control_fd}) close(fd);
  Worker& w = workers_[request.slot];
  if (pid < 0) {
    for (int* fd : {&w.out.fd, &w.err.fd, &w.control}) close_fd(*fd);
    w.used = false;
    let_go_of_crashed(w);
    if (w.actor >= 0) segment_.actor(static_cast<uint32_t>(w.actor)).state.store(kActorRestarting, std::memory_order_release);
    state_->worker_died(request.slot);
    segment_.proc(request.slot).state.store(kProcEmpty, std::memory_order_release);
    fork_after_ = os::now_ns() + 100 * kMs;
    return;
  }
  w.pid = pid;
  w.out.pid = w.err.pid = static_cast<uint32_t>(pid);
  Driver* driver = driver_of(w.job);
  if (driver == nullptr || !driver->pipes_paused) {
    watch(w.out.fd, EPOLLIN, kStdout, request.slot);
    watch(w.err.fd, EPOLLIN, kStderr, request.slot);
  }
  watch(w.control, EPOLLIN, kWorkerControl, request.slot);
  bool killed = w.actor >= 0 && segment_.actor(static_cast<uint32_t>(w.actor)).end.load(std::memory_order_acquire);
  if (killed || w.doomed) kill(pid, SIGKILL);  // that came between the decision and the fork
  state_->worker_attached(request.slot, os::now_ns());  // it may be given a lease before it has booted
}

// Only closes and forgets: the segment's mapping goes too, worker.main() makes its own. A node of a thousand
// workers has thousands of descriptors: they are closed by ranges.
void LocalScheduler::become_child(const NodeRequest& request) {
  std::vector<int> kept{fds_.segment, fds_.bell, request.stdout_fd, request.stderr_fd, request.control_fd};
  std::sort(kept.begin(), kept.end());
  unsigned from = 3;
  for (int fd : kept) {
    if (fd > static_cast<int>(from)) os::close_range(from, static_cast<unsigned>(fd) - 1);
    from = std::max(from, static_cast<unsigned>(fd) + 1);
  }
  os::close_range(from, ~0u);
  process_.abandon();
  os::unmap(segment_.base(), segment_.header().segment_bytes);
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigaddset(&children, SIGTERM);
  sigprocmask(SIG_UNBLOCK, &children, nullptr);
}

// ---- what they print, see also local_scheduler_drivers.cpp --------------------------------------------

void LocalScheduler::read_pipe(uint32_t slot, Tag tag) {
  Worker& w = workers_[slot];
  LogPump::Source& source = tag == kStdout ? w.out : w.err;
  if (source.fd < 0) return;
  LogPump& logs = logs_of(w);
  if (!logs.read(source, 65536)) {
    logs.finish(source);
    close_fd(source.fd);
  }
  after_flush(w.job);
}

// ---- death -----------------------------------------------------------------------------------------

// All children: workers, and what workers left behind (the node is their subreaper).
void LocalScheduler::reap() {
  signalfd_siginfo signal;
  while (read(signals_, &signal, sizeof signal) == sizeof signal)
    if (signal.ssi_signo == SIGTERM) leaving_ = true;
  int status;
  rusage used{};
  for (pid_t pid; (pid = wait4(-1, &status, WNOHANG | WUNTRACED | WCONTINUED, &used)) > 0;) {
    if (WIFEXITED(status) || WIFSIGNALED(status)) spared_.erase(std::remove(spared_.begin(), spared_.end(), pid), spared_.end());
    for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
      if (!workers_[slot].used || workers_[slot].pid != pid) continue;
      if (WIFSTOPPED(status) || WIFCONTINUED(status))
        watchdog_.stopped(slot, WIFSTOPPED(status));
      else
        worker_died(slot, status, static_cast<uint64_t>(used.ru_maxrss) * 1024);
    }
  }
}

// What is known of a death before its slot is cleared.
CrashInfo LocalScheduler::examine(uint32_t slot, int status, uint64_t peak_bytes) {
  Worker& w = workers_[slot];
  CrashInfo crash{w.pid, WIFSIGNALED(status) ? WTERMSIG(status) : 0, WIFEXITED(status) ? WEXITSTATUS(status) : 0,
                  std::move(w.err.tail), w.actor, false, ""};
  crash.job = w.job;
  crash.recorded = segment_.job(w.job).records_failures.load(std::memory_order_relaxed) != 0;
  crash.time_ns = os::wall_ns();
  crash.uptime_ns = os::now_ns() - w.born_ns;
  crash.peak_bytes = peak_bytes;
  crash.events = read_events(segment_.recorder(slot), os::ticks(), os::ticks_per_us());
  if (crash.signal != SIGKILL) return crash;
  crash.hung = w.hung;
  uint64_t kills = os::oom_kills();
  if (w.hung.task == 0) crash.oom_kills = static_cast<uint32_t>(kills - oom_kills_);
  oom_kills_ = kills;
  return crash;
}

void LocalScheduler::worker_died(uint32_t slot, int status, uint64_t peak_bytes) {
  Worker& w = workers_[slot];
  kill(-w.pid, SIGKILL);  // what it started: its process group
  if (w.out.fd >= 0) logs_of(w).finish(w.out);
  if (w.err.fd >= 0) logs_of(w).finish(w.err);
  CrashInfo crash = examine(slot, status, peak_bytes);
  watchdog_.died(slot);
  if (w.control >= 0) (void)receive(w.control, nullptr);
  for (int* fd : {&w.out.fd, &w.err.fd, &w.control}) close_fd(*fd);
  bool attached = w.heartbeat != 0 || segment_.proc(slot).state.load(std::memory_order_acquire) == kProcAlive;
  if (w.actor >= 0) settle_actor(w, &crash, attached);
  w.used = false;
  w.pid = -1;
  let_go_of_crashed(w);
  if (!attached && !w.doomed) {  // it cannot even start: do not fork in a tight loop
    failed_starts_ = std::min(failed_starts_ + 1, 7u);
    fork_after_ = os::now_ns() + (int64_t{10} << failed_starts_) * kMs;
  }
  state_->worker_died(slot);
  reaper_->recover(slot, crash);
  if (crash.actor >= 0 && !crash.restarts) bury(static_cast<uint32_t>(crash.actor), crash.death);
  if (is_over(w.job)) drop_job(w.job);
  write_lease_counts();
  after_flush(w.job);
  moved_ = true;
  pace_.disturbed();
}

// ---- crashes that are to be written down (init(record_failures=...)) ----------------------------------

// Arguments are unpickled for it, so this process cannot do it: the next worker of the environment does, before it
// works. One at a time. Arguments that kill it are not tried again.
void LocalScheduler::record_crashes(int64_t now) {
  std::vector<Reaper::Crashed>& crashed = reaper_->crashed();
  for (const Worker& w : workers_)
    if (w.used && !w.crashed.empty()) return;
  std::erase_if(crashed, [&](const Reaper::Crashed& c) {
    if (is_over(c.job)) process_.drop(c.h);
    return is_over(c.job);
  });
  if (crashed.empty()) return;
  uint32_t env = crashed.front().env;
  int slot = prepare_fork(env, now);
  if (slot < 0) return;
  std::erase_if(crashed, [&](const Reaper::Crashed& c) {
    if (c.env == env) requests_.back().crashed.push_back(c.h);
    return c.env == env;
  });
  workers_[static_cast<uint32_t>(slot)].crashed = requests_.back().crashed;
}

void LocalScheduler::let_go_of_crashed(Worker& w) {
  for (Handle h : w.crashed) process_.drop(h);
  w.crashed.clear();
}

// ---- messages --------------------------------------------------------------------------------------

// False at the end of the connection.
bool LocalScheduler::receive(int fd, Driver* from) {
  static thread_local char buffer[kMessageBytesMax];
  for (;;) {
    ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    ControlMessage m;
    if (static_cast<size_t>(n) < sizeof m) continue;
    memcpy(&m, buffer, sizeof m);
    if (static_cast<size_t>(n) != sizeof m + m.bytes) continue;
    on_message(m, buffer + sizeof m, from);
    if (from != nullptr && from->goodbye != 0) return true;
  }
}

void LocalScheduler::on_message(const ControlMessage& m, const char* text, Driver* from) {
  switch (static_cast<Control>(m.kind)) {
    case Control::kShutdown:
      if (from != nullptr) from->goodbye = m.force ? 2 : 1;
      return;
    case Control::kCancel:
      return cancel(m);
    case Control::kPreload:
      preload_later(std::string(text, m.bytes));
      return;
    case Control::kKillActor:
      return kill_actor(m);
    case Control::kRetryLater:
      return reaper_->delay(m.handle);
    case Control::kRecorded:
      if (m.slot < workers_.size() && workers_[m.slot].used) let_go_of_crashed(workers_[m.slot]);
      return;
    case Control::kJobNumbers:
      if (from != nullptr && from->agent) add_numbers(m);
      return;
    case Control::kPrint:
      if (from != nullptr && from->agent) print_for(m, text);
      return;
    case Control::kActorEnded:
      if (from != nullptr && from->agent) end_foreign(m);
      return;
    case Control::kJobOver:
      if (from != nullptr && from->agent) end_foreign_job(m.slot);
      return;
    case Control::kJobsChanged:
      return;
    case Control::kCreateGroup:
      return create_group(text, m.bytes);
    case Control::kSetGroup:
      if (from != nullptr && from->agent) set_group(text, m.bytes);
      return;
    case Control::kRemoveGroup:
      return remove_group_named(text, m.bytes);
    case Control::kSettingUp:
      if (m.slot >= workers_.size() || !workers_[m.slot].used) return;
      workers_[m.slot].setting_up = segment_.proc(m.slot).runtime_env;
      any_setting_up_ = true;
      return state_->worker_blocked(m.slot, true);
    case Control::kKillWorker:
      if (m.slot < workers_.size() && workers_[m.slot].used && workers_[m.slot].pid > 0)
        kill(workers_[m.slot].pid, SIGKILL);
      return;
  }
}

// The pid cannot have been reused: only this loop takes the worker's exit status.
void LocalScheduler::cancel(const ControlMessage& m) {
  if (m.slot != 0 && m.slot == segment_.header().agent_slot.load(std::memory_order_acquire)) return forward(m);
  if (m.slot >= workers_.size() || !workers_[m.slot].used || workers_[m.slot].pid <= 0) return;
  if (index_of(m.handle) >= kRecordsMax) return;
  bool actor = workers_[m.slot].actor >= 0;  // it may run several: the worker looks which is cancelled
  if (!actor && segment_.proc(m.slot).claim.load(std::memory_order_acquire) != m.handle) return;
  uint64_t w = segment_.record(m.handle).state.load(std::memory_order_acquire);
  if (state_of(w) != kClaimed || word_gen(w) != gen_of(m.handle) || word_holder(w) != m.slot) return;
  kill(workers_[m.slot].pid, m.force ? SIGKILL : SIGUSR1);
}

// ---- the end ---------------------------------------------------------------------------------------

// Everything the node started ends with it, but what Python is to end.
void LocalScheduler::kill_all() {
  for (Worker& w : workers_) {
    if (!w.used || w.pid <= 0) continue;
    kill(-w.pid, SIGKILL);
    kill(w.pid, SIGKILL);
  }
  int64_t end = os::now_ns() + 1000 * kMs;
  for (int status; kill_orphans() && os::now_ns() < end;)
    if (waitpid(-1, &status, WNOHANG) == 0) poll(nullptr, 0, 1);
  for (Worker& w : workers_) {
    if (w.out.fd >= 0) logs_of(w).finish(w.out);
    if (w.err.fd >= 0) logs_of(w).finish(w.err);
  }
  if (driver_gone_) return;
  end = os::now_ns() + kLogsWaitNs;
  for (auto& [id, d] : drivers_) {
    for (d.logs.flush(); !d.logs.empty() && os::now_ns() < end; d.logs.flush()) {
      pollfd p{d.log, POLLOUT, 0};
      poll(&p, 1, 10);
    }
  }
}

// Children of killed workers come to us, whatever process group they put themselves in. False when there are none.
bool LocalScheduler::kill_orphans() {
  FILE* f = fopen("/proc/thread-self/children", "re");
  if (f == nullptr) return false;
  bool any = false;
  for (int pid; fscanf(f, "%d", &pid) == 1;) {
    if (std::find(spared_.begin(), spared_.end(), pid) != spared_.end()) continue;
    kill(pid, SIGKILL);
    any = true;
  }
  fclose(f);
  return any;
}

}  // namespace fastray
