// See durable_log.h.
//
// A body of more than kCheckedBytes ends with a checksum of its own over the rest: going through a log reads the
// beginning of each entry only, and gigabytes of arrays are looked at when they are wanted.
#include "durable_log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "os.h"

namespace fastray {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kWindowMin = 64 << 10;
constexpr uint64_t kWindowMax = 4 << 20;
constexpr uint64_t kCheckedBytes = 256;
constexpr uint64_t kFlagAndNumber = 1 + 4;
constexpr Key kCheckSeed{0x7465636B73756D31, 0x6661737472617931};

constexpr uint64_t up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

uint32_t check_of(const Key& key, uint64_t bytes, const uint8_t* body) {
  Key k = kCheckSeed;
  content_key::block(k, key.lo ^ bytes, key.hi);
  return static_cast<uint32_t>(absorb(k, body, std::min(bytes, kCheckedBytes)).lo);
}

}  // namespace

// ---- reading -----------------------------------------------------------------------------------------

std::string LogFile::open(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return path + ": " + strerror(errno);
  struct stat st {};
  if (fstat(fd, &st) != 0) {
    int error = errno;
    ::close(fd);
    return path + ": " + strerror(error);
  }
  if (static_cast<uint64_t>(st.st_size) >= sizeof(LogHeader)) {
    void* p = mmap(nullptr, static_cast<size_t>(st.st_size), PROT_READ, MAP_SHARED, fd, 0);
    int error = errno;
    if (p == MAP_FAILED) {
      ::close(fd);
      return path + ": " + strerror(error);
    }
    base_ = static_cast<const uint8_t*>(p);
    bytes_ = static_cast<uint64_t>(st.st_size);
    auto* header = reinterpret_cast<const LogHeader*>(base_);
    file_id_ = header->file_id;
    if (header->magic != kLogMagic) close();  // its writer died before the first word
    else if (header->format != kLogFormat) close();
  }
  ::close(fd);
  return "";
}

void LogFile::close() {
  if (base_ != nullptr) munmap(const_cast<uint8_t*>(base_), bytes_);
  base_ = nullptr;
  bytes_ = 0;
}

bool LogFile::read(uint64_t offset, EntryView* out) const {
  if (offset + sizeof(EntryHead) > bytes_) return false;
  auto* head = reinterpret_cast<const EntryHead*>(base_ + offset);
  uint64_t meta = head->meta.load(std::memory_order_acquire);  // SYNC POINT: log-entry
  uint64_t bytes = meta & 0xFFFFFFFF, body = offset + sizeof(EntryHead);
  if (bytes == 0 || body + bytes > bytes_) return false;
  const uint8_t* p = base_ + body;
  if (check_of(head->key, bytes, p) != meta >> 32) return false;
  out->key = head->key;
  out->flags = *p;
  out->next = up(body + bytes, 8);
  uint64_t ids = kFlagAndNumber + (*p & kEntryHasId ? 8 : 0) + (*p & kEntryHasParent ? 8 : 0);
  uint64_t tail = bytes > kCheckedBytes ? 8 : 0;
  if (bytes < ids + tail) return false;
  out->number = static_cast<uint32_t>(content_key::read32(p + 1));
  out->id = *p & kEntryHasId ? content_key::read64(p + kFlagAndNumber) : 0;
  out->parent = *p & kEntryHasParent ? content_key::read64(p + ids - 8) : 0;
  out->data = p + ids;
  out->is_long = tail != 0;
  out->bytes = bytes - ids - tail;
  return true;
}

bool LogFile::is_whole(const EntryView& e) {
  return !e.is_long || absorb(kCheckSeed, e.data, e.bytes).lo == content_key::read64(e.data + e.bytes);
}

// ---- writing -----------------------------------------------------------------------------------------

bool LogWriter::fail(const char* what, int error) {
  if (problem_.empty()) problem_ = std::string(what) + ": " + strerror(error);
  return false;
}

std::string LogWriter::open(const std::string& path, uint64_t file_id) {
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd_ < 0) return path + ": " + strerror(errno);
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) return path + " is written by another process";
  struct stat st {};
  if (fstat(fd_, &st) != 0) return path + ": " + strerror(errno);
  file_bytes_ = static_cast<uint64_t>(st.st_size);
  end_ = LogFile::first();
  if (file_bytes_ >= sizeof(LogHeader)) {  // a worker that had our slot before us
    LogFile before;
    std::string problem = before.open(path);
    if (!problem.empty()) return problem;
    EntryView entry;
    while (before.read(end_, &entry)) end_ = entry.next;
  }
  // What stands behind the last entry is a torn one: gone, so that what follows ours is 0 again.
  if (ftruncate(fd_, static_cast<off_t>(std::min(file_bytes_, end_))) != 0) return path + ": " + strerror(errno);
  file_bytes_ = std::min(file_bytes_, end_);
  if (!extend(kPage)) return path + ": " + problem_;
  void* p = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (p == MAP_FAILED) return path + ": " + strerror(errno);
  header_ = static_cast<LogHeader*>(p);
  header_->format = kLogFormat;
  header_->pid = getpid();
  header_->file_id = file_id;
  std::atomic_ref<uint64_t>(header_->magic).store(kLogMagic, std::memory_order_release);
  return "";
}

// The file has room up to `to`, on the disk too: writing through a mapping never raises SIGBUS. Zeros written in one
// call cost a quarter of what fallocate() and a fault for each page do: the kernel takes large pages for them.
bool LogWriter::extend(uint64_t to) {
  static uint8_t zeros[1 << 20];
  while (file_bytes_ < to) {
    uint64_t bytes = std::min<uint64_t>(sizeof zeros, to - file_bytes_);
    if (!write_at(zeros, bytes, file_bytes_)) return false;
    file_bytes_ += bytes;
  }
  return true;
}

bool LogWriter::move_window(uint64_t bytes) {
  if (window_ != nullptr) munmap(window_, window_end_ - window_start_);
  window_ = nullptr;
  uint64_t start = end_ / kPage * kPage;
  uint64_t room = std::clamp(up(end_, kWindowMin), kWindowMin, kWindowMax);  // as much as there is already
  uint64_t to = up(std::max(end_ + bytes, start + room), kPage);
  if (!extend(to)) return false;
  void* p = mmap(nullptr, to - start, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, static_cast<off_t>(start));
  if (p == MAP_FAILED) return fail("mapping the log", errno);
  (void)os::populate(p, to - start);  // one call instead of a fault for each page
  window_ = static_cast<uint8_t*>(p);
  window_start_ = start;
  window_end_ = to;
  return true;
}

bool LogWriter::append(const Key& key, uint8_t flags, uint64_t id, uint64_t parent, const LogPart* parts, int n) {
  if (fd_ < 0 || !problem_.empty()) return false;
  uint8_t head[kFlagAndNumber + 16];
  uint64_t m = kFlagAndNumber, bytes = 0;
  head[0] = flags;
  memcpy(head + 1, &id, 4);
  if (flags & kEntryHasId) memcpy(head + m, &id, 8), m += 8;
  if (flags & kEntryHasParent) memcpy(head + m, &parent, 8), m += 8;
  for (int i = 0; i < n; ++i) bytes += parts[i].bytes;
  if (bytes > kEntryBytesMax - 64) return true;  // too long: the task runs again
  bool tail = m + bytes > kCheckedBytes - 8;
  uint64_t body = m + bytes + (tail ? 8 : 0), total = up(sizeof(EntryHead) + body, 8);
  if (end_ + total > window_end_ || window_ == nullptr) [[unlikely]] {
    if (!move_window(total)) return false;
  }
  auto* entry = reinterpret_cast<EntryHead*>(window_ + (end_ - window_start_));
  auto* p = reinterpret_cast<uint8_t*>(entry + 1);
  entry->key = key;
  memcpy(p, head, m);
  uint64_t at = m;
  for (int i = 0; i < n; ++i) {
    if (parts[i].bytes != 0) memcpy(p + at, parts[i].data, parts[i].bytes);
    at += parts[i].bytes;
  }
  if (tail) {
    uint64_t check = absorb(kCheckSeed, p + m, bytes).lo;
    memcpy(p + at, &check, 8);
  }
  // SYNC POINT: log-entry (release: the body before the word that publishes it)
  entry->meta.store(uint64_t{check_of(key, body, p)} << 32 | body, std::memory_order_release);
  end_ += total;
  header_->end.store(end_, std::memory_order_release);
  return true;
}

bool LogWriter::write_at(const void* data, uint64_t bytes, uint64_t offset) {
  auto* p = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    ssize_t n = pwrite(fd_, p, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail("writing the log", errno);
    p += n, offset += static_cast<uint64_t>(n), bytes -= static_cast<uint64_t>(n);
  }
  return true;
}

std::string LogWriter::sync() { return fsync(fd_) == 0 ? "" : std::string("writing the log to the disk: ") + strerror(errno); }

// Truncating with the window mapped is fine: nobody writes to it any more.
void LogWriter::close() {
  if (header_ != nullptr && end_ < file_bytes_) (void)!ftruncate(fd_, static_cast<off_t>(end_));
  release();
}

void LogWriter::abandon() { release(); }

void LogWriter::release() {
  if (window_ != nullptr) munmap(window_, window_end_ - window_start_);
  if (header_ != nullptr) munmap(header_, kPage);
  if (fd_ >= 0) ::close(fd_);
  window_ = nullptr;
  header_ = nullptr;
  fd_ = -1;
}

}  // namespace fastray
