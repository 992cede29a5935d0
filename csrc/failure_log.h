// Attempts of tasks that failed, in shared memory, until the node's agent has told the cluster's task table of them.
//
//   failure   which task, where it ran, when, why; the text is cut
//   number    of a failure, counted from 0 since the node began; it stands at number % kFailures
//   taken     failures before this number were told: the agent alone writes it, and the next agent goes on there
//   mark      the same of a process: events of its flight recorder, and tasks that it started, that were told
//
// Whoever fails a task writes, several at once and without a lock; nobody on the path of a task that succeeds comes
// here. Every access is relaxed: the last word of an entry is the sum of its others and its number, so an entry that
// is half-written, by a process that was killed or overtaken by a whole round, is not taken for one. What was
// overwritten before it was read is known by its number: it is counted (fastray/cluster/tasks.py).
#pragma once

#include <string.h>

#include <atomic>
#include <cstdint>

#include "types.h"

namespace fastray {

inline constexpr uint32_t kFailures = 4096;
inline constexpr size_t kFailureText = 392;  // bytes

struct Failure {
  uint64_t task = 0;    // Record::id
  uint64_t parent = 0;  // the same of the task that submitted it, 0: a driver
  int64_t began_ns = 0, ended_ns = 0;  // wall clock; began 0: it had not begun, or nobody knows
  uint32_t job = 0;
  int32_t pid = 0;      // of the worker, 0: none had it
  uint16_t attempt = 0;
  uint8_t code = 0;     // ErrorCode
  uint8_t actor = 0;    // 1: a call of an actor
  uint32_t text_bytes = 0;
  char name[64] = {};   // of its function, NUL-terminated
  char text[kFailureText] = {};
};
static_assert(sizeof(Failure) == 63 * 8);

struct FailureEntry {
  std::atomic<uint64_t> words[64];
};

struct TaskMark {
  std::atomic<uint64_t> incarnation, events, started;
};

struct alignas(64) FailureLog {
  std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> taken;
  alignas(64) TaskMark marks[kProcsMax];
  alignas(64) FailureEntry entries[kFailures];

  void note(const Failure& f) {
    uint64_t words[63], n = written.fetch_add(1, std::memory_order_relaxed);
    memcpy(words, &f, sizeof words);
    FailureEntry& e = entries[n % kFailures];
    for (int i = 0; i < 63; ++i) e.words[i].store(words[i], std::memory_order_relaxed);
    e.words[63].store(sum(words, n), std::memory_order_relaxed);
  }
  // False: it is being written, was never finished, or is overwritten.
  bool read(uint64_t n, Failure* out) const {
    uint64_t words[63];
    const FailureEntry& e = entries[n % kFailures];
    for (int i = 0; i < 63; ++i) words[i] = e.words[i].load(std::memory_order_relaxed);
    if (e.words[63].load(std::memory_order_relaxed) != sum(words, n)) return false;
    memcpy(out, words, sizeof words);
    return true;
  }
  static uint64_t sum(const uint64_t* words, uint64_t n) {
    uint64_t h = (n + 1) * 0x9E3779B97F4A7C15ull;
    for (int i = 0; i < 63; ++i) h = ((h ^ words[i]) * 0xFF51AFD7ED558CCDull) ^ (h >> 29);
    return h;
  }
};
static_assert(sizeof(FailureEntry) == 512 && sizeof(TaskMark) == 24);

}  // namespace fastray
