// Records: taking them, holding them, giving them back. See process.h.
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "process.h"

namespace fastray {
namespace {
constexpr uint64_t kWakeBytes = 1 << 20;  // releasing this much of others' is worth waking one for
}  // namespace

int Process::reserve_slot(const Segment& segment, uint32_t kind) {
  for (uint32_t slot = kPrivateDriver + 1; slot < kProcsMax; ++slot)
    if (take_slot(segment, slot, kind)) return static_cast<int>(slot);
  return -1;
}

bool Process::take_slot(const Segment& segment, uint32_t slot, uint32_t kind) {
  Header& header = segment.header();
  Proc& p = segment.proc(slot);
  uint32_t expected = kProcEmpty;
  if (p.state.load(std::memory_order_relaxed) != kProcEmpty) return false;
  if (!p.state.compare_exchange_strong(expected, kProcStarting, std::memory_order_acq_rel)) return false;
  p.incarnation = header.incarnations.fetch_add(1, std::memory_order_relaxed) + 1;
  p.kind = kind;
  p.pid = 0;
  p.lease.store(0, std::memory_order_relaxed);
  p.revoke.store(0, std::memory_order_relaxed);
  p.exiting.store(0, std::memory_order_relaxed);
  p.runtime_env = p.gpus = p.job = 0;
  p.claim.store(0, std::memory_order_relaxed);
  p.heartbeat.store(0, std::memory_order_relaxed);
  p.acting.store(0, std::memory_order_relaxed);
  p.freeing.store(0, std::memory_order_relaxed);
  p.recovering.store(0, std::memory_order_relaxed);
  p.wanted.store(0, std::memory_order_relaxed);
  p.blocked.store(0, std::memory_order_relaxed);
  p.sleepers.store(0, std::memory_order_relaxed);
  p.depth = 0;
  segment.recorder(slot).clear();
  uint32_t used = header.procs_used.load(std::memory_order_relaxed);
  while (used < slot + 1 &&
         !header.procs_used.compare_exchange_weak(used, slot + 1, std::memory_order_acq_rel)) {
  }
  return true;
}

std::string Process::attach(const Segment& segment, uint32_t kind, int slot, int bell_fd) {
  if (slot < 0) slot = reserve_slot(segment, kind);
  else (void)take_slot(segment, static_cast<uint32_t>(slot), kind);  // unless it was reserved for us
  if (slot < 0) return "the process table is full (" + std::to_string(kProcsMax) + " processes)";
  segment_ = segment;
  slot_ = static_cast<uint32_t>(slot);
  self_ = &segment_.proc(slot_);
  recorder_ = &segment_.recorder(slot_);
  bell_fd_ = bell_fd;
  self_->pid = getpid();
  if (kind == kProcDriver && slot_ == kPrivateDriver) self_->job = 1;
  id_base_ = uint64_t{self_->incarnation} << 40;
  fences_ = segment_.header().membarrier == 0;
  if (!fences_) os::membarrier_register();
  allocator_.attach(segment_, slot_);
  // SYNC POINT: proc-alive (release: the fields above)
  self_->state.store(kProcAlive, std::memory_order_release);
  return "";
}

void Process::abandon() {
  self_ = nullptr;
  recorder_ = nullptr;
  segment_ = Segment();
}

// ---- free list -----------------------------------------------------------------------------------

bool Process::refill() {
  sweep();
  return !free_.empty() || take_chunk();
}

bool Process::take_chunk() {
  Header& header = segment_.header();
  for (uint32_t c = 0; c < kChunksMax; ++c) {
    if (segment_.chunk_owner(c).load(std::memory_order_relaxed) != 0) continue;
    uint32_t expected = 0;
    // SYNC POINT: chunk-owner (the CAS names the holder; the reaper reads it after our death)
    if (!segment_.chunk_owner(c).compare_exchange_strong(expected, slot_ + 1, std::memory_order_acq_rel))
      continue;
    self_->chunks[c / 64].fetch_or(uint64_t{1} << c % 64, std::memory_order_acq_rel);
    uint32_t used = header.chunks_used.load(std::memory_order_relaxed);
    while (used < c + 1 && !header.chunks_used.compare_exchange_weak(used, c + 1, std::memory_order_acq_rel)) {
    }
    Record* first = &segment_.record(c * kChunkRecords);
    if (!os::populate(first, sizeof(Record) * kChunkRecords)) {
      self_->chunks[c / 64].fetch_and(~(uint64_t{1} << c % 64), std::memory_order_acq_rel);
      segment_.chunk_owner(c).store(0, std::memory_order_release);
      return false;
    }
    my_chunks_.push_back(c);
    free_.reserve(free_.size() + kChunkRecords);
    for (uint32_t i = kChunkRecords; i-- > 0;) {
      uint32_t index = c * kChunkRecords + i;
      if (index == 0) continue;  // handle 0 is "none"
      Record& r = segment_.record(index);
      r.owner = static_cast<uint16_t>(slot_);
      // generations go on where the chunk's last owner left them: old handles stay old
      uint32_t gen = word_gen(r.state.load(std::memory_order_relaxed));
      r.state.store(uint64_t{gen == 0 ? 1u : gen} << kGenShift, std::memory_order_relaxed);
      free_.push_back(index);
    }
    return true;
  }
  return false;
}

void Process::collect_returned() {
  uint32_t now = self_->returned.load(std::memory_order_acquire);  // SYNC POINT: record-returned
  if (now == returned_seen_) return;
  returned_seen_ = now;
  for (uint32_t c : my_chunks_) {
    std::atomic<uint64_t>* words = segment_.returned(c);
    for (uint32_t w = 0; w < kChunkRecords / 64; ++w) {
      uint64_t bits = words[w].load(std::memory_order_acquire);
      if (bits == 0) continue;
      for (uint64_t left = bits; left != 0; left &= left - 1) {
        uint32_t index = c * kChunkRecords + w * 64 + static_cast<uint32_t>(std::countr_zero(left));
        segment_.record(index).owner = static_cast<uint16_t>(slot_);
        free_.push_back(index);
      }
      // After the owners: "bit clear, owner kOwnerReturned" tells the reaper that the bit was never set.
      words[w].fetch_and(~bits, std::memory_order_acq_rel);
    }
  }
}

// A record from another process's chunk goes back there, or streams would drain its maker.
void Process::recycle_returned(Record& r, Handle h) {
  uint32_t chunk = index_of(h) / kChunkRecords, bit = index_of(h) % kChunkRecords;
  uint32_t home = segment_.chunk_owner(chunk).load(std::memory_order_acquire) - 1;
  if (home == slot_) return recycle(r, r.state.load(std::memory_order_relaxed), index_of(h));
  self_->acting.store(h, std::memory_order_release);  // the reaper finishes the return after our death
  r.owner = kOwnerReturned;
  r.state.store(next_life(r.state.load(std::memory_order_relaxed)), std::memory_order_release);
  segment_.returned(chunk)[bit / 64].fetch_or(uint64_t{1} << bit % 64, std::memory_order_acq_rel);
  segment_.proc(home).returned.fetch_add(1, std::memory_order_release);  // SYNC POINT: record-returned
  self_->acting.store(0, std::memory_order_release);
}

// ---- holding ---------------------------------------------------------------------------------------

bool Process::hold(Handle h) {
  Record& r = segment_.record(h);
  if (r.owner != slot_ || (!borrows_.empty() && borrows_.count(h) != 0)) {
    auto [it, fresh] = borrows_.try_emplace(h, Borrow{0, 0, false});
    ++it->second.count;
    if (!fresh) return true;
    it->second.entry = take_ledger_entry(h, 0);
    if (it->second.entry == kLedgerEntries) {
      borrows_.erase(it);
      return false;
    }
    r.state.fetch_or(kFlagBorrowed, std::memory_order_acq_rel);
    return true;
  }
  uint64_t w = r.state.load(std::memory_order_relaxed);
  if (w & kFlagShared) {  // pins may be 0: dropped, and now given back to us by a borrower
    ++r.pins;
    if (w & kFlagDetached) r.state.fetch_and(~uint64_t{kFlagDetached}, std::memory_order_acq_rel);
    return true;
  }
  r.pins = 2;
  r.state.fetch_or(kFlagShared, std::memory_order_acq_rel);
  return true;
}

void Process::drop_generic(Handle h) {
  Record& r = segment_.record(h);
  if (!borrows_.empty()) {
    auto it = borrows_.find(h);
    if (it != borrows_.end()) return drop_borrow(h, it);
  }
  uint64_t w = r.state.load(std::memory_order_acquire);
  if (word_gen(w) != gen_of(h) || r.owner != slot_) {  // lineage that was cut or filed, or adopted elsewhere
    if (!filed_.empty()) release_filed(h);
    return;
  }
  if ((w & kFlagShared) && --r.pins > 0) {
    if ((w & kFlagResultHeap) || state_of(w) == kAway) only_lineage_may_hold(h);
    return;
  }
  free_record(h);
}

// The last reference of ours is gone. Not recursive: a chain of a million records ends here too.
void Process::free_record(Handle first) {
  std::vector<Handle> todo{first};
  while (!todo.empty()) {
    Handle h = todo.back();
    todo.pop_back();
    if (h != first) {
      Record& r = segment_.record(h);
      if (!borrows_.empty()) {
        auto it = borrows_.find(h);
        if (it != borrows_.end()) {
          drop_borrow(h, it);
          continue;
        }
      }
      uint64_t w = r.state.load(std::memory_order_acquire);
      if (word_gen(w) != gen_of(h) || r.owner != slot_) {
        if (!filed_.empty()) release_filed(h);
        continue;
      }
      if ((w & kFlagShared) && --r.pins > 0) continue;
    }
    Record& r = segment_.record(h);
    if (r.kind == kActor) {
      keep_actor(r, h);
      continue;
    }
    uint64_t w = r.state.load(std::memory_order_acquire);
    while (!is_settled(w) && !(w & kFlagBorrowed)) {  // a borrower still wants the result
      if (r.state.compare_exchange_weak(w, w | kFlagDetached, std::memory_order_acq_rel)) break;
    }
    if (!is_settled(w) || is_walked(w) || (w & kFlagBorrowed)) {  // kept: hold() must find a count of 0
      r.pins = 0;
      if (!(w & kFlagShared)) r.state.fetch_or(kFlagShared, std::memory_order_acq_rel);
    }
    if (!is_settled(w) || is_walked(w)) {
      zombies_.push_back(h);
    } else if (w & kFlagBorrowed) {
      limbo_.push_back(h);
      limbo_epoch_ = 0;  // look at least once more
    } else {
      release_parts(r, w, h, &todo);
    }
  }
}

void Process::release_parts(Record& r, uint64_t w, Handle h, std::vector<Handle>* dropped) {
  if ((r.kind == kTask || r.kind == kActor) && (w & kFlagRefs)) {
    uint32_t deps, refs;
    const Handle* handles = argument_handles(segment_, r, &deps, &refs);
    dropped->insert(dropped->end(), handles, handles + deps + refs);
    if (!dependents_.empty()) forget_dependent(h, handles, deps + refs);
  }
  if (r.kind == kObject && (w & kFlagResultHeap)) {
    PayloadView view = view_payload(segment_, r.result_heap.offset);
    dropped->insert(dropped->end(), view.handles, view.handles + view.header->references);
  }
  if (r.kind == kTask && (w & kFlagMulti) && segment_.function(r.function).flags & kStreaming)
    release_stream(stream_of(r), dropped);
  if (r.kind == kPromise) dropped->push_back(r.args_heap.offset);  // the producer's handle stands here
  int maker = release_blocks(r, w);
  if (r.kind == kActor) {  // the node makes the entry free
    Handle creation = h;
    segment_.actor_of_class(r.cls).creation.compare_exchange_strong(creation, 0, std::memory_order_acq_rel);
    ring_bell();
  }
  if (r.kind == kItem)
    recycle_returned(r, h);
  else
    recycle(r, w, index_of(h));
  // after the generation has moved: the maker takes its memory back, and what the result named, even when idle
  if (maker >= 0 && static_cast<uint32_t>(maker) != slot_) wake_process(segment_, static_cast<uint32_t>(maker));
}

// Before the payload `block` is released: the process whose memory it is, when enough of its memory has come together
// that it is worth waking, or `in_any_case`; else -1.
int Process::maker_to_wake(Offset block, bool in_any_case) {
  uint32_t maker = ObjectAllocator::holder(segment_, block);
  if (maker >= released_bytes_.size()) released_bytes_.resize(maker + 1);
  uint64_t& released = released_bytes_[maker];
  released += view_payload(segment_, block).header->total_bytes;
  if (released < kWakeBytes && !in_any_case) return -1;
  released = 0;
  return static_cast<int>(maker);
}

// One block at a time: announced, unlinked, released (see object_allocator.h). Killed anywhere in between, the
// record shows the reaper what is still its own. Sealed and not borrowed: nobody else changes its word now.
int Process::release_blocks(Record& r, uint64_t w) {
  int holder = -1;
  auto unlink = [&](uint64_t flags, Offset block) {
    if (block != 0) allocator_.begin_release(block);
    w &= ~flags;
    r.state.store(w, std::memory_order_release);
    if (block != 0) allocator_.release(block);
  };
  for (uint32_t e; (e = r.edges.load(std::memory_order_acquire)) != 0;) {  // SYNC POINT: edges
    Edge* edge = segment_.edge(e);
    Offset block = segment_.offset_of(edge);
    allocator_.begin_release(block);
    r.edges.store(edge->next, std::memory_order_release);
    allocator_.release(block);
  }
  if (r.kind == kTask && (w & kFlagMulti)) {
    bool stream = segment_.function(r.function).flags & kStreaming;
    auto* s = reinterpret_cast<Stream*>(r.result);
    auto* list = reinterpret_cast<Returns*>(r.result);
    unlink(kFlagMulti, stream ? s->error : r.ret > Returns::kInline ? list->list : 0);
  }
  bool refs = w & kFlagRefs;
  if (w & kFlagArgHeap) unlink(kFlagArgHeap | kFlagRefs, r.args_heap.offset);
  if (w & kFlagResultHeap) {
    Offset block = r.result_heap.offset;
    holder = maker_to_wake(block, refs);  // refs: the maker's ledger holds what the result names
    unlink(kFlagResultHeap | kFlagRefs, block);
  }
  return holder;
}

// ---- sweeping --------------------------------------------------------------------------------------

void Process::sweep() {
  if (self_->wanted.load(std::memory_order_relaxed) != 0) answer_wanted();
  collect_returned();
  sweep_zombies(SIZE_MAX);
  sweep_lineage(SIZE_MAX);
  sweep_evictable();
  file_lineage();
  if (!contained_.empty()) sweep_contained();
  // freeing one may put what it named into limbo (epoch 0): containers of containers, a few levels a sweep
  for (int level = 0; level < 64 && !limbo_.empty(); ++level) {
    sweep_limbo();
    if (limbo_epoch_ != 0) break;
  }
  allocator_.collect();
}

// Dropped tasks that were not done then. Looked at round-robin, so that a long one holds up no other.
void Process::sweep_zombies(size_t most) {
  for (size_t looked = 0; !zombies_.empty() && looked < most && looked < 4096; ++looked) {
    if (zombie_at_ >= zombies_.size()) zombie_at_ = 0;
    Handle h = zombies_[zombie_at_];
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) == gen_of(h) && r.pins == 0 && (!is_settled(w) || is_walked(w))) {
      ++zombie_at_;
      continue;
    }
    zombies_[zombie_at_] = zombies_.back();
    zombies_.pop_back();
    looked = 0;
    if (word_gen(w) == gen_of(h) && r.owner == slot_ && r.pins == 0) free_record(h);
  }
}

std::vector<Handle> Process::children_of(uint32_t owner, uint32_t parent) const {
  std::vector<Handle> children;
  const Proc& p = segment_.proc(owner);
  for (uint32_t c = 0; c < segment_.header().chunks_used.load(std::memory_order_acquire); ++c) {
    if (!(p.chunks[c / 64].load(std::memory_order_relaxed) >> c % 64 & 1)) continue;
    for (uint32_t i = 0; i < kChunkRecords; ++i) {
      const Record& r = segment_.record(c * kChunkRecords + i);
      uint64_t w = r.state.load(std::memory_order_acquire);
      if (state_of(w) == kFree || is_settled(w) || r.parent != parent || r.kind != kTask) continue;
      if (r.owner == owner) children.push_back(make_handle(c * kChunkRecords + i, word_gen(w)));
    }
  }
  return children;
}

// ---- payloads --------------------------------------------------------------------------------------

namespace {
constexpr uint64_t kSweepBytes = 64 << 10;  // before taking this much, look what could be given back
constexpr uint64_t align(uint64_t n, uint64_t to) { return (n + to - 1) & ~(to - 1); }
}  // namespace

uint8_t* PayloadView::buffer(uint32_t i) const {
  auto* base = reinterpret_cast<uint8_t*>(header);
  uint64_t at = static_cast<uint64_t>(reinterpret_cast<uint8_t*>(buffer_bytes + header->buffers) - base);
  for (uint32_t k = 0;; ++k) {
    at = align(at, 64);
    if (k == i) return base + at;
    at += buffer_bytes[k];
  }
}

Offset Process::make_payload(const PayloadShape& s, Handle for_record, PayloadView* view) {
  uint64_t handles = uint64_t{s.dependencies} + s.references;
  uint64_t total = sizeof(PayloadHeader) + handles * 8 + align(s.codec_bytes, 8) + uint64_t{s.buffers} * 8;
  for (uint32_t i = 0; i < s.buffers; ++i) total = align(total, 64) + s.buffer_bytes[i];
  if (total >= kSweepBytes) sweep_lineage(64);
  Offset offset = allocator_.allocate(total, for_record);
  if (offset == 0) {
    // not in the middle of a cancel: sweeping may return records, and that uses Proc::acting too
    if (self_->acting.load(std::memory_order_relaxed) == 0) {
      forget_failed(true, 0);
      sweep();
    }
    allocator_.collect();
    offset = allocator_.allocate(total, for_record);
    if (offset == 0) return 0;
  }
  auto* header = segment_.at<PayloadHeader>(offset);
  *header = PayloadHeader{total, static_cast<uint32_t>(s.codec_bytes), s.dependencies, s.references, s.buffers};
  *view = view_payload(segment_, offset);
  if (handles != 0) memcpy(view->handles, s.handles, handles * 8);
  if (s.codec != nullptr) memcpy(view->codec, s.codec, s.codec_bytes);
  if (s.buffers != 0) memcpy(view->buffer_bytes, s.buffer_bytes, s.buffers * 8);
  return offset;
}

PayloadView Process::view_payload(const Segment& segment, Offset offset) {
  PayloadView v;
  v.header = segment.at<PayloadHeader>(offset);
  v.handles = reinterpret_cast<Handle*>(v.header + 1);
  v.codec = reinterpret_cast<uint8_t*>(v.handles + v.header->dependencies + v.header->references);
  v.buffer_bytes = reinterpret_cast<uint64_t*>(v.codec + align(v.header->codec_bytes, 8));
  return v;
}

const Handle* Process::argument_handles(const Segment& segment, const Record& r, uint32_t* dependencies,
                                        uint32_t* references) {
  if (r.args_bytes != kArgsInHeap) {
    *dependencies = r.dependencies;
    *references = r.references;
    return reinterpret_cast<const Handle*>(r.args);
  }
  PayloadView v = view_payload(segment, r.args_heap.offset);
  *dependencies = v.header->dependencies;
  *references = v.header->references;
  return v.handles;
}

}  // namespace fastray
