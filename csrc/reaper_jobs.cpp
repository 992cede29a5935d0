// What a job leaves when its driver is gone. See reaper.h; docs/internals/daemon.md says who lives on and why.
//
// Owners decide. A record of the job that its driver owned, or whose owner died, is the node's by now: if it is a task
// that is not done, nobody may run it any more; if it is the creation of an actor that is not detached, the actor
// ends. What a detached actor owns, and what that owns in turn, has an owner that lives, and goes on.
#include <algorithm>

#include "reaper.h"

namespace fastray {
namespace {

uint32_t owner_of(const Record& r) {
  return std::atomic_ref<const uint16_t>(r.owner).load(std::memory_order_acquire);
}

}  // namespace

// A task of a job that is over, whose owner was the process in slot `dead` or died before it. A call of an actor is
// none: who called is not known any more.
bool Reaper::is_over(const Record& r, uint32_t dead) const {
  uint32_t owner = owner_of(r);
  return r.kind == kTask && !is_actor_class(r.cls) && (owner == node_.slot_ || owner == dead) &&
         over_.count(segment_.cls(r.cls).job) != 0;
}

Reaper::Remains Reaper::drop_job(uint32_t job, const std::vector<uint32_t>& owners) {
  Remains remains;
  for (uint32_t owner : owners) {
    for (uint32_t c : chunks_of(owner, false)) {
      for (uint32_t i = 0; i < kChunkRecords; ++i) {
        uint32_t index = c * kChunkRecords + i;
        Record& r = segment_.record(index);
        uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
        if (state_of(w) == kFree || owner_of(r) != owner || r.cls >= kActorClass + kActorsMax) continue;
        if ((r.kind != kTask && r.kind != kActor) || segment_.cls(r.cls).job != job) continue;
        if (r.kind == kActor) {
          remains.actors.push_back(r.cls - kActorClass);
        } else if (!is_actor_class(r.cls)) {
          if (state_of(w) == kReady || state_of(w) == kWaiting) (void)abort(make_handle(index, word_gen(w)));
          w = r.state.load(std::memory_order_acquire);
          if (state_of(w) == kClaimed) remains.running.push_back(word_holder(w));
        }
      }
    }
  }
  sweep();
  return remains;
}

// Some record that lives still says what its function or class was.
bool Reaper::names_job(uint32_t job) const {
  for (uint32_t c : chunks_of(node_.slot_, false)) {
    for (uint32_t i = 0; i < kChunkRecords; ++i) {
      const Record& r = segment_.record(c * kChunkRecords + i);
      uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
      if (state_of(w) == kFree || owner_of(r) != node_.slot_ || (r.kind != kTask && r.kind != kActor)) continue;
      if (r.function < kFunctionsMax && segment_.function(r.function).job == job) return true;
      if (r.cls < kActorClass + kActorsMax && segment_.cls(r.cls).job == job) return true;
    }
  }
  return false;
}

// Nothing of it is left: its classes may become others', its functions go. A class keeps its queues: they belong to
// its number. The class first: until then its runtime_env is not another's.
void Reaper::forget_job(uint32_t job) {
  for (uint32_t c = 0; c < segment_.header().classes_used.load(std::memory_order_acquire); ++c) {
    Class& cls = segment_.cls(c);
    if (cls.job != job || cls.state.load(std::memory_order_acquire) != kEntryUsed) continue;
    proc_set::take(cls.sleeping, node_.slot_);
    cls.job = 0;
    cls.group = 0;
    cls.state.store(0, std::memory_order_release);  // SYNC POINT: class-entry
  }
  uint32_t functions = std::min(segment_.header().functions_used.load(std::memory_order_acquire), kFunctionsMax);
  for (uint32_t f = 1; f < functions; ++f) {
    Function& entry = segment_.function(f);
    if (entry.job != job || entry.state.load(std::memory_order_acquire) != kEntryUsed) continue;
    Offset blob = entry.blob;
    entry.hash[0] = entry.hash[1] = 0;
    entry.job = 0;
    entry.blob = 0;
    entry.state.store(0, std::memory_order_release);
    if (blob != 0) node_.allocator_.release(blob);
  }
  over_.erase(job);
}

}  // namespace fastray
