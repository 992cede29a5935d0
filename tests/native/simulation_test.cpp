// The simulated node (csrc/sim_world.h): many seeds hold all invariants, and a seed plays the same way each time.
// Arguments: seeds (2000), the first one (1). ci/mutants.py plants bugs and sees whether this finds them.
#include "../../csrc/sim_world.h"

#include <stdio.h>
#include <stdlib.h>

#include "testing.h"

using namespace fastray::sim;

int main(int argc, char** argv) {
  uint64_t seeds = argc > 1 ? strtoull(argv[1], nullptr, 10) : 2000;
  uint64_t first = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    Outcome outcome = run_node(seed, {});
    if (!outcome.violation.empty()) {
      printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), outcome.violation.c_str());
      return 1;
    }
  }
  for (uint64_t seed = first; seed < first + std::min<uint64_t>(seeds, 20); ++seed) {
    Limits traced;
    traced.trace = true;
    CHECK(run_node(seed, {}).digest == run_node(seed, traced).digest);
  }
  printf("simulation_test ok\n");
  return 0;
}
