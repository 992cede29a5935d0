// What happens to a dead process's regions; the node's usage; the invariants.
//
// recover() changes the dead one's regions in place, each block by one store, and takes a region over by
// one store to its word (for a big block: the covered words first, the head last). Killed anywhere, the
// next one starts over and finds less to do.
#include <cassert>

#include "object_allocator.h"

namespace fastray {

using namespace heap;

namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release_order = std::memory_order_release;
constexpr auto seq_cst = std::memory_order_seq_cst;

constexpr uint32_t kWordsMax = 64;
static_assert([] {
  for (const ClassInfo& c : kClassInfo)
    if (c.words > kWordsMax) return false;
  return true;
}());

bool is_head(uint32_t e) { return page_kind(e) == kPageRun || page_kind(e) == kPageSlab; }

}  // namespace

struct ObjectAllocator::Recovery {
  uint32_t dead;
  bool (*live)(void* ctx, Handle, Offset);
  void* ctx;
  RecoverStats stats;
  bool is_live(Handle h, Offset o) const { return h != 0 && live(ctx, h, o); }
};

RecoverStats ObjectAllocator::recover(uint32_t dead, bool (*live)(void* ctx, Handle, Offset), void* ctx) {
  assert(dead != slot_);
  Recovery r{dead, live, ctx, {}};
  recover_intent(r);
  uint32_t high = view_.node().high.load(seq_cst);  // SYNC POINT: high
  for (uint32_t i = 1; i < high;) {
    // SYNC POINT: region. acquire: the dead one's stores before it (the kernel's word orders them too)
    uint64_t w = view_.regions[i].word.load(acquire);
    uint32_t n = kind_of(w) == kBig ? count_of(w) : 1;
    if (w != 0 && holder_of(w) == dead) {
      if (kind_of(w) == kBig)
        recover_big(r, i, n);
      else if (kind_of(w) == kPages)
        recover_pages(r, i);
      else
        free_region(r, i, 1);
    }
    i += n;
  }
  Arena& arena = view_.arenas[dead];
  for (auto* word : {&arena.charged, &arena.bytes, &arena.blocks, &arena.regions, &arena.pending})
    word->store(0, release_order);
  return r.stats;
}

// Mine first (the head last: it may cover the others), then the pool's.
void ObjectAllocator::free_region(Recovery& r, uint32_t first, uint32_t n) {
  for (uint32_t i = first + n; i-- > first;)
    view_.regions[i].word.store(region_word(kEmpty, slot_), release_order);
  count_regions(n);
  give_back(first, n);
  r.stats.regions_freed += n;
}

// The dead one was about to release a block. In a region of its own: the walk will see to it. In
// another's: undo when the record still has the block, else finish.
void ObjectAllocator::recover_intent(Recovery& r) {
  auto& freeing = segment_.proc(r.dead).freeing;
  Offset block = freeing.load(acquire);  // SYNC POINT: intent
  if (block == 0) return;
  uint64_t w = view_.regions[view_.region_of(block)].word.load(acquire);
  if (holder_of(w) != r.dead && kind_of(w) >= kPages) {
    Place p = locate(view_, block);  // in place until no intent names it
    if (has_remote_bit(p) || !r.is_live(handle_of(view_, p).load(acquire), block)) {
      set_remote_bit(p);  // again, perhaps: the flag may not have been raised
      ++r.stats.releases_finished;
    } else {
      ++r.stats.releases_undone;
    }
  }
  freeing.store(0, release_order);
}

bool ObjectAllocator::has_remote_bit(const Place& p) const {
  uint64_t granules = view_.regions[p.region].remote.load(seq_cst);
  if (p.slab == nullptr) return granules & (p.kind == kBig ? 1 : granule_bit(p.page));
  return remote_map(p.slab, kClassInfo[p.cls])[p.index / 64].load(seq_cst) >> p.index % 64 & 1;
}

// A block in a region of the dead one that is neither in a slab nor wanted. Order matters: remote bit and
// record first, then the intents: whoever unlinked the block before we looked is still seen by its intent,
// or has set the bit and is done with it.
bool ObjectAllocator::is_gone(Recovery& r, bool released, Handle h, Offset block) {
  if (!released && r.is_live(h, block)) return false;
  read_intents();
  return !is_intended(block);
}

void ObjectAllocator::recover_big(Recovery& r, uint32_t first, uint32_t n) {
  Region& region = view_.regions[first];
  Offset block = view_.region_start(first);
  bool released = region.remote.load(seq_cst) & 1;
  if (is_gone(r, released, region.handle.load(acquire), block)) {
    ++r.stats.blocks_freed;
    return free_region(r, first, n);
  }
  for (uint32_t i = first + 1; i < first + n; ++i) {
    view_.regions[i].word.store(region_word(kEmpty, slot_), release_order);
    local_[i] = Local{};
  }
  local_[first] = Local{};
  // SYNC POINT: remote-bit. seq_cst: word, then bit, against set_remote_bit's bit, then word
  region.word.store(region_word(kBig, slot_, n), seq_cst);
  if (region.remote.load(seq_cst) != 0) raise_flag(first);
  uint64_t bytes = region.bytes.load(relaxed);
  charge(bytes, false);
  count_blocks(1, static_cast<int64_t>(bytes));
  count_regions(n);
  ++r.stats.blocks_adopted;
  r.stats.regions_adopted += n;
}

void ObjectAllocator::recover_pages(Recovery& r, uint32_t region) {
  PagesMeta& meta = view_.meta(region);
  uint32_t heads = 0;
  for (uint32_t page = 1; page < kRegionPages;) {
    uint32_t e = meta.page[page].load(acquire);
    if (!is_head(e)) {
      ++page;
      continue;
    }
    bool gone = false;
    if (page_kind(e) == kPageSlab) {
      gone = recover_slab(r, region, page, page_class(e)) == 0;
    } else {
      bool released = view_.regions[region].remote.load(seq_cst) & granule_bit(page);
      gone = is_gone(r, released, meta.handle[page / kGranulePages].load(acquire), view_.page_start(region, page));
      ++(gone ? r.stats.blocks_freed : r.stats.blocks_adopted);
    }
    if (gone)
      meta.page[page].store(0, release_order);
    else
      ++heads;
    page += page_count(e);
  }
  if (heads == 0) return free_region(r, region, 1);
  adopt_pages(region);
  ++r.stats.regions_adopted;
}

// Frees what is not wanted of a slab; returns how many blocks stay.
uint32_t ObjectAllocator::recover_slab(Recovery& r, uint32_t region, uint32_t page, uint32_t cls) {
  const ClassInfo& info = kClassInfo[cls];
  Offset start = view_.page_start(region, page);
  auto* slab = segment_.at<Slab>(start);
  Bits* used = used_map(slab, info);
  Bits* remote = remote_map(slab, info);
  auto block = [&](uint32_t w, int i) { return start + info.first + (w * 64 + uint64_t(i)) * info.bytes; };
  uint64_t gone[kWordsMax] = {};
  for (uint32_t w = 0; w < info.words; ++w) {
    uint64_t all = used[w].load(acquire);
    gone[w] = all & remote[w].load(seq_cst);
    for (uint64_t rest = all & ~gone[w]; rest != 0; rest &= rest - 1) {
      int i = std::countr_zero(rest);
      Handle h = handles(slab, info)[w * 64 + static_cast<uint32_t>(i)].load(acquire);
      if (!r.is_live(h, block(w, i))) gone[w] |= rest & -rest;
    }
  }
  read_intents();  // after the bits and the records, see is_gone
  uint32_t stay = 0;
  for (uint32_t w = 0; w < info.words; ++w) {
    if (!intents_.empty())
      for (uint64_t rest = gone[w]; rest != 0; rest &= rest - 1)
        if (is_intended(block(w, std::countr_zero(rest)))) gone[w] &= ~(rest & -rest);
    uint64_t left = used[w].load(relaxed) & ~gone[w];
    used[w].store(left, release_order);
    remote[w].fetch_and(left, seq_cst);  // a bit can only be set for a used block
    stay += static_cast<uint32_t>(std::popcount(left));
    r.stats.blocks_freed += static_cast<uint64_t>(std::popcount(gone[w]));
  }
  r.stats.blocks_adopted += stay;
  return stay;
}

// Makes the region mine, then builds what I keep about it.
void ObjectAllocator::adopt_pages(uint32_t region) {
  Region& entry = view_.regions[region];
  entry.word.store(pages_word_, seq_cst);  // SYNC POINT: remote-bit, as in recover_big
  PagesMeta& meta = view_.meta(region);
  PageRegion p{};
  p.region = region;
  for (uint32_t page = 1; page < kRegionPages;) {
    uint32_t e = meta.page[page].load(relaxed);
    if (!is_head(e)) {
      p.free[page / 64] |= uint64_t{1} << page % 64;
      ++page;
      continue;
    }
    uint32_t n = page_count(e);
    charge(n * kPageBytes, false);
    if (page_kind(e) == kPageSlab)
      adopt_slab(region, page, page_class(e));
    else
      count_blocks(1, int64_t{n} * int64_t{kPageBytes});
    page += n;
  }
  measure(p);
  local_[region] = Local{};
  local_[region].place = static_cast<int32_t>(page_regions_.size());
  page_regions_.push_back(p);
  count_regions(1);
  if (entry.remote.load(seq_cst) != 0) raise_flag(region);
}

void ObjectAllocator::adopt_slab(uint32_t region, uint32_t page, uint32_t cls) {
  const ClassInfo& info = kClassInfo[cls];
  auto* slab = segment_.at<Slab>(view_.page_start(region, page));
  uint64_t released = 0;
  slab->used = 0;
  for (uint32_t w = 0; w < info.words; ++w) {
    slab->used += static_cast<uint32_t>(std::popcount(used_map(slab, info)[w].load(relaxed)));
    released |= remote_map(slab, info)[w].load(seq_cst);
  }
  // the dead one may have lowered the granule's flag without taking the blocks back
  if (released != 0) view_.regions[region].remote.fetch_or(granule_bit(page), seq_cst);
  count_blocks(slab->used, int64_t{slab->used} * info.bytes);
  slab->next = slab->prev = 0;
  slab->state = kUnlisted;
  if (slab->used < info.count) list_push(slab, cls);
}

// ---- usage, invariants ----------------------------------------------------------------------------

ObjectAllocator::Usage ObjectAllocator::usage(const Segment& segment) {
  View v(segment);
  Usage u{};
  uint32_t slots = v.node().slots.load(seq_cst);
  for (uint32_t s = 0; s < slots; ++s) {
    u.object_bytes += v.arenas[s].bytes.load(relaxed);  // relaxed: statistics
    u.region_bytes += v.arenas[s].regions.load(relaxed) * kRegionBytes;
    u.blocks += v.arenas[s].blocks.load(relaxed);
  }
  return u;
}

struct ObjectAllocator::Tally {
  uint64_t charged = 0, bytes = 0, blocks = 0, regions = 0, page_regions = 0, warm = 0;
};

bool ObjectAllocator::is_valid() const {
  Tally t;
  uint32_t high = view_.node().high.load(acquire);
  for (uint32_t r = 1; r < high;) {
    uint64_t w = view_.regions[r].word.load(acquire);
    uint32_t n = kind_of(w) == kBig ? count_of(w) : 1;
    if (w != 0 && holder_of(w) == slot_) {
      t.regions += n;
      if (kind_of(w) == kPages && !pages_valid(r, t)) return false;
      if (kind_of(w) == kEmpty) {
        if (!local_[r].warm) return false;
        ++t.warm;
      }
      if (kind_of(w) == kBig) {
        if (n == 0 || r + n > high || local_[r].warm) return false;
        for (uint32_t i = r + 1; i < r + n; ++i) {
          uint64_t covered = view_.regions[i].word.load(relaxed);
          if (covered != region_word(kEmpty, slot_) || local_[i].warm) return false;
        }
        uint64_t bytes = view_.regions[r].bytes.load(relaxed);
        if (bytes == 0 || (bytes + kRegionBytes - 1) / kRegionBytes != n) return false;
        t.charged += bytes;
        t.bytes += bytes;
        ++t.blocks;
      }
    }
    r += n;
  }
  if (t.warm * kRegionBytes != warm_bytes() || t.page_regions != page_regions_.size()) return false;
  if (intent_ != segment_.proc(slot_).freeing.load(relaxed)) return false;
  return t.charged == charged_ && t.bytes == bytes_ && t.blocks == blocks_ && t.regions == regions_ &&
         arena_->charged.load(relaxed) == charged_ && arena_->bytes.load(relaxed) == bytes_ &&
         arena_->blocks.load(relaxed) == blocks_ && arena_->regions.load(relaxed) == regions_;
}

bool ObjectAllocator::pages_valid(uint32_t r, Tally& t) const {
  if (local_[r].place < 0 || local_[r].warm) return false;
  const PageRegion& p = page_regions_[static_cast<size_t>(local_[r].place)];
  PageRegion walked{};
  PagesMeta& meta = view_.meta(r);
  if (page_kind(meta.page[0].load(relaxed)) != kPageMeta || p.region != r) return false;
  for (uint32_t page = 1; page < kRegionPages;) {
    uint32_t e = meta.page[page].load(relaxed);
    if (!is_head(e)) {
      walked.free[page / 64] |= uint64_t{1} << page % 64;
      ++page;
      continue;
    }
    uint32_t n = page_count(e);
    if (n == 0 || page + n > kRegionPages) return false;
    for (uint32_t i = page + 1; i < page + n; ++i)
      if (is_head(meta.page[i].load(relaxed))) return false;  // a head inside another's cover
    t.charged += n * kPageBytes;
    if (page_kind(e) == kPageSlab) {
      if (!slab_valid(r, page, e, t)) return false;
    } else {
      t.bytes += n * kPageBytes;
      ++t.blocks;
    }
    page += n;
  }
  measure(walked);
  ++t.page_regions;
  for (uint32_t w = 0; w < kRegionPages / 64; ++w)
    if (walked.free[w] != p.free[w]) return false;
  return walked.longest == p.longest && walked.free_pages == p.free_pages;
}

bool ObjectAllocator::slab_valid(uint32_t r, uint32_t page, uint32_t e, Tally& t) const {
  uint32_t cls = page_class(e);
  if (cls >= kClasses || page_count(e) != kClassInfo[cls].pages) return false;
  const ClassInfo& info = kClassInfo[cls];
  auto* slab = segment_.at<Slab>(view_.page_start(r, page));
  uint32_t used = 0;
  for (uint32_t w = 0; w < info.words; ++w) {
    uint64_t bits = used_map(slab, info)[w].load(relaxed);
    if ((bits & ~info.full_mask(w)) != 0) return false;
    if ((remote_map(slab, info)[w].load(relaxed) & ~bits) != 0) return false;
    used += static_cast<uint32_t>(std::popcount(bits));
  }
  for (uint32_t i = 1; i < info.pages; ++i)
    if (view_.meta(r).page[page + i].load(relaxed) != page_entry(kPageInner, cls, i)) return false;
  const Cursor& c = cursors_[cls];
  if ((slab->state == kCurrent) != (c.slab == slab)) return false;
  if (c.slab == slab && (c.bits & c.used->load(relaxed)) != 0) return false;
  uint32_t name = view_.page_number(segment_.offset_of(slab));
  bool listed = false;
  for (uint32_t at = listed_[cls], prev = 0; at != 0; prev = at, at = view_.slab(at)->next) {
    if (view_.slab(at)->prev != prev || view_.slab(at)->state != kListed) return false;
    listed |= at == name;
  }
  if (listed != (slab->state == kListed)) return false;
  if (slab->state == kUnlisted && used != info.count) return false;
  t.blocks += used;
  t.bytes += uint64_t{used} * info.bytes;
  return used == slab->used;
}

}  // namespace fastray
