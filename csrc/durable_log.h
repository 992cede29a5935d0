// A log file of a durable session: results of finished tasks, appended by one process, read by later sessions.
//
//   generation   number of a session of the path: 1 for the first, one more for each that follows
//   file id      generation << 16 | process slot of the writer; kBaseSlot for what compaction wrote
//   entry        24 bytes of head, then the body: flags, number, ids (both optional), payload; starts at a multiple of 8
//   number       the low half of the task's id: which of its owner's tasks it was
//   window       the part of the file that is mapped for writing: reserved on the disk and touched beforehand; it
//                grows with the file, and to whatever one entry needs
//
// Writing is a copy into the page cache: it survives the death of any process, and costs no system call but one for
// each window. An entry is published by the store of its first word, `meta`, which is 0 until then: a writer killed
// before that store has written nothing. A power loss can lose pages in any order, so an entry also has a checksum.
// A reader goes from entry to entry and stops at the first that is 0, does not fit or fails its check.
//
// Used by durable.h (a worker's own file), durable_index.cpp (reading, compaction).
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "content_key.h"

namespace fastray {

inline constexpr uint64_t kLogMagic = 0x474F4C5954534146ull;  // "FASTYLOG"
inline constexpr uint32_t kLogFormat = 1;                     // files of another one are refused
inline constexpr uint32_t kBaseSlot = 0xFFFF;
inline constexpr uint64_t kEntryBytesMax = 0xFFFFFFF0;        // a longer result is not kept

struct LogHeader {
  uint64_t magic;
  uint32_t format;
  int32_t pid;                // of the last writer
  uint64_t file_id;
  std::atomic<uint64_t> end;  // hint for the next writer of the same session: all before it is published
  uint64_t pad[4];
};
static_assert(sizeof(LogHeader) == 64);

struct EntryHead {
  std::atomic<uint64_t> meta;  // checksum << 32 | bytes of the body; 0: not published
  Key key;
};
static_assert(sizeof(EntryHead) == 24);

enum EntryFlag : uint8_t {
  kEntryKindMask = 3,
  kEntryInline = 0,    // the codec bytes of a value
  kEntryPayload = 1,   // an image of the payload of a value
  kEntryReturns = 2,   // for each return value: its kind << 56 | bytes, then the bytes
  kEntryTaken = 3,     // not a result: {file id, offset} of an entry that task `parent` took over
  kEntryHasId = 4,     // u64: the id of the task; others name it as their parent
  kEntryHasParent = 8, // u64: the id of the task that submitted it
};

// An entry as it stands in a mapped file.
struct EntryView {
  Key key;
  uint8_t flags = 0;
  uint32_t number = 0;
  uint64_t id = 0, parent = 0;  // 0 where they are not there
  const uint8_t* data = nullptr;
  uint64_t bytes = 0;
  bool is_long = false;  // a checksum of its own stands behind the data
  uint64_t next = 0;     // offset of the entry after it
};

struct LogPart {
  const void* data;
  uint64_t bytes;
};

// A log file mapped for reading.
class LogFile {
 public:
  ~LogFile() { close(); }
  LogFile() = default;
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;
  std::string open(const std::string& path);  // "" or what went wrong; an empty or torn file has no entries
  void close();
  // The entry at `offset`. False: the log ends there. Long entries are checked by `is_whole` only.
  bool read(uint64_t offset, EntryView* out) const;
  static bool is_whole(const EntryView& entry);
  static constexpr uint64_t first() { return sizeof(LogHeader); }
  uint64_t bytes() const { return bytes_; }
  uint64_t file_id() const { return file_id_; }

 private:
  const uint8_t* base_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t file_id_ = 0;
};

class LogWriter {
 public:
  ~LogWriter() { close(); }
  // Creates or goes on with the file, and locks it for the life of this process.
  std::string open(const std::string& path, uint64_t file_id);
  // False: it could not be written (the disk is full), and nothing will be any more; `problem` says why.
  bool append(const Key& key, uint8_t flags, uint64_t id, uint64_t parent, const LogPart* parts, int n);
  const std::string& problem() const { return problem_; }
  bool is_open() const { return fd_ >= 0; }
  // Offset of the next entry.
  uint64_t end() const { return end_; }
  std::string sync();  // to the disk: compaction only
  void close();        // gives back what was reserved and not used
  void abandon();      // in a forked child: leaves the file to the parent

 private:
  void release();
  bool fail(const char* what, int error);
  bool extend(uint64_t to);
  bool move_window(uint64_t bytes);
  bool write_at(const void* data, uint64_t bytes, uint64_t offset);

  int fd_ = -1;
  LogHeader* header_ = nullptr;
  uint8_t* window_ = nullptr;
  uint64_t window_start_ = 0, window_end_ = 0;
  uint64_t end_ = 0;
  uint64_t file_bytes_ = 0;
  std::string problem_;
};

}  // namespace fastray
