// Kills a process at each instruction of an operation, and asks whether the others can go on.
//
//   setup          makes the shared state; runs once, in the parent
//   operation      runs in a forked child, on the same (MAP_SHARED) segment; objects made before the fork
//                  are its private copies
//   recover_and_check(n)   runs in the parent with the child dead after n instructions; aborts if unhappy
//
// Two ways, same meaning. A stopped child's memory is what a SIGKILL there would leave, so
// `step_kill` steps one child through the whole operation; after each instruction it saves the touched
// pages of the segment, runs the check on them in place, and puts them back: linear in the length of the
// operation. A state that differs from the one checked before in no byte is not checked again. `real_kill`
// forks anew for each n, steps n instructions and sends SIGKILL: it costs n steps a
// kill, so it takes a stride; it is there to show that the first way does not fool itself.
//
// The parent may not use a lock or a thread of its own in `recover_and_check`'s segment beyond what the
// code under test does. Needs ptrace; x86-64 and aarch64 Linux.
#pragma once

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "testing.h"

namespace fastray::testing {

struct StepKillOptions {
  uint64_t stride = 1;         // check after each stride-th instruction
  uint64_t dense = 0;          // and after each of the first ones
  uint64_t steps_max = 1 << 22;
};
struct StepKillResult {
  uint64_t steps = 0;   // instructions of the operation (and of the child's exit)
  uint64_t checks = 0;  // states checked: those that differ
};

// The pages of a memfd that have memory, and their bytes.
class Snapshot {
 public:
  explicit Snapshot(const Segment& s) : segment_(s) {}
  void save() {
    find_extents(&extents_);
    size_t total = 0;
    for (const Extent& e : extents_) total += e.bytes;
    bytes_.resize(total);
    size_t at = 0;
    for (const Extent& e : extents_) {
      memcpy(bytes_.data() + at, segment_.base() + e.offset, e.bytes);
      at += e.bytes;
    }
  }
  // True when the segment is as it was saved.
  bool is_same() {
    std::vector<Extent> now;
    find_extents(&now);
    if (now.size() != extents_.size()) return false;
    size_t at = 0;
    for (size_t i = 0; i < now.size(); ++i) {
      if (now[i].offset != extents_[i].offset || now[i].bytes != extents_[i].bytes) return false;
      if (memcmp(segment_.base() + now[i].offset, bytes_.data() + at, now[i].bytes) != 0) return false;
      at += now[i].bytes;
    }
    return true;
  }
  // Writes back the pages that differ; empties those that were not there.
  void restore() {
    std::vector<Extent> now;
    find_extents(&now);
    for (const Extent& e : now) {
      uint64_t from = e.offset, end = e.offset + e.bytes;
      for (const Extent& kept : extents_) {
        if (kept.offset + kept.bytes <= from || kept.offset >= end) continue;
        if (kept.offset > from) punch(from, kept.offset);
        from = kept.offset + kept.bytes;
      }
      if (from < end) punch(from, end);
    }
    size_t at = 0;
    for (const Extent& e : extents_) {
      for (uint64_t o = 0; o < e.bytes; o += kPage, at += kPage) {
        uint8_t* page = segment_.base() + e.offset + o;
        if (memcmp(page, bytes_.data() + at, kPage) != 0) memcpy(page, bytes_.data() + at, kPage);
      }
    }
  }

 private:
  struct Extent {
    uint64_t offset, bytes;
  };
  static constexpr uint64_t kPage = 4096;

  void find_extents(std::vector<Extent>* out) const;
  void punch(uint64_t from, uint64_t to) const;

  const Segment& segment_;
  std::vector<Extent> extents_;
  std::vector<uint8_t> bytes_;
};

namespace step_kill_internal {

inline pid_t start(const std::function<void()>& operation) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    operation();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
  return child;
}

// One instruction; false when the child has ended (it must end well).
inline bool step(pid_t child) {
  CHECK(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status)) {
    CHECK(WEXITSTATUS(status) == 0);
    return false;
  }
  CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);  // else: the operation itself crashed
  return true;
}

}  // namespace step_kill_internal

inline StepKillResult step_kill(const Segment& segment, const std::function<void()>& setup,
                                const std::function<void()>& operation,
                                const std::function<void(uint64_t)>& recover_and_check,
                                StepKillOptions options = {}) {
  setup();
  Snapshot snapshot(segment);
  StepKillResult result;
  pid_t child = step_kill_internal::start(operation);
  for (bool alive = true; alive; ++result.steps) {
    CHECK(result.steps < options.steps_max);
    bool due = result.steps % options.stride == 0 || result.steps < options.dense;
    if (due && (result.checks == 0 || !snapshot.is_same())) {
      snapshot.save();
      recover_and_check(result.steps);
      snapshot.restore();
      ++result.checks;
    }
    alive = step_kill_internal::step(child);
  }
  recover_and_check(result.steps);  // it completed, then died
  ++result.checks;
  return result;
}

inline StepKillResult real_kill(const Segment& segment, const std::function<void()>& setup,
                                const std::function<void()>& operation,
                                const std::function<void(uint64_t)>& recover_and_check,
                                StepKillOptions options = {}) {
  setup();
  Snapshot fresh(segment);
  fresh.save();
  StepKillResult result;
  for (bool alive = true; alive; result.steps += options.stride) {
    CHECK(result.steps < options.steps_max);
    pid_t child = step_kill_internal::start(operation);
    for (uint64_t n = 0; alive && n < result.steps; ++n) alive = step_kill_internal::step(child);
    if (alive) {
      int status = 0;
      CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    }
    recover_and_check(result.steps);
    ++result.checks;
    fresh.restore();
  }
  return result;
}

}  // namespace fastray::testing

#include <fcntl.h>
#include <sys/mman.h>

namespace fastray::testing {

inline void Snapshot::find_extents(std::vector<Extent>* out) const {
  out->clear();
  off_t at = 0;
  while ((at = lseek(segment_.fd(), at, SEEK_DATA)) >= 0) {
    off_t end = lseek(segment_.fd(), at, SEEK_HOLE);
    out->push_back({static_cast<uint64_t>(at), static_cast<uint64_t>(end - at)});
    at = end;
  }
}

inline void Snapshot::punch(uint64_t from, uint64_t to) const {
  CHECK(madvise(segment_.base() + from, to - from, MADV_REMOVE) == 0);
}

}  // namespace fastray::testing
