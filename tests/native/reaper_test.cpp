// A process is killed at every instruction of publish, publish_waiting, claim, seal, cancel, drop, hold and of
// giving a record back; the reaper recovers; then the others go on. No task may be lost or run again after it
// was sealed, nothing may leak, and a second recovery may change nothing.
//
// Each state is checked in a forked child (its private objects are copies, the segment is shared), and
// step_kill puts the segment back afterwards.
#include <functional>

#include "../../csrc/reaper.h"
#include "session.h"
#include "step_kill.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

const char* g_case = "";
uint64_t g_step = 0;

#define EXPECT(condition)                                                                            \
  do {                                                                                               \
    if (!(condition)) fprintf(stderr, "%s, killed after %lu instructions:\n", g_case, g_step);       \
    CHECK(condition);                                                                                \
  } while (false)

const CrashInfo kCrash{1234, 9, 0, "tail\n"};

// Slots: 0 node, 1 driver, 2 the victim, 3 another worker.
struct World {
  Session session;
  std::unique_ptr<Process> node, driver, victim, worker;
  std::unique_ptr<Reaper> reaper;

  explicit World(int32_t max_retries = 3) : session(max_retries) {
    node = session.process(kProcNode, 0);
    driver = session.process(kProcDriver, 1);
    victim = session.process(kProcWorker, 2);
    worker = session.process(kProcWorker, 3);
    reaper = std::make_unique<Reaper>(node.get());
    // all pages that the checks touch are there: saving and restoring is then only copying
    for (Process* p : {driver.get(), victim.get(), worker.get(), node.get()}) p->drop(put(*p, 1, 100));
    for (Process* p : {driver.get(), victim.get(), worker.get()}) {
      Handle h = submit(*p);
      CHECK(worker->claim_next() == h && run(*worker, h));
      p->drop(h);
    }
  }

  void recover() {
    reaper->recover(2, kCrash);
    EXPECT(session.segment.proc(2).state.load() == kProcEmpty);
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
      if (free.size() != mine) fprintf(stderr, "process %u: %zu records free, %zu its own\n", p->slot(), free.size(), mine);
      EXPECT(free.size() == mine);
    }
    driver->allocator().collect();
    worker->allocator().collect();
    node->allocator().collect();
    EXPECT(ObjectAllocator::usage(session.segment).blocks == rings());
  }
  uint32_t first_chunk_owner() { return session.segment.chunk_owner(0).load() - 1; }
  // The only blocks that stay: task queues' rings of the living.
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
void everywhere(const char* name, World& w, const std::function<void()>& operation,
                const std::function<void()>& check) {
  g_case = name;
  StepKillOptions options;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  options.stride = 211;  // ten times the instructions: here it is about what the sanitizer sees
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

// ---- as an owner -------------------------------------------------------------------------------------

void publishing() {
  World w;
  everywhere("publish", w, [&] { (void)submit(*w.victim); }, [] {});
}

void publishing_with_a_dependency() {
  World w;
  Handle a = submit(*w.driver);
  w.victim->hold(a);
  everywhere("publish_waiting", w, [&] { (void)submit(*w.victim, {a}); },
             [&] {
               EXPECT(is_sealed(w.session.word(a)) && w.session.value(a) == 1);
               w.driver->drop(a);
             });
}

void publishing_what_somebody_borrows() {
  World w;
  Handle a = submit(*w.driver);
  w.victim->hold(a);
  Handle b = submit(*w.victim, {a});
  w.driver->hold(b);
  everywhere("owner dies, borrower waits", w, [&] { (void)submit(*w.victim, {b}); },
             [&] {
               EXPECT(w.session.value(a) == 1);
               EXPECT(w.session.lives(b) && is_sealed(w.session.word(b)) && w.session.value(b) == 2);
               w.driver->drop(b);
               w.driver->drop(a);
             });
}

void dropping() {
  World w;
  Handle a = submit(*w.driver);
  w.victim->hold(a);
  Handle b = submit(*w.victim, {a});  // an edge on a, made by the victim
  Handle big = put(*w.victim, 0, 5000);
  drain(*w.worker);
  everywhere("drop", w,
             [&] {
               w.victim->drop(b);
               w.victim->drop(big);
               w.victim->drop(a);
             },
             [&] { w.driver->drop(a); });
}

// ---- as a worker -------------------------------------------------------------------------------------

void claiming() {
  World w;
  Handle a = submit(*w.driver), b = submit(*w.driver);
  everywhere("claim", w, [&] { (void)w.victim->claim_next(); },
             [&] {
               for (Handle h : {a, b}) {
                 EXPECT(state_of(w.session.word(h)) == kDone && w.session.value(h) == 1);
                 w.driver->drop(h);
               }
             });
}

void sealing_with_dependents() {
  World w;
  Handle a = submit(*w.driver);
  std::vector<Handle> after;
  for (int i = 0; i < 3; ++i) after.push_back(submit(*w.driver, {a}));
  Handle last = submit(*w.driver, {after[0], after[2]});
  CHECK(w.victim->claim_next() == a);
  everywhere("seal with edges", w, [&] { (void)run(*w.victim, a); },
             [&] {
               EXPECT(w.session.value(a) == 1 && !is_walked(w.session.word(a)));
               for (Handle h : after) EXPECT(state_of(w.session.word(h)) == kDone && w.session.value(h) == 2);
               EXPECT(state_of(w.session.word(last)) == kDone && w.session.value(last) == 5);
               for (Handle h : after) w.driver->drop(h);
               w.driver->drop(a);
               w.driver->drop(last);
             });
}

void running_without_retries() {
  World w(0);
  Handle a = submit(*w.driver), b = submit(*w.driver, {a});
  CHECK(w.victim->claim_next() == a);
  everywhere("run, max_retries=0", w, [&] { (void)run(*w.victim, a); },
             [&] {
               uint64_t word = w.session.word(a);
               EXPECT(is_sealed(word));
               if (state_of(word) == kFailed) {
                 EXPECT(w.session.segment.record(a).result[0] == kErrorCrashed);
               }
               EXPECT(is_sealed(w.session.word(b)));
               w.driver->drop(a);
               w.driver->drop(b);
             });
}

void cancelling() {
  World w;
  Handle a = submit(*w.driver), b = submit(*w.driver, {a});
  w.victim->hold(a);
  everywhere("cancel", w,
             [&] {
               int running;
               (void)w.victim->cancel(a, &running);
             },
             [&] {
               EXPECT(is_sealed(w.session.word(a)) && is_sealed(w.session.word(b)));
               w.driver->drop(a);
               w.driver->drop(b);
             });
}

void holding_and_letting_go() {
  World w;
  Handle a = put(*w.driver, 3), b = put(*w.driver, 4);
  everywhere("hold and drop", w,
             [&] {
               w.victim->hold(a);
               w.victim->hold(b);
               w.victim->drop(a);
             },
             [&] {
               w.driver->drop(a);
               w.driver->drop(b);
             });
}

void returning_a_record() {
  World w;
  Record* r = w.worker->allocate_record();
  Handle item = w.worker->handle_of(r);
  r->kind = kItem;
  r->parent = 0;
  r->args_bytes = r->dependencies = r->references = 0;
  r->owner = 2;
  w.worker->publish_state(r, item, kDone, 0);
  w.victim->adopt(item, 1);
  everywhere("return a record", w, [&] { w.victim->drop(item); }, [] {});
}

}  // namespace

int main() {
  publishing();
  publishing_with_a_dependency();
  publishing_what_somebody_borrows();
  dropping();
  claiming();
  sealing_with_dependents();
  running_without_retries();
  cancelling();
  holding_and_letting_go();
  returning_a_record();
  puts("reaper_test ok");
  return 0;
}
