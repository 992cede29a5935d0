// Watchdog: transcripts of what is seen and what is to be done.
#include "../../csrc/watchdog.h"

#include <string>

#include "testing.h"

namespace fastray::testing {
namespace {

constexpr int64_t kMs = Watchdog::kMs;

struct Play {
  Watchdog dog;
  int64_t now = 0;

  // What decide() says at this millisecond.
  std::string at(int64_t ms) {
    now = ms * kMs;
    std::vector<WatchAction> actions;
    dog.decide(now, &actions);
    std::string said;
    for (const WatchAction& a : actions) {
      if (!said.empty()) said += ", ";
      said += a.kind == WatchAction::kStop ? "stop " : a.kind == WatchAction::kKill ? "kill " : "continue ";
      said += std::to_string(a.worker);
      if (a.kind == WatchAction::kKill) said += " for " + std::to_string(a.task.task);
    }
    return said;
  }
  void sees(int64_t ms, uint32_t worker, const std::vector<LimitedTask>& tasks) { dog.sees(worker, tasks, ms * kMs); }
  int64_t due() const { return dog.next_deadline() == Watchdog::kNever ? -1 : dog.next_deadline() / kMs; }
};

void a_hung_task_is_stopped_looked_at_again_and_killed() {
  Play p;
  p.sees(0, 2, {{7, 0, 100}});
  CHECK(p.at(0) == "" && p.due() == 100);
  p.sees(50, 2, {{7, 0, 100}});
  CHECK(p.at(50) == "" && p.due() == 100);
  p.sees(100, 2, {{7, 0, 100}});
  CHECK(p.at(100) == "stop 2" && p.due() == 1100);
  p.dog.stopped(2, true);
  p.sees(101, 2, {{7, 0, 100}});
  CHECK(p.at(101) == "kill 2 for 7");
  CHECK(p.at(102) == "" && p.due() == -1);
  p.dog.died(2);
  CHECK(p.at(5000) == "");
}

void a_task_that_ends_while_its_worker_is_being_stopped_costs_nothing() {
  Play p;
  p.sees(0, 2, {{7, 0, 100}});
  p.at(0);
  p.sees(100, 2, {{7, 0, 100}});
  CHECK(p.at(100) == "stop 2");
  p.sees(101, 2, {{8, 0, 100}});  // it went on to the next one before the signal came
  CHECK(p.at(101) == "");
  p.dog.stopped(2, true);
  p.sees(102, 2, {{8, 0, 100}});
  CHECK(p.at(102) == "continue 2" && p.due() == 201);
  p.sees(201, 2, {{8, 0, 100}});
  CHECK(p.at(201) == "stop 2");
  p.dog.stopped(2, true);
  p.sees(202, 2, {});
  CHECK(p.at(202) == "continue 2" && p.due() == -1);
}

void a_worker_that_somebody_stopped_is_left_alone_until_the_limit() {
  Play p;
  p.dog.stopped(3, true);
  p.sees(0, 3, {});
  CHECK(p.at(0) == "" && p.due() == -1);
  p.sees(10, 3, {{7, 0, 100}});
  CHECK(p.at(10) == "" && p.due() == 110);
  p.dog.stopped(3, false);
  p.dog.stopped(3, true);
  p.sees(110, 3, {{7, 0, 100}});
  CHECK(p.at(110) == "kill 3 for 7");  // nobody has to stop it
}

void each_attempt_has_its_own_time() {
  Play p;
  p.sees(0, 2, {{7, 0, 100}});
  p.at(0);
  p.sees(90, 2, {{7, 1, 100}});
  CHECK(p.at(90) == "" && p.due() == 190);
}

void one_of_several_calls_in_flight_is_enough() {
  Play p;
  p.sees(0, 2, {{7, 0, 300}, {8, 0, 100}});
  p.sees(0, 4, {{9, 0, 50}});
  CHECK(p.at(0) == "" && p.due() == 50);
  p.sees(50, 4, {});
  p.sees(60, 2, {{8, 0, 100}, {10, 0, 1000}});
  CHECK(p.at(60) == "" && p.due() == 100);
  p.dog.stopped(2, true);
  CHECK(p.at(100) == "kill 2 for 8");
}

void a_process_that_never_stops_is_killed_all_the_same() {
  Play p;
  p.sees(0, 2, {{7, 0, 100}});
  CHECK(p.at(100) == "stop 2");
  CHECK(p.at(1099) == "");
  CHECK(p.at(1100) == "kill 2 for 7");
}

void nothing_is_remembered_of_those_without_limits() {
  Play p;
  for (uint32_t worker = 1; worker < 100; ++worker) p.sees(0, worker, {});
  p.dog.stopped(5, false);
  CHECK(p.at(0) == "" && p.due() == -1);
}

}  // namespace
}  // namespace fastray::testing

int main() {
  using namespace fastray::testing;
  a_hung_task_is_stopped_looked_at_again_and_killed();
  a_task_that_ends_while_its_worker_is_being_stopped_costs_nothing();
  a_worker_that_somebody_stopped_is_left_alone_until_the_limit();
  each_attempt_has_its_own_time();
  one_of_several_calls_in_flight_is_enough();
  a_process_that_never_stops_is_killed_all_the_same();
  nothing_is_remembered_of_those_without_limits();
  puts("watchdog_test ok");
  return 0;
}
