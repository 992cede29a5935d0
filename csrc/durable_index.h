// What earlier sessions of a durable path have finished: found at init, shared with all processes of the session.
//
//   live         an entry that a task may still take: a result whose submitting task has no result itself. A task with
//                a result is not run again, so what it submitted is never asked for; the entries of its children go.
//   taken over   a child that ran again took the entry; when its parent has a result, the entry goes too
//   area         the part of the segment with the index: open addressing by the low half of the key, a list of items
//                in the order of the logs for each
//   item         where one entry is, and the handle of the record that took it; each is taken once
//
//   alias        of a key with several items: key and number of the task, which lead to one of them directly
//
// Equal calls have equal keys and may have several results (a task that draws random numbers): each call takes one; in
// a program that submits in the same order each time its own (the alias), else the oldest that is left.
// Taking is one swap of the item's `taker`; the head of a list is only a hint. So a worker killed after it took an
// item leaves it to the next attempt of the same record, which finds its own handle there.
//
// `DurableLogs` is the driver's, before the node starts; `DurableIndex` is in each worker. See docs/internals/durable.md.
#pragma once

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "durable_log.h"
#include "segment.h"

namespace fastray {

struct DurableSlot {
  uint64_t key;                // low half, or an alias; 0: empty
  uint32_t first;              // item + 1: start of the list
  std::atomic<uint32_t> head;  // hint: all items before it are taken; 0: all are
};
struct DurableItem {
  uint64_t location;           // number of the file << 48 | offset
  std::atomic<uint64_t> taker; // handle of the record
  uint32_t next;               // item + 1, or 0
  uint32_t pad;
};
static_assert(sizeof(DurableSlot) == 16 && sizeof(DurableItem) == 24);

struct DurableArea {
  uint32_t generation;         // of this session
  uint32_t files;              // file ids stand behind this header, then slots, then items
  uint64_t slots;              // a power of two, or 0
  uint64_t items;
  std::atomic<uint64_t> left;  // items not taken; a hint, never too low
  std::atomic<uint32_t> warned;
  uint32_t pad;
  char path[4048];             // absolute
};
static_assert(sizeof(DurableArea) % 8 == 0);

std::string log_name(const std::string& path, uint64_t file_id);

class DurableLogs {
 public:
  struct Counts {
    uint64_t files = 0, bytes = 0, entries = 0, live = 0, live_bytes = 0;
    uint32_t generation = 0;  // the next session's
  };
  // Reads the logs of a path. `writer` is set when a process still writes one of them after `wait_ms`: its pid.
  std::string load(const std::string& path, int wait_ms, int* writer);
  const Counts& counts() const { return counts_; }
  // Writes what is live into one file and removes the others, when that is worth it (or `always`).
  std::string compact(bool always);
  // Bytes of the area in the segment, and filling it in.
  uint64_t area_bytes() const;
  void fill(DurableArea* area) const;

 private:
  struct Live {
    uint64_t key;
    uint64_t location;
    uint64_t bytes;
    uint32_t number;
  };
  struct Child {
    size_t live;         // index in live_
    uint64_t parent;     // with the generation, see name_of
  };
  std::string list(std::vector<uint64_t>* ids);
  std::string scan(uint64_t id);
  void resolve();
  void count_repeated();

  std::string path_;
  std::vector<std::unique_ptr<LogFile>> files_;
  std::vector<uint64_t> ids_;  // of the files
  std::vector<Live> live_;
  std::vector<Child> children_;
  struct Note {
    uint64_t file_id, offset, parent;
  };
  std::vector<Note> notes_;
  std::unordered_set<uint64_t> finished_;  // tasks with children, by name_of
  size_t repeated_ = 0;  // live entries whose key is another's too
  Counts counts_;
};

class DurableIndex {
 public:
  void attach(DurableArea* area) { area_ = area; }
  bool is_empty() const { return area_ == nullptr || area_->left.load(std::memory_order_relaxed) == 0; }
  // Takes an entry with this key for record h; `again`: an earlier attempt of it may have taken one. `file_id` and
  // `offset` say where it is. Entries that turn out to be damaged are passed over.
  bool take(const Key& key, Handle h, uint32_t number, bool again, EntryView* out, uint64_t* file_id,
            uint64_t* offset);

 private:
  DurableSlot* find(uint64_t key);
  bool take_item(DurableItem& item, Handle h);
  bool view(const DurableItem& item, EntryView* out);

  DurableArea* area_ = nullptr;
  std::vector<std::unique_ptr<LogFile>> files_;  // mapped on first use
};

}  // namespace fastray
