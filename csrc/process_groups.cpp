// What the node does to the tasks of a class whose placement group was removed. See process.h; who calls it is
// local_scheduler_groups.cpp.
#include "process.h"

namespace fastray {

// Every entry of the class's queues ends as an error: of a group that is gone, of an actor that is dead.
void Process::fail_queued(uint32_t cls, ErrorCode code, const void* more, size_t n) {
  Class& c = segment_.cls(cls);
  proc_set::find(c.producers, [&](uint32_t slot) {
    uint32_t index = c.queues[slot].load(std::memory_order_acquire);
    if (index == 0) return false;
    Queue& q = segment_.queue(index);
    for (;;) {
      uint64_t tail = q.tail.load(std::memory_order_acquire);  // SYNC POINT: queue-tail
      uint64_t head = q.head.load(std::memory_order_acquire);
      if (head >= tail) return false;
      Handle h = task_queue::peek(segment_, q, head);
      if (h == 0) continue;
      Record& r = segment_.record(h);
      uint64_t w = r.state.load(std::memory_order_acquire);
      while ((state_of(w) == kReady || state_of(w) == kWaiting) && word_gen(w) == gen_of(h)) {
        // SYNC POINT: record-state
        if (!r.state.compare_exchange_weak(w, with_state(w, kClaimed, slot_), std::memory_order_acq_rel)) continue;
        (void)fail(r, h, code, more, n);
        break;
      }
      q.head.compare_exchange_strong(head, head + 1, std::memory_order_acq_rel);
    }
  });
}

// By class: some record that is not free says it was its own.
std::vector<bool> Process::named_classes() const {
  std::vector<bool> named(kActorClass);
  uint32_t chunks = std::min(segment_.header().chunks_used.load(std::memory_order_acquire), kChunksMax);
  for (uint32_t i = 0; i < chunks * kChunkRecords; ++i) {
    const Record& r = segment_.record(i);
    uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    if (state_of(w) != kFree && r.kind == kTask && r.cls < kActorClass) named[r.cls] = true;
  }
  return named;
}

}  // namespace fastray
