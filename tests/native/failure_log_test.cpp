// FailureLog and what Process notes in it: rounds, torn entries, writers at once, cut texts.
#include "../../csrc/failure_log.h"

#include <memory>
#include <thread>
#include <vector>

#include "testing.h"

namespace fastray::testing {
namespace {

Failure failure(uint64_t task) {
  Failure f;
  f.task = task;
  f.parent = task + 1;
  f.ended_ns = static_cast<int64_t>(task * 3);
  f.text_bytes = static_cast<uint32_t>(task % kFailureText);
  memset(f.text, static_cast<int>('a' + task % 26), f.text_bytes);
  return f;
}

bool is_whole(const Failure& f) {
  Failure same = failure(f.task);
  return memcmp(&same, &f, sizeof f) == 0;
}

void what_was_noted_is_read_until_a_round_later() {
  auto log = std::make_unique<FailureLog>();
  Failure f;
  CHECK(!log->read(0, &f));
  for (uint64_t i = 0; i < 3 * kFailures; ++i) {
    CHECK(!log->read(i, &f));
    log->note(failure(i));
    CHECK(log->written.load() == i + 1);
    CHECK(log->read(i, &f) && f.task == i && is_whole(f));
    if (i >= kFailures) CHECK(!log->read(i - kFailures, &f));
  }
}

// A writer that is killed after any of its stores.
void an_entry_cut_short_is_none() {
  auto log = std::make_unique<FailureLog>();
  auto whole = std::make_unique<FailureLog>();
  for (uint64_t i = 0; i < kFailures; ++i) log->note(failure(i + 7));
  for (uint64_t i = 0; i <= kFailures; ++i) whole->note(failure(i + 1000));  // entry 0 is of number kFailures
  uint64_t stale[64];
  for (int i = 0; i < 64; ++i) stale[i] = log->entries[0].words[i].load();
  for (int stores = 0; stores < 64; ++stores) {
    for (int i = 0; i < 64; ++i)
      log->entries[0].words[i].store(i < stores ? whole->entries[0].words[i].load() : stale[i]);
    Failure f;
    CHECK(!log->read(kFailures, &f));
    CHECK(log->read(0, &f) == (stores == 0));
  }
}

void writers_at_once_leave_whole_entries() {
  auto log = std::make_unique<FailureLog>();
  constexpr int kWriters = 3;
  constexpr uint64_t kEach = 20000;
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kWriters; ++t)
    threads.emplace_back([&] {
      for (uint64_t i = 0; i < kEach; ++i) log->note(failure(i));
    });
  threads.emplace_back([&] {
    Failure f;
    while (!over.load())
      for (uint64_t n = 0; n < kFailures; ++n)
        for (uint64_t round = 0; round * kFailures + n < log->written.load(); ++round)
          if (log->read(round * kFailures + n, &f)) CHECK(is_whole(f));
  });
  for (int t = 0; t < kWriters; ++t) threads[static_cast<size_t>(t)].join();
  over.store(true);
  threads.back().join();
  CHECK(log->written.load() == kWriters * kEach);
}

}  // namespace
}  // namespace fastray::testing

int main() {
  using namespace fastray::testing;
  what_was_noted_is_read_until_a_round_later();
  an_entry_cut_short_is_none();
  writers_at_once_leave_whole_entries();
  puts("ok");
}
