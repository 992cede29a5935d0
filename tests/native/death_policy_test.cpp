// What becomes of tasks, calls and actors whose process died: the decisions of death_policy.h, case by case.
#include "death_policy.h"

#include "testing.h"

namespace fastray {
namespace {

using namespace death_policy;

void tasks() {
  CHECK(fate_of_task(false, 3, 2) == TaskFate::kRunsAgain);
  CHECK(fate_of_task(false, 3, 3) == TaskFate::kCrashed);
  CHECK(fate_of_task(false, 0, 0) == TaskFate::kCrashed);
  CHECK(fate_of_task(false, -1, 255) == TaskFate::kRunsAgain);
  CHECK(fate_of_task(true, -1, 0) == TaskFate::kCancelled);
}

void delays() {
  for (uint32_t attempts = 0; attempts <= kPromptAttempts; ++attempts) CHECK(delay_of_retry(attempts) == 0);
  CHECK(delay_of_retry(kPromptAttempts + 1) == kDelayMin);
  CHECK(delay_of_retry(kPromptAttempts + 2) == 2 * kDelayMin);
  for (uint32_t attempts = 0; attempts < 300; ++attempts) {
    CHECK(delay_of_retry(attempts) <= delay_of_retry(attempts + 1));
    CHECK(delay_of_retry(attempts) <= kDelayMax);
  }
  CHECK(delay_of_retry(255) == kDelayMax);
}

void calls() {
  CallInFlight call{false, false, false, false, 0, 0};
  CHECK(fate_of_call(call, true) == CallFate::kUnavailable);
  CHECK(fate_of_call(call, false) == CallFate::kDied);
  call.waited = true;
  CHECK(fate_of_call(call, true) == CallFate::kWaits);
  CHECK(fate_of_call(call, false) == CallFate::kDied);
  call.waited = false;
  call.max_retries = 1;
  CHECK(fate_of_call(call, true) == CallFate::kRunsAgain);
  CHECK(fate_of_call(call, false) == CallFate::kDied);
  call.attempts = 1;
  CHECK(fate_of_call(call, true) == CallFate::kUnavailable);
  call.checkpoints = true;
  CHECK(fate_of_call(call, true) == CallFate::kRunsAgain);
  CHECK(fate_of_call(call, false) == CallFate::kDied);
  call = {false, false, true, false, 0, 0};
  CHECK(fate_of_call(call, true) == CallFate::kTimedOut);
  CHECK(fate_of_call(call, false) == CallFate::kTimedOut);
  call.cancelled = true;
  CHECK(fate_of_call(call, true) == CallFate::kCancelled);
}

void actors() {
  DeadActor a{kEndNone, false, true, false, 0, 0, 1};
  ActorFate fate = fate_of_actor(a);
  CHECK(fate.restarts && fate.restarts_made == 1 && fate.end == kEndNone);
  a.restarts = 1;
  fate = fate_of_actor(a);
  CHECK(!fate.restarts && fate.end == kEndCrashed && fate.restarts_made == 1);
  a.timed_out = true;
  CHECK(fate_of_actor(a).end == kEndTimedOut);
  a = {kEndKilled, false, true, false, 0, 0, -1};  // by kill()
  CHECK(!fate_of_actor(a).restarts && fate_of_actor(a).end == kEndKilled);
  a = {kEndNone, true, true, false, 0, 0, -1};
  CHECK(!fate_of_actor(a).restarts);
  a = {kEndNone, false, false, false, 0, 0, 0};  // it never came up: that counts for itself
  for (; a.failed_starts < kFailedStartsMax; ++a.failed_starts) {
    CHECK(fate_of_actor(a).restarts && fate_of_actor(a).restarts_made == 0);
    CHECK(fate_of_actor(a).failed_starts == a.failed_starts + 1);
  }
  CHECK(!fate_of_actor(a).restarts && fate_of_actor(a).end == kEndStartFailed);
}

void hasty() {
  CHECK(hasty_deaths(4, true, 2) == 0);   // it finished a call
  CHECK(hasty_deaths(4, true, 1) == 5);   // it died in its first, or just after it
  CHECK(hasty_deaths(0, false, 0) == 1);  // in its constructor
  CHECK(delay_of_restart(kPromptAttempts) == 0 && delay_of_restart(kPromptAttempts + 1) == kDelayMin);
  CHECK(delay_of_restart(255) == kRestartDelayMax);
}

void ends() {
  CHECK(ends_unstarted(true, false) && !ends_unstarted(true, true) && !ends_unstarted(false, false));
  CHECK(fate_of_kill(true, false) == KillFate::kProcess && fate_of_kill(true, true) == KillFate::kProcess);
  CHECK(fate_of_kill(false, true) == KillFate::kBury && fate_of_kill(false, false) == KillFate::kNothing);
}

}  // namespace
}  // namespace fastray

int main() {
  using namespace fastray;
  tasks();
  delays();
  calls();
  actors();
  hasty();
  ends();
  puts("death_policy_test ok");
}
