// A process is killed at every instruction while it evicts results or recovers lost ones. See world.h.
//
// Afterwards somebody else asks for the result: it must be there, with the value it had.
#include "world.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

constexpr size_t kBig = 5000;

// Runs what is ready, with results too big for their records.
void drain_big(Process& p) {
  while (Handle h = p.claim_next()) CHECK(run(p, h, kBig));
}

void evict_all(Process& owner, const std::vector<Handle>& handles) {
  for (Handle h : handles) CHECK(owner.evict(h, true));
}

// What `get` does.
void ask(World& w, Process& p, Handle h) {
  for (int i = 0; i < 8 && !p.sealed(h); ++i) {
    (void)p.mark_awaited(&h, 1);
    drain(*w.worker);
  }
  EXPECT(p.sealed(h));
}

// a <- b <- c, and d needs all three. All are big, done and lost.
struct Chain {
  World w;
  Handle a, b, c, d;
  Process& owner;

  explicit Chain(bool victim_owns) : owner(victim_owns ? *w.victim : *w.driver) {
    a = submit(owner);
    b = submit(owner, {a});
    c = submit(owner, {b});
    d = submit(owner, {a, b, c});
    for (Handle h : {b, c, d}) owner.remember_lineage(h);
    drain_big(*w.worker);
    // the other of the two holds what it will ask for
    other().hold(d);
    owner.sweep();
    for (Handle h : {a, b, c}) owner.drop(h);  // lineage alone holds them now
    owner.sweep();
    for (Handle h : {a, b, c}) CHECK(state_of(w.session.word(h)) == kLost);
  }
  Process& other() { return &owner == w.driver.get() ? *w.victim : *w.driver; }
  void lose_d() {
    Record& r = w.session.segment.record(d);
    uint64_t word = r.state.load();
    owner.allocator().release(r.result_heap.offset);  // as if its memory had been lost
    r.state.store((with_state(word, kLost, 0) & ~uint64_t{kFlagResultHeap}) | kFlagBorrowed);
  }
  void check() {
    EXPECT(w.session.value(d) == 1 + 1 + 2 + 3);
    w.driver->drop(d);
  }
};

void a_borrower_recovers() {
  Chain chain(false);
  chain.lose_d();
  everywhere("a borrower recovers", chain.w, [&] { chain.w.victim->recover(chain.d); },
             [&] {
               ask(chain.w, *chain.w.driver, chain.d);
               chain.check();
             });
}

void the_owner_recovers() {
  Chain chain(true);
  chain.lose_d();
  everywhere("the owner recovers", chain.w, [&] { chain.w.victim->recover(chain.d); },
             [&] {
               ask(chain.w, *chain.w.driver, chain.d);
               chain.check();
             });
}

// The victim does not ask, it only makes a new task of what is lost.
void submitting_with_a_lost_argument() {
  Chain chain(false);
  chain.lose_d();
  Handle next = submit(*chain.w.driver);
  everywhere("submit with a lost argument", chain.w, [&] { (void)submit(*chain.w.victim, {chain.d}); },
             [&] {
               ask(chain.w, *chain.w.driver, chain.d);
               chain.w.driver->drop(next);
               chain.check();
             });
}

void running_what_is_recovered() {
  Chain chain(false);
  chain.lose_d();
  chain.w.driver->recover(chain.d);
  Handle first = chain.w.victim->claim_next();
  CHECK(first == chain.a);
  everywhere("run what is recovered", chain.w, [&] { (void)run(*chain.w.victim, first, kBig); },
             [&] {
               ask(chain.w, *chain.w.driver, chain.d);
               chain.check();
             });
}

void evicting_what_lineage_holds() {
  World w;
  Handle a = submit(*w.victim), b = submit(*w.victim, {a});
  w.victim->remember_lineage(b);
  drain_big(*w.worker);
  w.driver->hold(b);
  everywhere("evict what lineage holds", w,
             [&] {
               w.victim->sweep();
               w.victim->drop(a);
               w.victim->sweep();
             },
             [&] {
               EXPECT(w.session.value(b) == 2);
               w.driver->drop(b);
             });
}

// A task that needs it runs again meanwhile: the result is not taken away from it.
void a_dependent_runs_again() {
  World w;
  Handle a = submit(*w.driver), b = submit(*w.driver, {a});
  w.driver->remember_lineage(b);
  drain_big(*w.worker);
  w.driver->sweep();
  w.victim->hold(b);
  evict_all(*w.driver, {});
  Record& r = w.session.segment.record(b);
  w.driver->allocator().release(r.result_heap.offset);
  r.state.store((with_state(r.state.load(), kLost, 0) & ~uint64_t{kFlagResultHeap}) | kFlagBorrowed);
  w.victim->recover(b);  // the owner does not know
  w.driver->drop(a);
  w.driver->sweep();
  CHECK(state_of(w.session.word(a)) == kDone);
  drain_big(*w.worker);
  CHECK(w.session.value(b) == 2);
  for (int i = 0; i < 2; ++i) w.driver->sweep();
  CHECK(state_of(w.session.word(a)) == kLost);
  w.victim->drop(b);
  w.driver->drop(b);
  w.recover();
  w.nothing_is_left();
}

struct Several {
  World w;
  Handle task;
  std::vector<Handle> promises;

  Several() {
    task = submit_returns(*w.driver, 3);
    promises = promises_of(w.session, task);
    CHECK(drain(*w.worker) == 1);
    evict_all(*w.driver, {promises[1]});  // the big one
    w.victim->hold(promises[1]);
  }
  void check() {
    for (size_t i = 0; i < promises.size(); ++i) EXPECT(w.session.value(promises[i]) == 1 + i);
    for (Handle h : promises) w.driver->drop(h);
  }
};

void recovering_a_return_value() {
  Several s;
  everywhere("recover a return value", s.w, [&] { s.w.victim->recover(s.promises[1]); },
             [&] {
               ask(s.w, *s.w.driver, s.promises[1]);
               s.check();
             });
}

// The task runs already and has passed the value: whoever seals the task lets it run once more.
void a_return_value_is_asked_for_too_late() {
  Several s;
  Record& r = s.w.session.segment.record(s.task);
  uint64_t word = r.state.load();
  CHECK(state_of(word) == kDone);
  r.state.store(with_state(word, kClaimed, 2));
  s.w.victim->self().claim.store(s.task);
  s.w.driver->recover(s.promises[1]);
  CHECK(state_of(s.w.session.word(s.promises[1])) == kPromised);
  everywhere("seal when a value was missed", s.w,
             [&] {
               (void)s.w.victim->seal(s.task, kDone, 0);
               s.w.victim->end_task();
             },
             [&] {
               ask(s.w, *s.w.driver, s.promises[1]);
               s.check();
             });
}

void giving_up() {
  World w;
  Handle object = put(*w.driver, 4, kBig), task = submit(*w.driver, {object});
  drain_big(*w.worker);
  CHECK(w.driver->evict(task, false));
  w.victim->hold(task);
  Record& r = w.session.segment.record(object);
  w.driver->allocator().release(r.result_heap.offset);
  r.state.store(with_state(r.state.load(), kLost, 0) & ~uint64_t{kFlagResultHeap});
  everywhere("give up", w, [&] { w.victim->recover(task); },
             [&] {
               for (Handle h : {task, object}) {
                 ask(w, *w.driver, h);
                 EXPECT(h == task || state_of(w.session.word(h)) == kFailed);
                 w.driver->drop(h);
               }
             });
}

void attempts_have_an_end() {
  World w(2);
  Handle h = submit(*w.driver);
  drain_big(*w.worker);
  for (int i = 0; i < 2; ++i) {
    CHECK(w.driver->evict(h, false));
    ask(w, *w.driver, h);
    CHECK(w.session.value(h) == 1);
    w.driver->drop(submit(*w.driver));
    drain(*w.worker);
    if (i == 0) {  // what ask() ran is small: make it big again
      Record& r = w.session.segment.record(h);
      uint64_t flags = write_value(*w.worker, h, r, 1, kBig);
      r.state.fetch_or(flags);
    }
  }
  Record& r = w.session.segment.record(h);
  r.state.fetch_or(write_value(*w.worker, h, r, 1, kBig));
  CHECK(!w.driver->evict(h, false) && w.driver->evict(h, true));
  (void)w.driver->mark_awaited(&h, 1);
  CHECK(state_of(w.session.word(h)) == kFailed);
  CHECK(r.result[0] == kErrorLost && r.result[1] == kLostAttempts);
  w.driver->drop(h);
  w.recover();
  w.nothing_is_left();
}

}  // namespace

int main() {
  a_borrower_recovers();
  the_owner_recovers();
  submitting_with_a_lost_argument();
  running_what_is_recovered();
  evicting_what_lineage_holds();
  a_dependent_runs_again();
  recovering_a_return_value();
  a_return_value_is_asked_for_too_late();
  giving_up();
  attempts_have_an_end();
  puts("lineage_step_kill_test ok");
  return 0;
}
