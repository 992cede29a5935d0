// A simulated node: the real decisions (scheduler_state.h, death_policy.h) on virtual time, in a world that loses,
// delays and reorders what may be lost, and in which processes die, hang and come back. From one seed.
//
//   world      processes, queues, sleepers, actors: as much of shared memory as the node's loop looks at
//   node       the loop around the decisions, as local_scheduler*.cpp has it: looks, ticks, bells, dormancy, forks
//   fault      a death, a stop, a lost ring, a late look, a fork that fails; none after `quiet_at`
//   violation  the first invariant that did not hold: the run ends with it
//   digest     a hash of all that happened: equal for equal seeds
//
//   sim_run.cpp      the seed's plan, the event queue, drivers, faults
//   sim_node.cpp     the node
//   sim_workers.cpp  workers and tasks
//   sim_actors.cpp   actors and their calls
//   sim_groups.cpp   placement groups
//   sim_checks.cpp   invariants
//
// Not shipped into any hot path: fastray/sim calls run_node(). What is simulated here and how it was shown to find
// bugs is in docs/internals/simulation.md.
#pragma once

#include <deque>
#include <queue>
#include <string>
#include <vector>

#include "death_policy.h"
#include "loop_pace.h"
#include "scheduler_state.h"

namespace fastray::sim {

inline constexpr int64_t kUs = 1000, kMs = 1000000, kSecond = 1000000000;
inline constexpr int64_t kNever = INT64_MAX;

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
  }
  uint32_t below(uint64_t n) { return static_cast<uint32_t>(next() % n); }
  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(next() % static_cast<uint64_t>(most - least + 1));
  }
  bool chance(uint32_t permille) { return below(1000) < permille; }
  template <class T, size_t N>
  T one_of(const T (&list)[N]) {
    return list[below(N)];
  }

 private:
  uint64_t state_;
};

// What of a seed's plan is played; to find a smaller run that fails too.
struct Limits {
  uint32_t faults_max = UINT32_MAX;
  uint32_t tasks_max = UINT32_MAX;  // and calls
  uint32_t actors_max = UINT32_MAX;
  bool trace = false;
};

struct Outcome {
  std::string violation;  // empty: all invariants held
  std::string trace;
  uint64_t digest = 0;
  uint64_t events = 0, decisions = 0, tasks = 0, calls = 0, forks = 0, deaths = 0, restarts = 0, faults = 0;
  int64_t virtual_ns = 0;
};

Outcome run_node(uint64_t seed, const Limits& limits);

enum class Kind : uint8_t { kTaskReady, kTaskRuns, kTaskDone, kTaskFailed, kTaskCancelled };

struct Task {  // or a call of an actor
  uint32_t cls = 0;
  int32_t max_retries = 0;
  uint32_t attempts = 0, starts = 0;
  Kind state = Kind::kTaskReady;
  int64_t duration = 0;
  int64_t due = 0;             // stands back until then
  int parent = -1, driver = 0;
  uint32_t depth = 0, children = 0;
  bool poison = false;         // each attempt kills its process
  bool cancel = false, orphan = false;
  int slot = -1;               // that runs it
  int actor = -1;
  uint32_t caller = 0, seq = 0;  // of a call
  bool ended() const { return state >= Kind::kTaskDone; }
};

struct Worker {
  bool used = false;           // the node has not seen it end
  bool forked = false, alive = false, booted = false, stopped = false;
  bool seen_booted = false;
  bool sleeping = false;       // its bit is in the set of sleepers; may stay after its death
  bool blocked = false, revoke = false, exiting = false;
  uint32_t life = 0, env = 0, lease = 0, gpus = 0;
  int task = -1;
  uint32_t step = 0;
  uint64_t claims = 0, claims_seen = 0;
  int64_t granted_at = 0;
  bool looked = false;          // for work, since it was given its lease
  std::vector<int> waits_for;  // children
  int actor = -1;
  // the node's books, kept here a second time
  int charged = -1;            // class
  uint32_t pool = 0;
  bool charged_blocked = false;
};

struct ClassInfo {
  bool used = false, seen = false;
  Units demand{};
  uint32_t env = 0;
  Place place{};
  bool stand = false;          // the node is among its sleepers
  std::vector<int> ready;
  uint64_t heads = 0, heads_seen = 0;
  bool stuck = false;
  int64_t unmet_since = -1;    // sim_checks.cpp's own idea of it
};

struct SimGroup {
  std::vector<BundleUnits> bundles;
  bool reserved = false, removed = false;
};

struct SimActor {
  uint32_t state = kActorFree;
  uint32_t end = kEndNone, flags = 0, restarts = 0, failed_starts = 0, info_end = 0, hasty_deaths = 0;
  int64_t start_at = 0;
  int32_t max_restarts = 0;
  bool wanted = false, handles = true, ending = false, init_fails = false, ahead = false;
  bool stand = false;
  uint32_t checkpoint_calls = 0;
  int slot = 0;
  bool constructed = false;
  std::vector<std::deque<int>> queues;  // by caller
  std::deque<int> first;                // what runs again
  std::deque<int> flight;               // claimed; the head runs, unless nothing does
  bool running = false;
  std::vector<uint32_t> last_begun, last_done;  // seq + 1 by caller
  uint64_t done = 0, applied = 0;       // calls sealed well; calls that the instance knows of
  uint64_t saved = 0, replay = 0, failed_saves = 0;
  uint32_t next_caller = 0;
};

enum class What : uint8_t {
  kLook, kForked, kBoot, kWorkerLooks, kStep, kUnblock, kNotice, kSubmit, kFault, kDriverLeaves, kCancel, kKillActor,
  kActorStep, kDropHandles, kResume, kSubmitLate, kMakeGroup,
  kRemoveGroup,
};

struct Event {
  int64_t at;
  uint64_t number;
  What what;
  uint32_t a, b;
  bool operator>(const Event& o) const { return at != o.at ? at > o.at : number > o.number; }
};

class World {
 public:
  World(uint64_t seed, const Limits& limits);
  Outcome run();

 private:
  // sim_run.cpp
  void plan(uint64_t seed);
  void plan_class(uint32_t cls);
  Units feasible_demand(bool actor);
  void plan_actors();
  void plan_submissions();
  void plan_faults();
  void after(int64_t delay, What what, uint32_t a = 0, uint32_t b = 0);
  void handle(const Event& e);
  void submit(uint32_t driver);
  int new_task(uint32_t cls, int parent, int driver);
  void submit_call(uint32_t driver);
  void driver_leaves(uint32_t driver);
  void cancel_one();
  void fault();
  bool may_fault();
  void check_rest();
  void say(const char* format, ...) __attribute__((format(printf, 2, 3)));
  void violated(const char* format, ...) __attribute__((format(printf, 2, 3)));

  // sim_node.cpp
  void ring();
  void look_at(int64_t at);
  void node_looks();
  void step();
  void look();
  void look_at_classes();
  void look_at_workers();
  void apply(const SchedulerAction& action);
  void grant(const SchedulerAction& action);
  void revoke(uint32_t slot);
  void stand(uint32_t cls);
  int prepare_fork(uint32_t env);
  void forked(uint32_t slot);
  void wake_stuck();
  bool is_quiet() const;
  void node_waits();
  void worker_died(uint32_t slot);
  void recover(uint32_t slot, bool restarts);
  void returned(uint32_t slot);  // its lease, to the books

  // sim_workers.cpp
  bool has_ready(uint32_t cls) const;
  void make_ready(int task);
  void notify(uint32_t cls);
  void wake(uint32_t slot);
  void boot(uint32_t slot);
  void worker_looks(uint32_t slot);
  int claim(uint32_t cls);
  void start_task(uint32_t slot, int task);
  void task_step(uint32_t slot);
  bool wait_for_children(uint32_t slot);
  void end_task(uint32_t slot, Kind state);
  void seal(int task, Kind state);
  void die(uint32_t slot, const char* why);
  void settle_task(int task);
  void orphan_children(int parent);

  // sim_actors.cpp
  void look_at_actors();
  void look_at_actor(uint32_t a);
  void start_actor(const SchedulerAction& action);
  void actor_looks(uint32_t slot);
  bool claim_call(uint32_t a);
  void begin_call(uint32_t slot);
  void actor_step(uint32_t slot);
  void construct(uint32_t slot);
  void finish_call(uint32_t slot);
  bool has_call(const SimActor& actor) const;
  void push_call(uint32_t a, int call);
  bool settle_actor(uint32_t slot, bool attached);
  void settle_calls(uint32_t a, bool restarts);
  void bury(uint32_t a);
  void fail_calls(uint32_t a);
  void kill_actor(uint32_t a, bool no_restart);

  // sim_groups.cpp
  void plan_groups(uint64_t seed);
  bool is_over(uint32_t cls) const;
  void make_group(uint32_t g);
  void remove_group(uint32_t g);
  void end_class(uint32_t cls);
  Units demand_of_group(uint32_t g) const;
  bool in_bundle(const Worker& w) const;
  void check_bundle(uint32_t slot, uint32_t cls, uint32_t pool);
  void add_bundle_gpus(std::array<int64_t, kGpusMax>* used);

  // sim_checks.cpp
  Units free_by_books() const;
  void check();
  void check_grant(uint32_t slot, uint32_t cls, uint32_t pool);
  void check_needed(uint32_t cls);
  void check_gpus();
  void add_gpus(const Worker& w, std::array<int64_t, kGpusMax>* used) const;
  void check_claimant(uint32_t cls, const Units& left, const std::vector<uint32_t>& served);
  void note_unmet(const Units& left, const std::vector<uint32_t>& served);
  bool fits(const ClassInfo& c, Units left, bool soon) const;
  void charge(uint32_t slot, uint32_t cls, uint32_t gpus);
  std::string unfinished() const;

  Random random_;
  Limits limits_;
  Outcome out_;
  int64_t now_ = 0;
  uint64_t numbers_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;

  // the plan
  SchedulerState::Limits node_;
  std::vector<uint32_t> task_classes_, child_classes_;  // children take CPUs only: a parent keeps all but its CPU
  uint32_t drivers_ = 1;
  int64_t quiet_at_ = 0;
  uint32_t lose_ring_ = 0, late_look_ = 0, fork_fails_ = 0, dies_booting_ = 0, poison_ = 0, nested_ = 0, skip_wake_ = 0;
  int64_t notice_max_ = 0, duration_max_ = 0, fault_every_ = 0;
  uint32_t left_to_submit_ = 0;

  // the world
  std::vector<ClassInfo> classes_;   // of tasks, and from kActorClass on of actors
  std::vector<Worker> workers_;
  std::vector<Task> tasks_;
  std::vector<SimActor> actors_;
  std::vector<SimGroup> groups_{1};  // from 1 on
  std::vector<bool> driver_gone_;

  // the node
  SchedulerState state_;
  std::vector<SchedulerAction> actions_;
  std::deque<uint32_t> forks_;       // slots, in the order they are asked for
  std::deque<std::pair<int64_t, int>> delayed_;
  int64_t actors_due_ = kNever;
  LoopPace pace_;
  int64_t look_at_ = kNever, busy_until_ = 0, fork_after_ = 0;
  uint32_t looks_ = 0, failed_starts_ = 0, idle_decisions_ = 0;
  bool rung_ = true, moved_ = true, dormant_ = false;
};

}  // namespace fastray::sim
