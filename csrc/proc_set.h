// A set of process slots in shared memory: 64 words of bits and a summary of the words that are not
// empty. Bits may be set and cleared by anyone at any time; clearing a bit with `take` is how exactly
// one waker gets the right (and duty) to wake a sleeper.
#pragma once

#include <bit>

#include "types.h"

namespace fastray::proc_set {

inline void add(ProcSet& s, uint32_t slot) {
  // SYNC POINT: sleep-bit. seq_cst: the sleeper's membarrier orders this before its last look.
  s.words[slot / 64].fetch_or(uint64_t{1} << slot % 64, std::memory_order_seq_cst);
  s.summary.fetch_or(uint64_t{1} << slot / 64, std::memory_order_seq_cst);
}

// The summary of one word, after the word lost members. Somebody may add to it meanwhile: then the summary
// must say so again.
inline void update_summary(ProcSet& s, uint32_t w) {
  uint64_t mask = uint64_t{1} << w;
  if (s.words[w].load(std::memory_order_seq_cst) == 0) s.summary.fetch_and(~mask, std::memory_order_seq_cst);
  if (s.words[w].load(std::memory_order_seq_cst) != 0) s.summary.fetch_or(mask, std::memory_order_seq_cst);
}

// True when the bit was set and this call cleared it.
inline bool take(ProcSet& s, uint32_t slot) {
  uint64_t bit = uint64_t{1} << slot % 64;
  auto& word = s.words[slot / 64];
  uint64_t old = word.fetch_and(~bit, std::memory_order_seq_cst);
  if ((old & ~bit) == 0) update_summary(s, slot / 64);
  return (old & bit) != 0;
}

// relaxed: a hint; callers that sleep on it fence first
inline bool any(const ProcSet& s) { return s.summary.load(std::memory_order_relaxed) != 0; }

inline bool has(const ProcSet& s, uint32_t slot) {
  return (s.words[slot / 64].load(std::memory_order_relaxed) >> slot % 64) & 1;
}

// Calls visit(slot) for each member until it returns true; returns that slot, or -1.
template <class Visit>
int find(const ProcSet& s, Visit&& visit) {
  uint64_t summary = s.summary.load(std::memory_order_acquire);
  while (summary != 0) {
    int w = std::countr_zero(summary);
    summary &= summary - 1;
    uint64_t bits = s.words[w].load(std::memory_order_acquire);
    while (bits != 0) {
      uint32_t slot = static_cast<uint32_t>(w * 64 + std::countr_zero(bits));
      bits &= bits - 1;
      if (visit(slot)) return static_cast<int>(slot);
    }
  }
  return -1;
}

// Takes one member out of the set; -1 when it is empty.
inline int take_any(ProcSet& s) {
  return find(s, [&](uint32_t slot) { return take(s, slot); });
}

inline int count(const ProcSet& s) {
  int n = 0;
  find(s, [&](uint32_t) { return ++n, false; });
  return n;
}

}  // namespace fastray::proc_set
