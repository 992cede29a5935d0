// Which blocks of a dead process's arena are still in use. See reaper.h.
//
// A block carries the handle it was allocated for. It is live when that record, in that life, points to it:
// as arguments, result, list of returns, stream error or edge. Everything else was being made, or being freed.
#include "reaper.h"

namespace fastray {

bool Reaper::is_live(void* self, Handle h, Offset block) {
  const Reaper& reaper = *static_cast<const Reaper*>(self);
  const Segment& segment = reaper.segment_;
  if (index_of(h) == 0 || (gen_of(h) & kBlockUseMask) != 0) {
    uint32_t name = gen_of(h) & ~kBlockUseMask;
    if ((gen_of(h) & kBlockUseMask) == kBlockBlob && index_of(h) == 0)
      return name < kFunctionsMax && segment.function(name).state.load(std::memory_order_acquire) == kEntryUsed &&
             segment.function(name).blob == block;
    if ((gen_of(h) & kBlockUseMask) == kBlockRing && index_of(h) == 0)
      return name < kQueuesMax && segment.queue(name).in_use.load(std::memory_order_acquire) != 0 &&
             RingWord::offset(segment.queue(name).ring.load(std::memory_order_acquire)) == block;
    if ((gen_of(h) & kBlockUseMask) == kBlockActor && index_of(h) == 0)
      return name < kActorsMax && segment.actor(name).cause.load(std::memory_order_acquire) == block;
    if (index_of(h) == 0) return false;
  }
  if (index_of(h) >= kRecordsMax) return false;
  const Record& r = segment.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  if (word_gen(w) != gen_of(h) || state_of(w) == kFree) return false;
  if ((w & kFlagArgHeap) && r.args_heap.offset == block) return true;
  if (is_sealed(w) && (w & kFlagResultHeap) && r.result_heap.offset == block) return true;
  if (r.kind == kTask && (w & kFlagMulti)) {
    if (segment.function(r.function).flags & kStreaming) {
      if (reinterpret_cast<const Stream*>(r.result)->error == block) return true;
    } else if (r.ret > Returns::kInline && reinterpret_cast<const Returns*>(r.result)->list == block) {
      return true;
    }
  }
  return reaper.hangs_as_edge(r, h, block);
}

// The record's owner may be alive and free the list under our feet. It unlinks edges from the front and
// unlinks before it frees, so what we read is good while the record has its life and the list its head.
bool Reaper::hangs_as_edge(const Record& r, Handle h, Offset block) const {
  uint64_t names = segment_.header().data_bytes / 16;
  for (;;) {
    uint32_t head = r.edges.load(std::memory_order_acquire);  // SYNC POINT: edges
    bool found = false;
    uint32_t steps = 0;
    for (uint32_t e = head; e != 0 && e < names && !found && steps < kRecordsMax; ++steps) {
      Edge* edge = segment_.edge(e);
      found = segment_.offset_of(edge) == block;
      e = std::atomic_ref<uint32_t>(edge->next).load(std::memory_order_relaxed);
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (word_gen(r.state.load(std::memory_order_acquire)) != gen_of(h)) return false;
    if (r.edges.load(std::memory_order_acquire) == head) return found;
  }
}

}  // namespace fastray
