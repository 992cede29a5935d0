// See lineage_file.h. An entry is its length and then the fields of a spec, numbers as they stand in memory.
#include "lineage_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace fastray {
namespace {

constexpr size_t kFlushBytes = 256 << 10;

template <class T>
void put(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_bytes(std::string* out, const std::string& bytes) {
  put(out, static_cast<uint64_t>(bytes.size()));
  out->append(bytes);
}

// Reads fields until one does not fit; then everything after it is empty and `ok` is false.
struct Fields {
  const char* at;
  size_t left;
  bool ok = true;

  template <class T>
  T get() {
    T value{};
    if (left < sizeof value) {
      ok = false;
      return value;
    }
    memcpy(&value, at, sizeof value);
    at += sizeof value;
    left -= sizeof value;
    return value;
  }
  std::string get_bytes() {
    uint64_t n = get<uint64_t>();
    if (n > left) {
      ok = false;
      return "";
    }
    std::string bytes(at, n);
    at += n;
    left -= n;
    return bytes;
  }
};

bool read_all(int fd, char* to, size_t bytes, uint64_t offset) {
  while (bytes > 0) {
    ssize_t n = pread(fd, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n;
    bytes -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

}  // namespace

LineageFile::~LineageFile() {
  if (fd_ >= 0) close(fd_);
}

bool LineageFile::open() {
  if (fd_ >= 0) return true;
  const char* folder = getenv("TMPDIR");
  if (folder == nullptr || *folder == 0) folder = "/tmp";
  fd_ = ::open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd_ >= 0) return true;
  std::string name = std::string(folder) + "/lineage-XXXXXX";  // a file system without unnamed files
  fd_ = mkostemp(name.data(), O_CLOEXEC);
  if (fd_ >= 0) unlink(name.c_str());
  return fd_ >= 0;
}

bool LineageFile::flush() {
  if (!open()) return false;
  size_t done = 0;
  while (done < buffer_.size()) {
    ssize_t n = pwrite(fd_, buffer_.data() + done, buffer_.size() - done, static_cast<off_t>(flushed_ + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  flushed_ += buffer_.size();
  buffer_.clear();
  return true;
}

uint64_t LineageFile::append(const Spec& spec) {
  std::string entry;
  put(&entry, spec.id);
  put(&entry, spec.function);
  put(&entry, spec.cls);
  put(&entry, spec.depth);
  put(&entry, spec.attempts);
  put(&entry, static_cast<uint32_t>(spec.arguments.size()));
  for (const Argument& a : spec.arguments) {
    put(&entry, a.place);
    if (a.place == 0) put_bytes(&entry, a.value);
  }
  put_bytes(&entry, spec.codec);
  put(&entry, static_cast<uint32_t>(spec.buffers.size()));
  for (const std::string& b : spec.buffers) put_bytes(&entry, b);
  if (bytes() + entry.size() > bytes_max_) return 0;
  uint64_t place = bytes() + 1;
  put(&buffer_, static_cast<uint64_t>(entry.size()));
  buffer_ += entry;
  if (buffer_.size() >= kFlushBytes && !flush()) {
    buffer_.resize(place - 1 - flushed_);  // the disk is full: what is in the buffer stays there
    return 0;
  }
  return place;
}

bool LineageFile::read(uint64_t place, Spec* spec) {
  if (place == 0 || place > bytes()) return false;
  uint64_t at = place - 1, size = 0;
  std::string entry;
  if (at >= flushed_) {
    Fields head{buffer_.data() + (at - flushed_), buffer_.size() - (at - flushed_)};
    entry = head.get_bytes();
    if (!head.ok) return false;
  } else {
    if (!read_all(fd_, reinterpret_cast<char*>(&size), sizeof size, at) || size > bytes_max_) return false;
    entry.resize(size);
    if (!read_all(fd_, entry.data(), size, at + sizeof size)) return false;
  }
  Fields f{entry.data(), entry.size()};
  spec->id = f.get<uint64_t>();
  spec->function = f.get<uint32_t>();
  spec->cls = f.get<uint16_t>();
  spec->depth = f.get<uint8_t>();
  spec->attempts = f.get<uint8_t>();
  spec->arguments.clear();
  for (uint32_t n = f.get<uint32_t>(); n > 0 && f.ok; --n) {
    Argument a;
    a.place = f.get<uint64_t>();
    if (a.place == 0) a.value = f.get_bytes();
    spec->arguments.push_back(std::move(a));
  }
  spec->codec = f.get_bytes();
  spec->buffers.clear();
  for (uint32_t n = f.get<uint32_t>(); n > 0 && f.ok; --n) spec->buffers.push_back(f.get_bytes());
  return f.ok;
}

void LineageFile::clear() {
  buffer_.clear();
  flushed_ = 0;
  if (fd_ >= 0 && ftruncate(fd_, 0) != 0) {  // it keeps its length: overwritten from the start
  }
}

}  // namespace fastray
