// The segment: one sparse memfd that holds all shared state of a node, mapped whole by each process.
// `Segment` is a process's view of it: base pointer and typed access; copies are cheap. Whoever starts
// a session calls `create`; everyone else `attach`es by file descriptor. Only touched pages cost memory.
#pragma once

#include <string>

#include "failure_log.h"
#include "flight_recorder.h"
#include "types_actor.h"
#include "types_group.h"

namespace fastray {

class Segment {
 public:
  struct Limits {
    uint64_t object_store_bytes;
    uint64_t session;
    uint64_t durable_bytes = 0;  // of the index of a durable session; 0: it is none
  };
  // Both return an empty string, or what went wrong.
  static std::string create(const Limits& limits, Segment* out);
  static std::string attach(int fd, Segment* out);
  void detach();
  void close_fd();  // keeps the mapping, for arrays that view it

  explicit operator bool() const { return base_ != nullptr; }
  int fd() const { return fd_; }
  uint8_t* base() const { return base_; }
  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  Record* records() const { return records_; }
  Record& record(uint32_t index) const { return records_[index]; }
  Record& record(Handle h) const { return records_[index_of(h)]; }
  Proc& proc(uint32_t slot) const { return procs_[slot]; }
  FlightRecorder& recorder(uint32_t slot) const { return at<FlightRecorder>(header().recorders)[slot]; }
  FailureLog& failures() const { return *at<FailureLog>(header().failures); }
  Ledger& ledger(uint32_t slot) const { return at<Ledger>(header().ledgers)[slot]; }
  Class& cls(uint32_t c) const { return at<Class>(header().classes)[c]; }
  Queue& queue(uint32_t q) const { return at<Queue>(header().queues)[q]; }
  Function& function(uint32_t f) const { return at<Function>(header().functions)[f]; }
  Actor& actor(uint32_t a) const { return at<Actor>(header().actors)[a]; }
  Job& job(uint32_t number) const { return at<Job>(header().jobs)[number % kJobsKept]; }
  Group& group(uint32_t g) const { return at<Group>(header().groups)[g]; }
  // Its placement group was removed.
  bool is_over(const Class& c) const {
    if (c.group == 0) return false;
    const Group& g = group(c.group);  // SYNC POINT: group-state
    return g.life.load(std::memory_order_relaxed) != c.group_life || g.state.load(std::memory_order_acquire) == kGroupRemoved;
  }
  Actor& actor_of_class(uint32_t cls) const { return actor(cls - kActorClass); }
  std::atomic<uint64_t>& actor_log(uint32_t a, uint64_t n) const {
    uint64_t entry = uint64_t{a} * kActorLogEntries + n % kActorLogEntries;
    return at<std::atomic<uint64_t>>(header().actor_logs)[entry];
  }
  std::atomic<uint32_t>& chunk_owner(uint32_t c) const {
    return at<std::atomic<uint32_t>>(header().chunk_owners)[c];
  }
  // Bit map of the records of chunk c that others gave back: kChunkRecords / 64 words.
  std::atomic<uint64_t>* returned(uint32_t c) const {
    return at<std::atomic<uint64_t>>(header().returned) + uint64_t{c} * (kChunkRecords / 64);
  }
  template <class T>
  T* at(Offset offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  Offset offset_of(const void* p) const {
    return static_cast<Offset>(static_cast<const uint8_t*>(p) - base_);
  }
  // An edge's u32 name is its offset / 16 from the start of the data area.
  Edge* edge(uint32_t e) const { return at<Edge>(header().data + uint64_t{e} * 16); }
  uint32_t edge_name(Offset o) const { return static_cast<uint32_t>((o - header().data) / 16); }

 private:
  uint8_t* base_ = nullptr;
  Record* records_ = nullptr;
  Proc* procs_ = nullptr;
  int fd_ = -1;
};

// Data area: regions of 2 MiB, owned by processes. Region 0 is never given out (offset 0 is "none").
inline constexpr uint64_t kRegionBytes = uint64_t{2} << 20;

}  // namespace fastray
