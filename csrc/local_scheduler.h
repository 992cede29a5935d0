// The node process's loop: forks workers, gives and takes leases, notices deaths, forwards what is printed.
//
//   bell      eventfd that any process of the node rings when the loop should look now
//   tick      a look without a ring: every 1 ms while tasks run, up to 16 ms while nothing moves
//   dormant   no tick at all: all leased workers sleep, no queue has work. Wakers ring the bell then
//   request   what only Python can do: fork, import modules, leave; run() returns with it
//   standing  a class without a lease: the node's bit is in its `sleeping` set, so that a submitter rings
//
// It never sees a task: workers claim from the queues themselves. What to do is decided in SchedulerState;
// here are the clock, epoll, signals and shared memory. One thread; Python calls run() again and again.
//
//   local_scheduler.cpp          the loop, leases, sleeping
//   local_scheduler_workers.cpp  workers: fork, death, pipes; messages; the end
//   local_scheduler_actors.cpp   actors: start, restart, death, the last handle
//   local_scheduler_limits.cpp   tasks that run longer than their limit
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "log_pump.h"
#include "process.h"
#include "reaper.h"
#include "scheduler_state.h"
#include "watchdog.h"

namespace fastray {

// A message on a control socket (SOCK_SEQPACKET), from a driver or a worker; `bytes` of text follow.
enum class Control : uint32_t {
  kShutdown = 1,    // driver: kill everything and leave
  kCancel = 2,      // the worker in `slot` runs `handle`: SIGUSR1, or SIGKILL when `force`
  kPreload = 3,     // text: modules to import for later workers, one a line
  kKillWorker = 4,  // SIGKILL to the worker in `slot`
  kKillActor = 5,   // the actor whose creation record is `handle`; `force`: it is not to start again
};
struct ControlMessage {
  uint32_t kind;
  uint32_t slot;
  uint64_t handle;
  uint32_t force;
  uint32_t bytes;
};
static_assert(sizeof(ControlMessage) == 24);

struct NodeRequest {
  enum Kind : uint32_t { kFork = 1, kPreload = 2, kExit = 3 } kind = kExit;
  uint32_t slot = 0;
  uint32_t env = 0;
  bool actor = false;
  int stdout_fd = -1, stderr_fd = -1, control_fd = -1;  // the child's ends
  std::string text;
};

class LocalScheduler {
 public:
  struct Fds {
    int segment, bell, driver, log;  // log: -1 when nobody wants what workers print
  };
  // Returns an empty string, or what went wrong.
  std::string start(const Fds& fds);
  // Runs until Python has something to do.
  NodeRequest run();
  // After a kFork request, in the parent: pid of the child, or -1 when fork failed.
  void forked(const NodeRequest& request, int pid);
  // The same in the child: forgets the node, closes what is the node's.
  void become_child(const NodeRequest& request);
  void set_ready();
  // A kPreload request for these modules (one a line) comes when the node is idle.
  void preload_later(const std::string& modules);
  // The pickled runtime_env with this function-table index; empty for 0.
  std::string runtime_env(uint32_t index) const;

 private:
  static constexpr int64_t kMs = 1000000;
  static constexpr int64_t kTickMin = 1 * kMs, kTickMax = 16 * kMs;
  static constexpr int64_t kDormantAfter = 50 * kMs;
  static constexpr int64_t kSweepNs = 1000 * kMs;
  static constexpr uint32_t kActorLook = 8;  // looks without a ring between two looks at all actors
  static constexpr uint32_t kFailedStartsMax = 5;
  static constexpr size_t kMessageBytesMax = 65536;

  enum Tag : uint32_t { kBell, kDriver, kDriverDeath, kLogs, kChildren, kStdout, kStderr, kWorkerControl };
  struct Worker {
    bool used = false;
    int pid = -1;
    int control = -1;
    LogPump::Source out, err;
    uint64_t heartbeat = 0;
    int actor = -1;  // index in the actor table
    LimitedTask hung{};  // killed because of this one
    int64_t born_ns = 0;
  };
  struct ActorSeen {
    bool wanted = false;     // stands in the line
    uint32_t failed_starts = 0;
    uint64_t heads = 0;
    std::string death;       // ActorDeath and texts, once it is dead
  };
  struct ClassSeen {
    uint64_t heads = 0;
    bool stuck = false;  // has a backlog, and its queues' heads did not move since the last tick
  };

  // local_scheduler.cpp
  std::string open_everything(const Fds& fds);
  void make_default_class();
  void step(int64_t now);
  void look(int64_t now);
  bool look_at_classes();
  bool look_at_workers(int64_t now);
  void apply(const SchedulerAction& action, int64_t now);
  void grant(const SchedulerAction& action);
  void revoke(uint32_t slot, int64_t now);
  void stand(uint32_t cls);
  void write_lease_counts();
  void wake_stuck();
  bool is_quiet() const;
  void wait(int64_t now);
  int64_t timeout(int64_t now);
  void handle(uint64_t data, uint32_t events);

  // local_scheduler_actors.cpp
  void look_at_actors(int64_t now);
  void look_at_actor(uint32_t a);
  void wake_stuck_actor(uint32_t a);
  void start_actor(const SchedulerAction& action, int64_t now);
  void check_handles();
  void end_without_handles(const std::vector<uint32_t>& actors);
  void settle_actor(Worker& w, CrashInfo* crash, bool attached);
  std::string describe_death(uint32_t a, const CrashInfo& crash) const;
  void bury(uint32_t a, const std::string& death);
  void stand_for_dead(uint32_t a);
  void free_actor(uint32_t a);
  void kill_actor(const ControlMessage& m);

  // local_scheduler_limits.cpp
  std::vector<LimitedTask> limited_tasks(uint32_t slot) const;
  void watch_limits(int64_t now);

  // local_scheduler_workers.cpp
  bool watch(int fd, uint32_t events, Tag tag, uint32_t slot);
  int prepare_fork(uint32_t env, int64_t now);
  void read_pipe(uint32_t slot, Tag tag);
  void pause_pipes(bool pause);
  void after_flush();
  void reap();
  void worker_died(uint32_t slot, int status, uint64_t peak_bytes);
  CrashInfo examine(uint32_t slot, int status, uint64_t peak_bytes);
  void receive(int fd, bool from_driver);
  void on_message(const ControlMessage& m, const char* text, bool from_driver);
  void cancel(const ControlMessage& m);
  void kill_all();
  void kill_orphans();

  Fds fds_{-1, -1, -1, -1};
  int epoll_ = -1, signals_ = -1, driver_pidfd_ = -1;
  Segment segment_;
  Process process_;
  std::unique_ptr<Reaper> reaper_;
  std::unique_ptr<SchedulerState> state_;
  Watchdog watchdog_;
  LogPump logs_;
  bool log_watched_ = false, pipes_paused_ = false;
  std::vector<Worker> workers_;  // by slot
  std::vector<ClassSeen> classes_;
  std::vector<ActorSeen> actors_;
  uint32_t looks_ = 0;
  std::vector<SchedulerAction> actions_;
  std::deque<NodeRequest> requests_;
  std::string preload_;
  bool leaving_ = false, driver_gone_ = false, moved_ = true, rung_ = true;
  int64_t tick_ = kTickMin, quiet_since_ = -1, sweep_at_ = 0, fork_after_ = 0;
  uint32_t failed_starts_ = 0;
  uint64_t oom_kills_ = 0;  // by the kernel, when the node looked last
};

}  // namespace fastray
