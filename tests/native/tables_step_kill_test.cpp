// A process is killed at every instruction while it takes a record chunk, a queue or a longer ring, writes a
// table entry, goes to sleep, or wakes somebody. Nobody may hang or miss what is there. See world.h.
#include "world.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

// ---- chunks, queues ------------------------------------------------------------------------------------

void taking_the_first_chunk_and_queue() {
  World w(3, false);
  StepKillOptions options{.stride = 101, .dense = 2000};  // in between: one store for each record of the chunk
  everywhere("first chunk", w, [&] { w.victim->unallocate(w.victim->allocate_record()); }, [] {}, options);
  w.victim->unallocate(w.victim->allocate_record());
  everywhere("first queue and ring", w, [&] { (void)submit(*w.victim); }, [] {});
}

void growing_a_queue() {
  World w;
  // the node's queue has to take them all: it grows before, so that the blocks are the same at each kill
  Handle done = put(*w.driver, 1);
  for (uint32_t i = 0; i < 4 * kRingMin; ++i) CHECK(w.node->push_ready(done));
  w.driver->drop(done);
  CHECK(drain(*w.worker) == 0);
  std::vector<Handle> tasks;
  for (uint32_t i = 0; i + 1 < kRingMin; ++i) tasks.push_back(submit(*w.victim));
  w.spare_rings = ObjectAllocator::usage(w.session.segment).blocks - w.rings();
  w.driver->hold(tasks[0]);
  w.driver->hold(tasks.back());
  everywhere("a queue grows", w,
             [&] {
               for (int i = 0; i < 3; ++i) (void)submit(*w.victim);
             },
             [&] {
               for (Handle h : {tasks[0], tasks.back()}) {
                 EXPECT(w.session.value(h) == 1);
                 w.driver->drop(h);
               }
             },
             {.stride = 257, .dense = 128});
}

// ---- tables --------------------------------------------------------------------------------------------

// The steps of Attachment.register_class and register_function (session.pyx).
void register_class(Process& p) {
  const Segment& segment = p.segment();
  for (uint32_t c = 0; c < kClassesMax; ++c) {
    Class& cls = segment.cls(c);
    uint32_t expected = 0;
    if (!cls.state.compare_exchange_strong(expected, entry_writing(p.slot()))) continue;
    cls.runtime_env = 0;
    for (uint32_t i = 0; i < kResourcesMax; ++i) cls.demand[i] = 20000;
    proc_set::add(cls.sleeping, 0);
    cls.state.store(kEntryUsed);
    uint32_t used = segment.header().classes_used.load();
    while (used < c + 1 && !segment.header().classes_used.compare_exchange_strong(used, c + 1)) {
    }
    return;
  }
}

void register_function(Process& p) {
  const Segment& segment = p.segment();
  uint32_t f = segment.header().functions_used.fetch_add(1), expected = 0;
  Function& entry = segment.function(f);
  if (!entry.state.compare_exchange_strong(expected, entry_writing(p.slot()))) return;
  entry.blob = p.allocator().allocate(700, make_handle(0, kBlockBlob | f));
  entry.blob_bytes = 700;
  entry.hash[0] = entry.hash[1] = 5;
  entry.returns = 1;
  entry.state.store(kEntryUsed);
}

void writing_a_class() {
  World w;
  everywhere("register a class", w, [&] { register_class(*w.victim); },
             [&] {
               Class& c = w.session.segment.cls(1);
               uint32_t used = w.session.segment.header().classes_used.load();
               EXPECT(c.state.load() == 0 ? used == 1 : used == 2 && c.state.load() == kEntryUsed);
               if (used == 2) EXPECT(proc_set::has(c.sleeping, 0) && c.demand[kResourcesMax - 1] == 20000);
               if (used == 1) register_class(*w.driver);
               EXPECT(w.session.segment.header().classes_used.load() == 2);
             });
}

void writing_a_function() {
  World w;
  everywhere("register a function", w, [&] { register_function(*w.victim); },
             [&] {
               Function& f = w.session.segment.function(kStreamFunction + 1);
               EXPECT(f.state.load() == 0 || f.state.load() == kEntryUsed);
               if (f.state.load() == kEntryUsed) {
                 EXPECT(ObjectAllocator::owner_record(w.session.segment, f.blob) ==
                        make_handle(0, kBlockBlob | (kStreamFunction + 1)));
                 w.node->allocator().release(f.blob);  // else it would stay for good
               }
             });
}

// ---- sleeping and waking ---------------------------------------------------------------------------------

struct Sleepers {
  World w;
  Class& cls = w.session.segment.cls(0);
  uint32_t worker_seen = 0, driver_seen = 0;

  // The worker sleeps; the leases say that it is the only one.
  Sleepers() {
    cls.leases.store(1);
    proc_set::add(cls.sleeping, 3);
    worker_seen = w.worker->self().futex.load();
    driver_seen = w.driver->self().futex.load();
  }
  bool summary_is_right(const ProcSet& set) const {
    uint64_t summary = 0;
    for (uint32_t i = 0; i < kProcsMax / 64; ++i) summary |= uint64_t{set.words[i].load() != 0} << i;
    return set.summary.load() == summary;
  }
  // Whoever slept looks again; the dead one is in no set, and no summary keeps others from being woken.
  void check() {
    EXPECT(w.worker->self().futex.load() != worker_seen);
    EXPECT(w.driver->self().futex.load() != driver_seen);
    for (const ProcSet* set : {&cls.sleeping, &cls.polling, &cls.producers}) {
      EXPECT(!proc_set::has(*set, 2) && summary_is_right(*set));
    }
    // the rest of the worker's sleep_for_work; then it sleeps once more, and a submitter has to wake it
    if (proc_set::take(cls.sleeping, 3)) proc_set::add(cls.polling, 3);
    proc_set::take(cls.polling, 3);
    EXPECT(!proc_set::any(cls.polling) && !proc_set::any(cls.sleeping));
    proc_set::add(cls.sleeping, 3);
    uint32_t seen = w.worker->self().futex.load();
    Handle h = submit(*w.driver);
    EXPECT(w.worker->self().futex.load() != seen && proc_set::has(cls.polling, 3));
    EXPECT(drain(*w.worker) == 1);
    proc_set::take(cls.polling, 3);
    w.driver->drop(h);
  }
};

void going_to_sleep() {
  Sleepers s;
  Process& victim = *s.w.victim;
  everywhere("sleep for work", s.w, [&] { (void)victim.sleep_for_work(victim.wake_word(), 1000); },
             [&] { s.check(); });
}

// The last one of its word: between the word and the summary the set looks like somebody polls.
void polling() {
  Sleepers s;
  proc_set::take(s.cls.sleeping, 3);
  everywhere("poll for work", s.w,
             [&] {
               (void)s.w.victim->poll_for_work(false);
               (void)submit(*s.w.victim);
               (void)s.w.victim->poll_for_work(false);
             },
             [&] { s.check(); });
}

void waking_a_worker() {
  Sleepers s;
  everywhere("wake a worker", s.w, [&] { (void)submit(*s.w.victim); }, [&] { s.check(); });
}

// The sleeper stands in another word than the dead one: nobody but the reaper looks at that word's summary.
void waking_one_of_another_word() {
  Sleepers s;
  proc_set::take(s.cls.sleeping, 3);
  proc_set::add(s.cls.sleeping, 70);
  everywhere("wake one of another word", s.w, [&] { (void)submit(*s.w.victim); },
             [&] {
               for (const ProcSet* set : {&s.cls.sleeping, &s.cls.polling}) EXPECT(s.summary_is_right(*set));
             });
}

void waking_the_owner() {
  Sleepers s;
  Handle h = submit(*s.w.driver);
  CHECK(s.w.victim->claim_next() == h);
  CHECK(!s.w.driver->mark_awaited(&h, 1));
  s.driver_seen = s.w.driver->self().futex.load();
  everywhere("wake the owner", s.w, [&] { (void)run(*s.w.victim, h); },
             [&] {
               EXPECT(state_of(s.w.session.word(h)) == kDone);
               s.check();
               s.w.driver->drop(h);
             });
}

void sleeping_on_a_result() {
  Sleepers s;
  Handle h = submit(*s.w.driver), outer = submit(*s.w.driver);
  CHECK(s.w.victim->claim_next() == h);  // inside of which it waits for the other
  s.w.victim->hold(outer);
  everywhere("sleep on a result", s.w,
             [&] {
               (void)s.w.victim->mark_awaited(&outer, 1);
               (void)s.w.victim->sleep_on(&outer, 1, s.w.victim->wake_word(), 1000);
             },
             [&] {
               EXPECT(s.w.session.segment.proc(2).blocked.load() == 0);
               EXPECT(state_of(s.w.session.word(h)) == kDone && state_of(s.w.session.word(outer)) == kDone);
               s.check();
               s.w.driver->drop(h);
               s.w.driver->drop(outer);
             });
}

}  // namespace

int main() {
  taking_the_first_chunk_and_queue();
  growing_a_queue();
  writing_a_class();
  writing_a_function();
  going_to_sleep();
  polling();
  waking_a_worker();
  waking_one_of_another_word();
  waking_the_owner();
  sleeping_on_a_result();
  puts("tables_step_kill_test ok");
  return 0;
}
