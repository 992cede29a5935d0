// What workers print, on its way to the driver. Lines are read from the workers' pipes, framed and sent to
// the driver's log socket; the end of each worker's stderr is kept for the error of a task that dies with it.
//
//   source  a worker's stdout or stderr pipe, with the line that is not complete yet
//   frame   u32 pid, u8 stream (1 stdout, 2 stderr), u32 bytes, then the bytes: whole lines
//
// Nothing is lost and nothing waits: when the driver is slow, at most kBufferBytesMax wait here, then the
// pipes are left unread, and in the end it is the worker's own write that waits. Used by the node's loop.
#pragma once

#include <cstdint>
#include <string>

namespace fastray {

class LogPump {
 public:
  static constexpr size_t kBufferBytesMax = size_t{1} << 20;
  static constexpr size_t kLineBytesMax = size_t{16} << 10;
  static constexpr size_t kTailBytes = 4096;
  static constexpr size_t kFrameHead = 9;

  struct Source {
    int fd = -1;
    uint8_t stream = 1;
    uint32_t pid = 0;
    std::string partial;
    std::string tail;  // of stderr
  };

  void set_fd(int fd) { fd_ = fd; }  // -1: what is read is thrown away (but the tail)
  // Reads what is there; at most `most` bytes. False at the end of the pipe.
  bool read(Source& source, size_t most);
  // Reads to the end or until the pipe is empty, and passes an incomplete line on too.
  void finish(Source& source);
  // Whole lines that another node's worker printed.
  void pass(const Source& source, const char* data, size_t bytes) { frame(source, data, bytes); }
  void flush();  // sends what the socket takes now
  bool empty() const { return sent_ == buffer_.size(); }
  bool full() const { return buffer_.size() - sent_ >= kBufferBytesMax; }

 private:
  void frame(const Source& source, const char* data, size_t bytes);

  int fd_ = -1;
  std::string buffer_;
  size_t sent_ = 0;
};

}  // namespace fastray
