// Specs of finished tasks that memory has no room for: an unnamed temporary file, private to their owner. Called by
// process_filed.cpp.
//
//   spec       what is needed to run a task again: function, class, arguments
//   argument   a value, or the place of the spec that makes it
//   place      offset in the file, plus one; 0 is "none"
//
// The file only grows, and is emptied when nothing in it is wanted. It has no name: it goes with its process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastray {

class LineageFile {
 public:
  struct Argument {
    uint64_t place = 0;  // 0: `value` has the bytes of a result line
    std::string value;
  };
  struct Spec {
    uint64_t id = 0;
    uint32_t function = 0;
    uint16_t cls = 0;
    uint8_t depth = 0, attempts = 0;
    std::vector<Argument> arguments;
    std::string codec;
    std::vector<std::string> buffers;  // out-of-band
  };

  explicit LineageFile(uint64_t bytes_max) : bytes_max_(bytes_max) {}
  ~LineageFile();
  LineageFile(const LineageFile&) = delete;
  LineageFile& operator=(const LineageFile&) = delete;

  [[nodiscard]] uint64_t append(const Spec& spec);  // its place; 0: the limit is reached, or the disk is full
  [[nodiscard]] bool read(uint64_t place, Spec* spec);
  void clear();
  uint64_t bytes() const { return flushed_ + buffer_.size(); }

 private:
  bool open();
  bool flush();

  uint64_t bytes_max_;
  int fd_ = -1;
  uint64_t flushed_ = 0;
  std::string buffer_;  // what is not written yet
};

}  // namespace fastray
