// The table of placement groups, and the messages by which a process asks the node for one. See types.h for the words.
//
//   group    bundles of resources that are reserved together, out of the node's (SchedulerState decides when)
//   life     counts the groups that an entry had: a class names its group by entry and life
//
// Only the node writes the table: whoever wants a group sends a GroupRequest and looks for its id here.
#pragma once

#include "types.h"

namespace fastray {

inline constexpr uint32_t kGroupsMax = 1024;  // entries; 0 is "none"
inline constexpr uint32_t kGroupIdBytes = 18;

enum GroupState : uint32_t {
  kGroupFree = 0,
  kGroupRefused = 1,  // another has its name
  kGroupPending = 2,  // waits for resources
  kGroupReady = 3,    // its bundles are reserved
  kGroupRemoved = 4,  // what stands in its classes' queues fails; the entry stays until nothing names it
};
enum GroupFlag : uint32_t {
  kGroupDetached = 1,  // outlives its job
  kGroupForeign = 2,   // asks for resources that this node has no name for: never fits
};

struct alignas(kCacheLine) Group {
  std::atomic<uint32_t> state;
  std::atomic<uint32_t> life;
  uint32_t job, flags;
  uint8_t id[24];           // kGroupIdBytes of them
  uint64_t creator;         // creation record of the actor that made it, or 0: it lives as long as that one does too
  Offset spec;              // block: what its creator wrote about it, for Python
  uint64_t spec_bytes;
  int64_t made_ns, ready_ns, ended_ns;  // monotonic
  char name[96];
  char name_space[64];
  uint64_t reserved[kResourcesMax];  // of this node, in 1/10000 of a unit; zeros unless it is ready
};
static_assert(sizeof(Group) == 384);

// `bundles` times a number in the group and `resources` amounts follow, all u64; then `spec_bytes`.
struct GroupRequest {
  uint8_t id[24];
  uint32_t job, flags;
  uint64_t creator;
  uint32_t bundles, resources;
  uint64_t spec_bytes;
  char name[96];
  char name_space[64];
};
static_assert(sizeof(GroupRequest) == 216);

}  // namespace fastray
