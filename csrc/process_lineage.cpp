// Lineage: what finished tasks keep so that results can be computed again, and computing them again. See process.h.
//
//   lineage reference  that of a finished task to an argument: it keeps the argument's record, not its data
//   dependents         of a big result: the finished tasks that hold it so
//   evicted            its memory was given back, kDone -> kLost, because only lineage held it (or evict() was called)
//   recover            somebody asks for a lost result: its task runs again, after what that needs. Any process may
//
// A lost record keeps its handle, its owner and all references to it; who waits for it waits as for any result.
// Which process may do what: only its owner makes a record lost, and only while no ledger names it; whoever holds
// a lost one may recover it. The two meet at a task T that runs again and its argument D: the owner swaps D to
// kLost and then looks at T, the recoverer swaps T to kWaiting and then looks at D, each with a full fence between.
// So one sees the other: the owner gives D its data back, or the recoverer finds D lost and recovers it too.
#include <sched.h>
#include <string.h>

#include <algorithm>

#include "process.h"

namespace fastray {
namespace {

constexpr size_t kChainNamesMax = 16;     // in the message of an error
constexpr uint32_t kNoStage = 0xFFF;
constexpr size_t kFailedTasksMax = 4096;      // failed tasks that keep small arguments
constexpr size_t kFailedLargeMax = 16;        // and large ones, with their data

}  // namespace

// ---- what finished tasks keep -----------------------------------------------------------------------

// A finished task keeps its arguments as long as it lives itself, when they can be kept without their data: small
// ones are in their records, big ones must be results that can be computed again. Otherwise it lets go of them (a
// loop over big arrays must not keep them all). A task that has let go has kFlagRefs cleared; its argument handles
// may name generations that have passed. When there are too many, the oldest go to a file (process_filed.cpp).
void Process::sweep_lineage(size_t most) {
  if (sweeping_lineage_) return;  // letting go of one may lead here again
  sweeping_lineage_ = true;
  uint32_t deps, refs;
  for (size_t left = std::min(most, lineage_.size()); left > 0; --left) {
    Handle h = lineage_.front();
    lineage_.pop_front();
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(h) || r.owner != slot_ || !(w & kFlagRefs)) continue;
    if (!is_settled(w) || keeps_arguments(r, w)) {
      lineage_.push_back(h);
      continue;
    }
    const Handle* handles = argument_handles(segment_, r, &deps, &refs);
    bool failed = state_of(w) == kFailed;
    if (failed)
      keep_failed(h, handles, deps + refs);
    else if (keep_lineage(h, handles, deps, refs))
      kept_.push_back(h);
    else
      let_go(r, handles, deps + refs);
  }
  sweeping_lineage_ = false;
}

void Process::let_go(Record& r, const Handle* handles, uint32_t n) {
  std::vector<Handle> dropped(handles, handles + n);
  r.state.fetch_and(~uint64_t{kFlagRefs}, std::memory_order_acq_rel);
  for (Handle d : dropped) drop_generic(d);
}

// A failed task keeps its arguments for replay(), with their data, until others failed: all of them together keep at
// most an eighth of the store. It keeps no actor alive and no task that may still be dropped.
void Process::keep_failed(Handle h, const Handle* handles, uint32_t n) {
  uint64_t bytes = 0, most = segment_.header().object_store_bytes / (8 * kFailedLargeMax);
  for (uint32_t i = 0; i < n; ++i) {
    const Record& a = segment_.record(handles[i]);
    uint64_t w = a.state.load(std::memory_order_acquire);
    if (is_sealed(w) && (w & kFlagResultHeap)) bytes += ObjectAllocator::usable_bytes(segment_, a.result_heap.offset);
    if (!is_settled(w) || a.kind == kActor || bytes > most) return let_go(segment_.record(h), handles, n);
  }
  bool large = bytes != 0;
  failed_[large].push_back(h);
  forget_failed(large, large ? kFailedLargeMax : kFailedTasksMax);
}

void Process::forget_failed(bool large, size_t most) {
  while (failed_[large].size() > most) {
    Handle h = failed_[large].front();
    failed_[large].pop_front();
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(h) || r.owner != slot_ || !(w & kFlagRefs) || state_of(w) != kFailed) continue;
    uint32_t deps, refs;
    const Handle* handles = argument_handles(segment_, r, &deps, &refs);
    let_go(r, handles, deps + refs);
  }
}

// False: one of the arguments cannot be kept without keeping its data, or without keeping an actor alive.
bool Process::keep_lineage(Handle h, const Handle* handles, uint32_t deps, uint32_t refs) {
  bool big = false;
  for (uint32_t i = 0; i < deps + refs; ++i) {
    const Record& a = segment_.record(handles[i]);
    uint64_t w = a.state.load(std::memory_order_acquire);
    if (i >= deps && (!is_settled(w) || a.kind == kActor)) return false;
    if (!(w & kFlagResultHeap) && state_of(w) != kAway) continue;
    if (!can_be_made_again(a, w)) return false;
    big = true;
  }
  if (!big) return true;
  for (uint32_t i = 0; i < deps + refs; ++i) {
    uint64_t w = segment_.record(handles[i]).state.load(std::memory_order_relaxed);
    if (!(w & kFlagResultHeap) && state_of(w) != kAway) continue;
    dependents_[handles[i]].push_back(h);
    only_lineage_may_hold(handles[i]);
  }
  return true;
}

// The task is freed, lets go, or runs again: it is no lineage any more.
void Process::forget_dependent(Handle task, const Handle* handles, uint32_t n) {
  for (uint32_t i = 0; i < n && !dependents_.empty(); ++i) {
    auto found = dependents_.find(handles[i]);
    if (found == dependents_.end()) continue;
    std::vector<Handle>& tasks = found->second;
    auto at = std::find(tasks.begin(), tasks.end(), task);
    if (at == tasks.end()) continue;
    *at = tasks.back();
    tasks.pop_back();
    if (tasks.empty()) dependents_.erase(found);
  }
}

bool Process::can_rerun(const Record& task) const {
  if (is_actor_class(task.cls) || task.kind != kTask) return false;
  const Function& f = segment_.function(task.function);
  return !(f.flags & kStreaming) && (f.max_retries < 0 || task.attempts < f.max_retries);
}

// A finished result of ours (its word is w) that its task can make again, as far as its own record says.
bool Process::can_be_made_again(const Record& r, uint64_t w) const {
  bool away = state_of(w) == kAway;
  if (r.owner != slot_ || (state_of(w) != kDone && !away) || (w & kFlagMulti)) return false;
  const Record& task = r.kind == kPromise ? segment_.record(r.args_heap.offset) : r;
  if (!can_rerun(task)) return false;
  if (!away && view_payload(segment_, r.result_heap.offset).header->references != 0) return false;
  uint32_t deps, refs;
  (void)argument_handles(segment_, task, &deps, &refs);
  return deps + refs == 0 || (task.state.load(std::memory_order_relaxed) & kFlagRefs);
}

// ---- eviction ---------------------------------------------------------------------------------------

// A reference to a big result of ours was dropped, and some are left.
void Process::only_lineage_may_hold(Handle h) {
  if (!lineage_.empty()) sweep_lineage(64);
  auto found = dependents_.find(h);
  if (found == dependents_.end() || segment_.record(h).pins != found->second.size()) return;
  evictable_.push_back(h);
  evictable_epoch_ = 0;  // look at least once
}

// Like sweep_limbo: what was lent is evicted when no ledger names it any more.
void Process::sweep_evictable() {
  uint32_t epoch = self_->release_epoch.load(std::memory_order_seq_cst);  // SYNC POINT: release-epoch
  if (evictable_.empty() || epoch + 1 == evictable_epoch_) return;
  bool lent = std::any_of(evictable_.begin(), evictable_.end(), [&](Handle h) {
    return segment_.record(h).state.load(std::memory_order_acquire) & kFlagBorrowed;
  });
  std::unordered_set<Handle> named;
  if (lent) named = named_by_ledgers();
  if (lent && self_->release_epoch.load(std::memory_order_seq_cst) != epoch) return;  // moved: look again later
  evictable_epoch_ = epoch + 1;
  std::vector<Handle> candidates;
  candidates.swap(evictable_);
  for (Handle h : candidates) {
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    auto found = dependents_.find(h);
    if (word_gen(w) != gen_of(h) || r.owner != slot_ || found == dependents_.end()) continue;
    bool away = state_of(w) == kAway;
    if (r.pins != found->second.size() || (!(w & kFlagResultHeap) && !away) || !can_be_made_again(r, w)) continue;
    if (named.count(h) == 0) {
      if (!is_walked(w) && (away ? forget_away(r, h) : drop_data(r, h))) continue;
      evictable_epoch_ = 0;  // not for the ledgers: look again at the next sweep
    }
    evictable_.push_back(h);
  }
}

bool Process::evict(Handle h, bool also_lost) {
  sweep_lineage(SIZE_MAX);
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  if (word_gen(w) != gen_of(h) || r.owner != slot_ || state_of(w) != kDone || is_walked(w)) return false;
  if (!(w & kFlagResultHeap) || (w & kFlagMulti)) return false;
  if (view_payload(segment_, r.result_heap.offset).header->references != 0) return false;
  if (!also_lost && !can_be_made_again(r, w)) return false;
  auto found = dependents_.find(h);
  size_t lineage = found == dependents_.end() ? 0 : found->second.size();
  if ((w & kFlagShared ? static_cast<size_t>(r.pins) : 1) != lineage + 1) return false;
  if (w & kFlagBorrowed) {
    uint32_t epoch = self_->release_epoch.load(std::memory_order_seq_cst);  // SYNC POINT: release-epoch
    bool lent = named_by_ledgers().count(h) != 0;
    if (lent || self_->release_epoch.load(std::memory_order_seq_cst) != epoch) return false;
  }
  return drop_data(r, h);
}

bool Process::dependents_settled(Handle h) const {
  auto found = dependents_.find(h);
  return found == dependents_.end() || std::all_of(found->second.begin(), found->second.end(), [&](Handle t) {
           return is_settled(segment_.record(t).state.load(std::memory_order_seq_cst));
         });
}

// kDone -> kLost, and its memory is free. False: a task that needs it runs again, or somebody borrows it.
bool Process::drop_data(Record& r, Handle h) {
  Offset block = r.result_heap.offset;
  uint64_t w = r.state.fetch_and(~uint64_t{kFlagBorrowed}, std::memory_order_acq_rel) & ~uint64_t{kFlagBorrowed};
  allocator_.begin_release(block);
  uint64_t lost = with_state(w, kLost, 0) & ~uint64_t{kFlagResultHeap};
  if (!r.state.compare_exchange_strong(w, lost, std::memory_order_seq_cst)) {  // lent again
    allocator_.cancel_release();
    return false;
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);  // SYNC POINT: eviction
  if (!dependents_settled(h)) {
    uint64_t now = lost;
    while (state_of(now) == kLost) {  // nobody recovers it yet: sealed again, for those who hung on it meanwhile
      uint64_t done = with_state(now, kDone, now & kFlagEdges ? kWalking : 0) | kFlagResultHeap;
      if (!r.state.compare_exchange_weak(now, done, std::memory_order_acq_rel)) continue;
      allocator_.cancel_release();
      if (now & (kFlagAwaited | kFlagEdges)) after_seal(r, h, now);
      return false;
    }
  }
  int maker = maker_to_wake(block, false);
  allocator_.release(block);
  ++evicted_;
  if (maker >= 0 && static_cast<uint32_t>(maker) != slot_) wake_process(segment_, static_cast<uint32_t>(maker));
  return true;
}

// ---- computing again --------------------------------------------------------------------------------

void Process::recover(Handle h) {
  std::vector<Lost> roots{Lost{h, -1}};
  recover_all(&roots);
}

// Not recursive: what one needs is looked at after it. A death in between: the reaper goes on from the root.
void Process::recover_all(std::vector<Lost>* given) {
  if (recovering_) {  // the loop below is at work further up, and takes them from lost_
    if (given != &lost_) lost_.insert(lost_.end(), given->begin(), given->end());
    return;
  }
  recovering_ = true;
  std::vector<Lost> roots;
  roots.swap(*given);
  for (const Lost& root : roots) {
    self_->recovering.store(root.h, std::memory_order_release);  // read by the reaper after our death only
    std::vector<Lost> lost{root};
    for (size_t i = 0; i < lost.size(); ++i) {
      recover_one(&lost, i);
      for (const Lost& found : lost_) lost.push_back(Lost{found.h, static_cast<int32_t>(i)});
      lost_.clear();
    }
    self_->recovering.store(0, std::memory_order_release);
  }
  recovering_ = false;
}

void Process::recover_one(std::vector<Lost>* lost, size_t i) {
  Handle h = (*lost)[i].h;
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  if (word_gen(w) != gen_of(h)) return;
  if (is_asked(w)) return;
  if (state_of(w) == kAway) return ask_for(h);
  if (r.kind == kPromise && (state_of(w) == kLost || state_of(w) == kPromised)) return run_producer(lost, i);
  if (state_of(w) != kLost) return;
  if (r.kind != kTask) return give_up(h, kLostNoTask, *lost, i);
  if (!can_rerun(r)) return give_up(h, kLostAttempts, *lost, i);
  if (hold_arguments(r, h, w)) return rerun(r, h, w, lost, i);
  if (!asks_owner(r)) give_up(h, kLostLineage, *lost, i);
}

// A lost return value: promised again, and its task runs again. Other values of that task that are there stay.
void Process::run_producer(std::vector<Lost>* lost, size_t i) {
  Handle h = (*lost)[i].h;
  Record& p = segment_.record(h);
  (void)revive(h);
  Handle task = p.args_heap.offset;
  Record& r = segment_.record(task);
  for (;;) {
    uint64_t promise = p.state.load(std::memory_order_acquire);
    if (state_of(promise) != kPromised || is_asked(promise)) return;
    uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    if (is_walked(w)) {
      sched_yield();  // its edges are being walked: a few stores, or the reaper does it
    } else if (is_sealed(w)) {
      if (!can_rerun(r)) return give_up(h, kLostAttempts, *lost, i);
      if (hold_arguments(r, task, w)) return rerun(r, task, w, lost, i);
      return give_up(h, kLostLineage, *lost, i);  // tasks with several returns are never filed
    } else if (!add_edge(task, kEdgePromise, index_of(h), gen_of(h), 0)) {
      return;  // it runs, and may have passed this value: looked at again when it is sealed
    }
  }
}

bool Process::revive(Handle promise) {
  Record& p = segment_.record(promise);
  uint64_t w = p.state.load(std::memory_order_acquire);
  while (state_of(w) == kLost && word_gen(w) == gen_of(promise))
    if (p.state.compare_exchange_weak(w, with_state(w, kPromised, 0), std::memory_order_acq_rel)) return true;
  return false;
}

// The finished task r (its word is w) is to run once more. Nothing happens when somebody else was first.
void Process::rerun(Record& r, Handle h, uint64_t w, std::vector<Lost>* lost, size_t i) {
  State from = state_of(w);
  uint64_t next;
  do {
    if (state_of(w) != from || word_gen(w) != gen_of(h)) return;
    uint64_t attempt = ((w & kAttemptMask) + (uint64_t{1} << kAttemptShift)) & kAttemptMask;
    next = (with_state(w, kWaiting, kNoStage) & ~(kAttemptMask | kFlagDetached | kFlagCancel)) | attempt;
  } while (!r.state.compare_exchange_weak(w, next, std::memory_order_seq_cst));
  std::atomic_thread_fence(std::memory_order_seq_cst);  // SYNC POINT: eviction
  if (r.attempts < 255) ++r.attempts;
  uint32_t deps, refs;
  const Handle* handles = argument_handles(segment_, r, &deps, &refs);
  if (r.owner == slot_ && deps + refs != 0) {
    forget_dependent(h, handles, deps + refs);
    remember_lineage(h);
  }
  for (uint32_t d = 0; d < deps; ++d)
    if (is_lost(handles[d])) lost->push_back(Lost{handles[d], static_cast<int32_t>(i)});
  (void)advance(r, h, next, 0);
}

// False: its arguments are gone, or are its owner's to bring back, who was asked then.
bool Process::hold_arguments(Record& r, Handle h, uint64_t w) {
  uint32_t deps, refs;
  const Handle* handles = argument_handles(segment_, r, &deps, &refs);
  uint32_t n = deps + refs;
  auto alive = [&](Handle a) {
    uint64_t word = segment_.record(a).state.load(std::memory_order_acquire);
    return word_gen(word) == gen_of(a) && state_of(word) != kFree;
  };
  if (w & kFlagRefs) {  // they are held, or filed
    if (std::all_of(handles, handles + n, alive)) return true;
    if (r.owner == slot_) return restore_arguments(handles, n);
    if (asks_owner(r)) ask_owner(r, h);
    return false;
  }
  // A task that let go of them: they may still be there, held by others. Another owner may free its own while we
  // look: only ours are safe to take up again. So its owner looks.
  if (n != 0 && r.owner != slot_) {
    if (asks_owner(r)) ask_owner(r, h);
    return false;
  }
  for (uint32_t i = 0; i < n; ++i) {
    if (segment_.record(handles[i]).owner == slot_ && alive(handles[i]) && hold(handles[i])) continue;
    for (uint32_t k = 0; k < i; ++k) drop_generic(handles[k]);
    return false;
  }
  if (n != 0) r.state.fetch_or(kFlagRefs, std::memory_order_acq_rel);
  return true;
}

// ---- the reaper's part ------------------------------------------------------------------------------

// A copy of a task's dependencies, for one who does not hold it: its owner may free it meanwhile.
std::vector<Handle> Process::dependencies_of(Handle h) const {
  const Record& r = segment_.record(h);
  auto alive = [&] { return word_gen(r.state.load(std::memory_order_acquire)) == gen_of(h); };
  if (r.kind != kTask || !alive()) return {};
  if (r.args_bytes == kArgsInHeap) {
    uint64_t end = segment_.header().segment_bytes, offset = r.args_heap.offset;
    if (offset == 0 || offset > end - sizeof(PayloadHeader)) return {};
    PayloadHeader header = *segment_.at<PayloadHeader>(offset);
    bool fits = header.dependencies < (end - offset) / sizeof(Handle);
    if (!fits || !alive()) return {};  // what was read may be anything
  }
  uint32_t deps, refs;
  const Handle* handles = argument_handles(segment_, r, &deps, &refs);
  if (!alive() || (r.args_bytes != kArgsInHeap && deps * sizeof(Handle) > kInlineArgs)) return {};
  std::vector<Handle> copy(handles, handles + deps);
  return alive() ? copy : std::vector<Handle>();
}

// `dead` was recovering `root` when it died. It left tasks that wait and hang on nothing or stand in no queue,
// promises without a run, and perhaps one record that it had claimed to fail it, or failed without telling.
void Process::recover_again(Handle root, uint32_t dead) {
  recovering_ = true;
  std::vector<Lost> lost{Lost{root, -1}};
  std::unordered_set<Handle> seen;
  for (size_t i = 0; i < lost.size(); ++i) {
    Handle h = lost[i].h;
    if (h == 0 || index_of(h) >= kRecordsMax || !seen.insert(h).second) continue;
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(h)) continue;
    if (is_asked(w)) push_asked(h);  // perhaps it was never queued
    if (r.kind == kPromise && state_of(w) == kPromised && !is_asked(w)) lost.push_back(Lost{r.args_heap.offset, static_cast<int32_t>(i)});
    // also of what went on since: one of them may be failed without everybody being told
    for (Handle d : dependencies_of(h)) lost.push_back(Lost{d, static_cast<int32_t>(i)});
    if (state_of(w) == kWaiting) {
      (void)advance(r, h, w, 0);
    } else if (is_walked(w)) {
      notify_again(h);
    } else if (state_of(w) == kReady) {
      (void)made_ready(h, place_of(r));  // perhaps it was never queued; a second entry does no harm
    } else if (state_of(w) == kClaimed && word_holder(w) == dead) {
      uint64_t back = with_state(w, r.kind == kPromise ? kPromised : kLost, 0);
      if (r.state.compare_exchange_strong(w, back, std::memory_order_acq_rel)) recover_one(&lost, i);
    } else {
      recover_one(&lost, i);
    }
    for (const Lost& found : lost_) lost.push_back(Lost{found.h, static_cast<int32_t>(i)});
    lost_.clear();
  }
  recovering_ = false;
}

// ---- when it is impossible --------------------------------------------------------------------------

std::string Process::describe(Handle h) const {
  const Record& r = segment_.record(h);
  if (r.kind == kObject) return "put()";
  const Function& f = segment_.function(r.function);
  std::string name(f.name, strnlen(f.name, sizeof f.name));
  if (r.kind == kPromise || r.kind == kItem) return name + "()[" + std::to_string(r.ret) + "]";
  return name + "()";
}

// Fails it, and with it all that needs it. The message: why, its id, then what it was needed for, this one first.
void Process::give_up(Handle h, LostReason why, const std::vector<Lost>& lost, size_t i) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  do {
    bool open = state_of(w) == kLost || (r.kind == kPromise && state_of(w) == kPromised);
    if (!open || word_gen(w) != gen_of(h)) return;
    // SYNC POINT: record-state
  } while (!r.state.compare_exchange_weak(w, with_state(w, kClaimed, slot_), std::memory_order_acq_rel));
  uint32_t ret = r.kind == kPromise || r.kind == kItem ? r.ret + 1u : 0;
  std::string more(1, static_cast<char>(why));
  more.append(reinterpret_cast<const char*>(&r.id), sizeof r.id);
  more.append(reinterpret_cast<const char*>(&ret), sizeof ret);
  more += describe(h);
  size_t names = 1;
  for (int32_t by = lost[i].by; by >= 0; by = lost[static_cast<size_t>(by)].by) {
    if (++names > kChainNamesMax) {
      more += " <- ...";
      break;
    }
    more += " <- " + describe(lost[static_cast<size_t>(by)].h);
  }
  uint64_t flags = 0;
  write_error(r, kErrorLost, more.data(), more.size(), &flags, h);
  (void)seal(h, kFailed, flags);
}

}  // namespace fastray
