// Several Process objects in one address space: publishing, dependencies, cancelling, borrowing; alone, and with
// threads as processes. Clean under ThreadSanitizer and AddressSanitizer.
#include <atomic>
#include <thread>

#include "session.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

void wait_for(Process& p, Handle h) {
  while (!p.sealed(h)) {
    p.nudge();
    if (p.mark_awaited(&h, 1)) return;
    (void)p.sleep_on(&h, 1, p.wake_word(), -1);
  }
}

// A worker's loop until `stop`; wakes are the library's own, the timeout is only for the end of the test.
void work(Process& p, std::atomic<bool>& stop) {
  while (!stop.load()) {
    if (Handle h = p.poll_for_work(5)) {
      CHECK(run(p, h));
      p.spread(1000);
    } else {
      (void)p.sleep_for_work(p.wake_word(), -1);
    }
  }
}

struct Workers {
  Session& session;
  std::vector<std::unique_ptr<Process>> processes;
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  Workers(Session& s, uint32_t first_slot, uint32_t n) : session(s) {
    for (uint32_t i = 0; i < n; ++i) processes.push_back(s.process(kProcWorker, static_cast<int>(first_slot + i)));
    for (auto& p : processes) threads.emplace_back([this, q = p.get()] { work(*q, stop); });
  }
  ~Workers() {
    stop.store(true);
    for (auto& p : processes) {
      p->self().exiting.store(1);
      Process::wake_process(session.segment, p->slot());
    }
    for (auto& t : threads) t.join();
  }
};

void a_task_runs_once_and_its_record_is_used_again() {
  Session s;
  auto driver = s.process(kProcDriver, 1), worker = s.process(kProcWorker, 2);
  Handle h = submit(*driver);
  CHECK(worker->claim_next() == h);
  CHECK(worker->claim_next() == 0);
  CHECK(run(*worker, h) && s.value(h) == 1);
  CHECK(!worker->seal(h, kDone, 0));  // not twice
  driver->drop(h);
  CHECK(!s.lives(h));
  Handle again = submit(*driver);
  CHECK(index_of(again) == index_of(h) && gen_of(again) == gen_of(h) + 1);
  CHECK(drain(*worker) == 1);
}

void a_dependent_becomes_ready_when_its_last_dependency_is_sealed() {
  Session s;
  auto driver = s.process(kProcDriver, 1), worker = s.process(kProcWorker, 2);
  Handle a = submit(*driver), b = submit(*driver), c = submit(*driver, {a, b, a});
  CHECK(state_of(s.word(c)) == kWaiting);
  Handle first = worker->claim_next();
  CHECK(run(*worker, first));
  CHECK(state_of(s.word(c)) == kWaiting);
  CHECK(drain(*worker) == 2 && s.value(c) == 4);
  CHECK(!is_walked(s.word(a)) && !is_walked(s.word(b)));
  driver->drop(a);
  driver->drop(b);
  CHECK(s.lives(a) && s.lives(b));  // c's arguments
  driver->drop(c);
  CHECK(!s.lives(a) && !s.lives(b) && !s.lives(c));
}

void a_waiting_or_ready_task_can_be_cancelled_and_a_running_one_is_marked() {
  Session s;
  auto driver = s.process(kProcDriver, 1), worker = s.process(kProcWorker, 2);
  int running;
  Handle a = submit(*driver), b = submit(*driver, {a}), c = submit(*driver, {b});
  CHECK(driver->cancel(b, &running) && running == -1);
  CHECK(state_of(s.word(b)) == kFailed);
  CHECK(state_of(s.word(c)) == kReady);  // it finds the error when it runs
  CHECK(worker->claim_next() == a || worker->claim_next() == a);
  CHECK(!driver->cancel(a, &running) && running == 2);
  CHECK(s.word(a) & kFlagCancel);
  CHECK(run(*worker, a));
  CHECK(!driver->cancel(a, &running) && running == -1);
}

void a_dropped_pending_task_is_freed_when_it_is_done() {
  Session s;
  auto driver = s.process(kProcDriver, 1), worker = s.process(kProcWorker, 2);
  Handle a = submit(*driver), b = submit(*driver, {a});
  driver->drop(a);
  driver->drop(b);
  driver->sweep();
  CHECK(s.lives(a) && s.lives(b));
  CHECK(drain(*worker) == 2);
  driver->sweep();
  driver->sweep();
  CHECK(!s.lives(a) && !s.lives(b));
}

void a_borrowed_record_lives_until_the_last_borrower_lets_go() {
  Session s;
  auto driver = s.process(kProcDriver, 1), worker = s.process(kProcWorker, 2), third = s.process(kProcWorker, 3);
  Handle a = put(*driver, 5, 5000);
  worker->hold(a);
  driver->drop(a);
  driver->sweep();
  CHECK(s.lives(a));
  third->hold(a);
  worker->drop(a);
  driver->sweep();
  CHECK(s.lives(a));
  driver->hold(a);  // comes back to its owner
  third->drop(a);
  driver->sweep();
  CHECK(s.lives(a));
  driver->drop(a);
  driver->sweep();
  CHECK(!s.lives(a));
}

void a_contained_reference_lives_as_long_as_its_container() {
  Session s;
  auto driver = s.process(kProcDriver, 1), worker = s.process(kProcWorker, 2);
  Handle container = submit(*driver);
  CHECK(worker->claim_next() == container);
  Handle inner = put(*worker, 9);
  CHECK(worker->contain(inner, container));
  CHECK(run(*worker, container));
  worker->drop(inner);
  worker->sweep();
  CHECK(s.lives(inner));
  driver->drop(container);
  worker->sweep();
  worker->sweep();
  CHECK(!s.lives(inner));
}

void a_long_chain_and_random_graphs_come_out_right() {
  Session s;
  auto driver = s.process(kProcDriver, 1);
  Workers workers(s, 2, 3);
  Random random(seed_or(7));
  for (int round = 0; round < 8; ++round) {
    std::vector<Handle> tasks;
    std::vector<uint64_t> expected;
    for (size_t i = 0; i < 1500; ++i) {
      std::vector<Handle> deps;
      uint64_t sum = 1;
      size_t n = i == 0 ? 0 : round == 0 ? 1 : random.below(3);
      for (size_t k = 0; k < n; ++k) {
        size_t at = round == 0 ? i - 1 : i - 1 - random.below(i < 20 ? i : 20);
        deps.push_back(tasks[at]);
        sum += expected[at];
      }
      tasks.push_back(submit(*driver, deps));
      expected.push_back(sum);
      if (random.below(50) == 0) wait_for(*driver, tasks[random.below(tasks.size())]);
    }
    for (size_t i = 0; i < tasks.size(); ++i) {
      wait_for(*driver, tasks[i]);
      CHECK(s.value(tasks[i]) == expected[i]);
    }
    for (Handle h : tasks) driver->drop(h);
  }
  driver->sweep();
  CHECK(driver->owned_pending() == 0);
}

void cancelling_races_with_running() {
  Session s;
  auto driver = s.process(kProcDriver, 1);
  Workers workers(s, 2, 2);
  for (int i = 0; i < 3000; ++i) {
    Handle a = submit(*driver), b = submit(*driver, {a});
    int running;
    if (i % 2) driver->drop(a);
    (void)driver->cancel(b, &running);
    CHECK(driver->self().acting.load() == 0);
    wait_for(*driver, b);
    driver->drop(b);
    if (i % 2 == 0) driver->drop(a);
  }
  for (int i = 0; i < 1000 && driver->owned_pending() != 0; ++i) {
    driver->sweep();
    std::this_thread::yield();
  }
}

void several_owners_share_the_workers() {
  Session s;
  Workers workers(s, 10, 2);
  std::vector<std::thread> owners;
  for (int slot = 2; slot < 5; ++slot) {
    owners.emplace_back([&, slot] {
      auto p = s.process(kProcDriver, slot);
      for (int window = 0; window < 40; ++window) {
        std::vector<Handle> tasks;
        for (int i = 0; i < 200; ++i) tasks.push_back(submit(*p));
        for (Handle h : tasks) {
          wait_for(*p, h);
          CHECK(s.value(h) == 1);
          p->drop(h);
        }
      }
    });
  }
  for (auto& t : owners) t.join();
}

// A reference goes from hand to hand while its owner drops it: never freed early, always freed in the end.
void borrowing_races_with_dropping() {
  Session s;
  auto owner = s.process(kProcDriver, 1);
  constexpr int kHands = 3, kObjects = 2000;
  std::atomic<Handle> desk[kHands + 1];  // desk[i]: for hand i to take; 0 when empty
  for (auto& d : desk) d.store(0);
  std::atomic<int> done{0};
  std::vector<std::thread> hands;
  for (int i = 0; i < kHands; ++i) {
    hands.emplace_back([&, i] {
      auto p = s.process(kProcWorker, 2 + i);
      for (int n = 0; n < kObjects; ++n) {
        Handle h;
        while ((h = desk[i].load()) == 0) std::this_thread::yield();
        p->hold(h);
        desk[i].store(0);  // from here on the giver may drop it
        CHECK(s.lives(h) && s.value(h) == static_cast<uint64_t>(n));
        if (i + 1 < kHands) {
          desk[i + 1].store(h);
          while (desk[i + 1].load() != 0) std::this_thread::yield();
        }
        CHECK(s.lives(h));
        p->drop(h);
      }
      ++done;
    });
  }
  for (int n = 0; n < kObjects; ++n) {
    Handle h = put(*owner, static_cast<uint64_t>(n));
    desk[0].store(h);
    while (desk[0].load() != 0) std::this_thread::yield();
    owner->drop(h);
    if (n % 16 == 0) owner->sweep();
  }
  for (auto& t : hands) t.join();
  owner->sweep();
  owner->sweep();
  CHECK(done == kHands && owner->free_list().size() + 1 >= kChunkRecords);
}

}  // namespace

int main() {
  a_task_runs_once_and_its_record_is_used_again();
  a_dependent_becomes_ready_when_its_last_dependency_is_sealed();
  a_waiting_or_ready_task_can_be_cancelled_and_a_running_one_is_marked();
  a_dropped_pending_task_is_freed_when_it_is_done();
  a_borrowed_record_lives_until_the_last_borrower_lets_go();
  a_contained_reference_lives_as_long_as_its_container();
  a_long_chain_and_random_graphs_come_out_right();
  cancelling_races_with_running();
  several_owners_share_the_workers();
  borrowing_races_with_dropping();
  puts("process_test ok");
  return 0;
}
