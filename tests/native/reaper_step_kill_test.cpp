// A process is killed at every instruction of publish, publish_waiting, claim, seal, retry, cancel, drop, hold and
// of giving a record back. See world.h; several returns, streams and tables are in the other *_step_kill_test.cpp.
#include "world.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

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
                 const Record& r = w.session.segment.record(a);
                 EXPECT(word & kFlagResultHeap);
                 const uint8_t* error = Process::view_payload(w.session.segment, r.result_heap.offset).codec;
                 CrashReport report;
                 memcpy(&report, error + 1, sizeof report);
                 EXPECT(error[0] == kErrorCrashed && report.last.pid == kCrash.pid && report.last.signal == 9);
                 EXPECT(report.task == r.id && report.attempts == 1 && report.earlier == 0 && report.events == 0);
               }
               EXPECT(is_sealed(w.session.word(b)));
               w.driver->drop(a);
               w.driver->drop(b);
             });
}

void retrying() {
  World w;
  Handle a = submit(*w.driver), b = submit(*w.driver, {a});
  CHECK(w.victim->claim_next() == a);
  everywhere("retry", w,
             [&] {
               (void)w.victim->retry(a);
               w.victim->end_task();
             },
             [&] {
               EXPECT(state_of(w.session.word(a)) == kDone && w.session.value(b) == 2);
               for (Handle h : {a, b}) w.driver->drop(h);
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
  retrying();
  cancelling();
  holding_and_letting_go();
  returning_a_record();
  puts("reaper_step_kill_test ok");
  return 0;
}
