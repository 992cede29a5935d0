// Tasks and their results between two nodes. See link.h.
//
// The exporter's record stays claimed by its agent while the importer's runs: so to everybody here the task is one
// that a worker runs, and the agent's death, or the link's, is that worker's.
#include <algorithm>

#include "link.h"

namespace fastray {

// ---- the exporter sends ----------------------------------------------------------------------------------


std::vector<uint32_t> Link::unknown_functions() {
  std::vector<uint32_t> unknown;
  for (Handle h : staged_) {
    uint32_t f = segment_.record(h).function;
    if (!knows(f) && std::find(unknown.begin(), unknown.end(), f) == unknown.end()) unknown.push_back(f);
  }
  return unknown;
}

// The same function of another job is another one there: what the peer made for it goes with its job.
uint64_t Link::identity(uint32_t function) const {
  const Function& f = segment_.function(function);
  return f.hash[0] + f.job * 0x9E3779B97F4A7C15u;
}

bool Link::knows(uint32_t function) const {
  auto it = described_.find(function);
  return it != described_.end() && it->second == identity(function);
}

void Link::describe(uint32_t function, const std::string& message) {
  described_[function] = identity(function);
  send_message(message);
}

namespace {
uint64_t group_of(const Class& c) { return uint64_t{c.group} << 32 | c.group_life; }
}  // namespace

std::vector<uint32_t> Link::unknown_classes() {
  std::vector<uint32_t> unknown;
  for (Handle h : staged_) {
    uint32_t c = segment_.record(h).cls;
    if (is_actor_class(c) || segment_.cls(c).group == 0) continue;
    auto it = described_classes_.find(c);
    bool known = it != described_classes_.end() && it->second == group_of(segment_.cls(c));
    if (!known && std::find(unknown.begin(), unknown.end(), c) == unknown.end()) unknown.push_back(c);
  }
  return unknown;
}

void Link::describe_class(uint32_t cls, const std::string& message) {
  described_classes_[cls] = group_of(segment_.cls(cls));
  send_message(message);
}

void Link::know_class(uint32_t number, uint32_t cls) {
  classes_[number] = {cls, cls == kNoClass ? 0 : group_of(segment_.cls(cls))};
}

size_t Link::outstanding_in(uint32_t cls) const {
  auto is_in = [&](Handle h) { return segment_.record(h).cls == cls; };
  return static_cast<size_t>(std::count_if(outstanding_.begin(), outstanding_.end(), is_in));
}

void Link::send_staged() {
  for (Handle h : staged_) {
    if (again_.count(h) == 0) outstanding_.insert(h);
    put_task(h);
  }
  staged_.clear();
  again_.clear();
}

void Link::put_task(Handle h) {
  const Record& r = segment_.record(h);
  uint32_t deps, refs;
  const Handle* handles = Process::argument_handles(segment_, r, &deps, &refs);
  TaskHead head{h, r.function, r.args_bytes, r.ret, static_cast<uint16_t>(deps), static_cast<uint16_t>(refs), r.depth,
                kOneValue, 0, r.kind, 0, r.kind == kTask && is_actor_class(r.cls) ? actor_there(r.cls) : 0, 0,
                static_cast<uint16_t>(again_.count(h)), 0};
  if (!is_actor_class(r.cls) && segment_.cls(r.cls).group != 0) head.cls = static_cast<uint16_t>(r.cls + 1);
  if (r.state.load(std::memory_order_acquire) & kFlagMulti) head.multi = kValues;
  if (head.multi != kOneValue && segment_.function(r.function).flags & kStreaming) {
    head.multi = kStream;
    head.ahead = Process::stream_of(const_cast<Record&>(r)).ahead_max;
    if (head.ahead != 0 && head.again == 0) streams_[h] = 0;
  }
  PayloadView view;
  const uint8_t* codec = describe_arguments(r, &head, &view);
  writer_.begin(kFrameTask);
  writer_.put(head);
  for (uint32_t i = 0; i < deps + refs; ++i) put_ref(handles[i]);
  if (head.bulk == 0) writer_.bytes(codec, head.codec_bytes);
  for (uint32_t i = 0; i < head.buffers; ++i) writer_.put(view.buffer_bytes[i]);
  for (uint32_t i = 0; i < head.buffers && head.bulk == 0; ++i) writer_.bytes(view.buffer(i), view.buffer_bytes[i]);
  writer_.end();
}

uint64_t Link::bytes_there(Handle task) const {
  uint32_t deps, refs;
  uint64_t bytes = 0;
  const Handle* handles = Process::argument_handles(segment_, segment_.record(task), &deps, &refs);
  for (uint32_t i = 0; i < deps; ++i)
    if (held_.count(handles[i]) != 0) bytes += value_bytes(segment_, segment_.record(handles[i]));
  return bytes;
}

void Link::send_cancel(Handle task, bool force) {
  if (outstanding_.count(task) == 0) return;
  writer_.begin(kFrameCancel);
  writer_.put(task);
  writer_.put(uint64_t{force});
  writer_.end();
}

// ---- the importer runs -----------------------------------------------------------------------------------

void Link::on_task(Reader& in) {
  TaskHead head = in.get<TaskHead>();
  size_t n = size_t{head.dependencies} + head.references;
  if (in.bad() || n > in.left() / sizeof(RefHead) || head.buffers > in.left() / 8) return in.fail();
  auto known = functions_.find(head.function);
  if (head.again != 0) head.ahead = 0;  // nobody consumes it
  if (known == functions_.end()) return refuse(in, head, kErrorSystem, "its function never came");
  uint32_t cls = known->second.cls;
  if (!find_class(head, &cls)) return in.fail();
  std::vector<Handle> refs;
  for (size_t i = 0; i < n && !in.bad(); ++i) refs.push_back(get_ref(in));
  if (in.bad()) return;
  if (cls == kNoClass) return refuse(in, head, kErrorGroupRemoved, "");
  if (head.bulk != 0 && !expect_arguments(&head, &refs))
    return refuse(in, head, kErrorSystem, "no room for another task on that node");
  Handle h = import_task(in, head, refs, known->second.function, cls);
  if (h == 0 && head.bulk != 0) process_.drop(refs[head.dependencies - 1]);
  if (h != 0 && head.bulk != 0) await_arguments(head, refs, h);
}

// Publishes it as a task of ours. 0: it cannot be, and the exporter has been told.
Handle Link::import_task(Reader& in, const TaskHead& head, const std::vector<Handle>& refs, uint32_t function, uint32_t cls) {
  Record* r = process_.allocate_record();
  if (r == nullptr) return refuse(in, head, kErrorSystem, "no room for another task on that node"), 0;
  Handle h = process_.handle_of(r);
  uint64_t flags = 0;
  r->id = process_.next_id();
  r->function = function;
  r->cls = static_cast<uint16_t>(cls);
  r->parent = 0;
  r->kind = static_cast<uint8_t>(head.kind == kActor ? kActor : kTask);
  r->depth = head.depth;
  r->ret = head.returns;
  r->attempts = 0;
  if (!get_arguments(in, head, refs, r, h, &flags)) {
    process_.unallocate(r);
    uint64_t bytes = in.left();
    if (!in.bad()) refuse(in, head, kErrorStoreFull, std::string(reinterpret_cast<char*>(&bytes), sizeof bytes));
    return 0;
  }
  if (head.multi == kStream) {
    memset(r->result, 0, sizeof r->result);
    Process::stream_of(*r).ahead_max = head.ahead;
  } else if (head.multi == kValues && !process_.make_promises(*r, h)) {
    if (flags & kFlagArgHeap) process_.allocator().release(r->args_heap.offset);
    process_.unallocate(r);
    return refuse(in, head, kErrorSystem, "no room for its return values on that node"), 0;
  }
  if (head.multi != kOneValue) flags |= kFlagMulti;
  if (head.multi == kValues && head.returns > 1) flags |= kFlagShared;
  for (Handle ref : refs) (void)process_.hold(ref);
  if (!refs.empty()) {
    flags |= kFlagRefs;
    if (r->kind == kTask) process_.remember_lineage(h);
  }
  if (r->kind == kActor) return on_actor_created(r, h, head.wire, flags), h;
  flags |= kFlagAwaited;  // its end wakes us
  for (uint32_t i = 0; i < head.dependencies; ++i) process_.ask_for(refs[i]);  // it was sent here to run here
  imports_.push_back(Import{head.wire, h, head.returns, static_cast<Multi>(head.multi), head.ahead});
  imports_.back().again = head.again != 0;
  if (head.actor != 0 && segment_.actor_of_class(r->cls).flags.load(std::memory_order_relaxed) & kActorCheckpoints)
    logged_calls_[h] = head.wire;
  if (head.dependencies != 0 ? process_.publish_waiting(r, h, flags) : process_.publish(r, h, flags)) return h;
  imports_.pop_back();
  logged_calls_.erase(h);
  for (Handle ref : refs) process_.drop(ref);
  if (flags & kFlagArgHeap) process_.allocator().release(r->args_heap.offset);
  process_.unallocate(r);
  return refuse(in, head, kErrorSystem, "no room for a longer queue on that node"), 0;
}

// Where it is not its function's. kNoClass: of a placement group that is removed. False: the frame makes no sense.
bool Link::find_class(const TaskHead& head, uint32_t* cls) const {
  if (head.kind == kActor) {
    auto prepared = prepared_.find(head.wire);
    if (prepared == prepared_.end()) return false;
    *cls = kActorClass + prepared->second.actor;
  } else if (head.actor != 0) {
    if (exported_.count(head.actor) == 0 || segment_.record(head.actor).kind != kActor) return false;
    *cls = segment_.record(head.actor).cls;
  } else if (head.cls != 0) {
    auto it = classes_.find(head.cls);
    if (it == classes_.end()) return false;
    bool over = it->second.first == kNoClass || group_of(segment_.cls(it->second.first)) != it->second.second;
    *cls = over ? kNoClass : it->second.first;
  }
  return true;
}

void Link::refuse(Reader& in, const TaskHead& head, ErrorCode code, const std::string& more) {
  if (head.again != 0) return in.fail();  // the actor would go on without it
  writer_.begin(kFrameResult);
  writer_.put(ResultHead{head.wire, kFailed, kWholeTask});
  writer_.put(ValueHead{static_cast<uint32_t>(more.size() + 1), 0, 0, 0});
  std::string error(1, static_cast<char>(code));
  error += more;
  writer_.bytes(error.data(), error.size());
  writer_.end();
}

// ---- the importer answers --------------------------------------------------------------------------------

bool Link::collect() {
  bool any = false;
  for (size_t n = imports_.size(); n > 0; --n) {
    Import import = imports_.front();
    imports_.pop_front();
    uint64_t w = segment_.record(import.local).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    if (state_of(w) == kLost) process_.recover(import.local);
    if (import.multi == kStream && !import.again) put_items(import);
    bool there = is_sealed(w) || state_of(w) == kAway || word_gen(w) != gen_of(import.local);
    if (!there || results_name_unknown(import)) {
      imports_.push_back(import);
      continue;
    }
    if (!logged_calls_.empty() && logged_calls_.count(import.local) != 0) {  // its place in the log comes first
      for (Hosting& hosting : hosting_) report_log(&hosting);
      logged_calls_.erase(import.local);
    }
    if (import.again)
      drop_import(import);
    else
      put_results(import);
    any = true;
  }
  if (!hosting_.empty()) report_actors();
  if (!hosted_.empty()) settle_checkpoints();
  for (size_t i = 0; i < fetch_waits_.size();) {
    Handle h = fetch_waits_[i].h;
    if (!process_.sealed(h) || names_unknown(segment_.record(h))) {
      ++i;
      continue;
    }
    answer_fetch(h, fetch_waits_[i].tag);
    fetch_waits_[i] = fetch_waits_.back();
    fetch_waits_.pop_back();
    any = true;
  }
  return any;
}

bool Link::results_name_unknown(const Import& import) {
  const Record& r = segment_.record(import.local);
  if (import.multi == kStream) return false;
  if (import.multi == kOneValue) return names_unknown(r);
  const Handle* promises = Process::promise_handles(segment_, r);
  bool any = false;
  for (uint32_t i = 0; i < import.returns; ++i) any = names_unknown(segment_.record(promises[i])) || any;
  return any;
}

void Link::put_results(const Import& import) {
  if (import.multi == kOneValue) return put_result(import.wire, kWholeTask, import.local);
  if (import.multi == kStream) return put_stream_end(import);
  const Record& r = segment_.record(import.local);
  State state = state_of(r.state.load(std::memory_order_acquire));
  const Handle* promises = Process::promise_handles(segment_, r);
  std::vector<Handle> handles(promises, promises + import.returns);
  for (uint32_t i = 0; i < import.returns; ++i) put_result(import.wire, i, handles[i]);
  writer_.begin(kFrameResult);
  writer_.put(ResultHead{import.wire, static_cast<uint32_t>(state), kWholeTask});
  writer_.put(ValueHead{0, 0, 0, 0});
  writer_.end();
  if (import.returns == 0) process_.drop(import.local);
}

// Our reference to h goes: with its value, or into what the peer holds.
void Link::put_result(uint64_t wire, uint32_t value, Handle h) {
  const Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  State state = state_of(w);
  bool stays = state == kAway || (state == kDone && (w & kFlagResultHeap) && value_bytes(segment_, r) > kInlineMax);
  writer_.begin(kFrameResult);
  writer_.put(ResultHead{wire, static_cast<uint32_t>(stays ? kAway : state), value});
  if (!stays) {
    (void)put_value(r, false);
    writer_.end();
    return process_.drop(h);
  }
  writer_.put(RefHead{self_, h, value_bytes(segment_, r), 0, 0});
  writer_.end();
  auto [it, fresh] = exported_.try_emplace(h, 0);
  if (!fresh) process_.drop(h);
  ++it->second;
}

void Link::drop_import(const Import& import) {
  if (import.multi != kValues || import.returns == 0) return process_.drop(import.local);
  const Handle* promises = Process::promise_handles(segment_, segment_.record(import.local));
  std::vector<Handle> handles(promises, promises + import.returns);
  for (Handle p : handles) process_.drop(p);
}

Handle Link::imported_as(uint64_t wire) const {
  auto it = std::find_if(imports_.begin(), imports_.end(), [&](const Import& i) { return i.wire == wire; });
  return it == imports_.end() ? 0 : it->local;
}

// ---- the exporter hears ----------------------------------------------------------------------------------

bool Link::ours(Handle task) const {
  if (index_of(task) >= kRecordsMax) return false;
  uint64_t w = segment_.record(task).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  return state_of(w) == kClaimed && word_holder(w) == process_.slot() && word_gen(w) == gen_of(task);
}

void Link::on_result(Reader& in) {
  ResultHead head = in.get<ResultHead>();
  Handle task = head.wire;
  if (in.bad() || outstanding_.count(task) == 0) return in.fail();
  State state = static_cast<State>(head.state);
  if (state != kDone && state != kFailed && state != kAway) return in.fail();
  bool whole = head.value == kWholeTask;
  if (whole) outstanding_.erase(task);
  if (!ours(task)) return;  // its job is over; what it made there goes when the other side hears of it
  Record& r = segment_.record(task);
  bool multi = r.state.load(std::memory_order_relaxed) & kFlagMulti;
  if (!whole && (!multi || head.value >= r.ret)) return in.fail();
  process_.self().claim.store(task, std::memory_order_release);  // the reaper goes on with it after our death
  if (whole && multi && segment_.function(r.function).flags & kStreaming)
    finish_stream(task, state, in);
  else if (whole && multi && state != kAway)
    (void)process_.seal(task, state, 0);
  else if (state == kAway)
    finish_away(task, head.value, in);
  else
    finish(task, head.value, state, in);
  process_.self().claim.store(0, std::memory_order_release);
}

void Link::finish_away(Handle task, uint32_t value, Reader& in) {
  RefHead ref = in.get<RefHead>();
  if (in.bad() || ref.node != peer_) return in.fail();
  Away away{peer_, ref.handle, ref.bytes};
  Handle h = value == kWholeTask ? task : Process::promise_handles(segment_, segment_.record(task))[value];
  hold_remote(h, ref.handle, false);
  moved_.push_back(h);
  if (value == kWholeTask)
    (void)process_.seal_away(task, away);
  else if (!process_.seal_promise_away(h, away))
    (void)(process_.revive(h) && process_.seal_promise_away(h, away));
}

void Link::finish(Handle task, uint32_t value, State state, Reader& in) {
  Record& t = segment_.record(task);
  Handle h = value == kWholeTask ? task : Process::promise_handles(segment_, t)[value];
  Record& r = segment_.record(h);
  uint64_t flags = 0;
  bool bulk;
  if (value != kWholeTask) {
    (void)process_.revive(h);
    uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    if (state_of(w) != kPromised || is_asked(w) || word_gen(w) != gen_of(h)) return;  // dropped, or there already
  }
  if (!get_value(in, h, &flags, &bulk)) {
    if (in.bad()) return;
    uint64_t bytes = in.left();
    process_.write_error(r, kErrorStoreFull, &bytes, sizeof bytes, &flags, h);
    state = kFailed;
  }
  if (value == kWholeTask)
    (void)process_.seal(task, state, flags);
  else
    (void)process_.seal_promise(h, state, flags);
}

// The node that ran it is gone: again, elsewhere, or it fails with `error` (an ErrorCode and what belongs to it).
void Link::fail_task(Handle task, const std::string& error) {
  if (!ours(task)) return;
  Record& r = segment_.record(task);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  if (is_actor_class(r.cls) && !(w & kFlagCancel) && fail_call(r, task)) return;
  int32_t most = segment_.function(r.function).max_retries;
  if (is_actor_class(r.cls) && segment_.actor_of_class(r.cls).flags.load(std::memory_order_relaxed) & kActorCheckpoints)
    most = -1;
  process_.self().claim.store(task, std::memory_order_release);
  if (w & kFlagCancel)
    (void)process_.fail(r, task, kErrorCancelled, nullptr, 0);
  else if (most < 0 || r.attempts < most)
    (void)process_.retry(task);
  else
    (void)process_.fail(r, task, static_cast<ErrorCode>(error[0]), error.data() + 1, error.size() - 1);
  process_.self().claim.store(0, std::memory_order_release);
}

}  // namespace fastray
