// A `Key`: 128 bits that stand for content. Two contents of equal keys are taken for the same; with 10^9 of them the
// chance that any two differ is below 10^-20. Not for secrets: who wants to can make two contents of one key.
//
//   lane     one of two 64-bit halves; each sees all bytes, with constants of its own
//   fold     the product of two words, its halves combined: every bit of the result depends on all of both
//   absorb   a key and bytes (with their length) make the next key
//
// Little-endian only, as the segment is. Used by durable.cpp (keys of tasks), durable_log.cpp (checksums) and, through
// durable.pyx, the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastray {

struct Key {
  uint64_t lo = 0, hi = 0;
  bool operator==(const Key& o) const { return lo == o.lo && hi == o.hi; }
};
// Key 0 means "no key"; a table of keys uses lo == 0 for "empty".
constexpr bool is_key(const Key& k) { return k.lo != 0; }

namespace content_key {

// The first digits of pi's fraction, made odd.
inline constexpr uint64_t kPi[8] = {0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1, 0x082EFA98EC4E6C89,
                                    0x452821E638D01377, 0xBE5466CF34E90C6D, 0xC0AC29B7C97C50DD, 0x3F84D5B5B5470917};

inline uint64_t fold(uint64_t a, uint64_t b) {
  unsigned __int128 m = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(m) ^ static_cast<uint64_t>(m >> 64);
}
inline uint64_t read64(const uint8_t* p) {
  uint64_t v;
  memcpy(&v, p, 8);
  return v;
}
inline uint64_t read32(const uint8_t* p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}
inline void block(Key& k, uint64_t a, uint64_t b) {
  k.lo = fold(a ^ kPi[0], b ^ k.lo);
  k.hi = fold(b ^ kPi[1], a ^ k.hi);
}

// Long content in four independent pairs of lanes: the multiplier, not its latency, is the limit.
inline void stripes(Key& k, const uint8_t*& p, size_t& n) {
  Key s[4];
  for (int i = 0; i < 4; ++i) s[i] = Key{k.lo ^ kPi[i], k.hi ^ kPi[4 + i]};
  for (; n > 64; p += 64, n -= 64)
    for (int i = 0; i < 4; ++i) block(s[i], read64(p + 16 * i), read64(p + 16 * i + 8));
  for (int i = 0; i < 4; ++i) block(k, s[i].lo, s[i].hi);
}

}  // namespace content_key

inline Key absorb(Key k, const void* data, size_t n) {
  using namespace content_key;
  auto* p = static_cast<const uint8_t*>(data);
  k.lo ^= n * kPi[2];
  k.hi += n * kPi[3];
  if (n >= 256) stripes(k, p, n);
  for (; n > 16; p += 16, n -= 16) block(k, read64(p), read64(p + 8));
  uint64_t a = 0, b = 0;
  if (n >= 8) {
    a = read64(p);
    b = read64(p + n - 8);
  } else if (n >= 4) {
    a = read32(p);
    b = read32(p + n - 4);
  } else if (n > 0) {
    a = uint64_t{p[0]} << 16 | uint64_t{p[n >> 1]} << 8 | p[n - 1];
  }
  block(k, a, b);
  k.lo = fold(k.lo ^ kPi[4], kPi[5]);
  k.hi = fold(k.hi ^ kPi[6], kPi[7]);
  if (k.lo == 0) k.lo = 1;
  return k;
}
inline Key absorb(Key k, const Key& more) { return absorb(k, &more, sizeof more); }

}  // namespace fastray
