// The task queue: one producer, many consumers, crash-safe without locks.
//
// One queue per (producing process, scheduling class). It holds 8-byte handles at ever growing
// positions; position p stands in ring[p & mask]. The queue is only a *hint about order*: what decides
// who runs a task is one compare-and-swap on the record's state word, kReady -> kClaimed(holder). So
//   - an entry may stand in two queues, or twice in one: it is claimed once, and skipped elsewhere;
//   - a consumer that dies before its swap changed nothing, after it, it is named in the record;
//   - whoever sees an entry that is no longer ready helps `head` over it.
//
// push   1. write the slot  2. store tail (release).           No read-modify-write at all.
// claim  1. read head's slot  2. announce it in Proc::claim  3. swap the record  4. help head forward.
//
// The ring doubles when full (copy, then publish the new ring under a new version); a reader that
// looked into the old ring sees the version change and looks again. Old rings are kept for reuse as
// rings only, so a late reader never sees foreign bytes.
#pragma once

#include <bit>
#include <vector>

#include "object_allocator.h"
#include "os.h"
#include "segment.h"

namespace fastray {

inline constexpr uint32_t kRingMin = 1024;  // entries
inline constexpr uint32_t kActorRingMin = 64;  // of a queue of an actor: there may be thousands
inline constexpr uint32_t kRingShrinkAbove = 1u << 16;

struct RingWord {
  static constexpr int kCapacityShift = 42, kVersionShift = 48;
  static uint64_t make(uint64_t version, uint32_t log2, Offset offset) {
    return version << kVersionShift | uint64_t{log2} << kCapacityShift | offset / 64;
  }
  static uint64_t version(uint64_t w) { return w >> kVersionShift; }
  static uint32_t log2(uint64_t w) { return w >> kCapacityShift & 0x3F; }
  static Offset offset(uint64_t w) { return (w & ((uint64_t{1} << kCapacityShift) - 1)) * 64; }
};

using RingSlot = std::atomic<uint64_t>;

// The producer's end. Used by one thread at a time of the process that owns the queue.
class QueueProducer {
 public:
  QueueProducer(const Segment& segment, ObjectAllocator* allocator, uint32_t queue_index)
      : segment_(segment), allocator_(allocator), queue_(&segment.queue(queue_index)), index_(queue_index) {
    tail_ = queue_->tail.load(std::memory_order_relaxed);
    head_seen_ = queue_->head.load(std::memory_order_relaxed);
  }

  // False only when the store has no room for a longer ring.
  [[nodiscard]] bool push(Handle h) {
    if (tail_ - head_seen_ >= capacity_ || (tail_ & (kRingShrinkAbove - 1)) == 0) [[unlikely]] {
      if (!push_generic()) return false;
    }
    ring_[tail_ & (capacity_ - 1)].store(h, std::memory_order_relaxed);
    // SYNC POINT: queue-tail (release; paired with the acquire in consumers)
    queue_->tail.store(++tail_, std::memory_order_release);
    return true;
  }

  Queue& queue() const { return *queue_; }
  uint64_t tail() const { return tail_; }
  bool empty() const { return queue_->head.load(std::memory_order_acquire) >= tail_; }

  // For the submitter's decision to wake another worker (see Process::notify_slow).
  uint64_t mark = 0;
  uint64_t looked_at_ticks = 0;

 private:
  bool push_generic() {
    head_seen_ = queue_->head.load(std::memory_order_acquire);
    if (head_seen_ > tail_) head_seen_ = tail_;
    uint64_t used = tail_ - head_seen_;
    if (used >= capacity_) return use_ring(capacity_ == 0 ? ring_min() : capacity_ * 2);
    if (capacity_ > kRingShrinkAbove && used < kRingMin / 2) (void)use_ring(ring_min());
    return true;
  }

  uint64_t ring_min() const { return is_actor_class(queue_->cls) ? kActorRingMin : kRingMin; }

  bool use_ring(uint64_t capacity) {
    uint32_t log2 = static_cast<uint32_t>(std::countr_zero(capacity));
    if (rings_[log2] == 0)
      rings_[log2] = allocator_->allocate(capacity * sizeof(uint64_t), make_handle(0, kBlockRing | index_),
                                          Purpose::kBookkeeping);
    Offset offset = rings_[log2];
    if (offset == 0) return false;
    auto* fresh = segment_.at<RingSlot>(offset);
    for (uint64_t p = head_seen_; p < tail_; ++p)
      fresh[p & (capacity - 1)].store(ring_[p & (capacity_ - 1)].load(std::memory_order_relaxed),
                                      std::memory_order_relaxed);
    uint64_t version = RingWord::version(queue_->ring.load(std::memory_order_relaxed)) + 1;
    // SYNC POINT: ring-word (release; consumers acquire it before and re-read it after a slot)
    queue_->ring.store(RingWord::make(version, log2, offset), std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // no new slot is written before the word
    ring_ = fresh;
    capacity_ = capacity;
    return true;
  }

  Segment segment_;
  ObjectAllocator* allocator_;
  Queue* queue_;
  uint32_t index_;
  RingSlot* ring_ = nullptr;
  uint64_t capacity_ = 0;
  uint64_t tail_ = 0;
  uint64_t head_seen_ = 0;
  Offset rings_[40] = {};
};

// The consumers' end.
namespace task_queue {

inline bool looks_empty(const Queue& q) {
  return q.head.load(std::memory_order_acquire) >= q.tail.load(std::memory_order_acquire);
}

// The handle at position p, or 0 when the ring changed meanwhile (look again).
inline Handle peek(const Segment& segment, const Queue& q, uint64_t p) {
  uint64_t ring = q.ring.load(std::memory_order_acquire);  // SYNC POINT: ring-word
  uint64_t mask = (uint64_t{1} << RingWord::log2(ring)) - 1;
  Handle h = segment.at<RingSlot>(RingWord::offset(ring))[p & mask].load(std::memory_order_acquire);
  return q.ring.load(std::memory_order_relaxed) == ring ? h : 0;
}

// Claims the first ready task for `holder`; 0 when the queue looks empty. The claim is announced in
// self.claim before it is made, so that a death at any instruction leaves a trace of it.
inline Handle claim(const Segment& segment, Queue& q, uint32_t holder, Proc& self) {
  for (;;) {
    uint64_t tail = q.tail.load(std::memory_order_acquire);  // SYNC POINT: queue-tail
    uint64_t head = q.head.load(std::memory_order_acquire);
    if (head >= tail) return 0;
    Handle h = peek(segment, q, head);
    if (h == 0) continue;
    Record& r = segment.record(h);
    __builtin_prefetch(&r, 0);
    uint64_t w = r.state.load(std::memory_order_relaxed);
    if (state_of(w) == kReady && word_gen(w) == gen_of(h)) {
      self.claim.store(h, std::memory_order_release);  // read by the reaper after our death only
      // SYNC POINT: record-state (acquire: spec line; paired with the owner's release in publish)
      if (!r.state.compare_exchange_strong(w, with_state(w, kClaimed, holder), std::memory_order_acq_rel,
                                           std::memory_order_relaxed))
        continue;
      if (head + 2 < tail) {
        Handle ahead = peek(segment, q, head + 2);
        const Record& next = segment.record(ahead);
        __builtin_prefetch(&next, 0);
        __builtin_prefetch(&next.state, 1);
      }
      q.head.compare_exchange_strong(head, head + 1, std::memory_order_acq_rel);
      return h;
    }
    // a call whose dependency is not done: in an ordered queue those behind it wait too
    if (state_of(w) == kWaiting && word_gen(w) == gen_of(h)) return 0;
    q.head.compare_exchange_strong(head, head + 1, std::memory_order_acq_rel);  // help over it
  }
}

}  // namespace task_queue
}  // namespace fastray
