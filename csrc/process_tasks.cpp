// Tasks: publishing them, following dependencies, claiming, sealing, cancelling. See process.h.
//
// A task with dependencies waits for one of them at a time: it hangs as an edge on the first that is not
// sealed, with the number of that dependency (the stage) in its state word. Whoever seals that one fires
// the edge: the waiting task moves on to its next unsealed dependency, or becomes ready and enters the
// *sealer's* queue. Every move is one swap of the waiting task's own state word, so that a dead sealer's
// walk can be done again from the start by anyone: a fired edge fires no second time.
#include <string.h>

#include "process.h"

namespace fastray {

QueueProducer* Process::make_producer(uint32_t cls) {
  Header& header = segment_.header();
  uint32_t fresh = header.queues_used.load(std::memory_order_relaxed);
  bool retired = static_cast<int32_t>(header.queues_retired.load(std::memory_order_relaxed)) > 0;
  for (uint32_t q = retired ? 1 : fresh, tried = 0; tried < kQueuesMax; ++tried, ++q) {
    if (q >= kQueuesMax) q = 1;
    if (q == 0) continue;  // queue 0 is "none"
    Queue& queue = segment_.queue(q);
    uint32_t expected = 0;
    if (queue.in_use.load(std::memory_order_relaxed) != 0) continue;
    if (!queue.in_use.compare_exchange_strong(expected, slot_ + 1, std::memory_order_acq_rel)) continue;
    // A used queue stays with its class for ever: a consumer may still hold a pointer to it.
    uint64_t ring = queue.ring.load(std::memory_order_relaxed);
    if (ring != 0 && queue.cls != cls) {
      queue.in_use.store(0, std::memory_order_release);
      continue;
    }
    if (ring != 0) header.queues_retired.fetch_sub(1, std::memory_order_relaxed);
    uint32_t used = header.queues_used.load(std::memory_order_relaxed);
    while (used < q + 1 && !header.queues_used.compare_exchange_weak(used, q + 1, std::memory_order_acq_rel)) {
    }
    queue.owner = static_cast<uint16_t>(slot_);
    queue.cls = static_cast<uint16_t>(cls);
    queue.depth.store(self_->depth + 1, std::memory_order_relaxed);
    queue.head.store(queue.tail.load(std::memory_order_relaxed), std::memory_order_relaxed);
    if (producers_.size() <= cls) producers_.resize(cls + 1);
    producers_[cls] = std::make_unique<QueueProducer>(segment_, &allocator_, q);
    Class& c = segment_.cls(cls);
    c.queues[slot_].store(q, std::memory_order_release);
    proc_set::add(c.producers, slot_);
    c.changes.fetch_add(1, std::memory_order_release);  // SYNC POINT: class-producers
    return producers_[cls].get();
  }
  return nullptr;
}

// ---- dependencies ----------------------------------------------------------------------------------

bool Process::publish_waiting(Record* r, Handle h, uint64_t flags) {
  if (producer(r->cls) == nullptr) return false;
  uint64_t w = uint64_t{gen_of(h)} << kGenShift | flags | kWaiting | uint64_t{0xFFF} << kHolderShift;
  r->state.store(w, std::memory_order_release);  // SYNC POINT: record-state
  if (is_ordered(r->cls)) {  // its place in the order is that of the call
    if (!producer(r->cls)->push(h)) {
      r->state.store(uint64_t{gen_of(h)} << kGenShift, std::memory_order_relaxed);
      return false;
    }
  }
  bool done = advance(*r, h, w, 0);
  if (!lost_.empty()) recover_all(&lost_);
  return done;
}

// Who fires an edge does not hold the task that waits: its owner may cancel it, free it and write the record's next
// life while we read. So what was read counts only when the word is still of this life afterwards.
[[gnu::no_sanitize("thread")]] Process::Place Process::place_of(const Record& r) { return {r.kind, r.cls}; }

// Its dependency number i; 0: it has no more; kGone: the record lives another life.
[[gnu::no_sanitize("thread")]] Handle Process::peek_dependency(const Record& r, Handle h, uint32_t i) const {
  Handle found = 0;
  if (r.args_bytes != kArgsInHeap) {
    if (i < r.dependencies && i < kInlineArgs / sizeof(Handle)) memcpy(&found, r.args + i * sizeof(Handle), sizeof found);
  } else {
    Offset offset = r.args_heap.offset;
    if (!is_alive(r, h)) return kGone;  // else it is the offset of its payload, and that stays where it is
    const auto* header = segment_.at<PayloadHeader>(offset);
    if (i < header->dependencies) found = reinterpret_cast<const Handle*>(header + 1)[i];
  }
  return is_alive(r, h) ? found : kGone;
}

bool Process::is_alive(const Record& r, Handle h) {
  std::atomic_thread_fence(std::memory_order_acquire);
  return word_gen(r.state.load(std::memory_order_relaxed)) == gen_of(h);
}

// d waits (its state word is w): goes over its dependencies from `stage` on.
bool Process::advance(Record& d, Handle h, uint64_t w, uint32_t stage) {
  Place at = place_of(d);
  bool away_counts = at.kind == kTask && !is_actor_class(at.cls);
  for (;;) {
    Handle next;
    // what is away counts as done: the task is routed (push_ready), unless it is an actor's call
    while ((next = peek_dependency(d, h, stage)) != 0) {
      if (next == kGone) return true;
      if (!sealed(next) && !(away_counts && is_away(next))) break;
      ++stage;
    }
    State next_state = next != 0 ? kWaiting : kReady;
    uint32_t holder = next != 0 ? stage & 0xFFF : 0;
    uint32_t waited = word_holder(w);
    // SYNC POINT: record-state (whoever makes this swap has the right to go on)
    while (!d.state.compare_exchange_weak(w, with_state(w, next_state, holder), std::memory_order_acq_rel)) {
      if (state_of(w) != kWaiting || word_gen(w) != gen_of(h) || word_holder(w) != waited) return true;
    }
    if (next_state == kReady) return made_ready(h, at);
    if (!add_edge(next, kEdgeRecord, index_of(h), gen_of(h), stage)) {
      bool away = is_away(next);
      if (is_lost(next) || (away && !away_counts)) lost_.push_back(Lost{next, -1});
      if (!away || !away_counts) return true;
    }
    // sealed (or away) before the edge was seen: go on ourselves, unless the sealer did
    w = d.state.load(std::memory_order_acquire);
    if (state_of(w) != kWaiting || word_gen(w) != gen_of(h) || word_holder(w) != (stage & 0xFFF)) return true;
    ++stage;
  }
}

// Hangs an edge on a record. True when that record is sealed already: the edge may never be walked.
bool Process::add_edge(Handle on, EdgeKind kind, uint32_t target, uint32_t gen, uint32_t stage) {
  Record& r = segment_.record(on);
  Offset offset = allocator_.allocate(sizeof(Edge), on);
  if (offset == 0) {
    sweep();
    while ((offset = allocator_.allocate(sizeof(Edge), on)) == 0) {
      // the store is full of other things: poll the dependency instead of hanging an edge on it
      if (sealed(on)) return true;
      os::pause();
    }
  }
  Edge* edge = segment_.at<Edge>(offset);
  *edge = Edge{0, target, gen, static_cast<uint16_t>(stage & 0xFFF), static_cast<uint16_t>(kind)};
  uint32_t name = segment_.edge_name(offset);
  uint32_t head = r.edges.load(std::memory_order_relaxed);
  do {
    edge->next = head;
    // SYNC POINT: edges (release: the edge before its name)
  } while (!r.edges.compare_exchange_weak(head, name, std::memory_order_acq_rel, std::memory_order_relaxed));
  // The flag is set in the same word that the sealer swaps: either it sees the flag, or we see the seal.
  uint64_t old = r.state.fetch_or(kFlagEdges, std::memory_order_acq_rel);
  return is_sealed(old);
}

bool Process::push_ready(Handle h) {
  return push_ready(h, place_of(segment_.record(h)).cls);
}

bool Process::push_ready(Handle h, uint32_t cls) {
  bool routed = clustered() && !is_actor_class(cls) && needs_away(h);
  QueueProducer* q = producer(routed ? kRouteClass : cls);
  if (q == nullptr || !q->push(h)) return false;
  notify(*q);
  return true;
}

void Process::fire(uint32_t index, uint32_t gen, uint32_t stage, bool again) {
  Record& d = segment_.record(index);
  Handle h = make_handle(index, gen);
  uint64_t w = d.state.load(std::memory_order_acquire);
  if (word_gen(w) != gen) return;
  if (state_of(w) == kWaiting && word_holder(w) == stage) {
    (void)advance(d, h, w, stage + 1);
  } else if (again && state_of(w) == kReady) {
    (void)made_ready(h, place_of(d));  // perhaps it was made ready and never queued; a second entry does no harm
  } else if (again && state_of(w) == kWaiting) {
    (void)advance(d, h, w, 0);  // perhaps it moved on and its next edge was never hung
  }
}

void Process::walk_edges(Record& r, bool again) {
  Handle promise = 0;
  for (uint32_t e = r.edges.load(std::memory_order_acquire); e != 0;) {  // SYNC POINT: edges
    Edge edge = *segment_.edge(e);
    if (edge.kind == kEdgeProcess)
      wake_process(segment_, edge.target);
    else if (edge.kind == kEdgePromise)
      promise = make_handle(edge.target, edge.gen);
    else
      fire(edge.target, edge.gen, edge.stage, again);
    e = edge.next;
  }
  if (!lost_.empty()) recover_all(&lost_);
  // A return value was asked for while its task ran: once more for all of them. The reaper knows of it before the
  // walk is over, for after that nobody does it again.
  if (promise != 0 && !recovering_) self_->recovering.store(promise, std::memory_order_release);
  // SYNC POINT: edges-walked (release: from here on the owner may free the record and its edges)
  r.state.fetch_and(~kHolderMask, std::memory_order_release);
  if (promise != 0) recover(promise);
}

// The owner may change meanwhile (the node adopts the records of the dead): then the node wakes everyone.
void Process::wake_owner(const Record& r) {
  uint32_t owner = std::atomic_ref<const uint16_t>(r.owner).load(std::memory_order_relaxed);
  if (owner < kProcsMax) wake_process(segment_, owner);
}

void Process::after_seal(Record& r, Handle h, uint64_t w) {
  (void)h;
  if ((w & kFlagAwaited) || state_of(r.state.load(std::memory_order_relaxed)) == kFailed) wake_owner(r);
  if (w & kFlagEdges) walk_edges(r, false);
}

void Process::notify_again(Handle h) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  if (word_gen(w) != gen_of(h)) return;
  wake_owner(r);
  if (is_walked(w)) walk_edges(r, true);
}

// ---- claiming --------------------------------------------------------------------------------------

// Deeper nesting first: children before more roots, or a thousand blocked roots would need a thousand
// processes. Then the oldest of that queue.
Handle Process::claim_next() {
  uint32_t lease = self_->lease.load(std::memory_order_relaxed);
  if (lease == 0) return 0;
  Class& c = segment_.cls(lease - 1);
  uint32_t seen = c.changes.load(std::memory_order_acquire);  // SYNC POINT: class-producers
  if (sources_class_ != lease || sources_seen_ != seen || (++claims_ & 1023) == 0) [[unlikely]] {
    sources_.clear();
    first_ = nullptr;
    proc_set::find(c.producers, [&](uint32_t slot) {
      uint32_t q = c.queues[slot].load(std::memory_order_acquire);
      if (q == 0) return false;
      if (slot == 0) first_ = &segment_.queue(q);
      sources_.push_back(&segment_.queue(q));
      return false;
    });
    if (sources_class_ != lease) note_moment(kEventLease, lease - 1, 0);
    sources_class_ = lease;
    sources_seen_ = seen;
  }
  if (is_actor_class(lease - 1)) return claim_call();
  for (;;) {
    Queue* best = nullptr;
    uint32_t best_depth = 0;
    for (Queue* q : sources_) {
      uint32_t depth = q->depth.load(std::memory_order_relaxed);
      if ((best == nullptr || depth > best_depth) && !task_queue::looks_empty(*q)) {
        best = q;
        best_depth = depth;
      }
    }
    if (best == nullptr) return 0;
    Handle h = task_queue::claim(segment_, *best, slot_, *self_);
    if (h == 0) continue;
    last_owner_ = segment_.record(h).owner;
    self_->heartbeat.store(self_->heartbeat.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    return h;
  }
}

bool Process::backlog(const Class& c) const {
  if (&c >= &segment_.cls(kActorClass)) return has_call(c, false);
  return proc_set::find(c.producers, [&](uint32_t slot) {
           uint32_t q = c.queues[slot].load(std::memory_order_acquire);
           return q != 0 && !task_queue::looks_empty(segment_.queue(q));
         }) >= 0;
}

// ---- ends ------------------------------------------------------------------------------------------

bool Process::next_attempt(Handle h, State state) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_relaxed), next;
  if (r.attempts < 255) ++r.attempts;
  do {
    if (state_of(w) != kClaimed || word_holder(w) != slot_ || word_gen(w) != gen_of(h)) return false;
    uint64_t attempt = ((w & kAttemptMask) + (uint64_t{1} << kAttemptShift)) & kAttemptMask;
    next = (with_state(w, state, state == kClaimed ? slot_ : 0) & ~kAttemptMask) | attempt;
  } while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel));
  return true;
}

bool Process::retry(Handle h) { return next_attempt(h, kReady) && push_ready(h); }

bool Process::run_again(Handle h) { return next_attempt(h, kClaimed); }

void Process::write_error(Record& r, ErrorCode code, const void* more, size_t bytes, uint64_t* flags, Handle h) {
  *flags = 0;
  if (bytes + 1 <= kInlineResult) {
    r.result[0] = code;
    if (bytes != 0) memcpy(r.result + 1, more, bytes);
    r.result_bytes = static_cast<uint32_t>(bytes + 1);
    return;
  }
  PayloadShape shape{nullptr, 0, 0, nullptr, bytes + 1, nullptr, 0};
  PayloadView view;
  Offset offset = make_payload(shape, h, &view);
  if (offset == 0) {  // not even room for the message: keep its beginning
    write_error(r, code, more, kInlineResult - 1, flags, h);
    return;
  }
  view.codec[0] = code;
  memcpy(view.codec + 1, more, bytes);
  r.result_heap = HeapRef{offset, bytes + 1};
  *flags = kFlagResultHeap;
}

bool Process::cancel(Handle h, int* running) {
  *running = -1;
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  for (;;) {
    bool over = word_gen(w) != gen_of(h) || is_settled(w) || state_of(w) == kFree;
    if (over || state_of(w) == kClaimed) {
      if (!over && !r.state.compare_exchange_weak(w, w | kFlagCancel, std::memory_order_acq_rel)) continue;
      if (!over) *running = static_cast<int>(word_holder(w));
      self_->acting.store(0, std::memory_order_release);
      return false;
    }
    self_->acting.store(h, std::memory_order_release);  // the reaper finishes this after our death
    if (r.state.compare_exchange_weak(w, with_state(w, kClaimed, slot_) | kFlagCancel, std::memory_order_acq_rel))
      break;
  }
  (void)fail(r, h, kErrorCancelled, nullptr, 0);
  self_->acting.store(0, std::memory_order_release);
  return true;
}

// The error of a task we claimed, wherever its results stand; returns the flags to seal it with.
uint64_t Process::write_failure(Record& r, Handle h, ErrorCode code, const void* more, size_t bytes) {
  uint64_t flags = 0;
  if (!(r.state.load(std::memory_order_relaxed) & kFlagMulti)) {
    write_error(r, code, more, bytes, &flags, h);
    return flags;
  }
  if (segment_.function(r.function).flags & kStreaming) {
    PayloadView view;
    Offset offset = make_payload(PayloadShape{nullptr, 0, 0, nullptr, bytes + 1, nullptr, 0}, h, &view);
    if (offset != 0) {
      view.codec[0] = code;
      if (bytes != 0) memcpy(view.codec + 1, more, bytes);
    }
    stream_of(r).error = offset;
    return 0;
  }
  const Handle* promises = promise_handles(segment_, r);
  for (uint32_t i = 0; i < r.ret; ++i) {
    Record& p = segment_.record(promises[i]);
    uint64_t w = p.state.load(std::memory_order_acquire);
    if (state_of(w) != kPromised || word_gen(w) != gen_of(promises[i])) continue;
    write_error(p, code, more, bytes, &flags, promises[i]);
    seal_promise(promises[i], kFailed, flags);
  }
  return 0;
}

}  // namespace fastray
