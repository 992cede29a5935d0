// A session whose process in slot 2 is killed at every instruction of an operation, for the *_step_kill_test.cpp:
// the reaper recovers, the others go on, and nothing may be lost, done twice or left behind.
//
// Each state is checked in a forked child (its private objects are copies, the segment is shared), and
// step_kill puts the segment back afterwards.
#pragma once

#include <functional>
#include <unordered_set>

#include "../../csrc/reaper.h"
#include "session.h"
#include "step_kill.h"

namespace fastray::testing {

inline const char* g_case = "";
inline uint64_t g_step = 0;

#define EXPECT(condition)                                                                      \
  do {                                                                                         \
    bool holds = (condition);                                                                  \
    if (!holds) fprintf(stderr, "%s, killed after %lu instructions: %s\n", g_case, g_step, \
            #condition);                                                                       \
    CHECK(holds);                                                                              \
  } while (false)

inline const CrashInfo kCrash{1234, 9, 0, "tail\n"};

// Slots: 0 node, 1 driver, 2 the victim, 3 another worker.
struct World {
  Session session;
  std::unique_ptr<Process> node, driver, victim, worker;
  std::unique_ptr<Reaper> reaper;
  uint64_t spare_rings = 0;
  std::function<void()> after_recovery = [] {};  // before the living go on with what is ready

  explicit World(int32_t max_retries = 3, bool warm_victim = true) : session(max_retries) {
    (void)os::ticks_per_us();  // measured once: stepped through, the system's clock never answers
    node = session.process(kProcNode, 0);
    driver = session.process(kProcDriver, 1);
    victim = session.process(kProcWorker, 2);
    worker = session.process(kProcWorker, 3);
    reaper = std::make_unique<Reaper>(node.get());
    // all pages that the checks touch are there: saving and restoring is then only copying
    for (Process* p : {driver.get(), worker.get(), node.get()}) p->drop(put(*p, 1, 100));
    if (warm_victim) victim->drop(put(*victim, 1, 100));
    for (Process* p : {driver.get(), victim.get(), worker.get()}) {
      if (p == victim.get() && !warm_victim) continue;
      Handle h = submit(*p);
      CHECK(worker->claim_next() == h && run(*worker, h));
      p->drop(h);
    }
  }

  void recover() {
    reaper->recover(2, kCrash);
    EXPECT(session.segment.proc(2).state.load() == kProcEmpty);
    after_recovery();
    drain(*worker);
  }
  // Everybody sweeps; then nothing of the victim may be left.
  void settle() {
    for (int i = 0; i < 4; ++i) {
      drain(*worker);
      driver->sweep();
      worker->sweep();
      reaper->sweep();
    }
  }
  void nothing_is_left() {
    settle();
    for (uint32_t c = 0; c < kChunksMax; ++c) EXPECT(session.segment.chunk_owner(c).load() != 3);
    EXPECT(!reaper->has_adopted());
    EXPECT(driver->owned_pending() == 0);
    for (uint32_t slot : {0u, 1u, 3u}) {
      Ledger& ledger = session.segment.ledger(slot);
      for (uint32_t e = 0; e < ledger.used.load(); ++e) EXPECT(ledger.entries[e].record.load() == 0);
    }
    for (Process* p : {driver.get(), worker.get()}) {
      std::unordered_set<uint32_t> free(p->free_list().begin(), p->free_list().end());
      EXPECT(free.size() == p->free_list().size());
      for (uint32_t i : free) EXPECT(state_of(session.segment.record(Handle{i}).state.load()) == kFree);
      size_t mine = kChunkRecords - (p->slot() == first_chunk_owner());
      if (free.size() != mine) say_what_is_left(*p, free);
      EXPECT(free.size() == mine);
    }
    driver->allocator().collect();
    worker->allocator().collect();
    node->allocator().collect();
    EXPECT(ObjectAllocator::usage(session.segment).blocks == rings() + spare_rings);
  }
  void say_what_is_left(Process& p, const std::unordered_set<uint32_t>& free) {
    fprintf(stderr, "process %u: %zu records are free\n", p.slot(), free.size());
    for (uint32_t c = 0; c < kChunksMax; ++c) {
      if (session.segment.chunk_owner(c).load() != p.slot() + 1) continue;
      for (uint32_t i = c * kChunkRecords; i < (c + 1) * kChunkRecords; ++i) {
        const Record& r = session.segment.record(Handle{i});
        if (i != 0 && free.count(i) == 0)
          fprintf(stderr, "  record %u: kind %u, owner %u, pins %u, word %lx\n", i, r.kind, r.owner, uint32_t{r.pins},
                  r.state.load());
      }
    }
  }
  uint32_t first_chunk_owner() { return session.segment.chunk_owner(0).load() - 1; }
  // The only blocks that stay: task queues' rings of the living, and shorter ones they keep for later.
  uint64_t rings() {
    uint64_t n = 0;
    for (uint32_t q = 1; q < 16; ++q) {
      Queue& queue = session.segment.queue(q);
      n += queue.in_use.load() != 0 && queue.ring.load() != 0;
    }
    return n;
  }
};

// Kills the victim everywhere in `operation`; after each kill and recovery, `check` and the common checks.
inline void everywhere(const char* name, World& w, const std::function<void()>& operation,
                       const std::function<void()>& check, StepKillOptions options = {}) {
  g_case = name;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  options = {.stride = 1009};  // ten times the instructions: here it is about what the sanitizer sees
#endif
  const char* stride = getenv("FASTRAY_STRIDE");
  if (stride != nullptr) options.stride = strtoull(stride, nullptr, 0);
  auto recover_and_check = [&](uint64_t step) {
    g_step = step;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      alarm(20);
      w.recover();
      check();
      w.nothing_is_left();
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      fprintf(stderr, "%s, killed after %lu instructions: status %x\n", name, step, static_cast<unsigned>(status));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  };
  StepKillResult r = step_kill(w.session.segment, [] {}, operation, recover_and_check, options);
  printf("%-28s %5lu instructions, %5lu kills\n", name, r.steps, r.checks);
  fflush(stdout);
}

}  // namespace fastray::testing
