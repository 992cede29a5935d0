// What the object allocator keeps in shared memory. Used by object_allocator*.cpp and its tests only.
//
//   region        2 MiB of the data area; its entry in the region table names its kind and holder
//   cover         an entry "kBig, n" covers the n-1 regions after it, whatever their entries say; a page
//                 entry "n pages" covers the n-1 pages after it. So one store makes or frees a block of
//                 any length, and what is not covered and not a head is free: nothing can be half-made.
//   big block     whole regions; handle and length stand in the entry of the first one
//   page region   first page = PagesMeta; the rest holds page runs (one block each) and slabs
//   slab          blocks of one size class: bitmaps, handles, blocks
//   granule       8 pages; no two heads share one, so 64 bits name every run and slab of a region
//   arena         a process's words of the allocator (counters, pending bits), in region 0's memory
//
// Truth for recovery is only: region words, page entries, `used` bits, handles, remote bits, intents
// (Proc::freeing). Everything else (lists, counts, free-page maps) is rebuilt from these.
#pragma once

#include <array>
#include <atomic>
#include <bit>

#include "segment.h"

namespace fastray::heap {

inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint32_t kRegionPages = kRegionBytes / kPageBytes;
inline constexpr uint32_t kGranulePages = 8;
static_assert(kRegionPages / kGranulePages == 64);

// ---- region table -----------------------------------------------------------------------------
enum RegionKind : uint32_t { kPool = 0, kEmpty = 1, kPages = 2, kBig = 3 };

// count:32 | holder:24 | kind:8; all zero is a region of the pool
constexpr uint64_t region_word(RegionKind kind, uint32_t holder, uint32_t count = 1) {
  return uint64_t{count} << 32 | uint64_t{holder} << 8 | kind;
}
constexpr RegionKind kind_of(uint64_t w) { return static_cast<RegionKind>(w & 0xFF); }
constexpr uint32_t holder_of(uint64_t w) { return static_cast<uint32_t>(w >> 8) & 0xFFFFFF; }
constexpr uint32_t count_of(uint64_t w) { return static_cast<uint32_t>(w >> 32); }

struct alignas(64) Region {
  std::atomic<uint64_t> word;
  std::atomic<uint64_t> remote;  // by granule of the head: run freed / slab has remote bits; big: bit 0
  std::atomic<uint64_t> handle;  // kBig only
  std::atomic<uint64_t> bytes;   // kBig only
  uint64_t pad[4];
};
static_assert(sizeof(Region) == 64);

// Entry 0 of the region table: the node's own words.
struct alignas(64) Node {
  std::atomic<uint64_t> zero;   // stays 0; never claimed because scans start at 1
  std::atomic<uint32_t> high;   // regions [1, high) were claimed at some time
  std::atomic<uint32_t> slots;  // process slots [0, slots) were attached at some time
  uint64_t pad[6];
};
static_assert(sizeof(Node) == sizeof(Region));

struct alignas(64) Arena {
  // written by the process itself (by its recoverer when it is dead)
  std::atomic<uint64_t> charged;  // bytes of slabs, runs and big blocks: counts against the store
  std::atomic<uint64_t> bytes;    // usable bytes of its blocks
  std::atomic<uint64_t> blocks;
  std::atomic<uint64_t> regions;  // regions it holds, warm ones too
  // written by everyone: bit (region % 64) says that a region of it has remote frees
  alignas(64) std::atomic<uint64_t> pending;
};
static_assert(sizeof(Arena) == 128 && sizeof(Arena) * kProcsMax <= kRegionBytes);

// ---- page regions -----------------------------------------------------------------------------
enum PageKind : uint32_t { kPageFree = 0, kPageMeta = 1, kPageRun = 2, kPageSlab = 3, kPageInner = 4 };

// count:16 | class:8 | kind:8; count is the pages of a head, or of kPageInner the distance to its head.
// Only slabs write kPageInner; left-over ones that no head covers mean nothing.
constexpr uint32_t page_entry(PageKind kind, uint32_t cls, uint32_t count) {
  return count << 16 | cls << 8 | kind;
}
constexpr PageKind page_kind(uint32_t e) { return static_cast<PageKind>(e & 0xFF); }
constexpr uint32_t page_class(uint32_t e) { return e >> 8 & 0xFF; }
constexpr uint32_t page_count(uint32_t e) { return e >> 16; }

struct PagesMeta {
  std::atomic<uint32_t> page[kRegionPages];
  std::atomic<uint64_t> handle[64];  // of the run whose head is in this granule
};
static_assert(sizeof(PagesMeta) <= kPageBytes);

// ---- size classes -------------------------------------------------------------------------------
inline constexpr size_t kSmallBytesMax = 32768;
inline constexpr size_t kRunBytesMax = (kRegionPages - 1) * kPageBytes;
// 16, 32, then multiples of 64 to 512, then eight steps per doubling (waste <= 1/9) to 32 KB
inline constexpr uint32_t kClasses = 2 + 8 + 6 * 8;

constexpr uint32_t class_of(size_t bytes) {
  if (bytes <= 32) return bytes > 16;
  if (bytes <= 512) return static_cast<uint32_t>(1 + (bytes + 63) / 64);
  uint32_t top = 63 - std::countl_zero(bytes - 1);  // 2^top <= bytes - 1 < 2^(top+1)
  return 10 + (top - 9) * 8 + static_cast<uint32_t>((bytes - 1) >> (top - 3) & 7);
}
constexpr uint32_t class_bytes(uint32_t cls) {
  if (cls < 2) return 16 << cls;
  if (cls < 10) return (cls - 1) * 64;
  uint32_t top = 9 + (cls - 10) / 8, step = (cls - 10) % 8;
  return (1u << top) + (step + 1) * (1u << (top - 3));
}
static_assert(class_of(0) == 0 && class_of(33) == 2 && class_of(512) == 9 && class_of(513) == 10);
static_assert(class_bytes(10) == 576 && class_of(576) == 10 && class_of(577) == 11);
static_assert(class_of(kSmallBytesMax) == kClasses - 1 && class_bytes(kClasses - 1) == kSmallBytesMax);

enum SlabState : uint32_t { kUnlisted = 0, kListed = 1, kCurrent = 2 };

// Head of a slab; bitmaps, handles and blocks follow where ClassInfo says. Private to the holder.
struct alignas(64) Slab {
  uint32_t used;  // == set bits of the used map
  uint32_t state;
  uint32_t next, prev;  // list of slabs of the class with free blocks, as page numbers; 0 is none
  uint64_t pad[6];
};
static_assert(sizeof(Slab) == 64);

struct ClassInfo {
  uint32_t bytes, pages, count, words;
  uint32_t used_at, remote_at, handles_at, first;  // offsets from the slab's start
  uint32_t reciprocal;                             // (n * bytes * reciprocal) >> 32 == n
  constexpr uint64_t full_mask(uint32_t w) const {
    uint32_t bits = count - w * 64;
    return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
  }
};

constexpr uint32_t up64(uint32_t n) { return (n + 63) & ~63u; }

constexpr ClassInfo lay_out(uint32_t bytes, uint32_t count) {
  ClassInfo c{};
  c.bytes = bytes;
  c.count = count;
  c.words = (count + 63) / 64;
  c.used_at = sizeof(Slab);
  c.remote_at = up64(c.used_at + c.words * 8);
  c.handles_at = up64(c.remote_at + c.words * 8);
  c.first = up64(c.handles_at + count * 8);
  c.pages = static_cast<uint32_t>((c.first + count * bytes + kPageBytes - 1) / kPageBytes);
  c.reciprocal = static_cast<uint32_t>(((uint64_t{1} << 32) + bytes - 1) / bytes);
  return c;
}

// Slabs of 64 KB, or of 8 blocks when these need more; filled to the last page.
constexpr ClassInfo make_class(uint32_t cls) {
  uint32_t bytes = class_bytes(cls);
  uint32_t count = 8;
  while (lay_out(bytes, count + 1).pages <= 16) ++count;
  ClassInfo c = lay_out(bytes, count);
  while (lay_out(bytes, count + 1).pages == c.pages) c = lay_out(bytes, ++count);
  return c;
}
constexpr std::array<ClassInfo, kClasses> make_classes() {
  std::array<ClassInfo, kClasses> all{};
  for (uint32_t i = 0; i < kClasses; ++i) all[i] = make_class(i);
  return all;
}
inline constexpr std::array<ClassInfo, kClasses> kClassInfo = make_classes();
constexpr bool classes_fit() {
  for (const ClassInfo& c : kClassInfo)
    if (c.pages < kGranulePages || c.first + c.count * c.bytes > c.pages * kPageBytes) return false;
  return true;
}
static_assert(classes_fit() && std::atomic<uint64_t>::is_always_lock_free);

// ---- access -------------------------------------------------------------------------------------
using Bits = std::atomic<uint64_t>;

struct View {
  uint8_t* base = nullptr;
  Region* regions = nullptr;
  Arena* arenas = nullptr;
  Offset data = 0;
  uint32_t region_count = 0;

  View() = default;
  explicit View(const Segment& s)
      : base(s.base()),
        regions(s.at<Region>(s.header().regions)),
        arenas(s.at<Arena>(s.header().data)),
        data(s.header().data),
        region_count(static_cast<uint32_t>(s.header().data_bytes / kRegionBytes)) {}

  Node& node() const { return *reinterpret_cast<Node*>(regions); }
  uint32_t region_of(Offset o) const { return static_cast<uint32_t>((o - data) / kRegionBytes); }
  static_assert(std::has_single_bit(kRegionBytes));
  Offset region_start(uint32_t r) const { return data + r * kRegionBytes; }
  PagesMeta& meta(uint32_t r) const { return *reinterpret_cast<PagesMeta*>(base + region_start(r)); }
  Offset page_start(uint32_t r, uint32_t page) const { return region_start(r) + page * kPageBytes; }
  uint32_t page_number(Offset o) const { return static_cast<uint32_t>((o - data) / kPageBytes); }
  Slab* slab(uint32_t page_number) const {
    return reinterpret_cast<Slab*>(base + data + page_number * kPageBytes);
  }
};

inline Bits* used_map(Slab* s, const ClassInfo& c) {
  return reinterpret_cast<Bits*>(reinterpret_cast<uint8_t*>(s) + c.used_at);
}
inline Bits* remote_map(Slab* s, const ClassInfo& c) {
  return reinterpret_cast<Bits*>(reinterpret_cast<uint8_t*>(s) + c.remote_at);
}
inline std::atomic<Handle>* handles(Slab* s, const ClassInfo& c) {
  return reinterpret_cast<std::atomic<Handle>*>(reinterpret_cast<uint8_t*>(s) + c.handles_at);
}

// Where a block lives.
struct Place {
  RegionKind kind;
  uint32_t region, page;  // of the head
  Slab* slab;             // nullptr: a run or a big block
  uint32_t cls, index;    // in the slab
  uint32_t pages;         // of a run
};

// The block must be allocated: then the entries it needs do not change under the reader's feet.
inline Place locate(const View& v, Offset block) {
  uint32_t r = v.region_of(block);
  // SYNC POINT: block-handed-over. Who hands a block to another process does it by release/acquire of
  // its own, after these entries were written: relaxed is enough here.
  uint64_t w = v.regions[r].word.load(std::memory_order_relaxed);
  Place p{kind_of(w), r, 0, nullptr, 0, 0, 0};
  if (p.kind != kPages) return p;
  PagesMeta& meta = v.meta(r);
  p.page = static_cast<uint32_t>((block - v.region_start(r)) / kPageBytes);
  uint32_t e = meta.page[p.page].load(std::memory_order_relaxed);
  if (page_kind(e) == kPageInner) {
    p.page -= page_count(e);
    e = meta.page[p.page].load(std::memory_order_relaxed);
  }
  p.pages = page_count(e);
  if (page_kind(e) != kPageSlab) return p;
  p.cls = page_class(e);
  const ClassInfo& c = kClassInfo[p.cls];
  Offset start = v.page_start(r, p.page);
  p.slab = reinterpret_cast<Slab*>(v.base + start);
  p.index = static_cast<uint32_t>((block - start - c.first) * c.reciprocal >> 32);
  return p;
}

inline std::atomic<Handle>& handle_of(const View& v, const Place& p) {
  if (p.kind == kBig) return v.regions[p.region].handle;
  if (p.slab == nullptr) return v.meta(p.region).handle[p.page / kGranulePages];
  return handles(p.slab, kClassInfo[p.cls])[p.index];
}

inline uint64_t granule_bit(uint32_t page) { return uint64_t{1} << page / kGranulePages; }
inline uint64_t pending_bit(uint32_t region) { return uint64_t{1} << region % 64; }

}  // namespace fastray::heap
