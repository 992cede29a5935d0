// See durable_index.h.
#include "durable_index.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "os.h"

namespace fastray {
namespace {

constexpr uint64_t kFilesMax = 256;  // more are written into one
constexpr int kOffsetBits = 48;
constexpr uint64_t kOffsetMask = (uint64_t{1} << kOffsetBits) - 1;

// Ids of tasks are unique in their session only.
uint64_t name_of(uint32_t generation, uint64_t id) {
  return content_key::fold(id ^ content_key::kPi[0], generation ^ content_key::kPi[1]);
}
uint32_t generation_of(uint64_t file_id) { return static_cast<uint32_t>(file_id >> 16); }
bool is_base(uint64_t file_id) { return (file_id & 0xFFFF) == kBaseSlot; }

uint64_t* file_ids(DurableArea* a) { return reinterpret_cast<uint64_t*>(a + 1); }
DurableSlot* slots(DurableArea* a) { return reinterpret_cast<DurableSlot*>(file_ids(a) + a->files); }
DurableItem* items(DurableArea* a) { return reinterpret_cast<DurableItem*>(slots(a) + a->slots); }
uint64_t slots_for(uint64_t n) { return n == 0 ? 0 : std::bit_ceil(2 * n); }
uint64_t alias_of(uint64_t key, uint32_t number) { return content_key::fold(key, number ^ content_key::kPi[2]) | 1; }

// Waits until nobody holds the file's lock; the pid of who does, or 0.
int wait_for_writer(const std::string& file, int64_t deadline_ns) {
  int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  int pid = 0;
  while (flock(fd, LOCK_SH | LOCK_NB) != 0) {
    if (os::now_ns() >= deadline_ns) {
      LogHeader header{};
      pid = pread(fd, &header, sizeof header, 0) == sizeof header && header.pid > 0 ? header.pid : -1;
      break;
    }
    usleep(2000);  // its session is dead or dying: its node kills it
  }
  close(fd);
  return pid;
}

}  // namespace

std::string log_name(const std::string& path, uint64_t file_id) {
  std::string g = std::to_string(generation_of(file_id));
  return path + (is_base(file_id) ? "/base-" + g : "/log-" + g + "-" + std::to_string(file_id & 0xFFFF));
}

// ---- reading the logs ----------------------------------------------------------------------------------

// Ids of the files that count: the last base and what is newer. Removes the others.
std::string DurableLogs::list(std::vector<uint64_t>* ids) {
  DIR* dir = opendir(path_.c_str());
  if (dir == nullptr) return path_ + ": " + strerror(errno);
  std::vector<std::string> unfinished;
  while (dirent* entry = readdir(dir)) {
    unsigned generation = 0, slot = 0;
    int end = 0;
    std::string name = entry->d_name;
    if (sscanf(name.c_str(), "log-%u-%u%n", &generation, &slot, &end) == 2 && static_cast<size_t>(end) == name.size())
      ids->push_back(uint64_t{generation} << 16 | (slot & 0xFFFF));
    else if (end = 0; sscanf(name.c_str(), "base-%u%n", &generation, &end) == 1 && static_cast<size_t>(end) == name.size())
      ids->push_back(uint64_t{generation} << 16 | kBaseSlot);
    else if (name.ends_with(".tmp"))
      unfinished.push_back(path_ + "/" + name);
  }
  closedir(dir);
  for (const std::string& name : unfinished) unlink(name.c_str());  // of a compaction that was killed
  std::sort(ids->begin(), ids->end());
  uint64_t base = 0;
  for (uint64_t id : *ids) {
    counts_.generation = std::max(counts_.generation, generation_of(id));
    if (is_base(id)) base = id;
  }
  // A base of generation g holds all that was live in files of lower generations.
  std::erase_if(*ids, [&](uint64_t id) {
    bool old = generation_of(id) < generation_of(base);
    if (old) unlink(log_name(path_, id).c_str());
    return old;
  });
  counts_.generation += 1;
  return "";
}

std::string DurableLogs::load(const std::string& path, int wait_ms, int* writer) {
  path_ = path;
  *writer = 0;
  std::string problem = list(&ids_);
  if (!problem.empty()) return problem;
  int64_t deadline = os::now_ns() + int64_t{wait_ms} * 1000000;
  for (uint64_t id : ids_)
    if ((*writer = wait_for_writer(log_name(path_, id), deadline)) != 0) return "";
  std::vector<uint64_t> all = std::move(ids_);
  ids_.clear();
  for (uint64_t id : all) {
    problem = scan(id);
    if (!problem.empty()) return problem;
  }
  resolve();
  return "";
}

// Its entries; what its writer reserved behind them goes, and so does a file without any.
std::string DurableLogs::scan(uint64_t id) {
  auto file = std::make_unique<LogFile>();
  std::string name = log_name(path_, id), problem = file->open(name);
  if (!problem.empty()) return problem;
  uint64_t at = LogFile::first(), number = files_.size();
  EntryView e;
  for (; file->read(at, &e); at = e.next) {
    counts_.entries += 1;
    if ((e.flags & kEntryKindMask) == kEntryTaken) {
      if (e.bytes == 16)
        notes_.push_back(
            {content_key::read64(e.data), content_key::read64(e.data + 8), name_of(generation_of(id), e.parent)});
      continue;
    }
    if (e.flags & kEntryHasId) finished_.insert(name_of(generation_of(id), e.id));
    if (e.flags & kEntryHasParent) children_.push_back({live_.size(), name_of(generation_of(id), e.parent)});
    live_.push_back({e.key.lo, number << kOffsetBits | at, e.next - at, e.number});
  }
  if (at == LogFile::first()) {
    unlink(name.c_str());
    return "";
  }
  if (file->bytes() > at && truncate(name.c_str(), static_cast<off_t>(at)) != 0) return name + ": " + strerror(errno);
  counts_.files += 1;
  counts_.bytes += at;
  files_.push_back(std::move(file));
  ids_.push_back(id);
  return "";
}

void DurableLogs::resolve() {
  for (const Child& child : children_)
    if (finished_.count(child.parent) != 0) live_[child.live].key = 0;
  std::unordered_set<uint64_t> gone;  // locations
  for (const Note& note : notes_) {
    auto it = std::find(ids_.begin(), ids_.end(), note.file_id);
    if (it != ids_.end() && finished_.count(note.parent) != 0)
      gone.insert(static_cast<uint64_t>(it - ids_.begin()) << kOffsetBits | note.offset);
  }
  std::erase_if(live_, [&](const Live& l) { return l.key == 0 || (!gone.empty() && gone.count(l.location) != 0); });
  counts_.live = live_.size();
  for (const Live& l : live_) counts_.live_bytes += l.bytes;
  count_repeated();
}

void DurableLogs::count_repeated() {
  std::vector<uint64_t> seen(slots_for(live_.size()));
  for (const Live& l : live_) {
    uint64_t at = l.key & (seen.size() - 1);
    while (seen[at] != 0 && seen[at] != l.key) at = (at + 1) & (seen.size() - 1);
    repeated_ += seen[at] != 0 ? 2 : 0;  // at least as many as there are
    seen[at] = l.key;
  }
}

// ---- compaction ----------------------------------------------------------------------------------------

std::string DurableLogs::compact(bool always) {
  bool worth = counts_.bytes > 2 * counts_.live_bytes + (1 << 20) || files_.size() > kFilesMax;
  if (!always && !worth) return "";
  uint64_t id = uint64_t{counts_.generation} << 16 | kBaseSlot;
  std::string name = log_name(path_, id), unfinished = name + ".tmp";
  std::vector<Live> moved;
  {
    LogWriter writer;
    std::string problem = writer.open(unfinished, id);
    EntryView e;
    for (const Live& l : live_) {
      if (!problem.empty()) break;
      if (!files_[l.location >> kOffsetBits]->read(l.location & kOffsetMask, &e) || !LogFile::is_whole(e)) continue;
      LogPart part{e.data, e.bytes};
      moved.push_back({l.key, writer.end(), 0, l.number});
      // whose children they were is of no use any more: that task has ended without a result
      if (!writer.append(e.key, e.flags & kEntryKindMask, e.number, 0, &part, 1)) problem = writer.problem();
      moved.back().bytes = writer.end() - moved.back().location;
    }
    if (problem.empty()) problem = writer.sync();
    if (!problem.empty()) {  // the logs stay as they are
      unlink(unfinished.c_str());
      return problem;
    }
  }
  if (rename(unfinished.c_str(), name.c_str()) != 0) return name + ": " + strerror(errno);
  for (uint64_t old : ids_) unlink(log_name(path_, old).c_str());
  files_.clear();
  files_.push_back(std::make_unique<LogFile>());
  ids_ = {id};
  live_ = std::move(moved);
  std::string problem = files_.back()->open(name);
  counts_ = {1, files_.back()->bytes(), live_.size(), live_.size(), 0, counts_.generation};
  for (const Live& l : live_) counts_.live_bytes += l.bytes;
  return problem;
}

// ---- the area ------------------------------------------------------------------------------------------

uint64_t DurableLogs::area_bytes() const {
  return sizeof(DurableArea) + ids_.size() * 8 + slots_for(live_.size() + repeated_) * sizeof(DurableSlot) +
         live_.size() * sizeof(DurableItem);
}

void DurableLogs::fill(DurableArea* area) const {
  area->generation = counts_.generation;
  area->files = static_cast<uint32_t>(ids_.size());
  area->slots = slots_for(live_.size() + repeated_);
  area->items = live_.size();
  strncpy(area->path, path_.c_str(), sizeof area->path - 1);
  std::copy(ids_.begin(), ids_.end(), file_ids(area));
  DurableSlot* table = slots(area);
  DurableItem* all = items(area);
  auto slot_of = [&](uint64_t key) -> DurableSlot& {
    uint64_t at = key & (area->slots - 1);
    while (table[at].key != 0 && table[at].key != key) at = (at + 1) & (area->slots - 1);
    table[at].key = key;
    return table[at];
  };
  auto enter_alias = [&](size_t i) {
    DurableSlot& s = slot_of(alias_of(live_[i].key, live_[i].number));
    if (s.first == 0) s.first = static_cast<uint32_t>(i + 1);
  };
  for (size_t i = live_.size(); i-- > 0;) {  // from the last, so that each list begins with its oldest
    DurableSlot& s = slot_of(live_[i].key);
    all[i].location = live_[i].location;
    all[i].next = s.first;
    s.first = static_cast<uint32_t>(i + 1);
    s.head.store(s.first, std::memory_order_relaxed);
    if (all[i].next == 0) continue;
    enter_alias(i);
    if (all[all[i].next - 1].next == 0) enter_alias(all[i].next - 1);  // it was alone before
  }
  area->left.store(live_.size(), std::memory_order_release);
}

// ---- taking --------------------------------------------------------------------------------------------

bool DurableIndex::view(const DurableItem& item, EntryView* out) {
  uint64_t number = item.location >> kOffsetBits;
  if (files_.size() <= number) files_.resize(area_->files);
  if (files_[number] == nullptr) {
    files_[number] = std::make_unique<LogFile>();
    if (!files_[number]->open(log_name(area_->path, file_ids(area_)[number])).empty()) return false;
  }
  return files_[number]->read(item.location & kOffsetMask, out) && LogFile::is_whole(*out);
}

DurableSlot* DurableIndex::find(uint64_t key) {
  DurableSlot* table = slots(area_);
  uint64_t at = key & (area_->slots - 1);
  while (table[at].key != key) {
    if (table[at].key == 0) return nullptr;
    at = (at + 1) & (area_->slots - 1);
  }
  return &table[at];
}

// True when it is h's now, or was already.
bool DurableIndex::take_item(DurableItem& item, Handle h) {
  uint64_t taker = item.taker.load(std::memory_order_acquire);
  if (taker != 0) return taker == h;
  // SYNC POINT: durable-item (whoever makes this swap has the entry, in this life and its next attempts)
  if (!item.taker.compare_exchange_strong(taker, h, std::memory_order_acq_rel)) return false;
  area_->left.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

bool DurableIndex::take(const Key& key, Handle h, uint32_t number, bool again, EntryView* out, uint64_t* file_id,
                        uint64_t* offset) {
  DurableSlot* slot = area_ != nullptr && area_->slots != 0 ? find(key.lo) : nullptr;
  if (slot == nullptr) return false;
  auto have = [&](DurableItem& item) {
    if (!view(item, out) || !(out->key == key)) return false;  // damaged: nobody can have it
    *file_id = file_ids(area_)[item.location >> kOffsetBits];
    *offset = item.location & kOffsetMask;
    return true;
  };
  DurableItem* all = items(area_);
  if (all[slot->first - 1].next != 0) {
    DurableSlot* own = find(alias_of(key.lo, number));
    if (own != nullptr && take_item(all[own->first - 1], h) && have(all[own->first - 1])) return true;
  }
  uint32_t next = again ? slot->first : slot->head.load(std::memory_order_acquire);
  for (; next != 0; next = all[next - 1].next) {
    if (!take_item(all[next - 1], h)) continue;
    slot->head.store(all[next - 1].next, std::memory_order_release);  // a hint: it may go back, never past one not taken
    if (have(all[next - 1])) return true;
  }
  return false;
}

}  // namespace fastray
