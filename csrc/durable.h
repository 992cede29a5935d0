// A worker's part in a durable session: the key of the task it runs, the result of an earlier session for it, and the
// worker's own log.
//
//   key of a task   parent's key, digest of the function, content of the arguments: an ObjectRef counts as the content
//                   of its value. The same call in another session has the same key, whatever the order of things.
//   root            the driver, and tasks that never have a key (actors' methods): they run in every session anew
//   inherited       what a submitted task has of its parent, in the segment: one entry a record, written for nested
//                   tasks only
//   late            a reference inside an argument is not done when the task starts: its key is known at its end only,
//                   and what it submits has none
//
// One thread at a time (with the GIL), as Process. Used by durable.pyx.
#pragma once

#include <string>
#include <unordered_map>

#include "durable_index.h"
#include "process.h"

namespace fastray {

enum InheritedMode : uint64_t { kFromRoot = 0, kFromKeyed = 1, kNotDurable = 2 };
struct Inherited {
  Key key;      // of the parent
  uint64_t id;  // of the parent
  uint64_t mode;
};
static_assert(sizeof(Inherited) == kInheritedBytes);

enum class Content { kKnown, kNotYet, kNever };

class Durable {
 public:
  // Opens the log of this process. "" or what went wrong; then tasks run and are not kept.
  std::string open(Process* process);
  void abandon() { log_.abandon(); }  // in a forked child
  void close() { log_.close(); }

  // A task starts. `digest` 0: a function that is never durable. `captured`: what its closure refers to. `arguments`:
  // what stands for the arguments' bytes when they are no good for it; 0: they are (see holds_code).
  Content begin(Handle h, const Key& digest, const Handle* captured, size_t n, const Key& arguments);
  // True when the arguments hold functions or classes as code: its bytes differ from run to run.
  bool holds_code(Handle h) const;
  // The references among its arguments that are not done.
  std::vector<Handle> open_references(Handle h) const;
  // Takes the task's result out of the logs; keeps a note of it when the task is nested.
  bool recall(Handle h, EntryView* out);
  // True when an earlier session may have its result.
  bool may_recall(Handle h) const;
  // The task ends: true when its result is to be kept. Finds the key of a late one.
  bool wants(Handle h);
  // False: the log is not written any more, see problem().
  bool keep(Handle h, EntryFlag kind, const LogPart* parts, int n);
  const std::string& problem() const { return log_.problem(); }
  // True for one process of the session: it says that nothing is kept any more.
  bool warn_once();
  // The running task submits this record.
  void inherit(uint32_t record) {
    Inherited& to = inherited_[record];
    to.key = key_;
    to.id = id_;
    to.mode = children_;
    spawned_ = true;
  }
  void end() {
    key_ = Key{};
    children_ = kFromRoot;
  }

  // What nested execution (local mode) has to put back.
  struct Running {
    Key key;
    uint64_t id = 0, children = kFromRoot;
    Key digest, arguments;
    bool late = false, spawned = false;
  };
  Running running() const { return {key_, id_, children_, digest_, arguments_, late_, spawned_}; }
  void resume(const Running& r) {
    key_ = r.key, id_ = r.id, children_ = static_cast<InheritedMode>(r.children);
    digest_ = r.digest, arguments_ = r.arguments, late_ = r.late, spawned_ = r.spawned;
  }

 private:
  Content content_of(Handle h, int depth, Key* out);
  Content arguments_of(const Record& r, Key* key);
  Content find_key(Handle h, const Handle* captured, size_t n);

  Segment segment_;
  Inherited* inherited_ = nullptr;
  DurableArea* area_ = nullptr;
  DurableIndex index_;
  LogWriter log_;
  struct Known {
    Key key;
    uint32_t attempts;  // of its task: a lost value that was computed again may be another
  };
  std::unordered_map<Handle, Known> contents_;  // of large values
  // the running task
  Key key_;
  uint64_t id_ = 0;
  InheritedMode children_ = kFromRoot;
  Key digest_, arguments_;
  std::vector<Handle> captured_;
  bool late_ = false;
  bool spawned_ = false;
};

}  // namespace fastray
