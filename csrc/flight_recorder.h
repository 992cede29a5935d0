// A process's last events, in shared memory, for whoever asks how it died.
//
//   event     a span or a moment of the process's work: kind, begin, end, record, detail
//   recorder  a ring of kFlightEvents events for each process slot, written by that process alone
//   number    of an event, counted from 0 since the process began; it stands at number % kFlightEvents
//
// One thread at a time writes (Python code holds the GIL), with relaxed stores and no other instruction that
// orders. A process killed between any two of them leaves a readable ring: the event that is being written is
// above `written`, and the one it overwrites is the oldest, which no reader takes. An end is one store. The node
// reads after the death (crash_report.h). Cost of a task: four stores at its start, a compare and a store at its
// end, in one or two cache lines of the process's own.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastray {

inline constexpr uint32_t kFlightEvents = 32;
inline constexpr uint64_t kNoEvent = uint64_t{1} << 63;

enum EventKind : uint8_t {
  kEventTask = 1,        // record: the task; detail: its function
  kEventBlocked = 2,     // record: what it waits for; detail: function that makes it, 0: none
  kEventLease = 3,       // detail: class
  kEventReturned = 4,    // the same lease, given back
  kEventCheckpoint = 5,  // record: the object with the state; detail: calls in it
};

struct FlightEvent {
  std::atomic<uint64_t> begin;   // os::ticks()
  std::atomic<uint64_t> end;     // the same; 0 while it goes on, the lowest bit set: ended by an exception
  std::atomic<uint64_t> record;  // Record::id
  std::atomic<uint64_t> what;    // detail << 8 | EventKind
};
static_assert(sizeof(FlightEvent) == 32);

struct alignas(64) FlightRecorder {
  std::atomic<uint64_t> written;  // events that are complete, ever
  alignas(64) FlightEvent events[kFlightEvents];

  void clear() { written.store(0, std::memory_order_relaxed); }

  // A new event; `end` is 0 for a span, `begin` for a moment. Returns its number.
  uint64_t note(EventKind kind, uint64_t detail, uint64_t record, uint64_t begin, uint64_t end) {
    uint64_t n = written.load(std::memory_order_relaxed);
    FlightEvent& e = events[n % kFlightEvents];
    e.begin.store(begin, std::memory_order_relaxed);
    e.end.store(end, std::memory_order_relaxed);
    e.record.store(record, std::memory_order_relaxed);
    e.what.store(detail << 8 | kind, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // the compiler keeps the order; a kill cuts it in two
    written.store(n + 1, std::memory_order_relaxed);
    return n;
  }
  // The span ended. Nothing when it is not in the ring any more, or is kNoEvent.
  void close(uint64_t number, uint64_t end) {
    if (written.load(std::memory_order_relaxed) - number <= kFlightEvents)
      events[number % kFlightEvents].end.store(end, std::memory_order_relaxed);
  }
  // A wait, one event however often the sleeper looks and sleeps again.
  uint64_t note_blocked(uint64_t detail, uint64_t record, uint64_t begin) {
    uint64_t n = written.load(std::memory_order_relaxed);
    FlightEvent& last = events[(n - 1) % kFlightEvents];
    bool again = n != 0 && last.record.load(std::memory_order_relaxed) == record &&
                 (last.what.load(std::memory_order_relaxed) & 0xFF) == kEventBlocked;
    if (!again) return note(kEventBlocked, detail, record, begin, 0);
    last.end.store(0, std::memory_order_relaxed);
    return n - 1;
  }
  // Number of the oldest event that no kill can have left half-written.
  uint64_t oldest() const {
    uint64_t n = written.load(std::memory_order_relaxed);
    return n < kFlightEvents ? 0 : n - kFlightEvents + 1;
  }
};
static_assert(sizeof(FlightRecorder) == 64 + kFlightEvents * sizeof(FlightEvent));

}  // namespace fastray
