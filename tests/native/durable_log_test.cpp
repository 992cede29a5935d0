// Keys, log files and the index of durable sessions: every cut of a log leaves its whole entries, entries of children
// go with their parents, each item is taken once, by several processes at a time too.
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <unordered_set>
#include <vector>

#include "../../csrc/durable_index.h"
#include "testing.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

std::string fresh_folder() {
  char name[] = "/tmp/durable_test_XXXXXX";
  CHECK(mkdtemp(name) != nullptr);
  return name;
}
void remove_folder(const std::string& path) { CHECK(system(("rm -rf " + path).c_str()) == 0); }

Key key_of(uint64_t n) { return absorb(Key{}, &n, sizeof n); }
uint64_t file_id(uint32_t generation, uint32_t slot) { return uint64_t{generation} << 16 | slot; }
std::string text_of(uint64_t n, size_t bytes) {
  std::string s(bytes, 'a');
  for (size_t i = 0; i < bytes; ++i) s[i] = static_cast<char>(n * 31 + i * 7);
  return s;
}
void append(LogWriter& w, uint64_t n, const std::string& text, uint8_t flags = 0, uint64_t id = 0, uint64_t parent = 0) {
  LogPart parts[] = {{text.data(), text.size() / 2}, {text.data() + text.size() / 2, text.size() - text.size() / 2}};
  CHECK(w.append(key_of(n), flags, id, parent, parts, 2));
}

// ---- keys ------------------------------------------------------------------------------------------------

void keys_differ() {
  std::unordered_set<uint64_t> lo, hi;
  uint64_t n = 0, part = 0;  // a seed for each part: some contents are in several
  auto add = [&](const void* data, size_t bytes) {
    Key k = absorb(Key{part, part}, data, bytes);
    lo.insert(k.lo);
    hi.insert(k.hi);
    ++n;
  };
  for (uint64_t i = 0; i < 1000000; ++i) add(&i, 8);
  part = 1;
  for (uint32_t i = 0; i < 100000; ++i) add(&i, 4);
  part = 2;
  uint8_t zeros[2000] = {};
  for (size_t i = 0; i < sizeof zeros; ++i) add(zeros, i);
  for (size_t i = 0; i < sizeof zeros; ++i) {  // each byte counts, in short and long content
    zeros[i] = 1;
    part = 3;
    add(zeros, sizeof zeros);
    part = 4;
    add(zeros, i + 1);
    zeros[i] = 0;
  }
  CHECK(lo.size() == n && hi.size() == n);
}

void every_bit_changes_half_of_a_key() {
  Random random(seed_or(7));
  for (size_t bytes : {1, 3, 8, 16, 17, 32, 100, 300}) {
    uint64_t changed = 0, tries = 0;
    for (int round = 0; round < 200; ++round) {
      std::vector<uint8_t> data(bytes);
      for (auto& b : data) b = static_cast<uint8_t>(random.next());
      Key before = absorb(Key{}, data.data(), bytes);
      data[random.below(bytes)] ^= static_cast<uint8_t>(1 << random.below(8));
      Key after = absorb(Key{}, data.data(), bytes);
      changed += static_cast<uint64_t>(std::popcount(before.lo ^ after.lo) + std::popcount(before.hi ^ after.hi));
      tries += 128;
    }
    CHECK(changed > tries * 45 / 100 && changed < tries * 55 / 100);
  }
}

// ---- log files -------------------------------------------------------------------------------------------

const size_t kSizes[] = {1, 2, 5, 100, 230, 243, 244, 250, 256, 300, 5000, 70000, 3};

void what_is_appended_is_read() {
  std::string path = fresh_folder(), name = log_name(path, file_id(1, 2));
  {
    LogWriter w;
    CHECK(w.open(name, file_id(1, 2)).empty());
    for (uint64_t n = 0; n < std::size(kSizes); ++n)
      append(w, n, text_of(n, kSizes[n]), n % 3 == 0 ? kEntryHasId | kEntryHasParent : n % 3 == 1 ? kEntryHasParent : 0,
             100 + n, 200 + n);
  }
  LogFile f;
  CHECK(f.open(name).empty() && f.file_id() == file_id(1, 2));
  EntryView e;
  uint64_t at = LogFile::first();
  for (uint64_t n = 0; n < std::size(kSizes); ++n, at = e.next) {
    CHECK(f.read(at, &e) && LogFile::is_whole(e));
    CHECK(e.key == key_of(n) && std::string(reinterpret_cast<const char*>(e.data), e.bytes) == text_of(n, kSizes[n]));
    CHECK(e.number == 100 + n && e.id == (n % 3 == 0 ? 100 + n : 0) && e.parent == (n % 3 == 2 ? 0 : 200 + n));
  }
  CHECK(!f.read(at, &e));
  remove_folder(path);
}

uint64_t whole_entries(const std::string& name) {
  LogFile f;
  CHECK(f.open(name).empty());
  EntryView e;
  uint64_t n = 0;
  for (uint64_t at = LogFile::first(); f.read(at, &e); at = e.next, ++n)
    CHECK(e.key == key_of(n) && (!LogFile::is_whole(e) || e.bytes == kSizes[n]));
  return n;
}

// The file cut at every byte: the entries before the cut are there, and a writer goes on behind them.
void a_log_cut_anywhere() {
  std::string path = fresh_folder(), name = log_name(path, file_id(1, 2)), cut = log_name(path, file_id(1, 3));
  std::vector<uint64_t> ends;
  {
    LogWriter w;
    CHECK(w.open(name, file_id(1, 2)).empty());
    for (uint64_t n = 0; n < 10; ++n) append(w, n, text_of(n, kSizes[n])), ends.push_back(w.end());
  }
  std::string all(ends.back(), 0);
  int fd = open(name.c_str(), O_RDONLY);
  CHECK(read(fd, all.data(), all.size()) == static_cast<ssize_t>(all.size()));
  close(fd);
  for (uint64_t bytes = 0; bytes <= all.size(); ++bytes) {
    fd = open(cut.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    CHECK(write(fd, all.data(), bytes) == static_cast<ssize_t>(bytes));
    close(fd);
    // the last bytes of an entry may be padding
    uint64_t least = static_cast<uint64_t>(std::upper_bound(ends.begin(), ends.end(), bytes) - ends.begin());
    uint64_t found = whole_entries(cut);
    CHECK(found == least || (found == least + 1 && ends[least] - bytes < 8));
    if (bytes % 7 != 0) continue;
    {
      LogWriter w;
      CHECK(w.open(cut, file_id(1, 3)).empty());
      append(w, found, text_of(found, kSizes[found]));
    }
    CHECK(whole_entries(cut) == found + 1);
  }
  remove_folder(path);
}

void a_log_with_any_byte_changed() {
  std::string path = fresh_folder(), name = log_name(path, file_id(1, 2));
  {
    LogWriter w;
    CHECK(w.open(name, file_id(1, 2)).empty());
    for (uint64_t n = 0; n < 8; ++n) append(w, n, text_of(n, 20 * n + 1));
  }
  struct stat st {};
  CHECK(stat(name.c_str(), &st) == 0);
  int fd = open(name.c_str(), O_RDWR);
  for (off_t at = sizeof(LogHeader); at < st.st_size; ++at) {
    uint8_t byte;
    CHECK(pread(fd, &byte, 1, at) == 1);
    uint8_t other = byte ^ 0x10;
    CHECK(pwrite(fd, &other, 1, at) == 1);
    LogFile f;
    CHECK(f.open(name).empty());
    EntryView e;
    for (uint64_t o = LogFile::first(); f.read(o, &e); o = e.next) {
      if (!LogFile::is_whole(e)) continue;
      uint64_t n = 0;
      while (n < 8 && !(e.key == key_of(n))) ++n;
      CHECK(n < 8 && std::string(reinterpret_cast<const char*>(e.data), e.bytes) == text_of(n, 20 * n + 1));
    }
    CHECK(pwrite(fd, &byte, 1, at) == 1);
  }
  close(fd);
  remove_folder(path);
}

void one_writer_at_a_time() {
  std::string path = fresh_folder(), name = log_name(path, file_id(1, 2));
  LogWriter w, other;
  CHECK(w.open(name, file_id(1, 2)).empty());
  CHECK(!other.open(name, file_id(1, 2)).empty());
  DurableLogs logs;
  int writer = 0;
  CHECK(logs.load(path, 20, &writer).empty() && writer == getpid());
  remove_folder(path);
}

// ---- the index -------------------------------------------------------------------------------------------

struct Index {
  std::string path = fresh_folder();
  DurableArea* area = nullptr;
  size_t bytes = 0;

  DurableLogs::Counts load(bool compact = false) {
    DurableLogs logs;
    int writer = 0;
    CHECK(logs.load(path, 0, &writer).empty() && writer == 0);
    if (compact) CHECK(logs.compact(true).empty());
    bytes = logs.area_bytes();
    area = static_cast<DurableArea*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    logs.fill(area);
    return logs.counts();
  }
  ~Index() { remove_folder(path); }

  // The texts that `n` calls with this key get; "" for none.
  std::vector<std::string> take(uint64_t key, int n) {
    DurableIndex index;
    index.attach(area);
    std::vector<std::string> got;
    EntryView e;
    uint64_t file, offset;
    for (int i = 0; i < n; ++i)
      got.push_back(index.take(key_of(key), 1000 + i, 0xFFFF0000u, false, &e, &file, &offset)
                        ? std::string(reinterpret_cast<const char*>(e.data), e.bytes)
                        : "");
    return got;
  }
};

void results_are_taken_once_and_in_order() {
  for (bool compact : {false, true}) {
    Index x;
    {
      LogWriter w;
      CHECK(w.open(log_name(x.path, file_id(1, 2)), file_id(1, 2)).empty());
      for (const char* text : {"a", "b", "c"}) append(w, 7, text);
      for (uint64_t n = 100; n < 1100; ++n) append(w, n, text_of(n, 10));
    }
    CHECK(x.load(compact).live == 1003);
    CHECK((x.take(7, 4) == std::vector<std::string>{"a", "b", "c", ""}));
    for (uint64_t n = 100; n < 1100; ++n) CHECK((x.take(n, 2) == std::vector<std::string>{text_of(n, 10), ""}));
    CHECK(x.take(5, 1)[0].empty() && x.area->left == 0);
  }
}

void each_call_gets_its_own_when_the_numbers_are_the_same() {
  Index x;
  {
    LogWriter w;
    CHECK(w.open(log_name(x.path, file_id(1, 2)), file_id(1, 2)).empty());
    for (uint64_t n : {3, 1, 2}) append(w, 7, std::to_string(n), 0, n);
  }
  x.load();
  DurableIndex index;
  index.attach(x.area);
  EntryView e;
  uint64_t file, offset;
  for (uint32_t n : {2, 1, 9, 3}) {
    bool got = index.take(key_of(7), n, n, false, &e, &file, &offset);
    CHECK(got == (n != 3));  // 9 is a new call: it gets what is left
    if (got) CHECK(e.data[0] == (n == 9 ? '3' : '0' + n));
  }
  CHECK(index.take(key_of(7), 9, 9, true, &e, &file, &offset) && e.data[0] == '3');  // its next attempt
}

void children_go_with_their_parents() {
  Index x;
  {
    LogWriter w;
    CHECK(w.open(log_name(x.path, file_id(1, 2)), file_id(1, 2)).empty());
    append(w, 1, "child of 50", kEntryHasParent, 11, 50);
    append(w, 2, "grandchild", kEntryHasParent | kEntryHasId, 12, 51);
    append(w, 3, "child of 60", kEntryHasParent, 13, 60);
    append(w, 4, "child 51 of 50", kEntryHasParent | kEntryHasId, 51, 50);
    append(w, 5, "parent 50", kEntryHasId, 50);
  }
  {
    LogWriter w;  // the same ids in another session are others
    CHECK(w.open(log_name(x.path, file_id(2, 2)), file_id(2, 2)).empty());
    append(w, 6, "child of another 50", kEntryHasParent, 11, 50);
  }
  CHECK(x.load().live == 3);
  for (uint64_t key : {1, 2, 4}) CHECK(x.take(key, 1)[0].empty());
  for (uint64_t key : {3, 5, 6}) CHECK(!x.take(key, 1)[0].empty());
}

void what_was_taken_over_goes_when_that_parent_is_done() {
  for (bool done : {false, true}) {
    Index x;
    uint64_t place[2] = {file_id(1, 2), 0};
    {
      LogWriter w;
      CHECK(w.open(log_name(x.path, place[0]), place[0]).empty());
      place[1] = w.end();
      append(w, 1, "child", kEntryHasParent, 11, 50);
    }
    {
      LogWriter w;
      CHECK(w.open(log_name(x.path, file_id(2, 2)), file_id(2, 2)).empty());
      LogPart part{place, sizeof place};
      CHECK(w.append(key_of(1), kEntryTaken | kEntryHasParent, 0, 70, &part, 1));
      if (done) append(w, 5, "parent", kEntryHasId, 70);
    }
    CHECK(x.load().live == 1);
    CHECK(x.take(1, 1)[0].empty() == done && x.take(5, 1)[0].empty() != done);
  }
}

void a_base_replaces_what_is_older() {
  Index x;
  {
    LogWriter w;
    CHECK(w.open(log_name(x.path, file_id(1, 2)), file_id(1, 2)).empty());
    append(w, 1, "one");
  }
  CHECK(x.load(true).generation == 2);
  {
    LogWriter w;  // a compaction that was killed before it removed the old log
    CHECK(w.open(log_name(x.path, file_id(1, 3)), file_id(1, 3)).empty());
    append(w, 1, "one");
  }
  CHECK(x.load().live == 1);
  CHECK(access(log_name(x.path, file_id(1, 3)).c_str(), F_OK) != 0);
}

void two_processes_take_from_one_index() {
  constexpr int kItems = 20000;
  Index x;
  {
    LogWriter w;
    CHECK(w.open(log_name(x.path, file_id(1, 2)), file_id(1, 2)).empty());
    for (uint64_t n = 0; n < kItems; ++n) append(w, 7, std::to_string(n));
  }
  x.load();
  auto* taken = static_cast<std::atomic<uint32_t>*>(
      mmap(nullptr, kItems * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  auto take_all = [&](uint64_t who) {
    DurableIndex index;
    index.attach(x.area);
    EntryView e;
    uint64_t file, offset;
    for (uint64_t i = 0; index.take(key_of(7), who << 32 | i, 0xFFFF0000u, false, &e, &file, &offset); ++i)
      taken[std::stoi(std::string(reinterpret_cast<const char*>(e.data), e.bytes))].fetch_add(1);
  };
  pid_t child = fork();
  if (child == 0) {
    take_all(1);
    _exit(0);
  }
  take_all(2);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  for (int i = 0; i < kItems; ++i) CHECK(taken[i] == 1);
}

}  // namespace

int main() {
  keys_differ();
  every_bit_changes_half_of_a_key();
  what_is_appended_is_read();
  a_log_cut_anywhere();
  a_log_with_any_byte_changed();
  one_writer_at_a_time();
  results_are_taken_once_and_in_order();
  each_call_gets_its_own_when_the_numbers_are_the_same();
  children_go_with_their_parents();
  what_was_taken_over_goes_when_that_parent_is_done();
  a_base_replaces_what_is_older();
  two_processes_take_from_one_index();
  printf("ok\n");
}
