// A player of transcripts for the local scheduler's decisions: events in, actions out as text, no clock but the one
// given. Included by scheduler_state_test.cpp and scheduler_groups_test.cpp.
#pragma once

#include "../../csrc/scheduler_state.h"

#include <stdio.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "testing.h"

namespace fastray::testing {

inline constexpr int kCpu = 0, kGpu = 1, kMemory = 2;

inline Units units(std::initializer_list<std::pair<int, double>> list) {
  Units u{};
  for (auto [i, amount] : list) u[static_cast<size_t>(i)] = static_cast<int64_t>(amount * 10000);
  return u;
}

// Plays events; `at(ms)` decides and says what was decided. Forked workers attach by themselves.
struct Play {
  SchedulerState state;
  int64_t now = 0;
  uint32_t next_slot = 2;

  explicit Play(uint32_t cpus, double gpus = 0)
      : state({units({{kCpu, cpus}, {kGpu, gpus}, {kMemory, 100}}), cpus, kCpu, kGpu}) {
    state.class_seen(0, units({{kCpu, 1}}), 0);
  }
  explicit Play(const SchedulerState::Limits& limits) : state(limits) { state.class_seen(0, units({{kCpu, 1}}), 0); }

  std::string at(int64_t ms) {
    now = ms * SchedulerState::kMs;
    std::vector<SchedulerAction> actions;
    state.decide(now, &actions);
    std::string said;
    for (const SchedulerAction& a : actions) {
      if (!said.empty()) said += ", ";
      std::string w = std::to_string(a.worker), c = std::to_string(a.cls);
      if (a.kind == SchedulerAction::kGrant) said += "grant " + c + " to " + w + (a.gpus ? " gpus " + std::to_string(a.gpus) : "");
      if (a.kind == SchedulerAction::kRevoke) said += "revoke " + w;
      if (a.kind == SchedulerAction::kExit) said += "exit " + w;
      if (a.kind == SchedulerAction::kStand) said += "stand " + c;
      if (a.kind == SchedulerAction::kStart) said += "start " + c;
      if (a.kind == SchedulerAction::kReserve) said += "reserve " + std::to_string(a.group);
      if (a.kind == SchedulerAction::kFork) {
        said += "fork " + std::to_string(next_slot) + " env " + std::to_string(a.env);
        state.worker_starting(next_slot++, a.env);
      }
    }
    CHECK(state.is_valid());
    return said;
  }
  void attach(uint32_t slot) { state.worker_attached(slot, now); }
  void idle(uint32_t slot, bool is = true) { state.worker_idle(slot, is, now); }
  void give_back(uint32_t slot) { state.lease_returned(slot, now); }
  // workers 2.. with class 0, idle or busy
  void boot(bool busy) {
    uint32_t first = next_slot;
    at(0);
    for (uint32_t s = first; s < next_slot; ++s) attach(s);
    at(0);
    for (uint32_t s = first; s < next_slot; ++s) idle(s, !busy);
  }
};

inline void expect(const std::string& said, const char* wanted, int line) {
  if (said == wanted) return;
  fprintf(stderr, "line %d: decided \"%s\", expected \"%s\"\n", line, said.c_str(), wanted);
  abort();
}
#define EXPECT(said, wanted) expect(said, wanted, __LINE__)

}  // namespace fastray::testing
