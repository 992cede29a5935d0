// The object allocator: blocks of the segment's data area, for payloads, edges, rings and objects.
//
//   block     what allocate() hands out; hangs on a record, whose handle the allocator remembers
//   holder    the process slot whose allocator a region belongs to: only it allocates there
//   local / remote release   by the holder / by any other process
//   intent    Proc::freeing: the block a process is about to release
//   warm      a region the holder keeps though nothing is in it: its pages are already there
//
// A process has one ObjectAllocator and uses it from one thread at a time (callers hold the GIL).
// Blocks to 32 KB come from slabs, to 2 MB as runs of pages, larger ones as whole regions. Nobody waits
// for anybody; every change that matters is one store or one atomic bit, so a process may be killed at
// any instruction and recover() finds a state it can classify (see allocator_layout.h).
//
// Remote release: publish the intent, set the block's remote bit (idempotent), raise the holder's flag,
// clear the intent. The holder takes a block back only when no intent names it: so to a recoverer
// "intent there, bit clear" means not yet done, and setting the bit again can never hit a new block.
//
// The rule for callers: whoever frees a block calls begin_release() *before* its record stops pointing
// at it, then unlinks it, then calls release(). Killed in between, recover() undoes it (record still
// points at the block) or finishes it. Cost: one store.
#pragma once

#include <vector>

#include "allocator_layout.h"

namespace fastray {

enum class Purpose {
  kObject,       // refused when the store is full
  kBookkeeping,  // may use the room beside it; so may every block <= kReserveBytesMax
};

struct RecoverStats {
  uint64_t blocks_freed = 0;
  uint64_t blocks_adopted = 0;
  uint64_t regions_freed = 0;
  uint64_t regions_adopted = 0;
  uint32_t releases_finished = 0;
  uint32_t releases_undone = 0;
};

class ObjectAllocator {
 public:
  static constexpr size_t kReserveBytesMax = 1024;
  static constexpr uint64_t kWarmKeepBytes = uint64_t{64} << 20;

  void attach(const Segment& segment, uint32_t slot);  // slot = my process slot (holder)

  // 16-byte aligned for <= 32 bytes, 64-byte aligned above. A few ns from a slab. 0: store full.
  [[nodiscard]] Offset allocate(size_t bytes, Handle owner_record, Purpose purpose = Purpose::kObject);
  void begin_release(Offset block);
  void cancel_release();       // the record points at the block again
  void release(Offset block);  // any process's block

  // Who takes the block back after a release.
  static uint32_t holder(const Segment& segment, Offset block);

  static size_t usable_bytes(const Segment& segment, Offset block);
  static Handle owner_record(const Segment& segment, Offset block);
  static void set_owner_record(const Segment& segment, Offset block, Handle owner_record);

  void collect();  // takes back remotely released blocks; allocate() does it when it runs dry
  void trim(uint64_t keep_bytes = kWarmKeepBytes);  // gives empty regions but the last used ones back

  // Process `dead` is gone (the kernel says so). Blocks of its regions are freed unless
  // live(ctx, handle, offset) or an intent names them; regions with live blocks become mine. `live` must
  // load the record with acquire. May itself be killed and be run again by another; not by two at once.
  RecoverStats recover(uint32_t dead, bool (*live)(void* ctx, Handle, Offset), void* ctx);

  // object_bytes: usable bytes of all blocks (remotely released ones until they are collected)
  struct Usage {
    uint64_t object_bytes, region_bytes, blocks;
  };
  static Usage usage(const Segment& segment);
  bool is_valid() const;  // all invariants of my regions; slow
  uint64_t warm_bytes() const;

 private:
  using View = heap::View;
  // The word of a slab's used map that allocate() fills now. bits: its free blocks, a private copy.
  struct Cursor {
    uint64_t bits = 0;
    heap::Bits* used = nullptr;
    std::atomic<Handle>* handles = nullptr;
    Offset first = 0;
    heap::Slab* slab = nullptr;
    uint32_t word = 0;
  };
  struct PageRegion {
    uint32_t region;
    uint32_t longest;     // == longest run of free pages
    uint32_t free_pages;  // == bits in free
    uint64_t free[heap::kRegionPages / 64];
  };
  struct Local {             // of each region, private
    uint16_t populated = 0;  // pages [0, populated) have memory, as far as I know
    bool warm = false;
    int32_t place = -1;      // in page_regions_
  };
  struct WarmRun {
    uint32_t first, count;
  };
  static constexpr uint32_t kNotSmall = ~0u;
  struct Remote {  // remote bits seen by collect()
    uint32_t region, page;
    uint32_t cls;  // or kNotSmall
    uint32_t word;
    uint64_t bits;
  };

  bool refill(uint32_t cls, Purpose purpose);
  bool point_cursor(uint32_t cls, heap::Slab* slab, uint32_t from);
  heap::Slab* new_slab(uint32_t cls, Purpose purpose);
  Offset allocate_run(size_t bytes, Handle owner, Purpose purpose);
  Offset allocate_big(size_t bytes, Handle owner, Purpose purpose);
  void release_local(Offset block);
  void release_remote(Offset block);
  void free_small(heap::Slab* slab, uint32_t cls, uint32_t word, uint64_t bits);
  void slab_has_room(heap::Slab* slab, uint32_t cls);
  void free_run(uint32_t region, uint32_t page, uint32_t pages);
  void free_big(uint32_t region);
  void list_push(heap::Slab* slab, uint32_t cls);
  void list_remove(heap::Slab* slab, uint32_t cls);
  void free_slab(heap::Slab* slab, uint32_t cls);

  bool charge(uint64_t bytes, bool bounded);
  void uncharge(uint64_t bytes);
  void count_blocks(int64_t blocks, int64_t bytes);
  void count_regions(int64_t n);
  uint64_t node_sum(std::atomic<uint64_t> heap::Arena::*field) const;
  bool pending() const;
  void raise_flag(uint32_t region);
  void set_remote_bit(const heap::Place& place);
  void note_remote(uint32_t region);
  void take_back(const Remote& seen);
  void read_intents();
  bool is_intended(Offset block) const;

  bool take_pages(uint32_t pages, uint32_t* region, uint32_t* page);
  void give_pages(uint32_t region, uint32_t page, uint32_t pages);
  bool add_page_region();
  void drop_page_region(uint32_t region);
  static void measure(PageRegion& p);
  bool populate(uint32_t region, uint32_t to);
  bool populate_span(uint32_t first, uint64_t pages);
  uint32_t take_regions(uint32_t n);
  uint32_t take_warm(uint32_t n, bool split_any);
  uint32_t take_single();
  uint32_t take_span(uint32_t n);
  uint32_t best_span(uint32_t n) const;
  bool claim(uint32_t region);
  void carve_warm(uint32_t first, uint32_t count);
  void add_warm(uint32_t first, uint32_t count);
  void give_back(uint32_t first, uint32_t count);
  void shrink_warm();

  struct Recovery;
  void recover_intent(Recovery& r);
  bool has_remote_bit(const heap::Place& place) const;
  bool is_gone(Recovery& r, bool released, Handle h, Offset block);
  void free_region(Recovery& r, uint32_t first, uint32_t n);
  void recover_big(Recovery& r, uint32_t first, uint32_t n);
  void recover_pages(Recovery& r, uint32_t region);
  uint32_t recover_slab(Recovery& r, uint32_t region, uint32_t page, uint32_t cls);
  void adopt_pages(uint32_t region);
  void adopt_slab(uint32_t region, uint32_t page, uint32_t cls);

  struct Tally;
  bool pages_valid(uint32_t region, Tally& t) const;
  bool slab_valid(uint32_t region, uint32_t page, uint32_t entry, Tally& t) const;

  View view_;
  Segment segment_;
  uint32_t slot_ = 0;
  uint64_t pages_word_ = 0;  // region word of my page regions
  Offset intent_ = 0;        // == Proc::freeing of my slot
  heap::Arena* arena_ = nullptr;
  uint64_t charged_ = 0, bytes_ = 0, blocks_ = 0, regions_ = 0;  // == the arena's counters
  uint32_t hint_ = 1;                                            // where to look for a single free region
  Cursor cursors_[heap::kClasses];
  uint32_t listed_[heap::kClasses] = {};  // slabs with room, by page number
  std::vector<PageRegion> page_regions_;
  std::vector<Local> local_;
  std::vector<WarmRun> warm_;  // oldest first
  std::vector<Remote> seen_;
  std::vector<Offset> intents_;
};

}  // namespace fastray
