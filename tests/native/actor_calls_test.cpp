// Calls of an actor over the deaths of its process: what runs again keeps the order in which it was made.
#include <stdio.h>

#include "../../csrc/reaper.h"
#include "session.h"
#include "testing.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

constexpr uint32_t kActorSlot = 4;

// An actor with index 0 that claims ahead, as one with concurrency groups does; its caller has made `calls` calls.
struct Calls {
  Session s{-1};
  std::unique_ptr<Process> node = s.process(kProcNode, 0);
  std::unique_ptr<Process> caller = s.process(kProcDriver, 2);
  std::unique_ptr<Process> actor;
  Reaper reaper{node.get()};
  std::vector<Handle> made;

  explicit Calls(int calls) {
    Actor& a = s.segment.actor(0);
    a.state.store(kActorAlive);
    s.segment.header().actors_used.store(1);
    s.segment.cls(kActorClass).state.store(kEntryUsed);
    for (int i = 0; i < calls; ++i) {
      Record* r;
      uint64_t flags;
      Handle h = make_task(*caller, {}, &r, &flags);
      r->cls = kActorClass;
      CHECK(caller->publish(r, h, flags));
      made.push_back(h);
    }
    starts();
  }
  void starts() {
    actor = s.process(kProcWorker, kActorSlot);
    actor->self().lease.store(kActorClass + 1);
  }
  // Claims `n` calls: the first runs, the others wait for their group.
  std::vector<Handle> claims(size_t n) {
    std::vector<Handle> claimed;
    for (size_t i = 0; i < n; ++i) {
      Handle h = actor->claim_next();
      CHECK(h != 0 && actor->enter_flight(0, h, i != 0) >= 0);
      actor->end_task();
      claimed.push_back(h);
    }
    return claimed;
  }
  void dies() {
    CrashInfo crash{1, 9, 0, "", 0, true, ""};
    reaper.recover(kActorSlot, crash);
    starts();
  }
};

void calls_in_flight_run_again_first_and_in_order() {
  Calls c(10);
  (void)c.claims(4);
  c.dies();
  CHECK(c.claims(10) == c.made);
}

void calls_claimed_at_a_second_death_go_before_those_not_claimed() {
  Calls c(10);
  (void)c.claims(6);
  c.dies();
  (void)c.claims(2);  // of the six that run again
  c.dies();
  CHECK(c.claims(10) == c.made);
  c.dies();
  (void)c.claims(3);
  c.dies();
  CHECK(c.claims(10) == c.made);
}

}  // namespace

int main() {
  calls_in_flight_run_again_first_and_in_order();
  calls_claimed_at_a_second_death_go_before_those_not_claimed();
  puts("actor_calls_test ok");
  return 0;
}
