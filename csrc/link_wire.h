// What the agents of two nodes write to each other: frames of little-endian words, encoded and decoded here.
//
//   frame      FrameHead, then `bytes` of body
//   ref        RefHead: which record of which node is meant; its value may follow, when it is small and sent first
//   value      ValueHead, its refs, then codec bytes, lengths of buffers and buffers, each padded to 8 bytes
//   message    a frame for Python (fastray/transfer/): what a function is, what is to be printed
//
// Both ends are of one wire version (they say so before the first frame), so structs travel as they are. A Reader
// never reads past the end: a frame that is too short makes it bad, and the link is closed.
#pragma once

#include <string.h>

#include <string>

#include "types.h"

namespace fastray {

enum FrameKind : uint32_t {
  kFrameMessage = 1,  // for Python
  kFrameTask = 2,     // TaskHead, refs (dependencies first), codec, buffers: run this, or create this actor
  kFrameResult = 3,   // ResultHead, then a value, or a ref (kAway)
  kFrameRelease = 4,  // u64 handle, u64 count: so many refs to it are no longer held
  kFrameCancel = 5,   // u64 wire, u64 force
  kFrameFetch = 6,    // u64 handle, u64 tag, u64 FetchHow: send its value when it is there
  kFrameActor = 8,    // ActorHead: what became of an actor that was created there
  kFrameActorStop = 9,  // u64 handle of its creation there, u64 Link::Stop
  kFrameItem = 10,      // u64 wire, u32 number, u32 state, a value: of a stream, in order
  kFrameConsumed = 11,  // u64 wire, u64 items: so many of its items were taken where it was submitted
  kFrameLogged = 12,      // u64 wire of a creation, u64 place, u64 wire of a call of it: it is in the actor's log
  kFrameCheckpoint = 13,  // u64 wire of a creation, u64 place, a ref: the actor's state after the calls before that place
  kFrameElsewhere = 14,  // u64 tag, u64 node, u64 handle: the value of what was asked for is there
  kFrameCopy = 15,       // u64 handle, u64 copy: the sender has the value of that record of the receiver's too
  kFrameValue = 7,    // u64 tag, u64 state, a value; kFree: it is not there. All but its lengths follows by Flight when ValueHead::bulk
};

enum FetchHow : uint64_t {
  kFetchAny = 0,   // or say where it is
  kFetchHere = 1,  // the way from there has failed: bring it
  kFetchCopy = 2,  // the record is not the asker's to keep: now or never
};

struct FrameHead {
  uint64_t kind;  // FrameKind
  uint64_t bytes;
};
struct TaskHead {
  uint64_t wire;  // handle of the task at its sender: the name it answers to
  uint32_t function;
  uint32_t codec_bytes;
  uint16_t returns;
  uint16_t dependencies, references;
  uint8_t depth;
  uint8_t multi;   // Multi
  uint32_t buffers;
  uint16_t kind;   // kTask, kActor
  uint16_t bulk;   // 1: lengths of the codec and the buffers, which go by Flight, as of a value
  uint64_t actor;  // of a call: handle of the actor's creation at the receiver; else 0
  uint32_t ahead;  // of a stream: items that may wait for its consumer, 0: any number
  uint16_t again;  // 1: from the log of an actor that died; nobody waits for its result
  uint16_t cls;    // sender's number of the class, of a placement group, in which it runs; 0: its function's
};
static_assert(sizeof(TaskHead) == 48);
enum Multi : uint8_t { kOneValue = 0, kValues = 1, kStream = 2 };
struct ActorHead {
  uint64_t wire;    // handle of the creation where it was asked for
  uint64_t remote;  // and where it runs
  uint32_t state;   // ActorState
  uint32_t end;     // ActorEnd
  uint32_t restarts;
  uint32_t cause;   // bytes of the constructor's error, which follow
  int32_t pid;      // of its process, 0: none
  uint32_t pad;
};
static_assert(sizeof(ActorHead) == 40);
struct RefHead {
  uint64_t node, handle;
  uint64_t bytes;
  uint32_t state;  // kDone, kFailed: its value follows; else 0
  uint32_t pad;
};
static_assert(sizeof(RefHead) == 32);
struct ValueHead {
  uint32_t codec_bytes;
  uint32_t references;
  uint32_t buffers;
  uint32_t bulk;  // 1: lengths, but neither codec nor buffers
};
static_assert(sizeof(ValueHead) == 16);
struct ResultHead {
  uint64_t wire;
  uint32_t state;  // kDone, kFailed: a value follows; kAway: a ref
  uint32_t value;  // number of the return value; kWholeTask: the task's only one, or its end
};
static_assert(sizeof(ResultHead) == 16);
inline constexpr uint32_t kWholeTask = ~0u;

class Writer {
 public:
  std::string out;
  template <class T>
  void put(const T& value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void bytes(const void* data, size_t n) {
    out.append(static_cast<const char*>(data), n);
    out.append((8 - n % 8) % 8, '\0');
  }
  void begin(FrameKind kind) {
    start_ = out.size();
    put(FrameHead{kind, 0});
  }
  void end() {
    uint64_t n = out.size() - start_ - sizeof(FrameHead);
    memcpy(out.data() + start_ + offsetof(FrameHead, bytes), &n, sizeof n);
  }

 private:
  size_t start_ = 0;
};

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  template <class T>
  T get() {
    T value{};
    if (left() < sizeof(T)) {
      bad_ = true;
      at_ = end_;
      return value;
    }
    memcpy(&value, at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  // n bytes and their padding; nullptr when there are not so many.
  const uint8_t* bytes(uint64_t n) {
    uint64_t padded = n + (8 - n % 8) % 8;
    if (n > left() || padded > left()) {
      bad_ = true;
      at_ = end_;
      return nullptr;
    }
    const uint8_t* data = at_;
    at_ += padded;
    return data;
  }
  size_t left() const { return static_cast<size_t>(end_ - at_); }
  bool bad() const { return bad_; }
  void fail() { bad_ = true; }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
  bool bad_ = false;
};

}  // namespace fastray
