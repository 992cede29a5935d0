// A session in one address space, for the native tests: a segment, one class, one function, and processes
// that are just `Process` objects. A task adds up what its dependencies' results say, and one.
#pragma once

#include <string.h>

#include <memory>
#include <vector>

#include "../../csrc/process.h"
#include "testing.h"

namespace fastray::testing {

inline constexpr uint32_t kFunction = 1;

struct Session {
  Segment segment = make_segment(uint64_t{256} << 20);

  explicit Session(int32_t max_retries = 3) {
    Header& header = segment.header();
    header.membarrier = os::membarrier_register();
    header.cpus = 2;
    Class& c = segment.cls(0);
    c.demand[0] = 10000;
    c.leases.store(2);
    c.state.store(kEntryUsed);
    header.classes_used.store(1);
    Function& f = segment.function(kFunction);
    f.max_retries = max_retries;
    f.returns = 1;
    f.state.store(kEntryUsed);
    header.functions_used.store(2);
  }
  ~Session() { segment.detach(); }

  std::unique_ptr<Process> process(uint32_t kind, int slot) {
    auto p = std::make_unique<Process>();
    CHECK(p->attach(segment, kind, slot, -1).empty());
    if (kind == kProcWorker) p->self().lease.store(1);
    return p;
  }
  uint64_t word(Handle h) const { return segment.record(h).state.load(std::memory_order_acquire); }
  bool lives(Handle h) const { return word_gen(word(h)) == gen_of(h); }
  uint64_t value(Handle h) const {
    uint64_t v;
    memcpy(&v, segment.record(h).result, sizeof v);
    return v;
  }
};

// The dependencies are held by the submitter until the task is freed, as submit.pyx does.
inline Handle make_task(Process& p, const std::vector<Handle>& deps, Record** record, uint64_t* flags) {
  Record* r = p.allocate_record();
  CHECK(r != nullptr && deps.size() * sizeof(Handle) <= kInlineArgs);
  r->id = p.next_id();
  r->function = kFunction;
  r->cls = 0;
  r->parent = 0;
  r->kind = kTask;
  r->depth = 1;
  r->ret = 1;
  r->attempts = 0;
  r->args_bytes = static_cast<uint8_t>(deps.size() * sizeof(Handle));
  r->dependencies = static_cast<uint8_t>(deps.size());
  r->references = 0;
  if (!deps.empty()) memcpy(r->args, deps.data(), deps.size() * sizeof(Handle));
  for (Handle d : deps) p.hold(d);
  *record = r;
  *flags = deps.empty() ? uint64_t{0} : uint64_t{kFlagRefs};
  return p.handle_of(r);
}

inline Handle submit(Process& p, const std::vector<Handle>& deps = {}) {
  Record* r;
  uint64_t flags;
  Handle h = make_task(p, deps, &r, &flags);
  CHECK(deps.empty() ? p.publish(r, h, flags) : p.publish_waiting(r, h, flags));
  return h;
}

inline Handle put(Process& p, uint64_t value, size_t payload_bytes = 0) {
  Record* r = p.allocate_record();
  CHECK(r != nullptr);
  Handle h = p.handle_of(r);
  r->kind = kObject;
  r->args_bytes = r->dependencies = r->references = 0;
  uint64_t flags = 0;
  if (payload_bytes != 0) {
    PayloadView view;
    Offset o = p.make_payload(PayloadShape{nullptr, 0, 0, nullptr, payload_bytes, nullptr, 0}, h, &view);
    CHECK(o != 0);
    memset(view.codec, 7, payload_bytes);
    r->result_heap = HeapRef{o, payload_bytes};
    flags = kFlagResultHeap;
  } else {
    memcpy(r->result, &value, sizeof value);
    r->result_bytes = sizeof value;
  }
  p.publish_state(r, h, kDone, flags);
  return h;
}

// What a worker does with a task it claimed. False: it was not ours any more.
inline bool run(Process& p, Handle h) {
  Record& r = p.segment().record(h);
  uint32_t deps, refs;
  const Handle* handles = Process::argument_handles(p.segment(), r, &deps, &refs);
  uint64_t sum = 1;
  for (uint32_t i = 0; i < deps; ++i) {
    CHECK(p.sealed(handles[i]));
    uint64_t v;
    memcpy(&v, p.segment().record(handles[i]).result, sizeof v);
    sum += v;
  }
  memcpy(r.result, &sum, sizeof sum);
  r.result_bytes = sizeof sum;
  bool ours = p.seal(h, kDone, 0);
  p.end_task();
  return ours;
}

// Runs what is ready until nothing is; returns how many ran.
inline size_t drain(Process& p) {
  size_t n = 0;
  while (Handle h = p.claim_next()) {
    CHECK(run(p, h));
    ++n;
  }
  return n;
}

}  // namespace fastray::testing
