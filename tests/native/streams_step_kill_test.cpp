// The producer or the consumer of a stream is killed at every instruction. Whatever happens, the consumer sees
// each number once and in order, and no item is left behind. See world.h.
#include "world.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

// What the driver gets of a stream until there is no more; checks numbers and values, drops them.
uint32_t take_all(World& w, Handle task, uint32_t first) {
  uint32_t n = first;
  while (Handle h = w.driver->take_item(task)) {
    Record& r = w.session.segment.record(h);
    EXPECT(w.session.lives(h) && state_of(r.state.load()) == kDone);
    EXPECT(Process::item_of(r).number == n && r.ret == n && w.session.value(h) == 1 + n);
    w.driver->drop(h);
    ++n;
  }
  return n;
}

void check_all_items(World& w, Handle task, uint32_t first) {
  EXPECT(state_of(w.session.word(task)) == kDone);
  EXPECT(take_all(w, task, first) == kItems);
  w.driver->drop(task);
}

// ---- the producer ------------------------------------------------------------------------------------

void producing() {
  World w;
  Handle task = submit_stream(*w.driver);
  CHECK(w.victim->claim_next() == task);
  everywhere("make a stream", w, [&] { (void)run(*w.victim, task); }, [&] { check_all_items(w, task, 0); });
}

// What was made before is another dead worker's; part of it is taken, the last one taken kept for its link.
void going_on_with_a_stream(uint32_t taken) {
  World w;
  Handle task = submit_stream(*w.driver);
  auto earlier = w.session.process(kProcWorker, 4);
  CHECK(earlier->claim_next() == task);
  make_items(*earlier, task, 1, 2);
  w.reaper->recover(4, kCrash);
  for (uint32_t i = 0; i < taken; ++i) w.driver->drop(w.driver->take_item(task));
  CHECK(w.victim->claim_next() == task);
  everywhere(taken == 0 ? "go on with a stream" : taken == 1 ? "go on, 1 item taken" : "go on, all taken", w,
             [&] { (void)run(*w.victim, task); }, [&] { check_all_items(w, task, taken); });
}

void producing_without_retries() {
  World w(0);
  Handle task = submit_stream(*w.driver);
  CHECK(w.victim->claim_next() == task);
  everywhere("stream without retries", w, [&] { (void)run(*w.victim, task); },
             [&] {
               uint64_t word = w.session.word(task);
               EXPECT(is_sealed(word));
               uint32_t n = take_all(w, task, 0);
               Offset error = Process::stream_of(w.session.segment.record(task)).error;
               EXPECT((state_of(word) == kDone) == (error == 0));
               EXPECT(state_of(word) == kDone ? n == kItems : n <= kItems);
               if (error != 0) EXPECT(Process::view_payload(w.session.segment, error).codec[0] == kErrorCrashed);
               w.driver->drop(task);
             });
}

void fail(Process& p, Handle task) {
  Record& r = p.segment().record(task);
  std::string message(300, 'x');
  (void)p.seal(task, kFailed, p.write_failure(r, task, kErrorUser, message.data(), message.size()));
  p.end_task();
}

// The next attempt fails as well, or it succeeds: the error of the first is not left in either case.
void failing(bool again) {
  World w;
  Handle task = submit_stream(*w.driver);
  CHECK(w.victim->claim_next() == task);
  make_items(*w.victim, task, 1, 2);
  w.after_recovery = [&] {
    if (again && w.worker->claim_next() == task) fail(*w.worker, task);
  };
  everywhere(again ? "fail a stream, twice" : "fail a stream", w, [&] { fail(*w.victim, task); },
             [&] {
               uint64_t word = w.session.word(task);
               EXPECT(is_sealed(word) && (!again || state_of(word) == kFailed));
               EXPECT((Process::stream_of(w.session.segment.record(task)).error != 0) == (state_of(word) == kFailed));
               uint32_t n = take_all(w, task, 0);
               EXPECT(n == (state_of(word) == kFailed ? 2 : kItems));
               w.driver->drop(task);
             });
}

void producing_for_nobody() {
  World w;
  Handle task = submit_stream(*w.driver);
  CHECK(w.victim->claim_next() == task);
  make_items(*w.victim, task, 1, 2);
  w.driver->drop(w.driver->take_item(task));
  w.driver->drop(task);
  everywhere("stream nobody wants", w, [&] { (void)run(*w.victim, task); }, [] {});
}

// ---- the consumer ------------------------------------------------------------------------------------

void consuming(bool sealed) {
  World w;
  Handle task = submit_stream(*w.victim), again = 0;
  CHECK(w.worker->claim_next() == task);
  if (sealed) {
    CHECK(run(*w.worker, task));
  } else {
    make_items(*w.worker, task, 1, 2);
    w.after_recovery = [&] {
      w.worker->sweep();
      again = put(*w.worker, 77);  // in the record that came back last: no item of the stream may be in it
      EXPECT(run(*w.worker, task));
    };
  }
  everywhere(sealed ? "take items" : "take items while made", w,
             [&] {
               Handle first = w.victim->take_item(task);
               w.victim->drop(w.victim->take_item(task));
               w.victim->drop(first);
             },
             [&] {
               if (sealed) return;
               w.settle();
               EXPECT(w.session.lives(again) && w.session.value(again) == 77);
               EXPECT(w.session.segment.record(again).owner == 3);
               w.worker->drop(again);
             });
}

// A borrower of an item keeps it, whatever happens to the stream.
void consuming_what_is_lent() {
  World w;
  Handle task = submit_stream(*w.victim);
  CHECK(w.worker->claim_next() == task && run(*w.worker, task));
  Handle lent = w.victim->take_item(task);
  w.driver->hold(lent);
  everywhere("take after lending", w,
             [&] {
               w.victim->drop(lent);
               w.victim->drop(w.victim->take_item(task));
             },
             [&] {
               EXPECT(w.session.lives(lent) && w.session.value(lent) == 1);
               w.driver->drop(lent);
             });
}

void dropping_a_stream() {
  World w;
  Handle task = submit_stream(*w.victim);
  CHECK(w.worker->claim_next() == task && run(*w.worker, task));
  w.victim->drop(w.victim->take_item(task));
  everywhere("drop a stream", w, [&] { w.victim->drop(task); }, [] {});
}

void dropping_a_failed_stream() {
  World w;
  Handle task = submit_stream(*w.victim);
  CHECK(w.worker->claim_next() == task);
  make_items(*w.worker, task, 1, 2);
  fail(*w.worker, task);
  everywhere("drop a failed stream", w, [&] { w.victim->drop(task); }, [] {});
}

void submitting_a_stream() {
  World w;
  everywhere("submit a stream", w, [&] { (void)submit_stream(*w.victim); }, [] {});
}

// ---- both --------------------------------------------------------------------------------------------

// The node frees the items of a consumer that died first; the producer was about to publish another one.
void the_consumer_dies_and_then_the_producer() {
  World w;
  Handle task = submit_stream(*w.driver);
  auto consumer = w.session.process(kProcWorker, 4);
  Handle mine = submit_stream(*consumer);
  while (Handle h = w.victim->claim_next()) {
    if (h == mine) break;
    CHECK(run(*w.victim, h));
  }
  make_items(*w.victim, mine, 1, 2);
  consumer->drop(consumer->take_item(mine));
  w.after_recovery = [&] { w.reaper->recover(4, kCrash); };
  everywhere("then the consumer dies", w, [&] { (void)run(*w.victim, mine); }, [&] { check_all_items(w, task, 0); });
}

// An item outlives its stream, whose record and numbers are used again by the same worker.
void an_item_of_an_earlier_stream_is_not_half_made() {
  World w;
  Handle task = submit_stream(*w.driver);
  CHECK(w.victim->claim_next() == task && run(*w.victim, task));
  Handle kept = w.driver->take_item(task);
  w.driver->drop(task);
  Handle again = submit_stream(*w.driver);
  CHECK(index_of(again) == index_of(task) && w.victim->claim_next() == again);
  w.recover();
  CHECK(w.session.lives(kept) && w.session.value(kept) == 1);
  check_all_items(w, again, 0);
  w.driver->drop(kept);
  w.nothing_is_left();
}

}  // namespace

int main() {
  producing();
  for (uint32_t taken : {0, 1, 2}) going_on_with_a_stream(taken);
  producing_without_retries();
  for (bool again : {false, true}) failing(again);
  producing_for_nobody();
  for (bool sealed : {false, true}) consuming(sealed);
  consuming_what_is_lent();
  dropping_a_stream();
  dropping_a_failed_stream();
  submitting_a_stream();
  the_consumer_dies_and_then_the_producer();
  an_item_of_an_earlier_stream_is_not_half_made();
  puts("streams_step_kill_test ok");
  return 0;
}
