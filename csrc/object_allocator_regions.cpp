// Pages and regions: where object_allocator.cpp gets its memory, and what is kept warm.
//
// Page runs: best fit within the process's page regions. Whole regions: first the warm run freed last of
// just this length (a value put again and again stays on its pages), then one that is a little longer,
// then the span of warm and pool regions with most warm ones, then the tightest. Single regions come from
// the low end, so that long spans stay whole above.
#include <sys/mman.h>

#include <algorithm>
#include <cassert>

#include "object_allocator.h"
#include "os.h"

namespace fastray {

using namespace heap;

namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release_order = std::memory_order_release;
constexpr auto seq_cst = std::memory_order_seq_cst;

constexpr int kClaimTries = 16;

// Calls visit(first, length) for each run of set bits.
template <class Visit>
void each_run(const uint64_t (&bits)[kRegionPages / 64], Visit&& visit) {
  uint32_t at = 0;
  auto next = [&](uint32_t from, bool want) {
    for (uint32_t w = from / 64; w < kRegionPages / 64; ++w) {
      uint64_t word = want ? bits[w] : ~bits[w];
      if (w == from / 64) word &= ~uint64_t{0} << from % 64;
      if (word != 0) return w * 64 + static_cast<uint32_t>(std::countr_zero(word));
    }
    return kRegionPages;
  };
  while ((at = next(at, true)) < kRegionPages) {
    uint32_t end = at + 1 < kRegionPages ? next(at + 1, false) : kRegionPages;
    visit(at, end - at);
    if (end == kRegionPages) return;
    at = end;
  }
}

void set_run(uint64_t (&bits)[kRegionPages / 64], uint32_t from, uint32_t n, bool on) {
  for (uint32_t end = from + n; from < end;) {
    uint32_t here = std::min(end - from, 64 - from % 64);
    uint64_t mask = (here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1) << from % 64;
    if (on)
      bits[from / 64] |= mask;
    else
      bits[from / 64] &= ~mask;
    from += here;
  }
}

}  // namespace

// ---- accounts -----------------------------------------------------------------------------------

uint64_t ObjectAllocator::node_sum(std::atomic<uint64_t> Arena::*field) const {
  uint64_t sum = 0;
  uint32_t slots = view_.node().slots.load(seq_cst);
  for (uint32_t s = 0; s < slots; ++s) sum += (view_.arenas[s].*field).load(seq_cst);
  return sum;
}

// Of two that charge at once at least one sees the other's charge: the store is never over its limit.
bool ObjectAllocator::charge(uint64_t bytes, bool bounded) {
  charged_ += bytes;
  arena_->charged.store(charged_, seq_cst);  // SYNC POINT: charge. seq_cst with the loads of node_sum
  if (!bounded || node_sum(&Arena::charged) <= segment_.header().object_store_bytes) return true;
  uncharge(bytes);
  return false;
}

void ObjectAllocator::uncharge(uint64_t bytes) {
  assert(charged_ >= bytes);
  charged_ -= bytes;
  arena_->charged.store(charged_, release_order);
}

void ObjectAllocator::count_regions(int64_t n) {
  arena_->regions.store(regions_ += static_cast<uint64_t>(n), relaxed);  // relaxed: statistics
}

// ---- pages --------------------------------------------------------------------------------------

void ObjectAllocator::measure(PageRegion& p) {
  p.longest = p.free_pages = 0;
  each_run(p.free, [&](uint32_t, uint32_t n) {
    p.longest = std::max(p.longest, n);
    p.free_pages += n;
  });
}

bool ObjectAllocator::take_pages(uint32_t n, uint32_t* region, uint32_t* page) {
  auto best = [&]() -> PageRegion* {
    PageRegion* found = nullptr;
    for (PageRegion& p : page_regions_)
      if (p.longest >= n && (found == nullptr || p.longest < found->longest)) found = &p;
    return found;
  };
  PageRegion* p = best();
  if (p == nullptr) {
    if (!add_page_region()) return false;
    p = best();
  }
  uint32_t at = 0, length = kRegionPages + 1;
  each_run(p->free, [&](uint32_t first, uint32_t run) {
    if (run >= n && run < length) at = first, length = run;
  });
  if (!populate(p->region, at + n)) return false;
  set_run(p->free, at, n, false);
  measure(*p);
  *region = p->region;
  *page = at;
  return true;
}

void ObjectAllocator::give_pages(uint32_t r, uint32_t page, uint32_t n) {
  PageRegion& p = page_regions_[static_cast<size_t>(local_[r].place)];
  set_run(p.free, page, n, true);
  measure(p);
  if (p.free_pages != kRegionPages - 1 || page_regions_.size() == 1) return;
  drop_page_region(r);
  view_.regions[r].word.store(region_word(kEmpty, slot_), release_order);
  add_warm(r, 1);
}

bool ObjectAllocator::add_page_region() {
  uint32_t r = take_regions(1);
  if (r == 0) return false;
  if (!populate(r, 1)) {
    give_back(r, 1);
    return false;
  }
  PagesMeta& meta = view_.meta(r);
  meta.page[0].store(page_entry(kPageMeta, 0, 1), relaxed);
  for (uint32_t i = 1; i < kRegionPages; ++i) meta.page[i].store(0, relaxed);
  view_.regions[r].remote.store(0, relaxed);
  // release: recover() reads the page entries only after it
  view_.regions[r].word.store(pages_word_, release_order);
  PageRegion p{};
  p.region = r;
  set_run(p.free, 1, kRegionPages - 1, true);
  measure(p);
  local_[r].place = static_cast<int32_t>(page_regions_.size());
  page_regions_.push_back(p);
  return true;
}

void ObjectAllocator::drop_page_region(uint32_t r) {
  auto place = static_cast<size_t>(local_[r].place);
  page_regions_[place] = page_regions_.back();
  local_[page_regions_[place].region].place = static_cast<int32_t>(place);
  page_regions_.pop_back();
  local_[r].place = -1;
}

// ---- memory ---------------------------------------------------------------------------------------

// Makes sure that pages [0, to) of the region have memory.
bool ObjectAllocator::populate(uint32_t r, uint32_t to) {
  uint32_t from = local_[r].populated;
  if (from >= to) return true;
  if (!os::populate(view_.base + view_.page_start(r, from), (to - from) * kPageBytes)) return false;
  local_[r].populated = static_cast<uint16_t>(to);
  return true;
}

// The same for `pages` pages from region `first` on, in as few calls as can be.
bool ObjectAllocator::populate_span(uint32_t first, uint64_t pages) {
  Offset from = 0, to = 0;  // what is missing, and not asked for yet
  auto flush = [&] { return from == to || os::populate(view_.base + from, to - from); };
  uint32_t regions = static_cast<uint32_t>((pages + kRegionPages - 1) / kRegionPages);
  for (uint32_t i = 0; i < regions; ++i) {
    auto want = static_cast<uint32_t>(std::min<uint64_t>(kRegionPages, pages - i * uint64_t{kRegionPages}));
    uint32_t have = local_[first + i].populated;
    if (have >= want) continue;
    Offset start = view_.page_start(first + i, have);
    if (start != to) {
      if (!flush()) return false;
      from = start;
    }
    to = view_.page_start(first + i, want);
  }
  if (!flush()) return false;
  for (uint32_t i = 0; i < regions; ++i) {
    uint64_t want = std::min<uint64_t>(kRegionPages, pages - i * uint64_t{kRegionPages});
    local_[first + i].populated = std::max(local_[first + i].populated, static_cast<uint16_t>(want));
  }
  return true;
}

// ---- regions --------------------------------------------------------------------------------------

bool ObjectAllocator::claim(uint32_t r) {
  auto& word = view_.regions[r].word;
  if (word.load(relaxed) != 0) return false;
  auto& high = view_.node().high;
  uint32_t seen = high.load(relaxed);
  // before the claim: scans of [1, high) must not miss it. SYNC POINT: high
  while (seen <= r && !high.compare_exchange_weak(seen, r + 1, seq_cst, relaxed)) {
  }
  uint64_t free = 0;
  // SYNC POINT: region. acquire: what its former holder did to it (punched it out) is done
  if (!word.compare_exchange_strong(free, region_word(kEmpty, slot_), std::memory_order_acq_rel, relaxed))
    return false;
  local_[r] = Local{};
  count_regions(1);
  return true;
}

// Gives regions that are mine and empty to the pool, without their memory: the pool holds none.
void ObjectAllocator::give_back(uint32_t first, uint32_t n) {
  madvise(view_.base + view_.region_start(first), n * kRegionBytes, MADV_REMOVE);
  for (uint32_t r = first; r < first + n; ++r) {
    local_[r] = Local{};
    view_.regions[r].word.store(0, release_order);  // SYNC POINT: region
  }
  count_regions(-int64_t{n});
  hint_ = std::min(hint_, first);
}

// First of n contiguous regions, mine and empty (not in warm_), or 0.
uint32_t ObjectAllocator::take_regions(uint32_t n) {
  uint32_t r = take_warm(n, false);
  if (r == 0) r = n == 1 ? take_single() : take_span(n);
  if (r == 0) r = take_warm(n, true);
  return r;
}

uint32_t ObjectAllocator::take_single() {
  uint32_t total = view_.region_count;
  for (uint32_t i = 0, r = hint_; i < total; ++i, ++r) {
    if (r >= total) r = 1;
    if (!claim(r)) continue;
    hint_ = r + 1;
    return r;
  }
  return 0;
}

uint32_t ObjectAllocator::take_warm(uint32_t n, bool split_any) {
  size_t best = warm_.size();
  for (size_t i = warm_.size(); i-- > 0;) {
    uint32_t have = warm_[i].count;
    if (have == n) {
      best = i;
      break;
    }
    // a long run is not cut up for a short one as long as there are others
    bool fits = have > n && (split_any || uint64_t{n} * 8 >= have);
    if (fits && (best == warm_.size() || have < warm_[best].count)) best = i;
  }
  if (best == warm_.size()) return 0;
  uint32_t first = warm_[best].first;
  carve_warm(first, n);
  return first;
}

uint32_t ObjectAllocator::take_span(uint32_t n) {
  for (int attempt = 0; attempt < kClaimTries; ++attempt) {
    uint32_t first = best_span(n);
    if (first == 0) return 0;
    uint32_t r = first;
    for (; r < first + n; ++r)
      if (!local_[r].warm && !claim(r)) break;
    if (r == first + n) {
      carve_warm(first, n);
      return first;
    }
    for (uint32_t back = first; back < r; ++back)  // lost a race: start again
      if (!local_[back].warm) give_back(back, 1);
  }
  return 0;
}

uint32_t ObjectAllocator::best_span(uint32_t n) const {
  uint32_t total = view_.region_count;
  uint32_t high = std::min(view_.node().high.load(acquire), total);
  high = std::max(high, 1u);
  uint32_t last = static_cast<uint32_t>(std::min<uint64_t>(total, uint64_t{high} + n));
  auto usable = [&](uint32_t r) {
    return r >= high || local_[r].warm || view_.regions[r].word.load(relaxed) == 0;  // relaxed: claim() decides
  };
  uint32_t best = 0, best_warm = 0, best_length = 0;
  for (uint32_t start = 1; start < last;) {
    if (!usable(start)) {
      ++start;
      continue;
    }
    uint32_t end = start, warm = 0, at = 0, most = 0;
    for (; end < last && usable(end); ++end) {
      warm += local_[end].warm;
      if (end - start >= n) warm -= local_[end - n].warm;
      if (end - start + 1 >= n && (at == 0 || warm > most)) at = end - n + 1, most = warm;
    }
    uint32_t length = end == last ? total - start : end - start;
    if (at != 0 && (best == 0 || most > best_warm || (most == best_warm && length < best_length)))
      best = at, best_warm = most, best_length = length;
    start = end;
  }
  return best;
}

// ---- warm regions -----------------------------------------------------------------------------------

void ObjectAllocator::add_warm(uint32_t first, uint32_t n) {
  warm_.push_back({first, n});
  for (uint32_t r = first; r < first + n; ++r) local_[r].warm = true;
}

// Takes what is warm of [first, first + n) out of warm_.
void ObjectAllocator::carve_warm(uint32_t first, uint32_t n) {
  uint32_t end = first + n;
  for (size_t i = 0; i < warm_.size();) {
    WarmRun w = warm_[i];
    uint32_t w_end = w.first + w.count;
    if (w.first >= end || w_end <= first) {
      ++i;
      continue;
    }
    warm_.erase(warm_.begin() + static_cast<ptrdiff_t>(i));
    if (w_end > end) warm_.insert(warm_.begin() + static_cast<ptrdiff_t>(i++), {end, w_end - end});
    if (w.first < first) warm_.insert(warm_.begin() + static_cast<ptrdiff_t>(i++), {w.first, first - w.first});
  }
  for (uint32_t r = first; r < end; ++r) local_[r].warm = false;
}

uint64_t ObjectAllocator::warm_bytes() const {
  uint64_t n = 0;
  for (const WarmRun& w : warm_) n += w.count;
  return n * kRegionBytes;
}

// The node's regions together may take about as much as the store is allowed to: beyond that, warm
// memory goes back, oldest first.
void ObjectAllocator::shrink_warm() {
  uint64_t limit = segment_.header().object_store_bytes + kWarmKeepBytes;
  while (!warm_.empty() && node_sum(&Arena::regions) * kRegionBytes > limit) {
    WarmRun w = warm_.front();
    warm_.erase(warm_.begin());
    give_back(w.first, w.count);
  }
}

void ObjectAllocator::trim(uint64_t keep_bytes) {
  collect();
  for (uint32_t cls = 0; cls < kClasses; ++cls) {
    Cursor& c = cursors_[cls];
    if (c.slab != nullptr && c.slab->used == 0) {
      Slab* slab = c.slab;
      c = Cursor{};
      slab->state = kUnlisted;
      free_slab(slab, cls);
    }
    for (uint32_t at = listed_[cls]; at != 0;) {
      Slab* slab = view_.slab(at);
      at = slab->next;
      if (slab->used != 0) continue;
      list_remove(slab, cls);
      free_slab(slab, cls);
    }
  }
  for (size_t i = 0; i < page_regions_.size();) {
    uint32_t r = page_regions_[i].region;
    if (page_regions_[i].free_pages != kRegionPages - 1) {
      ++i;
      continue;
    }
    drop_page_region(r);
    view_.regions[r].word.store(region_word(kEmpty, slot_), release_order);
    add_warm(r, 1);
  }
  for (uint64_t warm = warm_bytes(); !warm_.empty() && warm > keep_bytes;) {
    WarmRun w = warm_.front();
    uint64_t over = (warm - keep_bytes + kRegionBytes - 1) / kRegionBytes;
    uint32_t n = static_cast<uint32_t>(std::min<uint64_t>(w.count, over));
    carve_warm(w.first + w.count - n, n);
    give_back(w.first + w.count - n, n);
    warm -= n * kRegionBytes;
  }
}

}  // namespace fastray
