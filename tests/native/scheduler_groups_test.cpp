// Transcripts of placement groups: bundles are reserved together, and tasks and actors run in them.
#include "scheduler_play.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

constexpr uint32_t kGroup = 1;

// Class 1: one CPU in any bundle of the group; class 2: one CPU in bundle 1.
void see_classes(Play& p) {
  p.state.class_seen(1, units({{kCpu, 1}}), 0, 0, {kGroup, -1});
  p.state.class_seen(2, units({{kCpu, 1}}), 0, 0, {kGroup, 1});
}

void spare_workers(Play& p, std::initializer_list<uint32_t> slots) {
  for (uint32_t slot : slots) {
    p.state.worker_starting(slot, 0);
    p.attach(slot);
    p.next_slot = std::max(p.next_slot, slot + 1);
  }
}

int64_t free_cpus(const Play& p) { return p.state.available()[kCpu] / SchedulerState::kUnit; }

void all_bundles_are_reserved_at_once_or_none() {
  Play p(4);
  p.boot(true);
  p.state.worker_died(5);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}, {1, units({{kCpu, 1}})}});
  EXPECT(p.at(1), "");  // one is free, a second would be needed; class 0 does not get it either
  CHECK(!p.state.is_reserved(kGroup) && free_cpus(p) == 1);
  p.state.worker_died(4);
  EXPECT(p.at(2), "reserve 1");
  CHECK(p.state.is_reserved(kGroup) && free_cpus(p) == 0);
  p.state.bundles_removed(kGroup);
  CHECK(!p.state.is_reserved(kGroup) && free_cpus(p) == 2 && p.state.is_valid());
}

void idle_leases_of_others_make_room_for_a_group() {
  Play p(2);
  p.boot(false);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}, {1, units({{kCpu, 1}})}});
  EXPECT(p.at(10), "revoke 2, revoke 3");
  p.give_back(2);
  p.give_back(3);
  EXPECT(p.at(10), "reserve 1, stand 0");
}

void tasks_are_charged_to_their_bundle() {
  Play p(4);
  p.boot(true);
  p.state.worker_died(4);
  p.state.worker_died(5);
  see_classes(p);
  p.state.class_backlog(1, true);
  p.state.class_backlog(2, true);
  CHECK(!p.state.feasible(1) && !p.state.has_backlog());  // before it is reserved
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}, {1, units({{kCpu, 1}})}});
  spare_workers(p, {6, 7, 8});
  EXPECT(p.at(1), "reserve 1, grant 1 to 6, grant 1 to 7");
  CHECK(p.state.feasible(1) && free_cpus(p) == 0);
  EXPECT(p.at(20), "");
  EXPECT(p.at(21), "revoke 7");  // class 2 may use bundle 1 only
  p.give_back(7);
  EXPECT(p.at(22), "grant 2 to 7");
  p.state.class_backlog(2, false);
  p.state.worker_blocked(7, true);  // its CPU is the bundle's
  CHECK(free_cpus(p) == 0);
  EXPECT(p.at(23), "grant 1 to 8");
  p.state.class_backlog(1, false);
  p.state.worker_blocked(7, false);
  EXPECT(p.at(24), "");
  EXPECT(p.at(74), "revoke 8");  // more run in it than it has
}

void a_group_that_never_fits_holds_up_nobody() {
  Play p(2);
  p.boot(false);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 2}})}, {1, units({{kCpu, 1}})}});
  EXPECT(p.at(10), "");
  CHECK(!p.state.has_backlog() && !p.state.feasible_group(kGroup));
  CHECK(p.state.next_deadline() == SchedulerState::kNever);
}

void a_group_starves_not() {
  Play p(2);
  p.boot(true);
  p.state.class_backlog(0, true);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}, {1, units({{kCpu, 1}})}});
  EXPECT(p.at(100), "");
  EXPECT(p.at(120), "revoke 2, revoke 3");
  p.give_back(2);
  EXPECT(p.at(121), "");  // class 0 does not get it back
  p.give_back(3);
  EXPECT(p.at(122), "reserve 1");
}

void gpus_are_reserved_by_index() {
  Play p(2, 3);
  p.boot(false);
  p.state.bundles_wanted(kGroup, {{0, units({{kGpu, 0.5}})}, {1, units({{kGpu, 2}})}});
  EXPECT(p.at(1), "reserve 1");
  CHECK(p.state.gpus_of_bundle(kGroup, 1) == 3 && p.state.gpus_of_bundle(kGroup, 0) == 4);
  p.state.class_seen(1, units({{kGpu, 1}}), 0, 0, {kGroup, -1});
  p.state.class_seen(2, units({{kGpu, 0.5}}), 0, 0, {kGroup, 0});
  p.state.class_seen(3, units({{kGpu, 0.5}}), 0);
  spare_workers(p, {6, 7, 8, 9});
  p.state.class_backlog(1, true);
  EXPECT(p.at(2), "grant 1 to 6 gpus 1, stand 2, stand 3");
  EXPECT(p.at(3), "grant 1 to 7 gpus 2");
  p.state.class_backlog(1, false);
  p.state.class_backlog(2, true, 1);
  p.state.class_backlog(3, true, 1);
  std::string said = p.at(4);
  CHECK(said == "grant 2 to 8 gpus 4, grant 3 to 9 gpus 4" || said == "grant 3 to 8 gpus 4, grant 2 to 9 gpus 4");
}

void an_actor_waits_for_its_group() {
  Play p(2, 1);
  p.boot(true);
  p.state.actor_wanted(kActorClass, units({{kCpu, 1}}), 0, 0, {kGroup, 0});
  EXPECT(p.at(1), "");
  CHECK(!p.state.has_backlog());
  p.state.worker_died(3);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}});
  std::vector<SchedulerAction> actions;
  p.state.decide(2 * SchedulerState::kMs, &actions);
  CHECK(actions.size() == 1 && actions[0].kind == SchedulerAction::kReserve);
  actions.clear();
  p.state.decide(3 * SchedulerState::kMs, &actions);
  CHECK(actions.size() == 1 && actions[0].kind == SchedulerAction::kStart && actions[0].pool == 1);
  p.state.worker_starting(9, 0);
  (void)p.state.actor_started(9, kActorClass, p.now, actions[0].pool);
  CHECK(p.state.is_valid());
  p.state.bundles_removed(kGroup);  // what it holds is free when it is dead
  CHECK(p.state.is_valid() && free_cpus(p) == 0);
  p.state.worker_died(9);
  CHECK(p.state.is_valid() && free_cpus(p) == 1);
}

void a_removed_group_leaves_the_line() {
  Play p(1);
  p.boot(true);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}});
  p.at(1);
  CHECK(p.state.has_backlog());
  p.state.bundles_removed(kGroup);
  CHECK(!p.state.has_backlog());
  p.state.worker_died(2);
  EXPECT(p.at(2), "fork 3 env 0, stand 0");
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}});  // its number may be another's
  EXPECT(p.at(3), "reserve 1");
}

// Of a cluster: what is reserved may be used once all nodes have agreed.
void a_closed_bundle_runs_nothing_until_it_is_opened() {
  Play p(2);
  p.boot(false);
  see_classes(p);
  spare_workers(p, {4, 5});
  p.state.class_backlog(1, true);
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}}), false}});
  p.state.worker_died(3);
  EXPECT(p.at(1), "reserve 1, stand 1, stand 2");
  CHECK(p.state.held_bundles(kGroup).size() == 1 && !p.state.held_bundles(kGroup)[0].open);
  EXPECT(p.at(2), "");
  CHECK(!p.state.feasible(1));
  p.state.bundle_opened(kGroup, 0);
  EXPECT(p.at(3), "grant 1 to 4");
}

// Others of the group come and go beside those that the node has.
void bundles_come_and_go_one_by_one() {
  Play p({units({{kCpu, 4}, {kMemory, 100}}), 4, kCpu, -1, false});
  see_classes(p);
  spare_workers(p, {2, 3});
  p.state.bundles_wanted(kGroup, {{0, units({{kCpu, 1}})}});
  EXPECT(p.at(1), "reserve 1, stand 0, stand 1, stand 2");
  p.state.class_backlog(1, true);
  EXPECT(p.at(2), "grant 1 to 2");
  CHECK(p.state.pool_of_worker(2) == p.state.pool_of_bundle(kGroup, 0) && free_cpus(p) == 3);
  p.state.bundles_wanted(kGroup, {{1, units({{kCpu, 1}})}});
  EXPECT(p.at(3), "reserve 1, grant 1 to 3");
  CHECK(p.state.pool_of_worker(3) == p.state.pool_of_bundle(kGroup, 1));
  CHECK(p.state.held_bundles(kGroup).size() == 2 && free_cpus(p) == 2);
  p.state.bundle_released(kGroup, 0);
  CHECK(p.state.is_valid() && p.state.pool_of_bundle(kGroup, 0) == 0 && free_cpus(p) == 2);
  p.state.worker_died(2);  // what ran in it is killed
  CHECK(p.state.is_valid() && free_cpus(p) == 3);
  p.state.bundles_wanted(kGroup, {{2, units({{kCpu, 4}})}});
  EXPECT(p.at(4), "");  // no room for that
  p.state.bundles_unwanted(kGroup);
  p.state.bundles_removed(kGroup);
  p.state.worker_died(3);
  CHECK(p.state.is_valid() && free_cpus(p) == 4 && !p.state.is_reserved(kGroup));
}

// Random events: the counts of all pools stay right, and what a group has is given back.
void random_events_keep_the_counts_right() {
  for (uint64_t seed = seed_or(1); seed < 200; ++seed) {
    Random random(seed);
    Play p(1 + static_cast<uint32_t>(random.below(4)), 2);
    std::vector<bool> wanted(4);
    for (uint32_t c = 1; c < 8; ++c)
      p.state.class_seen(c, units({{kCpu, random.below(2)}, {kGpu, random.below(3) * 0.5}}), 0, 0,
                         {static_cast<uint32_t>(random.below(4)), static_cast<int32_t>(random.below(3)) - 1});
    std::vector<uint32_t> alive;
    uint32_t known = p.next_slot;
    for (int64_t ms = 0; ms < 300; ++ms) {
      p.at(ms);
      for (; known < p.next_slot; ++known) {
        p.attach(known);
        alive.push_back(known);
      }
      uint32_t g = 1 + static_cast<uint32_t>(random.below(3));
      if (random.below(8) == 0) {
        if (wanted[g])
          p.state.bundles_removed(g);
        else
          p.state.bundles_wanted(g, {{0, units({{kCpu, random.below(2)}, {kGpu, random.below(3) * 0.5}})}, {1, units({{kCpu, 1}})}});
        wanted[g] = !wanted[g];
      }
      if (alive.empty()) continue;
      uint32_t w = alive[random.below(alive.size())];
      switch (random.below(6)) {
        case 0: p.state.worker_blocked(w, random.below(2)); break;
        case 1: p.idle(w, random.below(2)); break;
        case 2: p.give_back(w); break;
        case 3:
          p.state.worker_died(w);
          std::erase(alive, w);
          break;
        default: p.state.class_backlog(static_cast<uint32_t>(random.below(8)), random.below(2));
      }
      CHECK(p.state.is_valid());
    }
    for (uint32_t g = 1; g < 4; ++g)
      if (wanted[g]) p.state.bundles_removed(g);
    for (uint32_t w : alive) p.state.worker_died(w);
    for (uint32_t w = 2; w < p.next_slot; ++w) p.state.worker_died(w);
    Play fresh(1, 2);
    CHECK(p.state.is_valid() && p.state.available()[kGpu] == fresh.state.available()[kGpu]);
  }
}

}  // namespace

int main() {
  all_bundles_are_reserved_at_once_or_none();
  idle_leases_of_others_make_room_for_a_group();
  tasks_are_charged_to_their_bundle();
  a_group_that_never_fits_holds_up_nobody();
  a_group_starves_not();
  gpus_are_reserved_by_index();
  an_actor_waits_for_its_group();
  a_removed_group_leaves_the_line();
  a_closed_bundle_runs_nothing_until_it_is_opened();
  bundles_come_and_go_one_by_one();
  random_events_keep_the_counts_right();
  puts("scheduler_groups_test ok");
  return 0;
}
