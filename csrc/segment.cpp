// See segment.h.
#include "segment.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os.h"

namespace fastray {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t page_up(uint64_t n) { return (n + kPage - 1) & ~(kPage - 1); }
constexpr uint64_t region_up(uint64_t n) { return (n + kRegionBytes - 1) / kRegionBytes * kRegionBytes; }

// Words in the region table per region: the allocator's own state (see object_allocator.h).
constexpr uint64_t kRegionEntryBytes = 64;

struct Layout {
  Header h{};
  explicit Layout(const Segment::Limits& limits) {
    uint64_t at = page_up(sizeof(Header));
    auto take = [&at](uint64_t bytes) {
      uint64_t here = at;
      at = page_up(at + bytes);
      return here;
    };
    h.magic = kMagic;
    h.wire_version = kWireVersion;
    h.page_bytes = kPage;
    h.session = limits.session;
    h.object_store_bytes = limits.object_store_bytes;
    h.lineage_tasks = kLineageTasksMax;
    h.lineage_file_bytes = kLineageFileBytesMax;
    h.procs = take(sizeof(Proc) * kProcsMax);
    h.recorders = take(sizeof(FlightRecorder) * kProcsMax);
    h.failures = take(sizeof(FailureLog));
    h.ledgers = take(sizeof(Ledger) * kProcsMax);
    h.classes = take(sizeof(Class) * (kClassesMax + kActorsMax));
    h.queues = take(sizeof(Queue) * kQueuesMax);
    h.functions = take(sizeof(Function) * kFunctionsMax);
    h.actors = take(sizeof(Actor) * kActorsMax);
    h.actor_logs = take(sizeof(uint64_t) * kActorLogEntries * kActorsMax);
    h.jobs = take(sizeof(Job) * kJobsKept);
    h.groups = take(sizeof(Group) * kGroupsMax);
    h.chunk_owners = take(sizeof(uint32_t) * kChunksMax);
    h.returned = take(uint64_t{kRecordsMax} / 8);
    h.records = take(sizeof(Record) * uint64_t{kRecordsMax});
    if (limits.durable_bytes != 0) {
      h.durable = take(limits.durable_bytes);
      h.inherited = take(kInheritedBytes * uint64_t{kRecordsMax});
    }
    // Task bookkeeping (queues, edges, small arguments) shares the data area with objects, and large
    // objects take whole regions: the area is larger than the store, which object_store_bytes bounds.
    h.data_bytes = region_up(2 * limits.object_store_bytes + (uint64_t{4} << 30));
    h.regions = take(kRegionEntryBytes * (h.data_bytes / kRegionBytes));
    h.data = at = region_up(at);
    h.segment_bytes = at + h.data_bytes;
  }
};

}  // namespace

std::string Segment::create(const Limits& limits, Segment* out) {
  Layout layout(limits);
  int fd = os::memfd("fastray", layout.h.segment_bytes);
  if (fd < 0) return std::string("memfd_create: ") + strerror(-fd);
  if (pwrite(fd, &layout.h, sizeof layout.h, 0) != static_cast<ssize_t>(sizeof layout.h)) {
    int error = errno;
    close(fd);
    return std::string("writing the segment header: ") + strerror(error);
  }
  return attach(fd, out);
}

std::string Segment::attach(int fd, Segment* out) {
  struct stat st {};
  if (fstat(fd, &st) != 0) return std::string("fstat of the segment: ") + strerror(errno);
  Header h;
  if (pread(fd, &h, sizeof h, 0) != static_cast<ssize_t>(sizeof h) || h.magic != kMagic)
    return "the file descriptor is not a fastray segment";
  if (h.wire_version != kWireVersion)
    return "segment version " + std::to_string(h.wire_version) + ", this build speaks " +
           std::to_string(kWireVersion);
  if (static_cast<uint64_t>(st.st_size) < h.segment_bytes) return "the segment is truncated";
  void* base = os::map_segment(fd, h.segment_bytes);
  if (base == nullptr) return std::string("mmap of the segment: ") + strerror(errno);
  out->fd_ = fd;
  out->base_ = static_cast<uint8_t*>(base);
  out->records_ = out->at<Record>(h.records);
  out->procs_ = out->at<Proc>(h.procs);
  return "";
}

void Segment::detach() {
  if (base_ == nullptr) return;
  os::unmap(base_, header().segment_bytes);
  base_ = nullptr;
  close_fd();
}

void Segment::close_fd() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

}  // namespace fastray
