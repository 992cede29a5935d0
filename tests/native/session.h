// A session in one address space, for the native tests: a segment, one class, one function, and processes
// that are just `Process` objects. A task adds up what its dependencies' results say, and one; return value i of
// several is that plus i, and so is item i of a stream.
#pragma once

#include <string.h>

#include <memory>
#include <vector>

#include "../../csrc/process.h"
#include "testing.h"

namespace fastray::testing {

inline constexpr uint32_t kFunction = 1, kStreamFunction = 2;
inline constexpr uint32_t kItems = 3;           // of a stream
inline constexpr size_t kItemPayload = 5000;    // item 1 is a payload

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
    for (uint32_t i : {kFunction, kStreamFunction}) {
      Function& f = segment.function(i);
      f.max_retries = max_retries;
      f.returns = 1;
      f.flags = i == kStreamFunction ? uint32_t{kStreaming} : 0;
      f.state.store(kEntryUsed);
    }
    header.functions_used.store(3);
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
  uint64_t value(Handle h) const { return value_of(segment, h); }
  static uint64_t value_of(const Segment& segment, Handle h) {
    const Record& r = segment.record(h);
    bool heap = r.state.load(std::memory_order_acquire) & kFlagResultHeap;
    uint64_t v;
    memcpy(&v, heap ? Process::view_payload(segment, r.result_heap.offset).codec : r.result, sizeof v);
    return v;
  }
};

// The dependencies are held by the submitter until the task is freed, as submit.pyx does.
inline Handle make_task(Process& p, const std::vector<Handle>& deps, Record** record, uint64_t* flags) {
  Record* r = p.allocate_record();
  CHECK(r != nullptr);
  r->id = p.next_id();
  r->function = kFunction;
  r->cls = 0;
  r->parent = 0;
  r->kind = kTask;
  r->depth = 1;
  r->ret = 1;
  r->attempts = 0;
  r->references = 0;
  uint32_t n = static_cast<uint32_t>(deps.size());
  bool heap = n * sizeof(Handle) > kInlineArgs;
  *flags = n == 0 ? uint64_t{0} : uint64_t{kFlagRefs};
  r->args_bytes = heap ? kArgsInHeap : static_cast<uint8_t>(n * sizeof(Handle));
  r->dependencies = heap ? 0 : static_cast<uint8_t>(n);
  if (heap) {
    PayloadView view;
    r->args_heap.offset = p.make_payload({deps.data(), n, 0, nullptr, 0, nullptr, 0}, p.handle_of(r), &view);
    CHECK(r->args_heap.offset != 0);
    *flags |= kFlagArgHeap;
  } else if (n != 0) {
    memcpy(r->args, deps.data(), n * sizeof(Handle));
  }
  for (Handle d : deps) p.hold(d);
  *record = r;
  return p.handle_of(r);
}

inline Handle submit(Process& p, const std::vector<Handle>& deps = {}) {
  Record* r;
  uint64_t flags;
  Handle h = make_task(p, deps, &r, &flags);
  CHECK(deps.empty() ? p.publish(r, h, flags) : p.publish_waiting(r, h, flags));
  return h;
}

// A task with k return values, as submit.pyx makes it; the caller holds the promises.
inline Handle submit_returns(Process& p, uint16_t k, const std::vector<Handle>& deps = {}) {
  Record* r;
  uint64_t flags;
  Handle h = make_task(p, deps, &r, &flags);
  r->ret = k;
  CHECK(p.make_promises(*r, h));
  flags |= kFlagMulti | kFlagShared;
  CHECK(deps.empty() ? p.publish(r, h, flags) : p.publish_waiting(r, h, flags));
  return h;
}

inline std::vector<Handle> promises_of(const Session& s, Handle task) {
  const Record& r = s.segment.record(task);
  const Handle* handles = Process::promise_handles(s.segment, r);
  return {handles, handles + r.ret};
}

inline Handle submit_stream(Process& p) {
  Record* r;
  uint64_t flags;
  Handle h = make_task(p, {}, &r, &flags);
  r->function = kStreamFunction;
  memset(r->result, 0, sizeof r->result);
  CHECK(p.publish(r, h, flags | kFlagMulti));
  return h;
}

// Writes a value where the record is ours to fill; the flags to seal it with.
inline uint64_t write_value(Process& p, Handle h, Record& r, uint64_t value, size_t payload_bytes) {
  if (payload_bytes == 0) {
    memcpy(r.result, &value, sizeof value);
    r.result_bytes = sizeof value;
    return 0;
  }
  PayloadView view;
  Offset o = p.make_payload(PayloadShape{nullptr, 0, 0, nullptr, payload_bytes, nullptr, 0}, h, &view);
  CHECK(o != 0);
  memset(view.codec, 7, payload_bytes);
  memcpy(view.codec, &value, sizeof value);
  r.result_heap = HeapRef{o, payload_bytes};
  r.result_bytes = static_cast<uint32_t>(payload_bytes);
  return kFlagResultHeap;
}

inline Handle put(Process& p, uint64_t value, size_t payload_bytes = 0) {
  Record* r = p.allocate_record();
  CHECK(r != nullptr);
  Handle h = p.handle_of(r);
  r->kind = kObject;
  r->args_bytes = r->dependencies = r->references = 0;
  p.publish_state(r, h, kDone, write_value(p, h, *r, value, payload_bytes));
  return h;
}

// Items up to `end`, as worker.pyx and streams.pyx make them: those that are there already are skipped.
inline void make_items(Process& p, Handle h, uint64_t sum, uint32_t end = kItems) {
  Record& r = p.segment().record(h);
  for (uint32_t i = 0; i < end; ++i) {
    if (r.state.load() & kFlagDetached) return;
    if (i < Process::stream_of(r).produced.load()) continue;
    Record* item = p.begin_item(h, i);
    CHECK(item != nullptr);
    uint64_t flags = write_value(p, p.handle_of(item), *item, sum + i, i == 1 ? kItemPayload : 0);
    p.append_item(h, item, kDone, flags);
  }
}

// As seal_returns in worker.pyx: all are written, then sealed; what an attempt that died sealed stands.
inline void seal_returns(Process& p, Handle h, uint64_t sum) {
  Record& r = p.segment().record(h);
  const Handle* promises = Process::promise_handles(p.segment(), r);
  std::vector<uint64_t> flags(r.ret);
  for (uint16_t i = 0; i < r.ret; ++i) {
    (void)p.revive(promises[i]);
    if (!p.sealed(promises[i]))
      flags[i] = write_value(p, promises[i], p.segment().record(promises[i]), sum + i, i == 1 ? 300 : 0);
  }
  for (uint16_t i = 0; i < r.ret; ++i)
    if (!p.sealed(promises[i])) CHECK(p.seal_promise(promises[i], kDone, flags[i]));
}

// What a worker does with a task it claimed. False: it was not ours any more.
inline bool run(Process& p, Handle h, size_t payload_bytes = 0) {
  Record& r = p.segment().record(h);
  uint32_t deps, refs;
  const Handle* handles = Process::argument_handles(p.segment(), r, &deps, &refs);
  uint64_t sum = 1, flags = 0;
  for (uint32_t i = 0; i < deps; ++i) {
    CHECK(p.sealed(handles[i]));
    sum += Session::value_of(p.segment(), handles[i]);
  }
  if (r.function == kStreamFunction)
    make_items(p, h, sum);
  else if (r.state.load() & kFlagMulti)
    seal_returns(p, h, sum);
  else
    flags = write_value(p, h, r, sum, payload_bytes);
  bool ours = p.seal(h, kDone, flags);
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
