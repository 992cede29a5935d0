// See log_pump.h.
#include "log_pump.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace fastray {

bool LogPump::read(Source& source, size_t most) {
  char chunk[16384];
  while (most > 0) {
    ssize_t n = ::read(source.fd, chunk, std::min(most, sizeof chunk));
    if (n == 0) return false;
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    size_t bytes = static_cast<size_t>(n);
    most -= bytes;
    if (source.stream == 2) {
      source.tail.append(chunk, bytes);
      if (source.tail.size() > kTailBytes) source.tail.erase(0, source.tail.size() - kTailBytes);
    }
    source.partial.append(chunk, bytes);
    size_t end = source.partial.rfind('\n');
    if (end != std::string::npos) {
      frame(source, source.partial.data(), end + 1);
      source.partial.erase(0, end + 1);
    }
    if (source.partial.size() >= kLineBytesMax) {
      frame(source, source.partial.data(), source.partial.size());
      source.partial.clear();
    }
    if (bytes < sizeof chunk) break;
  }
  return true;
}

void LogPump::finish(Source& source) {
  for (size_t total = 0; total < kBufferBytesMax; total += kLineBytesMax) {
    size_t before = buffer_.size() + source.partial.size();
    if (!read(source, kLineBytesMax) || buffer_.size() + source.partial.size() == before) break;
  }
  if (!source.partial.empty()) frame(source, source.partial.data(), source.partial.size());
  source.partial.clear();
}

void LogPump::frame(const Source& source, const char* data, size_t bytes) {
  if (fd_ < 0) return;
  char head[kFrameHead];
  uint32_t length = static_cast<uint32_t>(bytes);
  memcpy(head, &source.pid, 4);
  head[4] = static_cast<char>(source.stream);
  memcpy(head + 5, &length, 4);
  buffer_.append(head, sizeof head);
  buffer_.append(data, bytes);
}

void LogPump::flush() {
  while (!empty() && fd_ >= 0) {
    ssize_t n = send(fd_, buffer_.data() + sent_, buffer_.size() - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) {  // nobody reads any more
      fd_ = -1;
      break;
    }
    sent_ += static_cast<size_t>(n);
  }
  if (fd_ < 0 || empty()) {
    buffer_.clear();
    sent_ = 0;
  } else if (sent_ > kBufferBytesMax) {
    buffer_.erase(0, sent_);
    sent_ = 0;
  }
}

}  // namespace fastray
