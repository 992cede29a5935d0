// When the node's loop looks next: the decision, pure.
//
//   tick      a look without a ring: soon while things move, ever later while nothing does
//   quiet     nothing is under way: no backlog, each worker with a lease sleeps
//   dormant   quiet for a while: no tick at all; wakers ring the bell then
//
// Whatever a decision changed, the next one has to see: after one that acted there is always another look. Called by
// LocalScheduler, and by the simulator (sim_node.cpp).
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastray {

class LoopPace {
 public:
  static constexpr int64_t kTickMin = 1'000'000, kTickMax = 16'000'000;  // ns
  static constexpr int64_t kDormantAfter = 50'000'000;

  // After a look and its decision. `moved`: something changed since the last; `acted`: this decision changed something.
  void stepped(int64_t now, bool moved, bool acted, bool quiet) {
    tick_ = moved || acted ? kTickMin : std::min(tick_ * 2, kTickMax);
    if (acted || !quiet)
      quiet_since_ = -1;
    else if (quiet_since_ < 0)
      quiet_since_ = now;
  }
  void rung() { tick_ = kTickMin; }
  // Something happened that no look has seen.
  void disturbed() {
    tick_ = kTickMin;
    quiet_since_ = -1;
  }
  bool dormant(int64_t now) const { return quiet_since_ >= 0 && now - quiet_since_ >= kDormantAfter; }
  int64_t next_look(int64_t now, int64_t deadline) const {
    return dormant(now) ? deadline : std::min(deadline, now + tick_);
  }

 private:
  int64_t tick_ = kTickMin, quiet_since_ = -1;
};

}  // namespace fastray
