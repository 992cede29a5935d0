// Blocks: see object_allocator.h. Where their pages and regions come from: object_allocator_regions.cpp.
#include "object_allocator.h"

#include <cassert>

namespace fastray {

using namespace heap;

namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release_order = std::memory_order_release;
constexpr auto seq_cst = std::memory_order_seq_cst;

constexpr uint64_t page_up(uint64_t n) { return (n + kPageBytes - 1) & ~(kPageBytes - 1); }

}  // namespace

void ObjectAllocator::attach(const Segment& segment, uint32_t slot) {
  segment_ = segment;
  view_ = View(segment);
  slot_ = slot;
  pages_word_ = region_word(kPages, slot);
  arena_ = &view_.arenas[slot];
  local_.assign(view_.region_count, Local{});
  // relaxed: one writer each; a dead predecessor's were cleared by recover()
  for (auto* counter : {&arena_->charged, &arena_->bytes, &arena_->blocks, &arena_->regions})
    counter->store(0, relaxed);
  intent_ = 0;
  segment_.proc(slot).freeing.store(0, relaxed);
  auto& slots = view_.node().slots;
  uint32_t seen = slots.load(relaxed);
  // SYNC POINT: slots. seq_cst: whoever frees or counts after this is seen by scans of [0, slots)
  while (seen <= slot && !slots.compare_exchange_weak(seen, slot + 1, seq_cst, relaxed)) {
  }
}

// ---- allocate ---------------------------------------------------------------------------------

Offset ObjectAllocator::allocate(size_t bytes, Handle owner, Purpose purpose) {
  if (bytes > kSmallBytesMax) [[unlikely]]
    return bytes <= kRunBytesMax ? allocate_run(bytes, owner, purpose)
                                 : allocate_big(bytes, owner, purpose);
  uint32_t cls = class_of(bytes);
  Cursor& c = cursors_[cls];
  if (c.bits == 0) [[unlikely]] {
    if (!refill(cls, purpose)) return 0;
  }
  uint32_t i = static_cast<uint32_t>(std::countr_zero(c.bits));
  uint64_t bit = c.bits & -c.bits;
  c.bits &= ~bit;
  // relaxed, release: recover() must find the handle of every block it finds marked
  c.handles[i].store(owner, relaxed);
  c.used->store(c.used->load(relaxed) | bit, release_order);
  ++c.slab->used;
  count_blocks(1, kClassInfo[cls].bytes);
  return c.first + uint64_t{i} * kClassInfo[cls].bytes;
}

void ObjectAllocator::count_blocks(int64_t blocks, int64_t bytes) {
  // relaxed: statistics; only this process writes them
  arena_->blocks.store(blocks_ += static_cast<uint64_t>(blocks), relaxed);
  arena_->bytes.store(bytes_ += static_cast<uint64_t>(bytes), relaxed);
}

// Finds a word with free blocks for the cursor: the slab at hand, a listed one, a new one.
bool ObjectAllocator::refill(uint32_t cls, Purpose purpose) {
  if (pending()) collect();
  Cursor& c = cursors_[cls];
  if (c.slab != nullptr) {
    if (point_cursor(cls, c.slab, c.word)) return true;
    c.slab->state = kUnlisted;
    c = Cursor{};
  }
  Slab* slab = listed_[cls] != 0 ? view_.slab(listed_[cls]) : nullptr;
  if (slab != nullptr) {
    list_remove(slab, cls);
  } else {
    slab = new_slab(cls, purpose);
    if (slab == nullptr) return false;
  }
  slab->state = kCurrent;
  bool found = point_cursor(cls, slab, 0);
  assert(found);
  return found;
}

bool ObjectAllocator::point_cursor(uint32_t cls, Slab* slab, uint32_t from) {
  const ClassInfo& info = kClassInfo[cls];
  Bits* used = used_map(slab, info);
  for (uint32_t i = 0; i < info.words; ++i) {
    uint32_t w = (from + i) % info.words;
    uint64_t bits = ~used[w].load(relaxed) & info.full_mask(w);  // relaxed: mine
    if (bits == 0) continue;
    Offset first = segment_.offset_of(slab) + info.first + uint64_t{w} * 64 * info.bytes;
    cursors_[cls] = Cursor{bits, used + w, handles(slab, info) + w * 64, first, slab, w};
    return true;
  }
  return false;
}

Slab* ObjectAllocator::new_slab(uint32_t cls, Purpose purpose) {
  const ClassInfo& info = kClassInfo[cls];
  bool bounded = purpose == Purpose::kObject && info.bytes > kReserveBytesMax;
  uint64_t bytes = info.pages * kPageBytes;
  uint32_t r = 0, page = 0;
  if (!charge(bytes, bounded)) return nullptr;
  if (!take_pages(info.pages, &r, &page)) {
    uncharge(bytes);
    return nullptr;
  }
  auto* slab = segment_.at<Slab>(view_.page_start(r, page));
  slab->used = slab->next = slab->prev = 0;
  slab->state = kUnlisted;
  Bits* used = used_map(slab, info);
  Bits* remote = remote_map(slab, info);
  for (uint32_t w = 0; w < info.words; ++w) {
    used[w].store(0, relaxed);
    remote[w].store(0, relaxed);
  }
  PagesMeta& meta = view_.meta(r);
  for (uint32_t i = 1; i < info.pages; ++i)
    meta.page[page + i].store(page_entry(kPageInner, cls, i), relaxed);
  view_.regions[r].remote.fetch_and(~granule_bit(page), relaxed);
  // release: this store makes the slab; recover() reads what is above only after it
  meta.page[page].store(page_entry(kPageSlab, cls, info.pages), release_order);
  return slab;
}

Offset ObjectAllocator::allocate_run(size_t bytes, Handle owner, Purpose purpose) {
  if (pending()) collect();
  uint64_t rounded = page_up(bytes);
  uint32_t pages = static_cast<uint32_t>(rounded / kPageBytes);
  uint32_t r = 0, page = 0;
  if (!charge(rounded, purpose == Purpose::kObject)) return 0;
  if (!take_pages(pages, &r, &page)) {
    uncharge(rounded);
    return 0;
  }
  PagesMeta& meta = view_.meta(r);
  meta.handle[page / kGranulePages].store(owner, relaxed);
  view_.regions[r].remote.fetch_and(~granule_bit(page), relaxed);  // left over from a former head
  // release: this store makes the block; its handle stands before it
  meta.page[page].store(page_entry(kPageRun, 0, pages), release_order);
  count_blocks(1, static_cast<int64_t>(rounded));
  return view_.page_start(r, page);
}

Offset ObjectAllocator::allocate_big(size_t bytes, Handle owner, Purpose purpose) {
  if (pending()) collect();
  uint64_t rounded = page_up(bytes);
  uint64_t n = (rounded + kRegionBytes - 1) / kRegionBytes;
  if (rounded < bytes || n >= view_.region_count) return 0;
  if (!charge(rounded, purpose == Purpose::kObject)) return 0;
  uint32_t first = take_regions(static_cast<uint32_t>(n));
  if (first == 0 || !populate_span(first, rounded / kPageBytes)) {
    if (first != 0) give_back(first, static_cast<uint32_t>(n));
    uncharge(rounded);
    return 0;
  }
  Region& region = view_.regions[first];
  region.handle.store(owner, relaxed);
  region.bytes.store(rounded, relaxed);
  region.remote.store(0, relaxed);
  // release: this store makes the block, and takes the n - 1 regions after it with it
  region.word.store(region_word(kBig, slot_, static_cast<uint32_t>(n)), release_order);
  count_blocks(1, static_cast<int64_t>(rounded));
  return view_.region_start(first);
}

// ---- release ----------------------------------------------------------------------------------

void ObjectAllocator::begin_release(Offset block) {
  intent_ = block;
  // SYNC POINT: intent. Before the caller's unlink (a release), before the remote bit.
  segment_.proc(slot_).freeing.store(block, release_order);
}

void ObjectAllocator::cancel_release() {
  intent_ = 0;
  segment_.proc(slot_).freeing.store(0, release_order);  // SYNC POINT: intent
}

void ObjectAllocator::release(Offset block) {
  // relaxed: mine says mine; not mine can only become mine by my own recover()
  uint64_t w = view_.regions[view_.region_of(block)].word.load(relaxed);
  assert(kind_of(w) == kPages || kind_of(w) == kBig);
  if (holder_of(w) == slot_) [[likely]]
    release_local(block);
  else
    release_remote(block);
}

void ObjectAllocator::release_local(Offset block) {
  if (intent_ != 0) {
    // first: an intent must never name a free block. Killed here, the unlinked block is seen as not live
    intent_ = 0;
    segment_.proc(slot_).freeing.store(0, release_order);
  }
  Place p = locate(view_, block);
  if (p.slab == nullptr) [[unlikely]] {
    if (p.kind == kBig) return free_big(p.region);
    assert(page_kind(view_.meta(p.region).page[p.page].load(relaxed)) == kPageRun);
    return free_run(p.region, p.page, p.pages);
  }
  uint32_t word = p.index / 64;
  uint64_t bit = uint64_t{1} << p.index % 64;
  free_small(p.slab, p.cls, word, bit);
  if (p.slab->state == kCurrent) [[likely]] {
    Cursor& c = cursors_[p.cls];
    if (c.word == word) c.bits |= bit;
  } else {
    slab_has_room(p.slab, p.cls);
  }
}

// Clears the blocks' used bits: from then on they are free.
void ObjectAllocator::free_small(Slab* slab, uint32_t cls, uint32_t word, uint64_t bits) {
  const ClassInfo& info = kClassInfo[cls];
  Bits& used = used_map(slab, info)[word];
  uint64_t old = used.load(relaxed);
  assert((old & bits) == bits && "a block was released twice");
  used.store(old & ~bits, release_order);  // release: recover() of my region sees all before it
  auto n = static_cast<uint32_t>(std::popcount(bits));
  slab->used -= n;
  count_blocks(-int64_t{n}, -int64_t{n} * info.bytes);
}

void ObjectAllocator::slab_has_room(Slab* slab, uint32_t cls) {
  if (slab->state == kCurrent) return;
  if (slab->state == kUnlisted) list_push(slab, cls);
  bool alone = slab->next == 0 && slab->prev == 0;
  if (slab->used == 0 && !alone) {  // one empty slab a class stays
    list_remove(slab, cls);
    free_slab(slab, cls);
  }
}

void ObjectAllocator::list_push(Slab* slab, uint32_t cls) {
  uint32_t name = view_.page_number(segment_.offset_of(slab));
  slab->state = kListed;
  slab->prev = 0;
  slab->next = listed_[cls];
  if (slab->next != 0) view_.slab(slab->next)->prev = name;
  listed_[cls] = name;
}

void ObjectAllocator::list_remove(Slab* slab, uint32_t cls) {
  if (slab->next != 0) view_.slab(slab->next)->prev = slab->prev;
  if (slab->prev != 0)
    view_.slab(slab->prev)->next = slab->next;
  else
    listed_[cls] = slab->next;
  slab->next = slab->prev = 0;
  slab->state = kUnlisted;
}

void ObjectAllocator::free_slab(Slab* slab, uint32_t cls) {
  Offset start = segment_.offset_of(slab);
  uint32_t r = view_.region_of(start);
  uint32_t page = static_cast<uint32_t>((start - view_.region_start(r)) / kPageBytes);
  view_.meta(r).page[page].store(0, release_order);  // release: frees all its pages at once
  uncharge(kClassInfo[cls].pages * kPageBytes);
  give_pages(r, page, kClassInfo[cls].pages);
}

void ObjectAllocator::free_run(uint32_t r, uint32_t page, uint32_t pages) {
  view_.meta(r).page[page].store(0, release_order);  // release: as above
  uncharge(pages * kPageBytes);
  count_blocks(-1, -int64_t{pages} * int64_t{kPageBytes});
  give_pages(r, page, pages);
}

void ObjectAllocator::free_big(uint32_t first) {
  Region& region = view_.regions[first];
  uint32_t n = count_of(region.word.load(relaxed));
  uint64_t bytes = region.bytes.load(relaxed);
  region.word.store(region_word(kEmpty, slot_), release_order);  // release: uncovers the others too
  uncharge(bytes);
  count_blocks(-1, -static_cast<int64_t>(bytes));
  add_warm(first, n);
  shrink_warm();
}

// ---- release by others --------------------------------------------------------------------------

void ObjectAllocator::release_remote(Offset block) {
  if (intent_ != block) begin_release(block);
  set_remote_bit(locate(view_, block));
  intent_ = 0;
  // SYNC POINT: intent. release: who sees the intent gone sees the bit and the flag
  segment_.proc(slot_).freeing.store(0, release_order);
}

void ObjectAllocator::set_remote_bit(const Place& p) {
  // SYNC POINT: remote-bit. All seq_cst: bit, then granule, then word, then flag; the other side reads
  // them in the opposite order (collect), or writes the word before it reads the bits (recover).
  Region& region = view_.regions[p.region];
  if (p.slab != nullptr) {
    remote_map(p.slab, kClassInfo[p.cls])[p.index / 64].fetch_or(uint64_t{1} << p.index % 64, seq_cst);
    if ((region.remote.load(seq_cst) & granule_bit(p.page)) == 0)
      region.remote.fetch_or(granule_bit(p.page), seq_cst);
  } else {
    region.remote.fetch_or(p.kind == kBig ? 1 : granule_bit(p.page), seq_cst);
  }
  raise_flag(p.region);
}

void ObjectAllocator::raise_flag(uint32_t r) {
  uint32_t holder = holder_of(view_.regions[r].word.load(seq_cst));
  auto& flags = view_.arenas[holder].pending;
  if ((flags.load(seq_cst) & pending_bit(r)) == 0) flags.fetch_or(pending_bit(r), seq_cst);
}

bool ObjectAllocator::pending() const { return arena_->pending.load(relaxed) != 0; }  // relaxed: a hint

void ObjectAllocator::read_intents() {
  intents_.clear();
  uint32_t slots = view_.node().slots.load(seq_cst);
  for (uint32_t s = 0; s < slots; ++s) {
    // SYNC POINT: intent. Read after the bit (or the unlinked record): then either the intent is seen,
    // or the release is complete.
    Offset o = segment_.proc(s).freeing.load(acquire);
    if (o != 0) intents_.push_back(o);
  }
}

bool ObjectAllocator::is_intended(Offset block) const {
  for (Offset o : intents_)
    if (o == block) return true;
  return false;
}

// Three steps: note which blocks have remote bits; read all intents; take back what no intent names.
void ObjectAllocator::collect() {
  if (!pending()) return;
  uint64_t buckets = arena_->pending.exchange(0, seq_cst);
  seen_.clear();
  uint32_t high = view_.node().high.load(acquire);
  for (; buckets != 0; buckets &= buckets - 1) {
    uint32_t bucket = static_cast<uint32_t>(std::countr_zero(buckets));
    for (uint32_t r = bucket; r < high; r += 64)
      if (r != 0) note_remote(r);
  }
  if (seen_.empty()) return;
  read_intents();
  for (const Remote& s : seen_) take_back(s);
}

void ObjectAllocator::note_remote(uint32_t r) {
  Region& region = view_.regions[r];
  uint64_t w = region.word.load(relaxed);  // relaxed: only mine matter, and these only I change
  if (holder_of(w) != slot_ || kind_of(w) < kPages) return;
  uint64_t granules = region.remote.load(seq_cst);
  if (kind_of(w) == kBig) {
    if (granules & 1) seen_.push_back({r, 0, kNotSmall, 0, 1});
    return;
  }
  PagesMeta& meta = view_.meta(r);
  for (; granules != 0; granules &= granules - 1) {
    uint32_t page = static_cast<uint32_t>(std::countr_zero(granules)) * kGranulePages;
    uint32_t end = page + kGranulePages;
    uint32_t e = 0;
    for (; page < end; ++page) {
      e = meta.page[page].load(relaxed);
      if (page_kind(e) == kPageRun || page_kind(e) == kPageSlab) break;
    }
    if (page == end) continue;  // left over; cleared when a head is made here
    if (page_kind(e) == kPageRun) {
      seen_.push_back({r, page, kNotSmall, 0, 1});
      continue;
    }
    region.remote.fetch_and(~granule_bit(page), seq_cst);  // before the bits are read
    const ClassInfo& info = kClassInfo[page_class(e)];
    Bits* remote = remote_map(segment_.at<Slab>(view_.page_start(r, page)), info);
    for (uint32_t word = 0; word < info.words; ++word) {
      uint64_t bits = remote[word].load(seq_cst);
      if (bits != 0) seen_.push_back({r, page, page_class(e), word, bits});
    }
  }
}

void ObjectAllocator::take_back(const Remote& s) {
  Region& region = view_.regions[s.region];
  auto leave_for_later = [&](uint64_t bit) {
    region.remote.fetch_or(bit, seq_cst);
    arena_->pending.fetch_or(pending_bit(s.region), seq_cst);
  };
  if (s.cls == kNotSmall) {
    bool big = kind_of(region.word.load(relaxed)) == kBig;
    uint64_t bit = big ? 1 : granule_bit(s.page);
    if (is_intended(view_.page_start(s.region, s.page))) return leave_for_later(bit);
    if (big) return free_big(s.region);
    uint32_t pages = page_count(view_.meta(s.region).page[s.page].load(relaxed));
    // the bit stays until a head is made here again
    return free_run(s.region, s.page, pages);
  }
  const ClassInfo& info = kClassInfo[s.cls];
  Offset start = view_.page_start(s.region, s.page);
  auto* slab = segment_.at<Slab>(start);
  uint64_t bits = s.bits;
  if (!intents_.empty()) {
    for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
      uint64_t i = s.word * 64 + static_cast<uint64_t>(std::countr_zero(rest));
      if (is_intended(start + info.first + i * info.bytes)) bits &= ~(rest & -rest);
    }
    if (bits != s.bits) leave_for_later(granule_bit(s.page));
    if (bits == 0) return;
  }
  // used before remote: recover() takes "remote and not used" as taken back
  free_small(slab, s.cls, s.word, bits);
  remote_map(slab, info)[s.word].fetch_and(~bits, seq_cst);
  slab_has_room(slab, s.cls);
}

// ---- a block's data -------------------------------------------------------------------------------

size_t ObjectAllocator::usable_bytes(const Segment& segment, Offset block) {
  View v(segment);
  Place p = locate(v, block);
  if (p.kind == kBig) return v.regions[p.region].bytes.load(relaxed);
  return p.slab != nullptr ? kClassInfo[p.cls].bytes : p.pages * kPageBytes;
}

Handle ObjectAllocator::owner_record(const Segment& segment, Offset block) {
  View v(segment);
  return handle_of(v, locate(v, block)).load(acquire);
}

uint32_t ObjectAllocator::holder(const Segment& segment, Offset block) {
  View v(segment);
  return holder_of(v.regions[v.region_of(block)].word.load(relaxed));
}

void ObjectAllocator::set_owner_record(const Segment& segment, Offset block, Handle owner) {
  View v(segment);
  handle_of(v, locate(v, block)).store(owner, release_order);
}

}  // namespace fastray
