// The operating system, as fastray uses it: futexes, membarrier, memfd, pidfd, pauses. Nothing here
// knows of records. Every call that can fail returns -errno or a value; nothing throws.
//
// Fences across processes: a worker that goes to sleep must not miss a task published at the same
// moment, and the publisher must not pay a full fence for each task. So the *sleeper* runs
// membarrier(GLOBAL_EXPEDITED), which makes every registered process pass a full fence. Where the
// kernel has no such call (Header::membarrier == 0), publishers fence instead.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fastray::os {

// Sleeps while *word == expected, at most timeout_ns (< 0: for ever). Returns 0 when woken or when the
// word differs, -ETIMEDOUT, or -EINTR when a signal arrived.
int futex_wait(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ns);
int futex_wake(std::atomic<uint32_t>* word, int count);

bool membarrier_register();  // false: not available here
void membarrier_all();       // a full fence in every registered process

int memfd(const char* name, size_t bytes);  // fd, or -errno
// Maps the whole segment shared and read-write, kept out of children made by a user's fork().
void* map_segment(int fd, size_t bytes);  // nullptr on failure
void unmap(void* base, size_t bytes);
// Commits the pages of [p, p + bytes): false (and no SIGBUS later) when memory is not there.
bool populate(void* p, size_t bytes);

// Closes descriptors first..last, whatever is open of them.
void close_range(unsigned first, unsigned last);
int pidfd_open(int pid);
int pidfd_signal(int pidfd, int signal);
int64_t now_ns();     // CLOCK_MONOTONIC
int64_t wall_ns();    // CLOCK_REALTIME
uint64_t oom_kills();  // processes that the kernel killed for want of memory since it booted; 0 when it does not say
uint64_t random_u64();

inline uint64_t ticks() {  // time stamp counter: for spinning limits only, never for results
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t v;
  asm volatile("mrs %0, cntvct_el0" : "=r"(v));
  return v;
#else
  return static_cast<uint64_t>(now_ns());
#endif
}
double ticks_per_us();  // measured once

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
int current_cpu();

}  // namespace fastray::os
