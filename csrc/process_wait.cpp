// Sleeping and waking. See process.h.
//
// Two kinds of sleepers. A *worker without work* stands in its class's `sleeping` set; a submitter that
// finds somebody there takes the bit out and wakes that one. A *process that waits for records* marks
// them (kFlagAwaited for its own, an edge for borrowed ones); whoever seals a marked record wakes it.
// The worker's sleep is fenced by membarrier, so that submitters need no fence; the waiter's mark and
// the sealer's swap are on one word, so that they cannot miss each other.
#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>

#include "process.h"

namespace fastray {
namespace {
constexpr uint32_t kKeepUpUs = 10;  // what waits longer than this in a queue calls for another worker
}  // namespace

void Process::wake_process(const Segment& segment, uint32_t slot) {
  Proc& p = segment.proc(slot);
  // SYNC POINT: proc-futex (seq_cst: the sleeper counts itself, then reads the word, then looks)
  p.futex.fetch_add(1, std::memory_order_seq_cst);
  if (p.sleepers.load(std::memory_order_seq_cst) != 0) os::futex_wake(&p.futex, INT_MAX);
}

void Process::ring_bell() {
  uint64_t one = 1;
  if (bell_fd_ >= 0 && write(bell_fd_, &one, sizeof one) < 0) return;  // full: it rings already
}

void Process::wake_one(Class& c) {
  int slot = proc_set::take_any(c.sleeping);
  if (slot < 0) return;
  if (slot == 0) return ring_bell();  // slot 0 is the node: the class has no worker at all
  woke_ = true;
  proc_set::add(c.polling, static_cast<uint32_t>(slot));
  wake_process(segment_, static_cast<uint32_t>(slot));
  if (segment_.header().dormant.load(std::memory_order_relaxed) != 0) ring_bell();
}

// Somebody leased to this class sleeps. Wake one unless those awake keep up.
void Process::notify_slow(QueueProducer& q) {
  Class& c = segment_.cls(q.queue().cls);
  if (proc_set::any(c.polling)) return;
  uint64_t now = os::ticks();
  bool all_sleep =
      static_cast<uint32_t>(proc_set::count(c.sleeping)) >= c.leases.load(std::memory_order_relaxed);
  if (!all_sleep) {
    if (now - q.looked_at_ticks < static_cast<uint64_t>(kKeepUpUs * os::ticks_per_us())) return;
    bool keeps_up = q.queue().head.load(std::memory_order_relaxed) >= q.mark;
    q.looked_at_ticks = now;
    q.mark = q.tail();
    if (keeps_up) return;
  }
  q.looked_at_ticks = now;
  q.mark = q.tail();
  wake_one(c);
}

void Process::nudge() {
  for (const std::unique_ptr<QueueProducer>& q : producers_) {
    if (q == nullptr || q->empty()) continue;
    Class& c = segment_.cls(q->queue().cls);
    if (proc_set::any(c.sleeping) && !proc_set::any(c.polling)) wake_one(c);
  }
}

void Process::spread(uint64_t estimate_ticks) {
  Class& c = segment_.cls(sources_class_ - 1);
  if (!proc_set::any(c.sleeping) || proc_set::any(c.polling)) return;
  uint64_t backlog = 0;
  for (Queue* q : sources_) {
    uint64_t tail = q->tail.load(std::memory_order_relaxed), head = q->head.load(std::memory_order_relaxed);
    if (tail > head) backlog += tail - head;
  }
  if (backlog == 0) return;
  double limit = kKeepUpUs * os::ticks_per_us();
  if (static_cast<double>(backlog) * static_cast<double>(estimate_ticks) < 2 * limit) return;
  uint64_t now = os::ticks();
  if (static_cast<double>(now - spread_at_ticks_) < limit) return;
  spread_at_ticks_ = now;
  wake_one(c);
}

// ---- spinning --------------------------------------------------------------------------------------

bool Process::may_spin() const {
  uint32_t cpu = static_cast<uint32_t>(os::current_cpu()) + 1;
  self_->cpu.store(cpu, std::memory_order_relaxed);
  uint32_t slots = segment_.header().procs_used.load(std::memory_order_relaxed);
  for (uint32_t slot = 1; slot < slots && slot < kNeighboursMax; ++slot) {
    const Proc& p = segment_.proc(slot);
    if (slot != slot_ && p.cpu.load(std::memory_order_relaxed) == cpu &&
        p.claim.load(std::memory_order_relaxed) != 0)
      return false;
  }
  return true;
}

bool Process::spin_until_sealed(Handle h) {
  bool woke = woke_;
  woke_ = false;
  uint32_t spin_us = kResultSpinUs;
  if (woke) spin_us = woke_spin_us_ != 0 || ++woke_tries_ % kProbeEvery == 0 ? std::max(woke_spin_us_, 8u) : 0;
  uint64_t step = static_cast<uint64_t>(2 * os::ticks_per_us());
  uint64_t now = os::ticks(), end = now + spin_us / 2 * step, look = now + step;
  while (now < end) {
    for (int i = 0; i < 8; ++i) {
      if (sealed(h)) {
        if (woke) woke_spin_us_ = kResultSpinUs;
        return true;
      }
      os::pause();
    }
    now = os::ticks();
    if (now < look) continue;
    if (!may_spin()) break;
    look = now + step;
  }
  if (woke) woke_spin_us_ /= 2;
  return false;
}

// ---- waiting for records ---------------------------------------------------------------------------

bool Process::mark_awaited(const Handle* handles, size_t n) {
  bool any = false;
  for (size_t i = 0; i < n; ++i) {
    Record& r = segment_.record(handles[i]);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (is_sealed(w) || word_gen(w) != gen_of(handles[i])) {
      any = true;
      continue;
    }
    if (is_gone(w)) recover(handles[i]);
    if (r.owner == slot_) {
      if (w & kFlagAwaited) continue;
      // SYNC POINT: record-state (either we see the seal, or the sealer sees the mark)
      if (is_sealed(r.state.fetch_or(kFlagAwaited, std::memory_order_acq_rel))) any = true;
      continue;
    }
    auto it = borrows_.find(handles[i]);
    if (it != borrows_.end() && it->second.edge) continue;
    if (it != borrows_.end()) it->second.edge = true;
    if (add_edge(handles[i], kEdgeProcess, slot_, 0, 0)) any = true;
  }
  return any;
}

Wake Process::sleep_on(const Handle* handles, size_t n, uint32_t seen, int64_t timeout_ns) {
  auto any_sealed = [&] {
    for (size_t i = 0; i < n; ++i)
      if (sealed(handles[i])) return true;
    return false;
  };
  Proc& self = *self_;
  uint32_t lease = self.lease.load(std::memory_order_relaxed);
  bool in_task = self.kind == kProcWorker && self.claim.load(std::memory_order_relaxed) != 0 && lease != 0;
  self.sleepers.fetch_add(1, std::memory_order_seq_cst);  // SYNC POINT: proc-futex
  int result = 0;
  if (!any_sealed()) {
    if (in_task) {
      self.blocked.fetch_add(1, std::memory_order_seq_cst);
      Class& c = segment_.cls(lease - 1);
      bool gives = !is_actor_class(lease - 1) ||  // most actors hold no CPU
                   std::any_of(c.demand, c.demand + kResourcesMax, [](uint64_t d) { return d != 0; });
      if (gives && !proc_set::any(c.sleeping) && !proc_set::any(c.polling)) ring_bell();
    }
    result = os::futex_wait(&self.futex, seen, timeout_ns);
    if (in_task) self.blocked.fetch_sub(1, std::memory_order_seq_cst);
  }
  bool done = any_sealed();
  self.sleepers.fetch_sub(1, std::memory_order_seq_cst);  // the last touch: the session may end now
  if (done) return Wake::kSealed;
  if (result == -ETIMEDOUT) return Wake::kTimeout;
  return result == -EINTR ? Wake::kInterrupted : Wake::kKicked;
}

// ---- waiting for work ------------------------------------------------------------------------------

Handle Process::poll_for_work(bool spin) {
  Handle h = claim_next();
  uint32_t lease = self_->lease.load(std::memory_order_relaxed);
  if (lease == 0) {
    polling_ = false;
    return h;
  }
  Class& c = segment_.cls(lease - 1);
  if (h == 0) {
    if (!polling_) proc_set::add(c.polling, slot_);
    polling_ = true;
    uint32_t cpu = static_cast<uint32_t>(os::current_cpu()) + 1;
    self_->cpu.store(cpu, std::memory_order_relaxed);
    bool together = segment_.proc(last_owner_).cpu.load(std::memory_order_relaxed) == cpu;
    uint32_t spin_us = spin && !together ? kWorkSpinUs : 0;
    uint64_t end = os::ticks() + static_cast<uint64_t>(spin_us * os::ticks_per_us());
    while (h == 0 && os::ticks() < end && self_->revoke.load(std::memory_order_relaxed) == 0) {
      for (int i = 0; i < 4; ++i) os::pause();
      h = claim_next();
    }
  }
  if (h != 0 && polling_) {
    proc_set::take(c.polling, slot_);
    polling_ = false;
  }
  return h;
}

bool Process::lease_is_over() {
  if (self_->revoke.load(std::memory_order_relaxed) == 0) return false;
  uint32_t lease = self_->lease.load(std::memory_order_relaxed);
  if (lease != 0) {
    if (polling_) proc_set::take(segment_.cls(lease - 1).polling, slot_);
    polling_ = false;
    self_->lease.store(0, std::memory_order_seq_cst);
    note_moment(kEventReturned, lease - 1, 0);
    sources_class_ = 0;
  }
  self_->revoke.store(0, std::memory_order_seq_cst);
  ring_bell();
  return true;
}

Wake Process::sleep_for_work(uint32_t seen, int64_t timeout_ns) {
  Proc& self = *self_;
  self.sleepers.fetch_add(1, std::memory_order_seq_cst);  // SYNC POINT: proc-futex
  uint32_t lease = self.lease.load(std::memory_order_seq_cst);
  int result = 0;
  if (lease == 0) {
    if (self.exiting.load(std::memory_order_seq_cst) == 0) result = os::futex_wait(&self.futex, seen, timeout_ns);
  } else {
    Class& c = segment_.cls(lease - 1);
    proc_set::add(c.sleeping, slot_);  // SYNC POINT: sleep-bit
    proc_set::take(c.polling, slot_);
    if (fences_)
      std::atomic_thread_fence(std::memory_order_seq_cst);
    else
      os::membarrier_all();
    bool stay = !backlog(c) && self.revoke.load(std::memory_order_seq_cst) == 0 &&
                self.exiting.load(std::memory_order_seq_cst) == 0;
    if (stay) result = os::futex_wait(&self.futex, seen, timeout_ns);
    // a waker took us out of `sleeping` and counts us as polling; else we do it ourselves
    if (proc_set::take(c.sleeping, slot_)) proc_set::add(c.polling, slot_);
  }
  uint32_t now = self.lease.load(std::memory_order_seq_cst);
  polling_ = now != 0 && (now == lease || proc_set::has(segment_.cls(now - 1).polling, slot_));
  self.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  if (result == -ETIMEDOUT) return Wake::kTimeout;
  return result == -EINTR ? Wake::kInterrupted : Wake::kKicked;
}

}  // namespace fastray
