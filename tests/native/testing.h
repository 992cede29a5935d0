// What the native tests share: CHECK, a seeded generator, a small segment. A test is a plain main() that
// prints "ok" and returns 0; CHECK says where it failed and aborts.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include <cstdint>
#include <string>

#include "../../csrc/segment.h"

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition);      \
      abort();                                                                           \
    }                                                                                    \
  } while (false)

namespace fastray::testing {

// xorshift: the same numbers everywhere, so a seed replays a failure
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  uint64_t below(uint64_t n) { return next() % n; }

 private:
  uint64_t state_;
};

// FASTRAY_SEED overrides the default, to replay
inline uint64_t seed_or(uint64_t fallback) {
  const char* s = getenv("FASTRAY_SEED");
  return s != nullptr ? strtoull(s, nullptr, 0) : fallback;
}

inline Segment make_segment(uint64_t object_store_bytes) {
  Segment s;
  std::string error = Segment::create({.object_store_bytes = object_store_bytes, .session = 1}, &s);
  if (!error.empty()) {
    fprintf(stderr, "segment: %s\n", error.c_str());
    abort();
  }
  return s;
}

}  // namespace fastray::testing
