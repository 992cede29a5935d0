// A process is killed at every instruction while it submits, runs or frees tasks with several returns, results
// that hold references, lineage, and blocks of others' arenas. See world.h.
#include "world.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

// ---- several returns -----------------------------------------------------------------------------------

void submitting_several_returns(uint16_t k) {
  World w;
  Handle a = submit(*w.driver);
  w.victim->hold(a);
  everywhere(k == 2 ? "submit 2 returns" : "submit 7 returns", w, [&] { (void)submit_returns(*w.victim, k, {a}); },
             [&] { w.driver->drop(a); });
}

struct Returning {
  World w;
  Handle task;
  std::vector<Handle> promises, after;

  Returning(uint16_t k, int32_t max_retries) : w(max_retries) {
    task = submit_returns(*w.driver, k);
    promises = promises_of(w.session, task);
    for (Handle p : {promises[0], promises[k - 1], promises[1]}) after.push_back(submit(*w.driver, {p}));
    CHECK(w.victim->claim_next() == task);
  }
  // A promise sealed by the first attempt has its value, the others what the last attempt made of them.
  void check(bool may_fail) {
    Session& s = w.session;
    EXPECT(is_sealed(s.word(task)) && !is_walked(s.word(task)));
    for (size_t i = 0; i < promises.size(); ++i) {
      uint64_t word = s.word(promises[i]);
      EXPECT(is_sealed(word) && !is_walked(word));
      EXPECT(may_fail || state_of(word) == kDone);
      if (state_of(word) == kDone) EXPECT(s.value(promises[i]) == 1 + i);
    }
    for (Handle h : after) EXPECT(is_sealed(s.word(h)));
    if (!may_fail) EXPECT(s.value(after[0]) == 2 && s.value(after[2]) == 3);
    for (Handle h : promises) w.driver->drop(h);
    for (Handle h : after) w.driver->drop(h);
  }
};

void sealing_several_returns(uint16_t k) {
  Returning r(k, 3);
  everywhere(k == 2 ? "seal 2 returns" : "seal 7 returns", r.w, [&] { (void)run(*r.w.victim, r.task); },
             [&] { r.check(false); });
}

void sealing_several_returns_without_retries() {
  Returning r(3, 0);
  everywhere("seal 3 returns, no retries", r.w, [&] { (void)run(*r.w.victim, r.task); }, [&] { r.check(true); });
}

// The next attempt seals nothing but errors: it must not have to tell who waits for what is sealed already.
void failing_the_second_attempt() {
  Returning r(3, 3);
  r.w.after_recovery = [&] {
    if (is_sealed(r.w.session.word(r.task))) return;
    while (Handle h = r.w.worker->claim_next()) {
      if (h != r.task) {
        EXPECT(run(*r.w.worker, h));
        continue;
      }
      Record& record = r.w.session.segment.record(h);
      std::string message(300, 'x');
      uint64_t flags = r.w.worker->write_failure(record, h, kErrorUser, message.data(), message.size());
      EXPECT(r.w.worker->seal(h, kFailed, flags));
      r.w.worker->end_task();
    }
  };
  everywhere("2nd attempt fails", r.w, [&] { (void)run(*r.w.victim, r.task); }, [&] { r.check(true); });
}

void cancelling_the_second_attempt() {
  Returning r(3, 3);
  r.w.after_recovery = [&] {
    int running;
    (void)r.w.driver->cancel(r.task, &running);
    EXPECT(running == -1);
  };
  everywhere("2nd attempt is cancelled", r.w, [&] { (void)run(*r.w.victim, r.task); }, [&] { r.check(true); });
}

void cancelling_several_returns() {
  World w;
  Handle task = submit_returns(*w.driver, 7);
  std::vector<Handle> promises = promises_of(w.session, task);
  Handle after = submit(*w.driver, {promises[3]});
  w.victim->hold(promises[0]);
  everywhere("cancel 7 returns", w,
             [&] {
               int running;
               (void)w.victim->cancel(task, &running);
             },
             [&] {
               EXPECT(is_sealed(w.session.word(task)) && is_sealed(w.session.word(after)));
               for (Handle p : promises) EXPECT(is_sealed(w.session.word(p)) && !is_walked(w.session.word(p)));
               for (Handle p : promises) w.driver->drop(p);
               w.driver->drop(after);
             });
}

void failing_with_long_errors() {
  World w(0);
  Handle task = submit_returns(*w.driver, 3);
  std::vector<Handle> promises = promises_of(w.session, task);
  CHECK(w.victim->claim_next() == task);
  std::string message(300, 'x');
  Record& r = w.session.segment.record(task);
  everywhere("fail 3 returns", w,
             [&] {
               uint64_t flags = w.victim->write_failure(r, task, kErrorUser, message.data(), message.size());
               (void)w.victim->seal(task, kFailed, flags);
             },
             [&] {
               for (Handle p : promises) EXPECT(state_of(w.session.word(p)) == kFailed);
               for (Handle p : promises) w.driver->drop(p);
             });
}

// ---- what an owner lets go of --------------------------------------------------------------------------

void dropping_what_others_made() {
  World w;
  Handle big = submit(*w.victim);
  CHECK(w.worker->claim_next() == big && run(*w.worker, big, 5000));  // the payload is the worker's
  Handle waited = submit(*w.victim);
  w.driver->hold(waited);
  Handle after = submit(*w.driver, {waited});  // the edge is the driver's
  CHECK(drain(*w.worker) == 2);
  w.driver->drop(after);
  w.driver->drop(waited);
  w.driver->sweep();
  Handle several = submit_returns(*w.victim, 7);
  std::vector<Handle> promises = promises_of(w.session, several);
  CHECK(drain(*w.worker) == 1);
  everywhere("drop foreign blocks", w,
             [&] {
               w.victim->drop(big);
               w.victim->drop(waited);
               for (Handle p : promises) w.victim->drop(p);
               w.victim->sweep();
             },
             [] {});
}

void letting_go_of_lineage() {
  World w;
  Handle big = put(*w.victim, 4, 5000), small = put(*w.victim, 5), foreign = put(*w.driver, 6, 5000);
  w.victim->hold(foreign);
  Handle many = submit(*w.victim, {big, small, foreign, small, big}), few = submit(*w.victim, {small});
  for (Handle h : {many, few}) w.victim->remember_lineage(h);
  w.driver->hold(many);
  for (Handle h : {big, small, foreign}) w.victim->drop(h);
  CHECK(drain(*w.worker) == 2);
  everywhere("let go of lineage", w,
             [&] {
               w.victim->sweep_lineage(16);
               w.victim->drop(many);
               w.victim->drop(few);
             },
             [&] {
               EXPECT(w.session.value(many) == 25);
               w.driver->drop(many);
               w.driver->drop(foreign);
             });
}

void dropping_what_is_not_done() {
  World w;
  Handle a = submit(*w.victim), b = submit(*w.victim, {a}), lent = submit(*w.victim);
  w.driver->hold(lent);
  everywhere("drop pending tasks", w,
             [&] {
               for (Handle h : {a, b, lent}) w.victim->drop(h);
             },
             [&] {
               EXPECT(w.session.value(lent) == 1);
               w.driver->drop(lent);
             });
}

// As empty() in submit.pyx: memory to be filled, and never put.
void holding_memory_that_is_not_put() {
  World w;
  everywhere("empty, not put", w,
             [&] {
               Record* r = w.victim->allocate_record();
               CHECK(r != nullptr);
               Handle h = w.victim->handle_of(r);
               r->kind = kObject;
               r->args_bytes = r->dependencies = r->references = 0;
               w.victim->publish_state(r, h, kPromised, write_value(*w.victim, h, *r, 1, 5000));
             },
             [] {});
}

void running_what_nobody_wants() {
  World w;
  Handle a = submit(*w.driver), b = submit(*w.driver, {a});
  w.driver->drop(a);
  w.driver->drop(b);
  CHECK(w.session.word(b) & kFlagDetached);
  CHECK(w.victim->claim_next() == a);
  everywhere("run a detached task", w, [&] { (void)run(*w.victim, a); }, [] {});
}

// ---- results that hold references ----------------------------------------------------------------------

void returning_references() {
  World w;
  Handle outer = put(*w.driver, 7), container = submit(*w.driver);
  CHECK(w.victim->claim_next() == container);
  w.victim->hold(outer);
  Record* next = w.victim->allocate_record();
  Handle inner = w.victim->handle_of(next);  // what the put below will be
  w.victim->unallocate(next);
  everywhere("return references", w,
             [&] {
               CHECK(put(*w.victim, 9, 200) == inner);
               CHECK(w.victim->contain(inner, container) && w.victim->contain(outer, container));
               Record& r = w.session.segment.record(container);
               (void)w.victim->seal(container, kDone, write_value(*w.victim, container, r, 100, 300));
               w.victim->end_task();
               w.victim->drop(inner);
               w.victim->drop(outer);
             },
             [&] {
               w.driver->drop(outer);
               w.settle();
               if (w.session.value(container) == 100) {
                 EXPECT(w.session.value(inner) == 9 && w.session.value(outer) == 7);
                 w.driver->hold(inner);
                 w.driver->drop(container);
                 w.settle();
                 EXPECT(w.session.value(inner) == 9 && !w.session.lives(outer));
                 w.driver->drop(inner);
               } else {
                 w.driver->drop(container);
               }
             });
}

void freeing_what_results_hold() {
  World w;
  Handle outer = put(*w.driver, 7), container = submit(*w.driver);
  CHECK(w.victim->claim_next() == container);
  Handle inner = put(*w.victim, 9, 200);
  CHECK(w.victim->contain(inner, container) && w.victim->contain(outer, container));
  CHECK(run(*w.victim, container));
  w.victim->drop(inner);
  w.driver->drop(container);
  everywhere("free contained references", w, [&] { w.victim->sweep(); }, [&] { w.driver->drop(outer); });
}

// The reaper takes a reference over, and later, with its owner, the record it names.
void both_the_holder_and_the_owner_die() {
  World w;
  auto owner = w.session.process(kProcWorker, 4);
  Handle named = put(*owner, 5), container = submit(*w.driver);
  CHECK(w.victim->claim_next() == container && w.victim->contain(named, container));
  CHECK(run(*w.victim, container));
  w.recover();
  w.reaper->recover(4, kCrash);
  w.settle();
  CHECK(w.session.lives(named) && w.session.value(named) == 5);
  w.driver->drop(container);
  w.settle();
  CHECK(!w.session.lives(named));
  w.nothing_is_left();
}

}  // namespace

int main() {
  for (uint16_t k : {2, 7}) submitting_several_returns(k);
  for (uint16_t k : {2, 7}) sealing_several_returns(k);
  sealing_several_returns_without_retries();
  failing_the_second_attempt();
  cancelling_the_second_attempt();
  cancelling_several_returns();
  failing_with_long_errors();
  dropping_what_others_made();
  letting_go_of_lineage();
  dropping_what_is_not_done();
  holding_memory_that_is_not_put();
  running_what_nobody_wants();
  returning_references();
  freeing_what_results_hold();
  both_the_holder_and_the_owner_die();
  puts("returns_step_kill_test ok");
  return 0;
}
