// Tasks, queues and tables of a dead process. See reaper.h; records and memory are in reaper_records.cpp
// and reaper_blocks.cpp.
#include "reaper.h"

#include <string.h>

#include <algorithm>

#include "death_policy.h"

namespace fastray {

// Other nodes let go of what they held for a dead agent. So what is away or was asked for is lost, and computed again.
static void lose_what_is_away(Process& node) {
  const Segment& segment = node.segment();
  uint32_t end = segment.header().chunks_used.load(std::memory_order_acquire) * kChunkRecords;
  std::vector<Handle> away;
  for (uint32_t i = 1; i < end; ++i) {
    uint64_t w = segment.record(i).state.load(std::memory_order_acquire);
    if (is_asked(w) || state_of(w) == kAway) away.push_back(make_handle(i, word_gen(w)));
  }
  for (Handle h : away) {
    node.ask_for(h);  // from here on whoever waits for it is told
    if (node.unask(h)) node.recover(h);
  }
}

// A stream is repaired before its task may run again: the next run makes items with the same numbers.
// Records are adopted before the ledger is cleared: adopted arguments are borrowed by the node first.
void Reaper::recover(uint32_t slot, const CrashInfo& crash) {
  Proc& p = segment_.proc(slot);
  p.state.store(kProcDead, std::memory_order_release);
  leave_sets(slot);
  std::vector<Handle> held = held_by(slot, crash.actor);
  for (Handle h : held) repair_stream(slot, h & ~kFlightWaiting);
  settle(slot, p.acting.load(std::memory_order_acquire), crash);
  p.acting.store(0, std::memory_order_release);
  for (Handle h : held) settle(slot, h & ~kFlightWaiting, crash, h & kFlightWaiting);
  p.claim.store(0, std::memory_order_release);
  if (p.kind == kProcAgent) lose_what_is_away(node_);  // its walks are done: nothing away is walked any more
  node_.recover_again(p.recovering.load(std::memory_order_acquire), slot);
  p.recovering.store(0, std::memory_order_release);
  if (crash.actor >= 0) {
    sort_calls(static_cast<uint32_t>(crash.actor));
    segment_.actor(static_cast<uint32_t>(crash.actor)).flight.store(0, std::memory_order_release);
  }
  retire_queues(slot);
  adopt_records(slot);
  adopt_chunks(slot);
  (void)node_.allocator_.recover(slot, &Reaper::is_live, this);
  clear_tables(slot);
  repair_sets();
  p.lease.store(0, std::memory_order_seq_cst);
  p.blocked.store(0, std::memory_order_relaxed);
  p.sleepers.store(0, std::memory_order_relaxed);
  p.state.store(kProcEmpty, std::memory_order_release);
  wake_everyone();
}

void Reaper::leave_sets(uint32_t slot) {
  for_each_class([&](Class& c) {
    proc_set::take(c.sleeping, slot);
    proc_set::take(c.polling, slot);
  });
}

template <class Visit>
void Reaper::for_each_class(Visit&& visit) {
  uint32_t classes = segment_.header().classes_used.load(std::memory_order_acquire);
  for (uint32_t c = 0; c < classes; ++c) visit(segment_.cls(c));
  uint32_t actors = segment_.header().actors_used.load(std::memory_order_acquire);
  for (uint32_t a = 0; a < actors; ++a) visit(segment_.cls(kActorClass + a));
  for (uint32_t c : {kRouteClass, kFetchClass}) visit(segment_.cls(c));
}

// ---- tasks -----------------------------------------------------------------------------------------

// What it claimed or ran: one task, or an actor's calls in flight, those of a caller in the order they were made.
std::vector<Handle> Reaper::held_by(uint32_t slot, int actor) {
  std::vector<Handle> held;
  if (actor >= 0) {
    const Actor& a = segment_.actor(static_cast<uint32_t>(actor));
    Offset flight = a.flight.load(std::memory_order_acquire);  // SYNC POINT: actor-flight
    uint32_t places = flight == 0 ? 0 : a.flight_places.load(std::memory_order_acquire);
    for (uint32_t i = 0; i < places; ++i) {
      Handle h = segment_.at<std::atomic<uint64_t>>(flight)[i].load(std::memory_order_acquire);
      if (h != 0 && index_of(h & ~kFlightWaiting) < kRecordsMax) held.push_back(h);
    }
  }
  if (segment_.proc(slot).kind == kProcAgent) claimed_by(slot, &held);
  Handle claim = segment_.proc(slot).claim.load(std::memory_order_acquire);
  bool named = std::any_of(held.begin(), held.end(), [&](Handle h) { return (h & ~kFlightWaiting) == claim; });
  if (claim != 0 && index_of(claim) < kRecordsMax && !named) held.push_back(claim);
  std::sort(held.begin(), held.end(), [&](Handle a, Handle b) {
    return segment_.record(a & ~kFlightWaiting).id < segment_.record(b & ~kFlightWaiting).id;
  });
  return held;
}

// The node agent holds many claims, which stand in no list.
void Reaper::claimed_by(uint32_t slot, std::vector<Handle>* held) {
  uint32_t end = segment_.header().chunks_used.load(std::memory_order_acquire) * kChunkRecords;
  for (uint32_t i = 1; i < end; ++i) {
    uint64_t w = segment_.record(i).state.load(std::memory_order_acquire);
    if (state_of(w) == kClaimed && word_holder(w) == slot) held->push_back(make_handle(i, word_gen(w)));
  }
}

// The node's queue of an actor is served first, from its head: what was in flight at this death goes before what
// waits there since the last one. The actor has no process now: nobody claims meanwhile.
void Reaper::sort_calls(uint32_t a) {
  uint32_t index = segment_.cls(kActorClass + a).queues[node_.slot_].load(std::memory_order_acquire);
  if (index == 0) return;
  Queue& q = segment_.queue(index);
  uint64_t tail = q.tail.load(std::memory_order_relaxed);
  std::vector<Handle> calls;
  for (uint64_t at = q.head.load(std::memory_order_acquire); at < tail; ++at) {
    Handle h = task_queue::peek(segment_, q, at);
    if (h != 0 && index_of(h) < kRecordsMax) calls.push_back(h);
  }
  auto earlier = [&](Handle x, Handle y) { return segment_.record(x).id < segment_.record(y).id; };
  if (std::is_sorted(calls.begin(), calls.end(), earlier)) return;
  std::sort(calls.begin(), calls.end(), earlier);
  q.head.store(tail, std::memory_order_release);
  for (Handle h : calls) (void)node_.push_ready(h);
}

// A call of an actor that died: runs again after the restart, or fails. `waited`: it had not begun.
void Reaper::settle_call(Record& r, Handle h, uint64_t w, const CrashInfo& crash, bool waited) {
  using death_policy::CallFate;
  uint32_t flags = segment_.actor_of_class(r.cls).flags.load(std::memory_order_relaxed);
  bool timed_out = crash.hung.task == h;
  CallFate fate = death_policy::fate_of_call({(w & kFlagCancel) != 0, waited, timed_out, (flags & kActorCheckpoints) != 0,
                                              segment_.function(r.function).max_retries, r.attempts},
                                             crash.restarts);
  if (fate == CallFate::kRunsAgain) return requeue(r, h, w, crash);
  if (fate == CallFate::kWaits) {
    uint64_t next;
    do next = with_state(w, kReady, 0);
    while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel));  // SYNC POINT: record-state
    (void)node_.push_ready(h);
    return;
  }
  if (fate == CallFate::kCancelled || fate == CallFate::kTimedOut) {
    bool crashed = fate == CallFate::kTimedOut;
    fail(r, h, crashed ? kErrorCrashed : kErrorCancelled, crashed ? &crash : nullptr);
  } else {
    std::string error = Process::for_call(crash.death, !waited);
    ErrorCode code = fate == CallFate::kUnavailable ? kErrorActorUnavailable : kErrorActorDied;
    std::string how = "the actor's process died: " + crash.describe(h);
    node_.note_failure(r, code, how.data(), how.size(), crash.run_of(r, !waited));
    (void)node_.seal(h, kFailed, node_.write_failure(r, h, code, error.data(), error.size()));
  }
  announce(r, h);
}

void Reaper::settle(uint32_t slot, Handle h, const CrashInfo& crash, bool waited) {
  if (h == 0 || index_of(h) >= kRecordsMax) return;
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  finish_return(r, h);
  if (word_gen(w) != gen_of(h)) return;
  if (state_of(w) == kReady) {  // made ready (a retry) and perhaps never queued
    (void)node_.made_ready(h, Process::place_of(r));
    return;
  }
  if (state_of(w) == kClaimed && take_over(r, h, slot, &w)) {
    using death_policy::TaskFate;
    bool cancelled = (w & kFlagCancel) != 0;
    if (!cancelled && !over_.empty() && is_over(r, slot)) {
      fail(r, h, kErrorOwnerDied, nullptr);
    } else if (crash.actor >= 0 && is_actor_class(r.cls)) {
      return settle_call(r, h, w, crash, waited);
    } else if (!cancelled && segment_.is_over(segment_.cls(r.cls))) {
      fail(r, h, kErrorGroupRemoved, nullptr);
    } else {
      TaskFate fate = death_policy::fate_of_task(cancelled, segment_.function(r.function).max_retries, r.attempts);
      if (fate == TaskFate::kRunsAgain) return requeue(r, h, w, crash);
      fail(r, h, fate == TaskFate::kCancelled ? kErrorCancelled : kErrorCrashed,
           fate == TaskFate::kCancelled ? nullptr : &crash);
    }
  }
  if (is_settled(r.state.load(std::memory_order_acquire))) announce(r, h);
}

// Its claim becomes ours by a swap, so that Process::seal accepts it. The node runs no tasks: a claim by
// slot 0 that a dead process names is one of an earlier, unfinished recovery.
bool Reaper::take_over(Record& r, Handle h, uint32_t slot, uint64_t* w) {
  while (state_of(*w) == kClaimed && word_gen(*w) == gen_of(h)) {
    if (word_holder(*w) == node_.slot_) return true;
    if (word_holder(*w) != slot) return false;
    uint64_t mine = with_state(*w, kClaimed, node_.slot_);
    if (r.state.compare_exchange_weak(*w, mine, std::memory_order_acq_rel)) {
      *w = mine;
      return true;
    }
  }
  return false;
}

void Reaper::requeue(Record& r, Handle h, uint64_t w, const CrashInfo& crash) {
  attempts_.add(r.id, crash.attempt(h));
  if (crash.time_ns != 0) note_crash(r, h, kErrorCrashed, crash);
  // attempts follows from the word while that can count so far: doing it twice changes nothing
  uint64_t field = (w & kAttemptMask) >> kAttemptShift;
  constexpr uint64_t most = kAttemptMask >> kAttemptShift;
  if (field < most)
    r.attempts = static_cast<uint8_t>(field + 1);
  else if (r.attempts < 255)
    ++r.attempts;
  if (field < most) ++field;
  repair_results(r, h, w);
  uint64_t next;
  do {
    if (w & kFlagCancel) {
      fail(r, h, kErrorCancelled, nullptr);
      return announce(r, h);
    }
    next = (with_state(w, kReady, 0) & ~kAttemptMask) | field << kAttemptShift;
    // SYNC POINT: record-state (release: attempts before the word)
  } while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel));
  if (is_actor_class(r.cls))
    (void)node_.push_ready(h);
  else
    delay(h);
}

// Nobody else has to know of the delay: the task can be cancelled, and when its owner dies it is queued with what else
// stood ready.
void Reaper::delay(Handle h) {
  if (index_of(h) == 0 || index_of(h) >= kRecordsMax) return;
  const Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  if (state_of(w) != kReady || word_gen(w) != gen_of(h)) return;
  int64_t delay = death_policy::delay_of_retry(r.attempts);
  if (delay == 0)
    (void)node_.push_ready(h);
  else
    delayed_.push_back({os::now_ns() + delay, h});
}

void Reaper::push_due(int64_t now) {
  for (const Delayed& d : delayed_) {
    uint64_t w = segment_.record(d.task).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    if (d.due <= now && state_of(w) == kReady && word_gen(w) == gen_of(d.task)) (void)node_.push_ready(d.task);
  }
  std::erase_if(delayed_, [&](const Delayed& d) { return d.due <= now; });
}

int64_t Reaper::next_due() const {
  int64_t next = INT64_MAX;
  for (const Delayed& d : delayed_) next = std::min(next, d.due);
  return next;
}

Failure CrashInfo::run_of(const Record& r, bool began) const {
  Failure f;
  f.pid = began ? pid : 0;
  f.ended_ns = time_ns;
  for (const EventReport& e : events)
    if (began && e.record == r.id && (e.what & 0xFF) == kEventTask) f.began_ns = time_ns - e.ago_ns;
  return f;
}

std::string CrashInfo::describe(Handle task) const {
  if (hung.task == task) return "killed, it ran longer than its limit of " + std::to_string(hung.limit_ms) + " ms";
  return signal != 0 ? "signal " + std::to_string(signal) : "exit code " + std::to_string(exit_code);
}

void Reaper::note_crash(const Record& r, Handle h, ErrorCode code, const CrashInfo& crash) {
  std::string how = crash.describe(h);
  node_.note_failure(r, code, how.data(), how.size(), crash.run_of(r, true));
}

void Reaper::fail(Record& r, Handle h, ErrorCode code, const CrashInfo* crash) {
  std::string more;
  if (crash != nullptr) {
    std::vector<AttemptReport> earlier = attempts_.take(r.id);
    CrashReport report{crash->attempt(h), r.attempts + 1u, r.function, r.id, crash->peak_bytes, crash->uptime_ns,
                       crash->time_ns, crash->oom_kills, static_cast<uint32_t>(earlier.size()),
                       static_cast<uint32_t>(crash->events.size()), 0};
    auto append = [&](const void* p, size_t n) { more.append(static_cast<const char*>(p), n); };
    append(&report, sizeof report);
    append(earlier.data(), earlier.size() * sizeof(AttemptReport));
    append(crash->events.data(), crash->events.size() * sizeof(EventReport));
    more += crash->stderr_tail;
    if (crash->recorded) hold_crashed(r, h, *crash);
    note_crash(r, h, code, *crash);
  } else {
    node_.note_failure(r, code, nullptr, 0);
  }
  uint64_t flags = node_.write_failure(r, h, code, more.data(), more.size());
  (void)node_.seal(h, kFailed, flags);
}

// Until a worker has written it down, see LocalScheduler::record_crashes. Beyond the limit only who asks writes it.
void Reaper::hold_crashed(Record& r, Handle h, const CrashInfo& crash) {
  constexpr size_t kCrashedMax = 256;
  if (crashed_.size() >= kCrashedMax) return;
  bool returns = (r.state.load(std::memory_order_acquire) & kFlagMulti) != 0 &&
                 !(segment_.function(r.function).flags & kStreaming);
  if (returns) {  // the error is in those that are not sealed yet
    const Handle* promises = Process::promise_handles(segment_, r);
    auto open = [&](Handle p) {
      uint64_t w = segment_.record(p).state.load(std::memory_order_acquire);
      return state_of(w) == kPromised && word_gen(w) == gen_of(p);
    };
    const Handle* found = std::find_if(promises, promises + r.ret, open);
    if (found == promises + r.ret) return;
    h = *found;
  }
  if (node_.hold(h)) crashed_.push_back({h, segment_.cls(r.cls).runtime_env, crash.job});
}

// Sealed, by the dead process or by us: whoever waits for it, or for one of its returns, must know.
void Reaper::announce(Record& r, Handle h) {
  node_.notify_again(h);
  repair_results(r, h, r.state.load(std::memory_order_acquire));
}

// What the run that died left of several results: promises that are sealed, their edges not walked; the error of
// a stream, whose block goes with the dead one's memory. The task itself may be sealed and its owner free it
// meanwhile: then all knew.
void Reaper::repair_results(Record& r, Handle h, uint64_t w) {
  if (word_gen(w) != gen_of(h) || !(w & kFlagMulti) || r.kind != kTask) return;
  if (segment_.function(r.function).flags & kStreaming) {  // its consumer is woken with everyone
    if (!is_sealed(w)) Process::stream_of(r).error = 0;
    return;
  }
  auto freed = [&] { return word_gen(r.state.load(std::memory_order_acquire)) != gen_of(h); };
  std::vector<Handle> promises(r.ret);
  const Handle* handles = Process::promise_handles(segment_, r);
  if (freed()) return;  // before they are read: `handles` may be anything
  std::copy(handles, handles + promises.size(), promises.begin());
  if (freed()) return;
  for (Handle p : promises)
    if (p != 0 && index_of(p) < kRecordsMax) node_.notify_again(p);
}

// It was giving a record back to the chunk it is from; see Process::recycle_returned. The bit is set after
// the owner says kOwnerReturned and cleared after the owner is its home again: so we know which it was.
void Reaper::finish_return(Record& r, Handle h) {
  std::atomic_ref<uint16_t> owner(r.owner);
  if (owner.load(std::memory_order_acquire) != kOwnerReturned) return;
  uint64_t w = r.state.load(std::memory_order_acquire);
  uint32_t gen = gen_of(h) + 1 == 0 ? 1 : gen_of(h) + 1;
  if (word_gen(w) == gen_of(h)) {
    w = uint64_t{gen} << kGenShift;
    r.state.store(w, std::memory_order_release);
  }
  if (word_gen(w) != gen || state_of(w) != kFree) return;
  uint32_t chunk = index_of(h) / kChunkRecords, bit = index_of(h) % kChunkRecords;
  auto& word = segment_.returned(chunk)[bit / 64];
  bool set = word.load(std::memory_order_acquire) >> bit % 64 & 1;  // SYNC POINT: record-returned
  if (!set && owner.load(std::memory_order_acquire) != kOwnerReturned) return;
  if (!set) word.fetch_or(uint64_t{1} << bit % 64, std::memory_order_acq_rel);
  // set or not, its home may not have been told
  uint32_t home = segment_.chunk_owner(chunk).load(std::memory_order_acquire);
  if (home != 0) segment_.proc(home - 1).returned.fetch_add(1, std::memory_order_release);
}

// ---- queues ----------------------------------------------------------------------------------------

void Reaper::retire_queues(uint32_t slot) {
  uint32_t used = segment_.header().queues_used.load(std::memory_order_acquire);
  used = std::min(used + 64, kQueuesMax);  // one may have been taken and not counted yet
  for (uint32_t i = 1; i < used; ++i) {
    Queue& q = segment_.queue(i);
    if (q.in_use.load(std::memory_order_acquire) != slot + 1) continue;
    uint64_t tail = q.tail.load(std::memory_order_acquire);  // SYNC POINT: queue-tail
    for (uint64_t p = q.head.load(std::memory_order_acquire); p < tail; ++p) {
      Handle h = task_queue::peek(segment_, q, p);
      if (h == 0 || index_of(h) >= kRecordsMax) continue;
      uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);
      if (is_asked(w) && word_gen(w) == gen_of(h)) node_.push_asked(h);
      bool waits = state_of(w) == kWaiting && is_actor_class(q.cls);  // in its place among the calls
      if ((state_of(w) != kReady && !waits) || word_gen(w) != gen_of(h)) continue;
      if (over_.empty() || !is_over(segment_.record(h), slot)) (void)node_.push_ready(h);
    }
    Class& c = segment_.cls(q.cls);
    uint32_t mine = i;
    c.queues[slot].compare_exchange_strong(mine, 0, std::memory_order_acq_rel);
    // Empty first; then a ring of one zero (queue 0 is never used), so that a consumer that still reads
    // the old ring sees the word change and then an empty queue. The queue keeps its class for ever.
    uint64_t head = q.head.load(std::memory_order_relaxed);
    while (head < tail && !q.head.compare_exchange_weak(head, tail, std::memory_order_acq_rel)) {
    }
    uint64_t ring = q.ring.load(std::memory_order_relaxed);
    if (ring != 0) {
      Offset zero = segment_.offset_of(&segment_.queue(0));
      // SYNC POINT: ring-word
      q.ring.store(RingWord::make(RingWord::version(ring) + 1, 0, zero), std::memory_order_release);
    }
    if (ring != 0) segment_.header().queues_retired.fetch_add(1, std::memory_order_relaxed);
    q.in_use.store(0, std::memory_order_release);
  }
  for_each_class([&](Class& c) {
    c.queues[slot].store(0, std::memory_order_release);
    if (proc_set::has(c.producers, slot)) proc_set::take(c.producers, slot);
  });
}

// ---- tables and sleepers ---------------------------------------------------------------------------

// Entries it was writing when it died are free again; a class it had finished is counted.
void Reaper::clear_tables(uint32_t slot) {
  Header& header = segment_.header();
  uint32_t functions = std::min(header.functions_used.load(std::memory_order_acquire) + 64, kFunctionsMax);
  for (uint32_t i = 0; i < functions; ++i) {
    Function& f = segment_.function(i);
    uint32_t state = f.state.load(std::memory_order_acquire);
    if (state == entry_writing(slot) || (state == 1 && f.writer == slot)) {
      f.blob = 0;
      f.state.compare_exchange_strong(state, 0, std::memory_order_acq_rel);
    }
  }
  for (uint32_t a = 0; a < kActorsMax; ++a) {
    uint32_t state = segment_.actor(a).state.load(std::memory_order_acquire);  // SYNC POINT: actor-entry
    if (state == entry_writing(slot)) node_.untake_actor(a);
  }
  uint32_t used = header.classes_used.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < std::min(used + 64, kClassesMax); ++i) {
    uint32_t state = entry_writing(slot);
    if (segment_.cls(i).state.compare_exchange_strong(state, 0, std::memory_order_acq_rel)) continue;
    while (state == kEntryUsed && used < i + 1 &&  // made, but not counted
           !header.classes_used.compare_exchange_weak(used, i + 1, std::memory_order_acq_rel)) {
    }
  }
}

// A set's summary is written after its words: a process killed in between leaves a bit nobody finds, or a
// summary of nothing, which would tell submitters for ever that somebody looks for work.
void Reaper::repair_sets() {
  for_each_class([](Class& c) {
    for (ProcSet* set : {&c.sleeping, &c.polling, &c.producers})
      for (uint32_t w = 0; w < kProcsMax / 64; ++w) proc_set::update_summary(*set, w);
  });
}

// A waker may have died after it took a sleeper's bit and before it woke it, a sealer after its swap: so all
// who sleep look again. A worker without its bit sets it when it goes back to sleep.
void Reaper::wake_everyone() {
  Header& header = segment_.header();
  header.deaths.fetch_add(1, std::memory_order_seq_cst);
  uint32_t procs = header.procs_used.load(std::memory_order_acquire);
  for (uint32_t s = 0; s < procs; ++s)
    if (segment_.proc(s).state.load(std::memory_order_acquire) == kProcAlive) Process::wake_process(segment_, s);
}

}  // namespace fastray
