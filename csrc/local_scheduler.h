// The node process's loop: forks workers, gives and takes leases, notices deaths, forwards what is printed.
//
//   bell      eventfd that any process of the node rings when the loop should look now
//   tick      a look without a ring: every 1 ms while tasks run, up to 16 ms while nothing moves
//   dormant   no tick at all: all leased workers sleep, no queue has work. Wakers ring the bell then
//   request   what only Python can do: fork, import modules, leave; run() returns with it
//   standing  a class without a lease: the node's bit is in its `sleeping` set, so that a submitter rings
//   driver    a process with a control socket to us. A private node has one, that started it and whose end is its
//             own; a daemon has a socket where drivers attach and leave, each with its job
//   job over  its driver is gone: what it owns is dropped, what works for it is killed, detached actors live on
//   agent     the process that joins the node to a cluster (fastray/cluster): attached like a driver, without a job
//
// It never sees a task: workers claim from the queues themselves. What to do is decided in SchedulerState;
// here are the clock, epoll, signals and shared memory. One thread; Python calls run() again and again.
//
//   local_scheduler.cpp          the loop, leases, sleeping
//   local_scheduler_workers.cpp  workers: fork, death, pipes; messages; the end
//   local_scheduler_actors.cpp   actors: start, restart, death, the last handle
//   local_scheduler_limits.cpp   tasks that run longer than their limit
//   local_scheduler_groups.cpp   placement groups
//   local_scheduler_bundles.cpp  those of a cluster: what of them is here
//   local_scheduler_drivers.cpp  drivers: attaching, leaving, what their tasks print
//   local_scheduler_jobs.cpp     the end of a job, and of what is left of it
//   local_scheduler_cluster.cpp  the agent, numbers of jobs from it, descriptors that Python watches
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "log_pump.h"
#include "loop_pace.h"
#include "process.h"
#include "reaper.h"
#include "scheduler_state.h"
#include "watchdog.h"

namespace fastray {

// A message on a control socket (SOCK_SEQPACKET), from a driver or a worker; `bytes` of text follow.
enum class Control : uint32_t {
  kShutdown = 1,    // driver: it leaves; `force`: but goes on reading its mapping until it ends
  kCancel = 2,      // the worker in `slot` runs `handle`: SIGUSR1, or SIGKILL when `force`
  kPreload = 3,     // text: modules to import for later workers, one a line
  kKillWorker = 4,  // SIGKILL to the worker in `slot`
  kKillActor = 5,   // the actor whose creation record is `handle`; `force`: it is not to start again
  kRecorded = 6,    // worker in `slot`: the crashes it was forked with are written down
  kJobNumbers = 7,  // agent: the next drivers' jobs have the `slot` numbers from `handle` on
  kJobsChanged = 8, // to the agent: a job began or ended; there is no text
  kActorEnded = 9,  // agent: the foreign actor whose creation record is `handle` is over; `force` is its ActorEnd
  kJobOver = 10,    // agent: the job `slot`, of another node, is over
  kPrint = 12,      // agent: the job `slot`'s driver prints the text, of process `handle` on another node, stream `force`
  kRetryLater = 11,  // worker: the task `handle` raised and runs again after a delay
  kCreateGroup = 13,  // text: a GroupRequest and what belongs to it (types_group.h)
  kRemoveGroup = 14,  // text: the id of the group
  kSetGroup = 15,     // agent: what a placement group of the cluster is now; text as of kCreateGroup
  kSettingUp = 32,    // the worker in `slot` prepares its runtime_env: it needs no CPU, and no other worker of it helps
};
struct ControlMessage {
  uint32_t kind;
  uint32_t slot;
  uint64_t handle;
  uint32_t force;
  uint32_t bytes;
};
static_assert(sizeof(ControlMessage) == 24);

// The first message of a driver on a daemon's socket; `text_bytes` follow: namespace, NUL, entry point.
struct AttachHello {
  uint64_t magic;
  uint32_t wire_version;
  uint32_t python;    // major << 8 | minor
  uint32_t observer;  // 0: a driver; kObserver, kAgent
  uint32_t text_bytes;
};
static_assert(sizeof(AttachHello) == 24);
inline constexpr uint32_t kObserver = 1;  // no job, it only looks
inline constexpr uint32_t kAgent = 2;     // no job, joins the node to a cluster; one at a time
// The answer. With kAttached it carries descriptors: segment, bell and, unless an observer's, the log socket. With
// kRefused text follows: why.
enum AttachStatus : uint32_t { kAttached = 1, kRefused = 2 };
struct AttachReply {
  uint64_t magic;
  uint64_t session;
  uint32_t status;
  uint32_t slot;
  uint32_t job;
  uint32_t pid;         // the node's
  uint32_t text_bytes;
  uint32_t reserved;
};
static_assert(sizeof(AttachReply) == 40);

struct NodeRequest {
  enum Kind : uint32_t { kFork = 1, kPreload = 2, kExit = 3, kReadable = 4 } kind = kExit;
  uint32_t slot = 0;
  uint32_t env = 0;
  bool actor = false;
  int stdout_fd = -1, stderr_fd = -1, control_fd = -1;  // the child's ends
  std::vector<Handle> crashed;  // of a kFork: tasks whose failure it writes down before it works
  int readable = -1;  // the descriptor of kReadable
  std::string text;
};

class LocalScheduler {
 public:
  struct Fds {
    int segment, bell;
    int driver, log;  // private node: its driver's; log: -1 when nobody wants what workers print
    int listen;       // daemon: the socket where drivers attach; else -1
    uint32_t python;  // daemon: major << 8 | minor of its interpreter
    bool numbered;    // daemon in a cluster: numbers of jobs come from its agent, drivers wait for them
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
  // A kReadable request comes whenever `fd` is readable, until it is closed or `unwatch`ed.
  bool watch_for_python(int fd);
  void unwatch(int fd);
  // A child that is Python's to end: the node's end leaves it alone.
  void spare(int pid);
  // As SIGTERM does: the next run() kills what the node started, and returns kExit.
  void end() { leaving_ = true; }
  // The pickled runtime_env with this function-table index; empty for 0.
  std::string runtime_env(uint32_t index) const;

 private:
  static constexpr int64_t kMs = 1000000;
  static constexpr int64_t kSweepNs = 1000 * kMs;
  static constexpr int64_t kRemovedKeptNs = 100 * kMs;  // a placement group that is over: its number is not another's before
  static constexpr uint32_t kActorLook = 8;  // looks without a ring between two looks at all actors
  static constexpr size_t kMessageBytesMax = 65536;
  static constexpr uint32_t kUnattachedMax = 64;      // connections that have not said what they want
  static constexpr int64_t kLogsWaitNs = 500 * kMs;   // for a driver that leaves to read the last of what was printed

  enum Tag : uint32_t { kBell, kDriver, kDriverDeath, kLogs, kChildren, kStdout, kStderr, kWorkerControl, kListen, kPython };
  struct Driver {
    int control = -1, pidfd = -1, log = -1;
    int pid = 0;
    uint32_t slot = 0;       // 0: has not attached yet
    uint32_t job = 0;        // 0: an observer, the agent
    bool agent = false;
    std::string hello;       // it waits for the number of its job
    LogPump logs;
    bool log_watched = false, pipes_paused = false;
    uint32_t goodbye = 0;    // it said so; 2: and goes on reading what it has mapped
    bool left = false;       // said goodbye, or is dead
    bool settled = false;    // what its slot held is recovered
    int64_t close_at = 0;    // when it has left: the time its logs may take
  };
  struct Worker {
    bool used = false;
    int pid = -1;
    int control = -1;
    LogPump::Source out, err;
    uint64_t heartbeat = 0;
    int actor = -1;  // index in the actor table
    LimitedTask hung{};  // killed because of this one
    int64_t born_ns = 0;
    uint32_t job = 0;
    bool doomed = false;  // killed with its job
    uint32_t setting_up = 0;  // the runtime_env that it prepares, until it has attached
    std::vector<Handle> crashed;  // tasks held for it until it has written them down
  };
  struct ActorSeen {
    bool wanted = false;     // stands in the line
    bool told = false;       // the agent knows that it waits
    uint32_t failed_starts = 0;
    uint32_t hasty_deaths = 0;
    int64_t start_at = 0;    // not before: it died hastily again and again
    uint64_t heads = 0;
    std::string death;       // ActorDeath and texts, once it is dead
  };
  struct ClassSeen {
    uint64_t heads = 0;
    bool stuck = false;  // has a backlog, and its queues' heads did not move since the last tick
  };

  // local_scheduler.cpp
  bool is_being_set_up(uint32_t env) const;
  std::string open_everything(const Fds& fds);
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
  void look_at_actor(uint32_t a, int64_t now);
  void wake_stuck_actor(uint32_t a);
  void start_actor(const SchedulerAction& action, int64_t now);
  void check_handles();
  void end_without_handles(const std::vector<uint32_t>& actors);
  void settle_actor(Worker& w, CrashInfo* crash, bool attached);
  std::string describe_death(uint32_t a, const CrashInfo& crash) const;
  void bury(uint32_t a, const std::string& death);
  void stand_for_dead(uint32_t a);
  void free_actor(uint32_t a);
  int living_actor(Handle creation);
  void kill_actor(const ControlMessage& m);
  void end_actor(uint32_t a, ActorEnd why);

  // local_scheduler_groups.cpp
  uint32_t find_group(const uint8_t* id) const;
  void create_group(const char* text, size_t bytes);
  static bool read_group(const char* text, size_t bytes, GroupRequest* r, std::vector<BundleUnits>* bundles,
                         const char** spec);
  uint32_t take_group(const GroupRequest& r, const char* spec);
  void group_changed(uint32_t g);
  void group_reserved(uint32_t g);
  void wake_users();
  void remove_group(uint32_t g, int64_t now);
  void remove_group_named(const char* text, size_t bytes);
  void remove_groups_of(uint32_t job, int64_t now, bool here);
  bool has_creator(const Group& group) const;
  void end_class(uint32_t c);
  void recycle_groups(int64_t now);
  bool recycle_group(uint32_t g, const std::vector<bool>& named);
  void free_group(uint32_t g);

  // local_scheduler_bundles.cpp
  void set_group(const char* text, size_t bytes);
  void set_bundles(uint32_t g, const std::vector<BundleUnits>& wanted, uint32_t job);
  void release_bundle(uint32_t g, uint32_t number, int64_t now);
  void count_reserved(uint32_t g);
  void leave_routed(uint32_t c);

  // local_scheduler_limits.cpp
  std::vector<LimitedTask> limited_tasks(uint32_t slot) const;
  void watch_limits(int64_t now);

  // local_scheduler_workers.cpp
  bool watch(int fd, uint32_t events, Tag tag, uint32_t id);
  int prepare_fork(uint32_t env, int64_t now);
  void read_pipe(uint32_t slot, Tag tag);
  void pause_pipes(Driver& d);
  LogPump& logs_of(const Worker& w);
  void after_flush(uint32_t job);
  void reap();
  void worker_died(uint32_t slot, int status, uint64_t peak_bytes);
  CrashInfo examine(uint32_t slot, int status, uint64_t peak_bytes);
  bool receive(int fd, Driver* from);
  void on_message(const ControlMessage& m, const char* text, Driver* from);
  void cancel(const ControlMessage& m);
  void record_crashes(int64_t now);
  void let_go_of_crashed(Worker& w);
  void kill_all();
  bool kill_orphans();

  // local_scheduler_drivers.cpp
  std::string open_private_driver();
  std::string open_listener();
  Driver* driver_of(uint32_t job);
  void accept_drivers();
  void on_driver_socket(uint32_t id);
  void attach(uint32_t id, const AttachHello& hello, const char* text);
  bool answer(Driver& d, int log);
  void refuse(uint32_t id, const std::string& why);
  void leave(uint32_t id, bool dead, bool reads_on);
  void look_at_leavers(int64_t now);
  void close_driver(uint32_t id);

  // local_scheduler_cluster.cpp
  bool lacks_number() const;
  uint32_t take_number();
  void add_numbers(const ControlMessage& m);
  void tell_agent();
  void forward(const ControlMessage& m);
  void wake_agent();
  void print_for(const ControlMessage& m, const char* text);
  void end_foreign(const ControlMessage& m);
  void end_foreign_job(uint32_t job);

  // local_scheduler_jobs.cpp
  uint32_t job_of_env(uint32_t env) const;
  void begin_job(const Driver& d, const char* text, size_t bytes);
  void end_job(const Driver& d);
  bool is_over(uint32_t job) const;
  void drop_job(uint32_t job);
  bool has_workers(uint32_t job, bool doomed_only) const;
  void doom(uint32_t slot);
  void skip_stale(uint32_t cls);
  template <class Visit>
  void for_actors_of(uint32_t job, Visit&& visit) const;
  bool has_actors(uint32_t job) const;
  void retire_jobs();
  bool retire(uint32_t job);

  Fds fds_{-1, -1, -1, -1, -1, 0, false};
  int epoll_ = -1, signals_ = -1;
  std::map<uint32_t, Driver> drivers_;  // by connection: numbers are not used twice
  uint32_t connections_ = 0;
  struct Numbers { uint32_t next, count; };
  std::deque<Numbers> job_numbers_;     // for jobs to come, of a node in a cluster
  std::vector<int> spared_;             // pids
  std::vector<uint32_t> ended_jobs_;    // their drivers are gone, something of them is left
  LogPump unheard_;                     // of workers whose driver is gone
  Segment segment_;
  Process process_;
  std::unique_ptr<Reaper> reaper_;
  std::unique_ptr<SchedulerState> state_;
  Watchdog watchdog_;
  std::vector<Worker> workers_;  // by slot
  bool any_setting_up_ = false;
  std::vector<ClassSeen> classes_;
  std::vector<ActorSeen> actors_;
  int64_t actors_due_ = INT64_MAX;  // the first `start_at` that is waited for
  uint32_t looks_ = 0;
  std::vector<SchedulerAction> actions_;
  std::deque<NodeRequest> requests_;
  std::string preload_;
  std::vector<std::string> unmade_;  // GroupRequests, when the table is full
  bool leaving_ = false, driver_gone_ = false, moved_ = true, rung_ = true;
  LoopPace pace_;
  int64_t sweep_at_ = 0, fork_after_ = 0, recycle_at_ = 0, recycle_wait_ = 0;
  uint32_t failed_starts_ = 0;
  uint64_t oom_kills_ = 0;  // by the kernel, when the node looked last
};

}  // namespace fastray
