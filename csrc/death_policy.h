// What becomes of a task, a call or an actor whose process died: decisions, pure.
//
//   attempt   a run of a task; `attempts` counts those that a death ended
//   restart   an actor's process is forked again and its constructor runs again; `attached`: it came so far before
//   waited    a call was claimed by its actor but had not begun
//
// No clock, no shared memory. Reaper and LocalScheduler carry the decisions out; the simulator (csrc/sim) and
// tests/native/death_policy_test.cpp drive the same functions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "types_actor.h"

namespace fastray::death_policy {

// ---- tasks -----------------------------------------------------------------------------------------

enum class TaskFate : uint8_t { kRunsAgain, kCancelled, kCrashed };

constexpr bool has_retries(int32_t max_retries, uint32_t attempts) {
  return max_retries < 0 || attempts < static_cast<uint32_t>(max_retries);
}

constexpr TaskFate fate_of_task(bool cancelled, int32_t max_retries, uint32_t attempts) {
  if (cancelled) return TaskFate::kCancelled;
  return has_retries(max_retries, attempts) ? TaskFate::kRunsAgain : TaskFate::kCrashed;
}

inline constexpr uint32_t kPromptAttempts = 2;  // so many run again at once
inline constexpr int64_t kDelayMin = 5'000'000, kDelayMax = 1'000'000'000;  // ns

// How long a task that runs again stands back, after so many attempts that died or raised: it stood first in line each
// time, and took one worker after the other from its neighbours.
constexpr int64_t delay_of_retry(uint32_t attempts) {
  if (attempts <= kPromptAttempts) return 0;
  uint32_t doublings = std::min<uint32_t>(attempts - kPromptAttempts - 1, 16);
  return std::min(kDelayMin << doublings, kDelayMax);
}

// ---- an actor's calls ------------------------------------------------------------------------------

enum class CallFate : uint8_t {
  kWaits,        // it had not begun: runs after the restart, no attempt is counted
  kRunsAgain,
  kCancelled,
  kTimedOut,     // it is what the process was killed for
  kUnavailable,  // the actor starts again, the call does not
  kDied,         // with the actor
};

struct CallInFlight {
  bool cancelled, waited, timed_out;
  bool checkpoints;  // of its actor
  int32_t max_retries;
  uint32_t attempts;
};

constexpr CallFate fate_of_call(const CallInFlight& c, bool restarts) {
  if (c.cancelled) return CallFate::kCancelled;
  if (restarts && c.waited) return CallFate::kWaits;
  if (restarts && (c.checkpoints || has_retries(c.max_retries, c.attempts))) return CallFate::kRunsAgain;
  if (c.timed_out) return CallFate::kTimedOut;
  return restarts ? CallFate::kUnavailable : CallFate::kDied;
}

// ---- actors ----------------------------------------------------------------------------------------

inline constexpr uint32_t kFailedStartsMax = 5;  // in a row

struct DeadActor {
  uint32_t end;            // ActorEnd that was noted before: by kill(), by the actor itself
  bool no_restart;         // kill(no_restart=True)
  bool attached, timed_out;
  uint32_t failed_starts;  // in a row, before this one
  uint32_t restarts;       // so far
  int32_t max_restarts;
};

struct ActorFate {
  bool restarts;
  uint32_t end;            // kEndNone when it restarts
  uint32_t failed_starts;
  uint32_t restarts_made;  // this one included; a start that never attached is not counted
};

constexpr ActorFate fate_of_actor(const DeadActor& a) {
  ActorFate fate{false, a.end, a.attached ? 0 : a.failed_starts + 1, a.restarts};
  if (fate.failed_starts > kFailedStartsMax) fate.end = kEndStartFailed;
  bool left = !a.attached || has_retries(a.max_restarts, a.restarts);
  fate.restarts = fate.end == kEndNone && !a.no_restart && left;
  if (fate.end == kEndNone && !fate.restarts) fate.end = a.timed_out ? kEndTimedOut : kEndCrashed;
  if (fate.restarts && a.attached) ++fate.restarts_made;
  return fate;
}

// Deaths in a row of instances that finished no call (started none after the first).
constexpr uint32_t hasty_deaths(uint32_t before, bool alive, uint64_t calls_started) {
  return alive && calls_started > 1 ? 0 : before + 1;
}

// Not long: somebody else may kill it so often, and then each start is a chance.
inline constexpr int64_t kRestartDelayMax = 50'000'000;

constexpr int64_t delay_of_restart(uint32_t hasty_deaths) {
  return std::min(delay_of_retry(hasty_deaths), kRestartDelayMax);
}

// An actor without a process, whose last handle is gone: calls that stand in its queues still run.
constexpr bool ends_unstarted(bool ending, bool has_call) { return ending && !has_call; }

enum class KillFate : uint8_t { kNothing, kProcess, kBury };

constexpr KillFate fate_of_kill(bool has_process, bool no_restart) {
  if (has_process) return KillFate::kProcess;
  return no_restart ? KillFate::kBury : KillFate::kNothing;
}

}  // namespace fastray::death_policy
