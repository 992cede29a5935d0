// FlightRecorder and what is read out of it: wrap-around, spans, an event cut short at every store.
#include "../../csrc/flight_recorder.h"

#include <memory>

#include "../../csrc/crash_report.h"
#include "testing.h"

namespace fastray::testing {
namespace {

constexpr double kTicksPerUs = 1000;  // a tick is a nanosecond

std::vector<EventReport> read(const FlightRecorder& r, uint64_t now, uint32_t most = kFlightEvents) {
  return read_events(r, now, kTicksPerUs, most);
}

void nothing_is_in_a_new_one() {
  auto r = std::make_unique<FlightRecorder>();
  r->clear();
  CHECK(read(*r, 100).empty());
  r->close(kNoEvent, 5);
  CHECK(read(*r, 100).empty());
  for (const FlightEvent& e : r->events) CHECK(e.end.load() == 0);
}

void spans_and_moments_come_back_in_order() {
  auto r = std::make_unique<FlightRecorder>();
  r->note(kEventLease, 3, 0, 100, 100);
  uint64_t a = r->note(kEventTask, 7, 41, 200, 0);
  uint64_t b = r->note_blocked(9, 42, 250);
  r->close(b, 260);
  CHECK(r->note_blocked(9, 42, 270) == b);  // the same wait goes on
  CHECK(read(*r, 300).back().took_ns == -1);
  r->close(b, 280);
  r->close(a, 291);  // odd: by an exception
  uint64_t c = r->note(kEventTask, 7, 43, 300, 0);
  auto events = read(*r, 1300);
  CHECK(c == 3 && events.size() == 4);
  CHECK(events[0].what == (uint64_t{3} << 9 | kEventLease) && events[0].took_ns == 0 && events[0].ago_ns == 1200);
  CHECK(events[1].what == (uint64_t{7} << 9 | 0x100 | kEventTask) && events[1].took_ns == 91 && events[1].record == 41);
  CHECK(events[2].what == (uint64_t{9} << 9 | kEventBlocked) && events[2].ago_ns == 1050 && events[2].took_ns == 30);
  CHECK(events[3].took_ns == -1 && events[3].record == 43 && events[3].ago_ns == 1000);
  CHECK(read(*r, 1300, 2).size() == 2 && read(*r, 1300, 2)[0].record == 42);
}

void only_the_last_ones_are_kept() {
  auto r = std::make_unique<FlightRecorder>();
  uint64_t first = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    uint64_t n = r->note(kEventTask, 1, i, i * 10, 0);
    if (i == 0) first = n;
    if (i % 2 == 0) r->close(n, i * 10 + 4);
    r->close(first, 999);  // overwritten long ago: nobody else's end
    auto events = read(*r, i * 10 + 5);
    CHECK(events.size() == (i + 1 < kFlightEvents ? i + 1 : kFlightEvents - 1));
    CHECK(events.back().record == i);
    for (size_t k = 1; k < events.size(); ++k) {
      CHECK(events[k].record == events[k - 1].record + 1);
      if (events[k].record != 0) CHECK(events[k].took_ns == (events[k].record % 2 == 0 ? 4 : -1));
    }
  }
}

// note() stores begin, end, record, what, written: a kill before any of them shows the reader what was before.
void an_event_cut_short_is_not_seen() {
  for (uint64_t full : {uint64_t{5}, uint64_t{100}}) {
    for (int stores = 0; stores < 5; ++stores) {
      auto r = std::make_unique<FlightRecorder>();
      for (uint64_t i = 0; i < full; ++i) r->note(kEventTask, 1, i, 1000 + i, 1001 + i);
      auto before = read(*r, 5000);
      FlightEvent& e = r->events[full % kFlightEvents];
      if (stores > 0) e.begin.store(~uint64_t{0});
      if (stores > 1) e.end.store(~uint64_t{0});
      if (stores > 2) e.record.store(~uint64_t{0});
      if (stores > 3) e.what.store(~uint64_t{0});
      auto after = read(*r, 5000);
      CHECK(after.size() == before.size());
      for (size_t k = 0; k < after.size(); ++k) {
        CHECK(after[k].record == before[k].record && after[k].what == before[k].what);
        CHECK(after[k].ago_ns == before[k].ago_ns && after[k].took_ns == before[k].took_ns);
      }
    }
  }
}

void earlier_attempts_are_kept_within_bounds() {
  AttemptLog log;
  for (int32_t pid = 1; pid <= 20; ++pid) log.add(7, {pid, 9, 0, 0});
  auto attempts = log.take(7);
  CHECK(attempts.size() == AttemptLog::kAttemptsMax && attempts.front().pid == 5 && attempts.back().pid == 20);
  CHECK(log.take(7).empty());
  for (uint64_t task = 0; task < 5000; ++task) {
    log.add(task, {1, 9, 0, 0});
    if (task % 3 == 0) CHECK(log.take(task).size() == 1);
    CHECK(log.size() <= AttemptLog::kTasksMax);
  }
  CHECK(log.take(4999).size() == 1 && log.take(1).empty());
}

}  // namespace
}  // namespace fastray::testing

int main() {
  using namespace fastray::testing;
  nothing_is_in_a_new_one();
  spans_and_moments_come_back_in_order();
  only_the_last_ones_are_kept();
  an_event_cut_short_is_not_seen();
  earlier_attempts_are_kept_within_bounds();
  puts("flight_recorder_test ok");
  return 0;
}
