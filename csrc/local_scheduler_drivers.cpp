// Drivers of a node: how they attach and leave, and what their tasks print. See local_scheduler.h; the protocol is
// a table in docs/internals/daemon.md.
//
//   private driver   started the node over an inherited socket; when it goes, the node goes
//   connection       accepted on a daemon's socket; a driver once its AttachHello was answered. The connection is
//                    then its control socket, and its end the driver's, as its pidfd is
//   observer         attaches to look (`fastray status`): it has a slot, but no job and no log socket
//   agent            the same, see local_scheduler_cluster.cpp
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "local_scheduler.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace fastray {
namespace {

void close_fd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// Of the process that connected, whatever its pid names by now. -1: the kernel cannot tell.
int peer_pidfd(int socket, int pid) {
  int fd = -1;
  socklen_t bytes = sizeof fd;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &bytes) == 0) return fd;
  return pid > 0 ? os::pidfd_open(pid) : -1;
}

std::string name_python(uint32_t version) {
  return std::to_string(version >> 8) + "." + std::to_string(version & 0xFF);
}

}  // namespace

// ---- the private driver --------------------------------------------------------------------------------

std::string LocalScheduler::open_private_driver() {
  Driver& d = drivers_[++connections_];
  d.slot = kPrivateDriver;
  d.job = 1;
  d.log = fds_.log;
  d.logs.set_fd(fds_.log);
  if (fds_.driver < 0) return "";
  d.control = fds_.driver;
  bool ok = watch(d.control, EPOLLIN | EPOLLRDHUP, kDriver, connections_);
  // the socket's end may be open in a child of the driver: its death is told by the pidfd
  ucred peer{};
  socklen_t bytes = sizeof peer;
  if (getsockopt(d.control, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.pid > 0) {
    d.pid = peer.pid;
    d.pidfd = os::pidfd_open(peer.pid);
    if (d.pidfd >= 0) ok = ok && watch(d.pidfd, EPOLLIN, kDriverDeath, connections_);
    if (d.pidfd == -ESRCH) leaving_ = driver_gone_ = true;
  }
  return ok ? "" : std::string("epoll_ctl: ") + strerror(errno);
}

// ---- attaching -----------------------------------------------------------------------------------------

std::string LocalScheduler::open_listener() {
  return watch(fds_.listen, EPOLLIN, kListen, 0) ? "" : std::string("epoll_ctl: ") + strerror(errno);
}

// The one that hears what is printed in this job: the agent, when its driver is on another node.
LocalScheduler::Driver* LocalScheduler::driver_of(uint32_t job) {
  Driver* agent = nullptr;
  for (auto& [id, d] : drivers_) {
    if (d.slot == 0 || d.log < 0) continue;
    if (d.job == job && !d.agent) return &d;
    if (d.agent) agent = &d;
  }
  return is_over(job) ? nullptr : agent;
}

// Only processes of the node's own user. A connection that says nothing holds nothing but its descriptor, and there
// are at most kUnattachedMax of them: then the oldest has to go.
void LocalScheduler::accept_drivers() {
  for (;;) {
    int fd = accept4(fds_.listen, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    ucred peer{};
    socklen_t bytes = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0 || peer.uid != geteuid()) {
      close(fd);
      continue;
    }
    uint32_t unattached = 0, oldest = 0;
    for (auto& [id, d] : drivers_) {
      if (d.slot != 0) continue;
      if (unattached++ == 0) oldest = id;
    }
    if (unattached >= kUnattachedMax) close_driver(oldest);
    Driver& d = drivers_[++connections_];
    d.control = fd;
    d.pid = peer.pid;
    if (!watch(fd, EPOLLIN | EPOLLRDHUP, kDriver, connections_)) close_driver(connections_);
  }
}

void LocalScheduler::on_driver_socket(uint32_t id) {
  auto it = drivers_.find(id);
  if (it == drivers_.end() || it->second.control < 0) return;
  Driver& d = it->second;
  if (d.left) {  // it waits for the last of its logs, and may be dead meanwhile
    epoll_ctl(epoll_, EPOLL_CTL_DEL, d.control, nullptr);
    d.close_at = 0;
    return;
  }
  if (d.slot != 0) {
    bool open = receive(d.control, &d);
    if (!open || d.goodbye != 0) leave(id, !open, d.goodbye == 2);
    return;
  }
  static thread_local char buffer[kMessageBytesMax];
  ssize_t n = recv(d.control, buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  AttachHello hello;
  if (n < static_cast<ssize_t>(sizeof hello)) return close_driver(id);
  memcpy(&hello, buffer, sizeof hello);
  if (hello.magic != kMagic || static_cast<size_t>(n) != sizeof hello + hello.text_bytes) return close_driver(id);
  attach(id, hello, buffer + sizeof hello);
}

void LocalScheduler::attach(uint32_t id, const AttachHello& hello, const char* text) {
  Driver& d = drivers_[id];
  if (hello.wire_version != kWireVersion)
    return refuse(id, "it speaks version " + std::to_string(kWireVersion) + " of the protocol, this process version " +
                          std::to_string(hello.wire_version) + ": use the same fastray on both sides");
  if (hello.python != fds_.python && hello.observer != kObserver)
    return refuse(id, "it runs Python " + name_python(fds_.python) + ", this process Python " +
                          name_python(hello.python) + ": use the same minor version on both sides");
  std::atomic<uint32_t>& agent_slot = segment_.header().agent_slot;
  if (hello.observer == kAgent && agent_slot.load(std::memory_order_relaxed) != 0)  // only we write it
    return refuse(id, "it has an agent already");
  if (!hello.observer && lacks_number()) {  // add_numbers() goes on
    d.hello.assign(reinterpret_cast<const char*>(&hello), sizeof hello);
    d.hello.append(text, hello.text_bytes);
    return;
  }
  int slot = Process::reserve_slot(segment_, hello.observer == kAgent ? kProcAgent : kProcDriver);
  if (slot < 0) return refuse(id, "its process table is full (" + std::to_string(kProcsMax) + " processes)");
  int logs[2] = {-1, -1};
  d.pidfd = peer_pidfd(d.control, d.pid);
  bool ok = d.pidfd >= 0 && watch(d.pidfd, EPOLLIN, kDriverDeath, id);
  bool prints = hello.observer != kObserver;  // the agent: what is printed for drivers on other nodes
  if (ok && prints) ok = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, logs) == 0;
  d.slot = static_cast<uint32_t>(slot);
  if (ok && !hello.observer) {
    d.job = take_number();
    segment_.proc(d.slot).job = d.job;
    begin_job(d, text, hello.text_bytes);
  }
  if (ok && prints) {
    fcntl(logs[0], F_SETFL, O_NONBLOCK);
    d.log = logs[0];
    d.logs.set_fd(d.log);
  }
  d.agent = hello.observer == kAgent;
  if (ok && d.agent) agent_slot.store(d.slot, std::memory_order_release);  // SYNC POINT: agent-slot
  ok = ok && answer(d, logs[1]);
  if (logs[1] >= 0) close(logs[1]);
  if (!ok) leave(id, true, false);
}

bool LocalScheduler::answer(Driver& d, int log) {
  AttachReply reply{kMagic, segment_.header().session, kAttached, d.slot, d.job, static_cast<uint32_t>(getpid()), 0, 0};
  int fds[3] = {fds_.segment, fds_.bell, log};
  size_t count = log >= 0 ? 3 : 2;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  iovec part{&reply, sizeof reply};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(count * sizeof(int));
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  return sendmsg(d.control, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof reply);
}

void LocalScheduler::refuse(uint32_t id, const std::string& why) {
  AttachReply reply{kMagic,   segment_.header().session, kRefused, 0, 0, static_cast<uint32_t>(getpid()),
                    static_cast<uint32_t>(why.size()), 0};
  std::string message(reinterpret_cast<const char*>(&reply), sizeof reply);
  message += why;
  (void)send(drivers_[id].control, message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  close_driver(id);
}

// ---- leaving -------------------------------------------------------------------------------------------

// Its job ends now. Its slot is recovered now too, unless it goes on reading the objects it has mapped: then when its
// process ends. `dead` says that nobody is left who would read the logs.
void LocalScheduler::leave(uint32_t id, bool dead, bool reads_on) {
  auto it = drivers_.find(id);
  if (it == drivers_.end()) return;
  Driver& d = it->second;
  if (fds_.listen < 0) {  // a private node ends with its driver
    leaving_ = true;
    driver_gone_ = dead;
    return;
  }
  rung_ = moved_ = true;
  pace_.disturbed();
  bool first = !d.left && d.slot != 0;
  bool settle = d.slot != 0 && !d.settled && !reads_on;
  d.left = true;
  if (first) end_job(d);  // what it owns fails from now on, instead of running again
  if (first && d.agent) segment_.header().agent_slot.store(0, std::memory_order_release);  // SYNC POINT: agent-slot
  if (settle) {
    d.settled = true;
    reaper_->recover(d.slot, CrashInfo{d.pid, 0, 0, "", -1, false, ""});
  }
  if (d.job != 0 && (first || settle)) drop_job(d.job);
  if (dead) return close_driver(id);
  if (d.control >= 0) d.close_at = os::now_ns() + kLogsWaitNs;
}

// Those that said goodbye get what their tasks printed, then the end of both sockets, which they wait for.
void LocalScheduler::look_at_leavers(int64_t now) {
  for (auto it = drivers_.begin(); it != drivers_.end();) {
    uint32_t id = it->first;
    Driver& d = (it++)->second;
    if (!d.left || d.control < 0) continue;
    if (now < d.close_at && has_workers(d.job, true)) continue;
    after_flush(d.job);
    if (now < d.close_at && !d.logs.empty()) continue;
    close_driver(id);
  }
}

// Closes what is open of it; forgets it, unless its slot is still to be recovered at its death.
void LocalScheduler::close_driver(uint32_t id) {
  Driver& d = drivers_[id];
  if (d.pipes_paused) pause_pipes(d);
  close_fd(d.control);
  close_fd(d.log);
  d.logs.set_fd(-1);
  if (d.slot != 0 && !d.settled) return;
  close_fd(d.pidfd);
  drivers_.erase(id);
}

// ---- what tasks print ----------------------------------------------------------------------------------

LogPump& LocalScheduler::logs_of(const Worker& w) {
  Driver* d = driver_of(w.job);
  return d != nullptr ? d->logs : unheard_;
}

void LocalScheduler::after_flush(uint32_t job) {
  Driver* d = driver_of(job);
  if (d == nullptr) return;
  d->logs.flush();
  uint32_t id = 0;
  for (auto& [number, driver] : drivers_)
    if (&driver == d) id = number;
  bool waits = !d->logs.empty();
  if (waits != d->log_watched && d->log >= 0) {
    if (waits)
      watch(d->log, EPOLLOUT, kLogs, id);
    else
      epoll_ctl(epoll_, EPOLL_CTL_DEL, d->log, nullptr);
    d->log_watched = waits;
  }
  if (d->logs.full() != d->pipes_paused) pause_pipes(*d);
}

// A driver that does not read holds up the workers of its own job only.
void LocalScheduler::pause_pipes(Driver& d) {
  d.pipes_paused = !d.pipes_paused;
  for (uint32_t slot = 1; slot < workers_.size(); ++slot) {
    Worker& w = workers_[slot];
    if (w.pid < 0 || w.job != d.job) continue;
    for (Tag tag : {kStdout, kStderr}) {
      int fd = tag == kStdout ? w.out.fd : w.err.fd;
      if (fd < 0) continue;
      if (d.pipes_paused)
        epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
      else
        watch(fd, EPOLLIN, tag, slot);
    }
  }
}

}  // namespace fastray
