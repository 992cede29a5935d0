// Who may work on what: the decisions of a node's local scheduler, as a pure state machine.
//
//   event     what happened: a worker attached, blocked, went idle, died; a class has a backlog
//   action    what to do about it: grant or revoke a lease, fork a worker, tell one to exit
//   lease     a worker's right to claim tasks of one class; resources are counted per lease
//   pool      what leases take their charge from: the node's (0), or a bundle's, which was taken from the node's
//   charge    what a lease takes from its pool; a blocked worker's charge is without its CPU
//   coming    a worker that was given a lease, or woken on it, and has not claimed yet: one for each task in the
//             queues is enough
//   group     bundles that are reserved together (a placement group); its pools, once they are. Group 0: the node's pool
//   line      actors and groups that wait for resources; an actor gets a process of its own, with a lease for life
//   claimant  of each group's pools, the class that waited longest beyond kStarvedNs: nobody else is given what it
//             needs, as long as those who run can end without it: who is blocked may wait for a task that needs just that
//   share     of a job: the node's CPUs over the jobs that want some; a job below it gets from one above it
//
// No clock, no shared memory, no system call: local_scheduler.cpp feeds the events, calls decide(now) and
// carries the actions out; tests/native/scheduler_state_test.cpp plays transcripts.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "types.h"

namespace fastray {

using Units = std::array<int64_t, kResourcesMax>;  // in 1/10000 of a unit, by resource index

struct SchedulerAction {
  enum Kind : uint8_t {
    kGrant,   // worker, cls, gpus
    kRevoke,  // worker
    kFork,    // env
    kExit,    // worker
    kStand,   // cls has no lease: the node stands among its sleepers
    kStart,   // cls is an actor's: fork a worker for it, then actor_started() with this pool
    kReserve, // group: its bundles are reserved
  } kind;
  uint32_t worker = 0;
  uint32_t cls = 0;
  uint32_t env = 0;
  uint32_t gpus = 0;
  uint32_t pool = 0;
  uint32_t group = 0;
};

// Where a class may run: in any bundle of a group, or in the one with this number.
struct Place {
  uint32_t group = 0;
  int32_t bundle = -1;
};
struct BundleUnits {
  uint32_t number;  // in its group
  Units units;
  bool open = true;  // what is reserved may be used at once
};

class SchedulerState {
 public:
  static constexpr int64_t kMs = 1000000;
  static constexpr int64_t kIdleLeaseNs = 50 * kMs;  // idle leases of other classes, surplus of class 0
  static constexpr int64_t kStarvedNs = 20 * kMs;
  static constexpr int64_t kComingNs = 200 * kMs;  // after that it may hang: another is sent
  static constexpr int64_t kSpareEnvNs = 1000 * kMs;
  static constexpr int64_t kSpareDefaultNs = 10000 * kMs;
  static constexpr uint32_t kWorkersMax = 3000;  // that run tasks
  static constexpr uint32_t kStartsMax = 8;      // actors started in one decision
  static constexpr int64_t kNever = INT64_MAX;
  static constexpr int64_t kUnit = 10000;

  struct Limits {
    Units total{};
    uint32_t cpus = 1;
    int cpu = 0;   // resource indices; -1: the node has none
    int gpu = -1;
    bool prestart = true;  // leases and workers of class 0 before there is work
    int64_t spare_env_ns = kSpareEnvNs;
  };
  explicit SchedulerState(const Limits& limits);

  // ---- events --------------------------------------------------------------------------------
  void class_seen(uint32_t cls, const Units& demand, uint32_t env, uint32_t job = 0, Place place = {});
  // `tasks`: how many stand in its queues, at most.
  void class_backlog(uint32_t cls, bool backlog, uint64_t tasks = UINT64_MAX) {
    classes_[cls].backlog = backlog;
    classes_[cls].tasks = tasks;
  }
  // Its job is over: the number may come back as another class.
  void class_gone(uint32_t cls);
  void class_stand_taken(uint32_t cls) { classes_[cls].standing = false; }
  void worker_starting(uint32_t slot, uint32_t env);
  void worker_attached(uint32_t slot, int64_t now);
  void worker_died(uint32_t slot);
  void worker_blocked(uint32_t slot, bool blocked);
  void worker_idle(uint32_t slot, bool idle, int64_t now);
  // It has claimed since the last look.
  void worker_claimed(uint32_t slot) { workers_[slot].coming_since = kNever; }
  void lease_returned(uint32_t slot, int64_t now);
  // An actor joins the line, or leaves it.
  void actor_wanted(uint32_t cls, const Units& demand, uint32_t env, uint32_t job = 0, Place place = {});
  void actor_unwanted(uint32_t cls);
  // The worker in `slot` (starting) is this actor's; returns its GPUs as a bit mask.
  uint32_t actor_started(uint32_t slot, uint32_t cls, int64_t now, uint32_t pool = 0);
  // Group `group` (from 1 on) joins the line. kReserve comes when the node's pool has room for all of its bundles at once.
  // Bundles that it has already stay; those that it waited for before are not wanted any more.
  void bundles_wanted(uint32_t group, const std::vector<BundleUnits>& bundles, uint32_t job = 0);
  void bundles_unwanted(uint32_t group) { actor_unwanted(kGroupClass + group); }
  // It leaves the line, and gives its pools back to the node's; what is leased in them is charged there until it ends.
  void bundles_removed(uint32_t group);
  // The same for one bundle of several; the line is left alone.
  void bundle_released(uint32_t group, uint32_t number);
  void bundle_opened(uint32_t group, uint32_t number);

  // ---- decisions -----------------------------------------------------------------------------
  void decide(int64_t now, std::vector<SchedulerAction>* actions);
  // When decide() has to be called again though nothing happens; kNever when there is no need.
  int64_t next_deadline() const { return next_; }
  // Some class has work that this node can do.
  bool has_backlog() const;

  bool knows_class(uint32_t cls) const { return cls < classes_.size() && classes_[cls].known; }
  bool feasible(uint32_t cls) const;
  uint32_t leases(uint32_t cls) const { return classes_[cls].leases; }
  bool is_leased(uint32_t slot) const { return slot < workers_.size() && workers_[slot].cls >= 0; }
  int class_of_worker(uint32_t slot) const { return workers_[slot].cls; }
  bool is_reserved(uint32_t group) const { return group < groups_.size() && !groups_[group].pools.empty(); }
  // All of the group's bundles fit on this node when nothing else runs.
  bool feasible_group(uint32_t group) const;
  const Units& demand_of_group(uint32_t group) const { return classes_[kGroupClass + group].demand; }
  uint32_t bundle_of(uint32_t pool) const { return pools_[pool].bundle; }  // its number in its group
  uint32_t pool_of_worker(uint32_t slot) const { return workers_[slot].pool; }
  // Pool of a bundle that is reserved; 0: it is not.
  uint32_t pool_of_bundle(uint32_t group, uint32_t number) const;
  std::vector<BundleUnits> held_bundles(uint32_t group) const;
  // GPUs of bundle `number`, as a bit mask.
  uint32_t gpus_of_bundle(uint32_t group, uint32_t number) const;
  const Units& available() const { return pools_[0].free; }
  bool is_valid() const;  // of each pool: free + charges == total; counts agree

 private:
  struct Worker {
    bool present = false, alive = false, revoking = false, blocked = false, idle = false, exiting = false;
    bool actor = false;
    uint32_t env = 0;
    int32_t cls = -1;
    uint32_t pool = 0;
    uint32_t gpus = 0;
    int64_t gpu_units = 0;   // charged on each of its GPUs
    int64_t since = 0;       // idle since, or without a lease since
    int64_t granted_at = 0;
    int64_t coming_since = kNever;
  };
  struct Class {
    bool known = false, backlog = false, standing = false, waits = false;  // waits for resources or workers
    Units demand{};
    uint32_t env = 0, job = 0;
    Place place{};
    uint64_t tasks = 0;
    uint32_t leases = 0;
    int64_t unmet_since = -1;
  };
  struct Pool {
    bool used = false, open = true;
    Units total{}, free{};
    std::array<int64_t, kGpusMax> gpu_free{};
    uint32_t bundle = 0;  // its number
    uint32_t gpus = 0;
    int64_t gpu_units = 0;  // of each of them
  };
  struct Group {
    std::vector<BundleUnits> bundles;
    std::vector<uint32_t> pools;  // once it is reserved, as bundles
  };
  // A group stands in the line, and is a claimant, as a class.
  static constexpr uint32_t kGroupClass = kActorClass + kActorsMax;
  static bool is_group_class(uint32_t cls) { return cls >= kGroupClass; }

  // scheduler_state_groups.cpp
  void serve_group(uint32_t cls, int64_t now);
  bool lay_out(const Group& group, Pool* from, std::vector<Pool>* laid_out) const;
  bool fits_in(uint32_t cls, const Pool& pool) const;
  int pool_for(uint32_t cls, bool beside_claimant) const;
  // Of the pools that the class may take from; those of a group are there once it is reserved.
  template <class Visit>
  bool any_pool(uint32_t cls, Visit&& visit) const {
    const Place& place = classes_[cls].place;
    if (place.group == 0) return visit(0u);
    return std::any_of(groups_[place.group].pools.begin(), groups_[place.group].pools.end(), [&](uint32_t p) {
      return pools_[p].open && (place.bundle < 0 || pools_[p].bundle == static_cast<uint32_t>(place.bundle)) && visit(p);
    });
  }
  bool may_use(uint32_t cls, uint32_t pool) const;
  void give_back(uint32_t pool);
  static void take(Pool& pool, const Units& units, uint32_t gpus, int64_t gpu_units, int64_t sign);

  void keep_leases(int64_t now);
  void shed_oversubscribed(int64_t now);
  void serve(uint32_t cls, int64_t now);
  void serve_line(int64_t now);
  void reserve(const Class& c, uint32_t pool);
  void release_reserved();
  void make_room(uint32_t cls, int64_t now);
  void find_claimant(int64_t now);
  bool can_come(uint32_t cls) const;
  int claimant_of(uint32_t cls) const { return claimants_[classes_[cls].place.group]; }
  void retire_spares(int64_t now);
  void stand();
  uint32_t wanted(uint32_t cls, int64_t now) const;
  bool somebody_waits() const;
  static bool fits(const Units& demand, const Units& free);
  bool gpus_for(const Units& demand, const Pool& pool, uint32_t* mask, int64_t* units) const;
  void charge(Worker& w, const Class& c, int64_t sign);
  void grant(uint32_t cls, uint32_t slot, uint32_t pool, int64_t now);
  void revoke(uint32_t slot);
  int free_worker(uint32_t env) const;
  int victim(uint32_t for_cls, bool busy, int64_t now) const;
  int64_t share() const;
  int64_t cpus_of(uint32_t job) const;
  bool below_share(uint32_t cls) const;
  Units coming(uint32_t pool) const;
  uint32_t awake(uint32_t cls) const;  // leased and not blocked
  bool has_idle(uint32_t cls) const;
  uint64_t coming_to(uint32_t cls, int64_t now) const;
  bool zero_demand(const Class& c) const;
  void due(int64_t t) {
    if (t < next_) next_ = t;
  }

  Limits limits_;
  std::vector<Pool> pools_;      // the node's, and those of reserved bundles
  std::vector<Group> groups_;    // by number
  std::vector<Worker> workers_;  // by slot
  std::vector<uint32_t> slots_;  // of those present
  std::vector<Class> classes_;   // of tasks, from kActorClass on of actors, from kGroupClass on of groups
  std::vector<uint32_t> line_;   // actor classes, first come first; and groups'
  struct Reserved {
    uint32_t pool;
    Units demand;
    uint32_t gpus;
    int64_t gpu_units;
  };
  std::vector<Reserved> reserved_;  // for the actors that this decision starts, until it is over
  std::vector<SchedulerAction>* out_ = nullptr;
  std::vector<uint32_t> starting_envs_;  // of workers on their way, not yet counted on
  uint32_t task_classes_ = 0;            // of classes_, those that may be tasks'
  uint32_t rotate_ = 0;
  std::vector<int> claimants_;           // by group
  int64_t over_since_ = -1;
  int64_t next_ = kNever;
};

}  // namespace fastray
