// Records of a dead process: the node becomes their owner. See reaper.h.
//
// All of them are adopted alike, each with a guard. Then what their arguments, promises and containers name is
// counted again (the dead owner's own counts are worth nothing), the ledger is taken over or cleared, and the
// guards are dropped: what is left without a reference goes the way of any dropped record: freed, or kept while
// a ledger names it (limbo), or until it is done (zombie). Only tasks that have not started and that nobody
// can ask about are aborted instead of run.
#include <algorithm>
#include <iterator>

#include "reaper.h"

namespace fastray {
namespace {

uint32_t owner_of(Record& r) { return std::atomic_ref<uint16_t>(r.owner).load(std::memory_order_acquire); }

bool is_streaming(const Segment& segment, const Record& r, uint64_t w) {
  return r.kind == kTask && (w & kFlagMulti) && (segment.function(r.function).flags & kStreaming);
}

}  // namespace

// only_home: chunks it took; else also those in which it adopted records of others.
std::vector<uint32_t> Reaper::chunks_of(uint32_t slot, bool only_home) const {
  std::vector<uint32_t> chunks;
  for (uint32_t c = 0; c < kChunksMax; ++c) {
    // SYNC POINT: chunk-owner (its bit may be missing: it died between the swap and the bit)
    bool home = segment_.chunk_owner(c).load(std::memory_order_acquire) == slot + 1;
    bool bit = segment_.proc(slot).chunks[c / 64].load(std::memory_order_acquire) >> c % 64 & 1;
    if (home || (bit && !only_home)) chunks.push_back(c);
  }
  return chunks;
}

// The stream it was making: items that are not published go, nobody has been told of them; the last that is
// published is named as such. The task's id tells its items from those of another life of its record.
void Reaper::repair_stream(uint32_t slot, Handle task) {
  Record& t = segment_.record(task);
  uint64_t w = t.state.load(std::memory_order_acquire);
  if (word_gen(w) != gen_of(task) || state_of(w) != kClaimed || word_holder(w) != slot) return;
  if (!is_streaming(segment_, t, w)) return;
  Stream& s = Process::stream_of(t);
  uint64_t produced = s.produced.load(std::memory_order_acquire);  // SYNC POINT: stream
  for (uint32_t c : chunks_of(slot, true)) {
    for (uint32_t i = 0; i < kChunkRecords; ++i) {
      uint32_t index = c * kChunkRecords + i;
      Record& r = segment_.record(index);
      uint64_t item = r.state.load(std::memory_order_acquire);
      if (state_of(item) == kFree || r.kind != kItem || r.id != t.id) continue;
      uint64_t number = Process::item_of(r).number;
      if (number >= produced) r.state.store(next_life(item), std::memory_order_release);
      if (number + 1 == produced) s.last.store(make_handle(index, word_gen(item)), std::memory_order_release);
    }
  }
}

// ---- adoption --------------------------------------------------------------------------------------

void Reaper::adopt_records(uint32_t slot) {
  std::vector<Handle> adopted;
  for (uint32_t c : chunks_of(slot, false)) {
    for (uint32_t i = 0; i < kChunkRecords; ++i) {
      uint32_t index = c * kChunkRecords + i;
      Record& r = segment_.record(index);
      uint64_t w = r.state.load(std::memory_order_acquire);
      if (state_of(w) == kFree || owner_of(r) != slot || free_private(r, w)) continue;
      Handle h = make_handle(index, word_gen(w));
      r.pins = 1;  // the guard
      auto borrow = node_.borrows_.find(h);
      if (borrow != node_.borrows_.end()) {  // borrowed by an earlier adopted record: ours from now on
        r.pins += borrow->second.count;
        borrow->second.count = 1;
        node_.drop_borrow(h, borrow);
      }
      r.state.fetch_or(kFlagShared, std::memory_order_acq_rel);
      std::atomic_ref<uint16_t>(r.owner).store(static_cast<uint16_t>(node_.slot_), std::memory_order_release);
      adopted.push_back(h);
    }
  }
  count_references(adopted);
  take_ledger(slot);
  for (Handle h : adopted) node_.drop(h);
  abort_unwanted(slot);
  go_on(adopted);
}

// What nobody but the dead one could seal, and nobody else has heard of: memory of an empty() that was never
// put, promises of a task that was not published. Their blocks go with its memory.
bool Reaper::free_private(Record& r, uint64_t w) {
  if (state_of(w) != kPromised || is_asked(w)) return false;
  bool unpublished = r.kind == kPromise && state_of(segment_.record(r.args_heap.offset).state.load()) == kFree;
  if (r.kind != kObject && !unpublished) return false;
  r.state.store(next_life(w), std::memory_order_release);
  return true;
}

// Exactly what Process::release_parts will drop.
void Reaper::count_references(const std::vector<Handle>& adopted) {
  for (Handle h : adopted) {
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if ((r.kind == kTask || r.kind == kActor) && (w & kFlagRefs)) {
      uint32_t deps, refs;
      const Handle* handles = Process::argument_handles(segment_, r, &deps, &refs);
      for (uint32_t i = 0; i < deps + refs; ++i) count_one(handles[i]);
    }
    if (r.kind == kObject && (w & kFlagResultHeap)) {
      PayloadView view = Process::view_payload(segment_, r.result_heap.offset);
      for (uint32_t i = 0; i < view.header->references; ++i) count_one(view.handles[i]);
    }
    if (r.kind == kPromise) count_one(r.args_heap.offset);
    if (is_streaming(segment_, r, w)) adopt_stream(r);
  }
}

void Reaper::count_one(Handle h) {
  if (h == 0 || index_of(h) >= kRecordsMax) return;
  if (word_gen(segment_.record(h).state.load(std::memory_order_acquire)) != gen_of(h)) return;
  node_.hold(h);
}

// Nobody will take its items any more: they stay until the task is freed, and its producer is to stop. The
// consumer may have died between the cursor and `consumed`, or have made itself the owner of the next item.
void Reaper::adopt_stream(Record& r) {
  Stream& s = Process::stream_of(r);
  Handle cursor = s.cursor.load(std::memory_order_acquire);
  if (cursor != 0) {
    Record& taken = segment_.record(cursor);
    ++taken.pins;
    s.consumed.store(static_cast<uint32_t>(Process::item_of(taken).number) + 1, std::memory_order_release);
  }
  if (s.produced.load(std::memory_order_acquire) != s.consumed.load(std::memory_order_relaxed)) {
    Record& next = segment_.record(node_.next_item(s));
    if (owner_of(next) == node_.slot_) ++next.pins;
  }
  r.state.fetch_or(kFlagCancel | kFlagDetached, std::memory_order_acq_rel);
  s.producer_sleeps.store(0, std::memory_order_release);
}

void Reaper::take_ledger(uint32_t slot) {
  Ledger& ledger = segment_.ledger(slot);
  uint32_t used = ledger.used.load(std::memory_order_acquire);
  for (uint32_t e = 0; e < used && e < kLedgerEntries; ++e) {
    LedgerEntry& entry = ledger.entries[e];
    Handle h = entry.record.load(std::memory_order_acquire);  // SYNC POINT: ledger
    if (h == 0) continue;
    Handle container = entry.container.load(std::memory_order_relaxed);
    if (container != 0) {
      uint64_t w = segment_.record(container).state.load(std::memory_order_acquire);
      if (word_gen(w) == gen_of(container) && state_of(w) != kFree) (void)node_.contain(h, container);
    }
    Process::clear_entry(segment_, entry);
  }
  ledger.used.store(0, std::memory_order_release);
}

// Pending and wanted: it may have died between making them ready and queueing them, or between moving a
// waiting one on and hanging its next edge.
void Reaper::go_on(const std::vector<Handle>& adopted) {
  for (Handle h : adopted) {
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(h) || owner_of(r) != node_.slot_) continue;
    if (!over_.empty() && is_over(r, node_.slot_)) continue;
    bool ordered = r.kind == kTask && node_.is_ordered(r.cls);  // it takes its place while it waits
    if (state_of(w) == kReady && r.kind == kTask) (void)node_.push_ready(h);
    if (state_of(w) == kWaiting && ordered) (void)node_.push_ready(h);
    if (state_of(w) == kWaiting) (void)node_.advance(r, h, w, 0);
  }
  if (!node_.lost_.empty()) node_.recover_all(&node_.lost_);
}

// ---- what nobody can ask about -----------------------------------------------------------------------

// All handles in ledgers but the dead one's. A scan that a release crossed is done again.
std::unordered_set<Handle> Reaper::named_by_ledgers(uint32_t dead) {
  std::atomic<uint32_t>& epoch = node_.self_->release_epoch;
  std::atomic<uint32_t>& old_epoch = segment_.proc(dead).release_epoch;
  for (;;) {
    uint32_t before = epoch.load(std::memory_order_seq_cst);  // SYNC POINT: release-epoch
    uint32_t old_before = old_epoch.load(std::memory_order_seq_cst);
    std::unordered_set<Handle> named = node_.named_by_ledgers(dead);
    if (epoch.load(std::memory_order_seq_cst) == before && old_epoch.load(std::memory_order_seq_cst) == old_before)
      return named;
  }
}

void Reaper::abort_unwanted(uint32_t slot) {
  if (node_.zombies_.empty()) return;
  std::unordered_set<Handle> named = named_by_ledgers(slot);
  for (bool progress = true; progress;) {
    progress = false;
    std::vector<Handle> zombies = node_.zombies_;
    std::unordered_map<Handle, uint32_t> unwanted_promises;  // by producer
    for (Handle h : zombies) {
      Record& r = segment_.record(h);
      uint64_t w = r.state.load(std::memory_order_acquire);
      if (word_gen(w) != gen_of(h) || r.pins != 0 || named.count(h) != 0) continue;
      if (state_of(w) == kReady || state_of(w) == kWaiting) progress = abort(h) || progress;
      if (state_of(w) == kPromised && r.kind == kPromise) ++unwanted_promises[r.args_heap.offset];
    }
    for (auto [producer, count] : unwanted_promises) {
      Record& r = segment_.record(producer);
      bool ours = owner_of(r) == node_.slot_ && r.pins == count && named.count(producer) == 0;
      if (ours) progress = abort(producer) || progress;
    }
    node_.sweep_zombies(SIZE_MAX);
  }
}

// Not started: nobody runs it. Its record is sealed like a cancelled one and freed by the next sweep.
bool Reaper::abort(Handle h) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  do {
    if (word_gen(w) != gen_of(h) || (state_of(w) != kReady && state_of(w) != kWaiting)) return false;
    // SYNC POINT: record-state
  } while (!r.state.compare_exchange_weak(w, with_state(w, kClaimed, node_.slot_), std::memory_order_acq_rel));
  fail(r, h, kErrorOwnerDied, nullptr);
  return true;
}

// ---- chunks ----------------------------------------------------------------------------------------

void Reaper::adopt_chunks(uint32_t slot) {
  for (uint32_t c : chunks_of(slot, true)) {
    node_.self_->chunks[c / 64].fetch_or(uint64_t{1} << c % 64, std::memory_order_acq_rel);
    segment_.chunk_owner(c).store(node_.slot_ + 1, std::memory_order_release);  // SYNC POINT: chunk-owner
    orphans_.push_back(Orphan{c, 0});
  }
  for (auto& word : segment_.proc(slot).chunks) word.store(0, std::memory_order_release);
  sweep();
}

void Reaper::sweep() {
  node_.sweep();
  node_.free_.clear();  // the node makes no records: orphans go back whole, so that nothing is given twice
  std::vector<Orphan> still;
  for (Orphan& orphan : orphans_)
    if (!give_back(orphan)) still.push_back(orphan);
  orphans_.swap(still);
  node_.allocator_.trim(0);  // blocks in adopted regions that others released; the node needs none of them
}

bool Reaper::give_back(Orphan& orphan) {
  uint32_t first = orphan.chunk * kChunkRecords;
  for (uint32_t i = 0; i < kChunkRecords; ++i) {
    uint32_t at = (orphan.busy + i) % kChunkRecords;
    if (state_of(segment_.record(first + at).state.load(std::memory_order_acquire)) != kFree) {
      orphan.busy = at;
      return false;
    }
  }
  // Whoever returned a record of it clears its `acting` last; until then it may still set the record's bit.
  uint32_t procs = segment_.header().procs_used.load(std::memory_order_acquire);
  for (uint32_t s = 0; s < procs; ++s) {
    Handle acting = segment_.proc(s).acting.load(std::memory_order_acquire);  // SYNC POINT: record-returned
    if (acting != 0 && index_of(acting) / kChunkRecords == orphan.chunk) return false;
  }
  for (uint32_t w = 0; w < kChunkRecords / 64; ++w)
    segment_.returned(orphan.chunk)[w].store(0, std::memory_order_release);
  uint64_t bit = uint64_t{1} << orphan.chunk % 64;
  node_.self_->chunks[orphan.chunk / 64].fetch_and(~bit, std::memory_order_acq_rel);
  segment_.chunk_owner(orphan.chunk).store(0, std::memory_order_release);  // SYNC POINT: chunk-owner
  return true;
}

}  // namespace fastray
