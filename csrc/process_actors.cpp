// Actors, the part of every process: creating one, claiming calls in order, which are in flight, the log of
// calls since a checkpoint. See process.h; the node's part is local_scheduler_actors.cpp.
//
// An ordered queue is claimed from its head only. A head that waits for a dependency stops its queue, not the
// queues of other callers. What runs again after a death stands in the node's queue, which goes first.
#include <string.h>

#include "process.h"

namespace fastray {

// ---- creation ---------------------------------------------------------------------------------------

int Process::take_actor() {
  Header& header = segment_.header();
  for (int again = 0; again < 2; ++again) {
    for (uint32_t a = 0; a < kActorsMax; ++a) {
      Actor& actor = segment_.actor(a);
      uint32_t expected = kActorFree;
      if (actor.state.load(std::memory_order_relaxed) != kActorFree) continue;
      // SYNC POINT: actor-entry (the swap names the holder; the reaper frees it after our death)
      if (!actor.state.compare_exchange_strong(expected, entry_writing(slot_), std::memory_order_acq_rel)) continue;
      uint32_t used = header.actors_used.load(std::memory_order_relaxed);
      while (used < a + 1 && !header.actors_used.compare_exchange_weak(used, a + 1, std::memory_order_acq_rel)) {
      }
      return static_cast<int>(a);
    }
    sweep();  // dead ones whose handles are gone
    ring_bell();
  }
  return -1;
}

void Process::untake_actor(uint32_t a) {
  Actor& actor = segment_.actor(a);
  actor.name_hash[0] = actor.name_hash[1] = 0;
  actor.creation.store(0, std::memory_order_relaxed);
  actor.state.store(kActorFree, std::memory_order_release);
}

// The entry of the actor that has this name, -1 when there is none. `mine` is an entry with that name which we
// write: two that want a name at once both see each other, and the lower entry has it.
int Process::find_name(const uint64_t hash[2], const char* name_space, const char* name, int mine) const {
  std::atomic_thread_fence(std::memory_order_seq_cst);  // SYNC POINT: actor-name (our name before their state)
  uint32_t used = segment_.header().actors_used.load(std::memory_order_acquire);
  for (uint32_t a = 0; a < used; ++a) {
    const Actor& actor = segment_.actor(a);
    if (static_cast<int>(a) == mine || actor.name_hash[0] != hash[0] || actor.name_hash[1] != hash[1]) continue;
    uint32_t state;
    while (((state = actor.state.load(std::memory_order_acquire)) & 0xFF) == 1 && static_cast<int>(a) < mine)
      os::pause();  // a few stores by a live process; the reaper resets a dead one's
    if (state < kActorPending || state >= kActorDead || (state & 0xFF) == 1) continue;
    bool same = strncmp(actor.name, name, sizeof actor.name - 1) == 0 &&
                strncmp(actor.name_space, name_space, sizeof actor.name_space - 1) == 0;
    if (same) return static_cast<int>(a);
  }
  return -1;
}

// The record first, then the entry: a death in between leaves a record that no entry names (see actor_is_over).
void Process::publish_actor(uint32_t a, Record* r, Handle h, uint64_t flags) {
  Actor& actor = segment_.actor(a);
  r->pins = 1;
  if (actor.id[0] == 0) {
    actor.id[0] = segment_.header().session;
    actor.id[1] = r->id;
  }
  actor.creation.store(h, std::memory_order_relaxed);
  uint64_t w = uint64_t{gen_of(h)} << kGenShift | flags | kFlagShared | kWaiting | uint64_t{0xFFF} << kHolderShift;
  r->state.store(w, std::memory_order_release);  // SYNC POINT: record-state
  segment_.cls(kActorClass + a).state.store(kEntryUsed, std::memory_order_release);
  actor.state.store(kActorPending, std::memory_order_release);  // SYNC POINT: actor-entry
  (void)advance(*r, h, w, 0);
  if (!lost_.empty()) recover_all(&lost_);
  ring_bell();
}

bool Process::actor_is_over(const Record& r, Handle h) const {
  const Actor& actor = segment_.actor_of_class(r.cls);
  if (actor.creation.load(std::memory_order_acquire) != h) return true;
  uint32_t state = actor.state.load(std::memory_order_acquire);  // SYNC POINT: actor-entry
  return state == kActorFree || state == kActorDead;
}

// No reference of ours is left. The node ends the actor when no ledger names it either; we free the record
// when it is dead.
void Process::keep_actor(Record& r, Handle h) {
  r.pins = 0;
  r.state.fetch_or(kFlagShared | kFlagBorrowed, std::memory_order_acq_rel);
  limbo_.push_back(h);
  limbo_epoch_ = 0;
  ring_bell();
}

// ---- calls ------------------------------------------------------------------------------------------

bool Process::is_ordered(uint32_t cls) const {
  return is_actor_class(cls) &&
         !(segment_.actor_of_class(cls).flags.load(std::memory_order_relaxed) & kActorOutOfOrder);
}

// It was waiting and is ready: an ordered one stands in its caller's queue, the creation in none.
bool Process::made_ready(Handle h, Place at) {
  if (at.kind != kActor && !is_ordered(at.cls)) return push_ready(h, at.cls);
  wake_class(at.cls);
  return true;
}

void Process::wake_class(uint32_t cls) {
  Class& c = segment_.cls(cls);
  if (fences_) std::atomic_thread_fence(std::memory_order_seq_cst);  // SYNC POINT: sleep-bit
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (proc_set::any(c.sleeping)) wake_one(c);
}

Handle Process::claim_call() {
  size_t n = sources_.size();
  for (size_t i = 0; i <= n; ++i) {
    Queue* q;
    if (i == 0) {  // what has to run again
      if (first_ == nullptr) continue;
      q = first_;
    } else {
      q = sources_[(next_source_ + i) % n];
    }
    if (task_queue::looks_empty(*q)) continue;
    Handle h = task_queue::claim(segment_, *q, slot_, *self_);
    if (h == 0) continue;
    if (i != 0) next_source_ = (next_source_ + i) % n;
    const Record& r = segment_.record(h);
    last_owner_ = r.owner;
    segment_.actor_of_class(r.cls).last_call.store(r.function, std::memory_order_relaxed);
    self_->heartbeat.store(self_->heartbeat.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    return h;
  }
  return 0;
}

// Helps heads over what is not to be run any more. `waiting`: a head that waits counts too.
bool Process::has_call(const Class& c, bool waiting) const {
  return proc_set::find(c.producers, [&](uint32_t slot) {
           uint32_t index = c.queues[slot].load(std::memory_order_acquire);
           if (index == 0) return false;
           Queue& q = segment_.queue(index);
           for (;;) {
             uint64_t tail = q.tail.load(std::memory_order_acquire);  // SYNC POINT: queue-tail
             uint64_t head = q.head.load(std::memory_order_acquire);
             if (head >= tail) return false;
             Handle h = task_queue::peek(segment_, q, head);
             if (h == 0) continue;
             uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);
             bool same = word_gen(w) == gen_of(h);
             if (same && state_of(w) == kReady) return true;
             if (same && state_of(w) == kWaiting) return waiting;
             q.head.compare_exchange_strong(head, head + 1, std::memory_order_acq_rel);
           }
         }) >= 0;
}

void Process::seal_creation(Handle h, State state) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  r.result_bytes = 0;
  while (!is_sealed(w) && word_gen(w) == gen_of(h)) {
    // SYNC POINT: record-state
    if (r.state.compare_exchange_weak(w, with_state(w, state, 0), std::memory_order_acq_rel)) break;
  }
}

std::string Process::for_call(const std::string& death, bool may_have_run) {
  std::string copy = death;
  reinterpret_cast<ActorDeath*>(copy.data())->may_have_run = may_have_run;
  return copy;
}

void Process::fail_calls(uint32_t cls, const std::string& death) {
  std::string error = for_call(death, false);
  fail_queued(cls, kErrorActorDied, error.data(), error.size());
}

// ---- in flight --------------------------------------------------------------------------------------

// A place in the list of the calls in flight; -1 when the store has no room for a longer list.
int Process::enter_flight(uint32_t a, Handle h, bool waits) {
  Actor& actor = segment_.actor(a);
  uint32_t places = actor.flight_places.load(std::memory_order_relaxed);
  if (flight_free_.empty()) {
    uint32_t more = places == 0 ? 64 : places * 2;
    Offset block = allocator_.allocate(more * sizeof(uint64_t), make_handle(0, kBlockActor | a), Purpose::kBookkeeping);
    if (block == 0) return -1;
    auto* list = segment_.at<std::atomic<uint64_t>>(block);
    Offset old = actor.flight.load(std::memory_order_relaxed);
    for (uint32_t i = 0; i < more; ++i) {
      uint64_t entry = i < places ? segment_.at<std::atomic<uint64_t>>(old)[i].load(std::memory_order_relaxed) : 0;
      list[i].store(entry, std::memory_order_relaxed);
      if (i >= places) flight_free_.push_back(more - 1 - (i - places));
    }
    // SYNC POINT: actor-flight (read by the reaper after our death only: the longer list, then its length)
    actor.flight.store(block, std::memory_order_release);
    actor.flight_places.store(more, std::memory_order_release);
    if (old != 0) allocator_.release(old);
  }
  uint32_t place = flight_free_.back();
  flight_free_.pop_back();
  segment_.at<std::atomic<uint64_t>>(actor.flight.load(std::memory_order_relaxed))[place].store(
      waits ? h | kFlightWaiting : h, std::memory_order_release);
  return static_cast<int>(place);
}

void Process::start_flight(uint32_t a, uint32_t place) {
  segment_.at<std::atomic<uint64_t>>(segment_.actor(a).flight.load(std::memory_order_relaxed))[place].fetch_and(
      ~kFlightWaiting, std::memory_order_acq_rel);
}

void Process::leave_flight(uint32_t a, uint32_t place) {
  segment_.at<std::atomic<uint64_t>>(segment_.actor(a).flight.load(std::memory_order_relaxed))[place].store(
      0, std::memory_order_release);
  flight_free_.push_back(place);
}

// ---- the log ----------------------------------------------------------------------------------------

// Before the call is sealed. A call in the log that was not sealed runs again as one in flight.
bool Process::log_call(uint32_t a, Handle h) {
  Actor& actor = segment_.actor(a);
  uint64_t n = actor.log_end.load(std::memory_order_relaxed);
  if (!contain(h, actor.creation.load(std::memory_order_relaxed))) return false;
  segment_.actor_log(a, n).store(h, std::memory_order_relaxed);
  actor.log_end.store(n + 1, std::memory_order_release);  // SYNC POINT: actor-log (release: the entry before)
  return true;
}

// The object that `checkpoint` names holds the state after log entry `position` - 1, and its record says so. One store
// decides.
bool Process::set_checkpoint(uint32_t a, Handle checkpoint, uint64_t position) {
  Actor& actor = segment_.actor(a);
  if (!contain(checkpoint, actor.creation.load(std::memory_order_relaxed))) return false;
  memcpy(segment_.record(checkpoint).args, &position, sizeof position);  // an object has no arguments
  actor.checkpoint.store(checkpoint, std::memory_order_release);  // SYNC POINT: actor-log
  actor.log_start.store(position, std::memory_order_release);
  note_moment(kEventCheckpoint, position, segment_.record(checkpoint).id);
  sweep_logs();
  return true;
}

uint64_t Process::checkpoint_position(Handle checkpoint) const {
  uint64_t position;
  memcpy(&position, segment_.record(checkpoint).args, sizeof position);
  return position;
}

// Entries of our ledger that an actor's creation contains, and that are neither in its log nor its checkpoint.
void Process::sweep_logs() {
  Ledger& ledger = segment_.ledger(slot_);
  std::unordered_map<Handle, std::unordered_set<Handle>> kept;  // by creation record
  for (size_t i = 0; i < contained_.size();) {
    LedgerEntry& entry = ledger.entries[contained_[i]];
    Handle container = entry.container.load(std::memory_order_relaxed);
    const Record& r = segment_.record(container);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) == gen_of(container) && r.kind == kActor) {
      auto [it, fresh] = kept.try_emplace(container);
      if (fresh) {
        uint32_t a = r.cls - kActorClass;
        const Actor& actor = segment_.actor(a);
        it->second.insert(actor.checkpoint.load(std::memory_order_acquire));
        uint64_t end = actor.log_end.load(std::memory_order_acquire);
        for (uint64_t n = actor.log_start.load(std::memory_order_acquire); n < end; ++n)
          it->second.insert(segment_.actor_log(a, n).load(std::memory_order_relaxed));
      }
      Handle h = entry.record.load(std::memory_order_relaxed);
      if (it->second.count(h) == 0) {
        (void)clear_entry(segment_, entry);
        ledger_free_.push_back(contained_[i]);
        contained_[i] = contained_.back();
        contained_.pop_back();
        continue;
      }
    }
    ++i;
  }
}

bool Process::keeps_arguments(const Record& r, uint64_t w) const {
  return is_actor_class(r.cls) && (w & kFlagBorrowed) &&
         (segment_.actor_of_class(r.cls).flags.load(std::memory_order_relaxed) & kActorCheckpoints);
}

}  // namespace fastray
