// What ties a daemon's node to its cluster: the agent, the numbers of jobs, and descriptors that Python watches.
// See local_scheduler.h.
//
//   agent     a process of fastray/cluster/agent.py; it attaches as drivers do, its slot is Header::agent_slot
//   numbers   a cluster gives each job a number of its own. The agent asks for them in blocks and passes them on, so
//             that a driver need not wait for another machine; one that finds none left waits for the next block
//   watched   Python's: its helpers' pipes and pidfds. The loop only says that one is readable
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>

#include "local_scheduler.h"

namespace fastray {

bool LocalScheduler::watch_for_python(int fd) { return watch(fd, EPOLLIN, kPython, static_cast<uint32_t>(fd)); }

void LocalScheduler::unwatch(int fd) {
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  auto is_of = [fd](const NodeRequest& r) { return r.kind == NodeRequest::kReadable && r.readable == fd; };
  requests_.erase(std::remove_if(requests_.begin(), requests_.end(), is_of), requests_.end());
}

void LocalScheduler::spare(int pid) { spared_.push_back(pid); }

// ---- numbers of jobs -----------------------------------------------------------------------------------

bool LocalScheduler::lacks_number() const { return fds_.numbered && job_numbers_.empty(); }

// A node of no cluster counts by itself.
uint32_t LocalScheduler::take_number() {
  std::atomic<uint32_t>& last = segment_.header().jobs_used;
  if (!fds_.numbered) return last.fetch_add(1, std::memory_order_acq_rel) + 1;
  Numbers& block = job_numbers_.front();
  uint32_t number = block.next++;
  if (--block.count == 0) job_numbers_.pop_front();
  last.store(number, std::memory_order_release);
  return number;
}

void LocalScheduler::add_numbers(const ControlMessage& m) {
  if (m.slot == 0) return;
  job_numbers_.push_back({static_cast<uint32_t>(m.handle), m.slot});
  std::vector<uint32_t> waiting;
  for (const auto& [id, d] : drivers_)
    if (!d.hello.empty()) waiting.push_back(id);
  for (uint32_t id : waiting) {
    std::string message = std::move(drivers_[id].hello);
    drivers_[id].hello.clear();
    AttachHello hello;
    memcpy(&hello, message.data(), sizeof hello);
    attach(id, hello, message.data() + sizeof hello);
  }
}

// It reads the table of jobs itself; a message that finds no room is not needed, there is one already.
void LocalScheduler::tell_agent() {
  ControlMessage message{static_cast<uint32_t>(Control::kJobsChanged), 0, 0, 0, 0};
  for (const auto& [id, d] : drivers_)
    if (d.agent && !d.left) (void)send(d.control, &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// ---- what runs on other nodes ---------------------------------------------------------------------------

// What a driver or worker wants of a task or actor that the agent has sent away.
void LocalScheduler::forward(const ControlMessage& m) {
  for (const auto& [id, d] : drivers_)
    if (d.agent && !d.left) (void)send(d.control, &m, sizeof m, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// What a worker on another node printed, for a driver here.
void LocalScheduler::print_for(const ControlMessage& m, const char* text) {
  Driver* d = driver_of(m.slot);
  if (d == nullptr || d->agent) return;
  LogPump::Source source;
  source.pid = static_cast<uint32_t>(m.handle);
  source.stream = static_cast<uint8_t>(m.force);
  d->logs.pass(source, text, m.bytes);
  after_flush(m.slot);
}

void LocalScheduler::wake_agent() {
  uint32_t slot = segment_.header().agent_slot.load(std::memory_order_acquire);  // SYNC POINT: agent-slot
  if (slot != 0) Process::wake_process(segment_, slot);
}

// Its node says that it ended, or is gone itself, and no restart is left.
void LocalScheduler::end_foreign(const ControlMessage& m) {
  int living = living_actor(m.handle);
  if (living < 0) return;
  uint32_t a = static_cast<uint32_t>(living);
  Actor& actor = segment_.actor(a);
  uint32_t none = kEndNone;
  actor.end.compare_exchange_strong(none, m.force, std::memory_order_acq_rel);
  actor.slot.store(0, std::memory_order_release);
  CrashInfo crash{0, 0, 0, "", static_cast<int>(a), false, ""};
  bury(a, describe_death(a, crash));
  rung_ = true;
}

// The driver was on another node; what it has here, the agent owns.
void LocalScheduler::end_foreign_job(uint32_t job) {
  if (job == 0 || is_over(job)) return;
  for (const auto& [id, d] : drivers_)
    if (d.job == job) return;
  ended_jobs_.push_back(job);
  reaper_->job_is_over(job);
  drop_job(job);
}

}  // namespace fastray
