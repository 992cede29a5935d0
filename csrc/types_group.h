// The table of placement groups, and the messages by which a process asks the node for one. See types.h for the words.
//
//   group    bundles of resources that are reserved together, out of the node's (SchedulerState decides when)
//   life     counts the groups that an entry had: a class names its group by entry and life
//   attempt  of a cluster's group: which of its rows in the global control store a message follows from
//
// Only the node writes the table: whoever wants a group sends a GroupRequest and looks for its id here. In a cluster
// the agent sends one too, for each group of the cluster and each change of it: what state it is in, and which bundles
// this node is to hold (kSetGroup).
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
  kGroupMoving = 5,   // of a cluster: bundles were lost with their node, and are placed anew
  kGroupAsked = 6,    // of a cluster: the store has not said yet whether its name is free
};
enum GroupFlag : uint32_t {
  kGroupDetached = 1,  // outlives its job
  kGroupForeign = 2,   // asks for resources that this node has no name for: never fits
  kGroupShared = 4,    // of a cluster: its bundles are where the agent says
  kGroupMirror = 8,    // and it was made on another node
};
inline constexpr int32_t kBundleHere = -2;  // Class::bundle: any bundle of the group that this node holds

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
  std::atomic<uint32_t> held;  // the attempt in which this node last held all bundles that it is to hold, + 1
  uint32_t asked;              // the attempt of the last kSetGroup, + 1
};
static_assert(sizeof(Group) == 384);

// `bundles` times a number in the group (| kBundleOpen) and `resources` amounts follow, all u64; then `spec_bytes`.
inline constexpr uint64_t kBundleOpen = uint64_t{1} << 32;  // of kSetGroup: it may be used, all nodes have agreed
struct GroupRequest {
  uint8_t id[24];
  uint32_t job, flags;
  uint64_t creator;
  uint32_t bundles, resources;
  uint64_t spec_bytes;
  char name[96];
  char name_space[64];
  uint32_t state, attempt;  // of kSetGroup
};
static_assert(sizeof(GroupRequest) == 224);

}  // namespace fastray
