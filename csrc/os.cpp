// See os.h.
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace fastray::os {

int futex_wait(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ns) {
  timespec ts{};
  timespec* limit = nullptr;
  if (timeout_ns >= 0) {
    ts.tv_sec = timeout_ns / 1000000000;
    ts.tv_nsec = timeout_ns % 1000000000;
    limit = &ts;
  }
  if (syscall(SYS_futex, word, FUTEX_WAIT, expected, limit, nullptr, 0) == 0) return 0;
  return errno == EAGAIN ? 0 : -errno;
}

int futex_wake(std::atomic<uint32_t>* word, int count) {
  return static_cast<int>(syscall(SYS_futex, word, FUTEX_WAKE, count, nullptr, nullptr, 0));
}

bool membarrier_register() {
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

void membarrier_all() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
}

int memfd(const char* name, size_t bytes) {
  int fd = static_cast<int>(syscall(SYS_memfd_create, name, MFD_CLOEXEC));
  if (fd < 0) return -errno;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

void* map_segment(int fd, size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (p == MAP_FAILED) return nullptr;
  madvise(p, bytes, MADV_DONTDUMP);
  return p;
}

void close_range(unsigned first, unsigned last) {
#ifdef SYS_close_range
  if (syscall(SYS_close_range, first, last, 0) == 0) return;
#endif
  long open_max = sysconf(_SC_OPEN_MAX);
  for (unsigned fd = first; fd <= last && fd < static_cast<unsigned long>(open_max); ++fd) close(static_cast<int>(fd));
}

void unmap(void* base, size_t bytes) { munmap(base, bytes); }

bool populate(void* p, size_t bytes) {
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
  if (madvise(p, bytes, MADV_POPULATE_WRITE) == 0) return true;
  return errno == EINVAL || errno == ENOSYS;  // an old kernel: pages come at first touch
}

int pidfd_open(int pid) {
  int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  return fd < 0 ? -errno : fd;
}

int pidfd_signal(int pidfd, int signal) {
  return syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0 ? 0 : -errno;
}

int64_t now_ns() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1000000000 + ts.tv_nsec;
}

int64_t wall_ns() {
  timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  return int64_t{ts.tv_sec} * 1000000000 + ts.tv_nsec;
}

uint64_t oom_kills() {
  FILE* f = fopen("/proc/vmstat", "re");
  if (f == nullptr) return 0;
  char line[128];
  unsigned long long kills = 0;
  while (fgets(line, sizeof line, f) != nullptr && sscanf(line, "oom_kill %llu", &kills) != 1) {
  }
  fclose(f);
  return kills;
}

uint64_t random_u64() {
  uint64_t v = 0;
  while (getrandom(&v, sizeof v, 0) != sizeof v) {
  }
  return v;
}

double ticks_per_us() {
  static const double value = [] {
    int64_t t0 = now_ns();
    uint64_t c0 = ticks();
    int64_t t1 = t0;
    while (t1 - t0 < 200000) t1 = now_ns();
    return static_cast<double>(ticks() - c0) * 1000.0 / static_cast<double>(t1 - t0);
  }();
  return value;
}

int current_cpu() { return sched_getcpu(); }

}  // namespace fastray::os
