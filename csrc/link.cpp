// References and values between two nodes, and the end of a link. See link.h.
#include "link.h"

#include <algorithm>
#include <utility>

namespace fastray {

// ---- frames ----------------------------------------------------------------------------------------------

size_t Link::receive(const uint8_t* data, size_t size, const uint8_t** message, size_t* message_bytes) {
  size_t at = 0;
  *message = nullptr;
  while (!bad_ && *message == nullptr && size - at >= sizeof(FrameHead)) {
    FrameHead head;
    memcpy(&head, data + at, sizeof head);
    at += sizeof head;
    if (head.bytes > size - at) {
      bad_ = true;
      break;
    }
    Reader in(data + at, head.bytes);
    switch (head.kind) {
      case kFrameMessage:
        *message = data + at;
        *message_bytes = head.bytes;
        break;
      case kFrameTask:
        on_task(in);
        break;
      case kFrameResult:
        on_result(in);
        break;
      case kFrameRelease:
        release(in);
        break;
      case kFrameCancel:
        on_cancel(in);
        break;
      case kFrameFetch:
        on_fetch(in);
        break;
      case kFrameActor:
        on_actor(in);
        break;
      case kFrameActorStop:
        on_actor_stop(in);
        break;
      case kFrameElsewhere:
        on_elsewhere(in);
        break;
      case kFrameCopy:
        on_copy(in);
        break;
      case kFrameLogged:
        on_logged(in);
        break;
      case kFrameCheckpoint:
        on_checkpoint(in);
        break;
      case kFrameItem:
        on_item(in);
        break;
      case kFrameConsumed:
        on_consumed(in);
        break;
      case kFrameValue:
        on_value(in);
        break;
      default:
        in.fail();
    }
    bad_ = bad_ || in.bad();
    at += head.bytes;
  }
  if (*message == nullptr && at != size) bad_ = true;  // batches hold whole frames
  return at;
}

void Link::on_cancel(Reader& in) {
  uint64_t wire = in.get<uint64_t>(), force = in.get<uint64_t>();
  if (!in.bad()) cancels_.emplace_back(wire, force);
}

void Link::send_message(const std::string& body) {
  writer_.begin(kFrameMessage);
  writer_.out += body;
  writer_.end();
}

// ---- references ------------------------------------------------------------------------------------------

uint64_t Link::value_bytes(const Segment& segment, const Record& r) {
  uint64_t w = r.state.load(std::memory_order_acquire);
  if (state_of(w) == kAway) return Process::away_of(r).bytes;
  if (!is_sealed(w)) return 0;
  return w & kFlagResultHeap ? Process::view_payload(segment, r.result_heap.offset).header->total_bytes : r.result_bytes;
}

// The caller knows that h is alive until the batch is sent and longer: a task of ours names it.
void Link::put_ref(Handle h) {
  auto there = held_.find(h);
  if (there != held_.end()) return writer_.put(RefHead{peer_, there->second.remote, 0, 0, 0});
  const Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  auto [it, fresh] = exported_.try_emplace(h, 0);
  if (fresh) (void)process_.hold(h);
  ++it->second;
  uint64_t bytes = value_bytes(segment_, r);
  bool send = fresh && is_sealed(w) && bytes <= kInlineMax && !(w & kFlagMulti) && r.kind != kActor;
  if (send && (w & kFlagResultHeap))
    send = Process::view_payload(segment_, r.result_heap.offset).header->references == 0;
  writer_.put(RefHead{self_, h, bytes, send ? static_cast<uint32_t>(state_of(w)) : 0, 0});
  if (send) (void)put_value(r, false);
}

std::string Link::export_ref(Handle h) {
  Writer outer = std::move(writer_);
  writer_ = Writer();
  put_ref(h);
  std::string ref = std::move(writer_.out);
  writer_ = std::move(outer);
  return ref;
}

Handle Link::import_ref(const std::string& ref) {
  Reader in(reinterpret_cast<const uint8_t*>(ref.data()), ref.size());
  return get_ref(in);
}

// A record here for the one that is meant; 0 when that cannot be.
Handle Link::get_ref(Reader& in) {
  RefHead head = in.get<RefHead>();
  if (in.bad() || (head.node != self_ && head.node != peer_) || index_of(head.handle) >= kRecordsMax) {
    in.fail();
    return 0;
  }
  if (head.node == self_) {
    uint64_t w = segment_.record(head.handle).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    if (word_gen(w) != gen_of(head.handle) || state_of(w) == kFree) in.fail();
    return head.handle;
  }
  auto known = mirrors_.find(head.handle);
  if (known != mirrors_.end()) {
    Held& held = held_[known->second];
    ++held.count;
    held.idle = false;
    if (head.state != 0) skip_value(in);
    return known->second;
  }
  Handle h = process_.make_mirror(Away{peer_, head.handle, head.bytes});
  if (h == 0) {
    in.fail();
    return 0;
  }
  mirrors_[head.handle] = h;
  hold_remote(h, head.handle, true);
  uint64_t flags;
  bool bulk;
  State state = static_cast<State>(head.state);
  if (head.state != 0 && get_value(in, h, &flags, &bulk)) process_.publish_state(&segment_.record(h), h, state, flags);
  if (head.state != 0 && bulk) in.fail();
  return h;
}

void Link::skip_value(Reader& in) {
  ValueHead head = in.get<ValueHead>();
  if (head.bulk != 0) return in.fail();  // what comes with a reference is small
  (void)in.bytes(head.codec_bytes);
  std::vector<uint64_t> lengths;
  for (uint32_t i = 0; i < head.buffers && !in.bad(); ++i) lengths.push_back(in.get<uint64_t>());
  for (uint64_t n : lengths) (void)in.bytes(n);
}

void Link::hold_remote(Handle local, uint64_t remote, bool mirror) {
  auto [it, fresh] = held_.try_emplace(local, Held{remote, 1, mirror, false});
  if (fresh) return;
  if (it->second.remote == remote) {
    ++it->second.count;
    return;
  }
  release_there(it->second.remote, it->second.count);  // it was computed again
  it->second = Held{remote, 1, mirror, false};
}

void Link::release_there(uint64_t remote, uint64_t count) {
  writer_.begin(kFrameRelease);
  writer_.put(remote);
  writer_.put(count);
  writer_.end();
}

void Link::sweep() {
  for (auto it = held_.begin(); it != held_.end();) {
    Handle h = it->first;
    Held& held = it->second;
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    bool alive = word_gen(w) == gen_of(h);
    if (!alive || (!held.mirror && state_of(w) == kLost)) {
      release_there(held.remote, held.count);
      if (!held.mirror) gone_.push_back(h);
      auto mirror = mirrors_.find(held.remote);
      if (mirror != mirrors_.end() && mirror->second == h) mirrors_.erase(mirror);
      it = held_.erase(it);
      continue;
    }
    bool alone = held.mirror && !is_asked(w) && exported_.count(h) == 0 && (!(w & kFlagShared) || r.pins == 1);
    if (alone && held.idle) {  // also at the last look: nobody has asked for it again
      mirrors_.erase(held.remote);
      held.mirror = false;
      process_.drop(h);  // the record may live on in limbo; then it is told later
    }
    held.idle = alone;
    ++it;
  }
}

void Link::release(Reader& in) {
  Handle h = in.get<uint64_t>();
  uint64_t count = in.get<uint64_t>();
  if (!in.bad()) drop_exported(h, count);
}

void Link::drop_exported(Handle h, uint64_t count) {
  auto it = exported_.find(h);
  if (it == exported_.end()) return;
  if (it->second > count) {
    it->second -= count;
    return;
  }
  exported_.erase(it);
  process_.drop(h);
}

// ---- values ----------------------------------------------------------------------------------------------

// True: codec and buffers were left out, they go by Flight.
bool Link::put_value(const Record& r, bool bulk_allowed) {
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  if (!(w & kFlagResultHeap)) {
    writer_.put(ValueHead{r.result_bytes, 0, 0, 0});
    writer_.bytes(r.result, r.result_bytes);
    return false;
  }
  PayloadView view = Process::view_payload(segment_, r.result_heap.offset);
  const PayloadHeader& p = *view.header;
  uint32_t codec = state_of(w) == kFailed ? p.codec_bytes : r.result_bytes;
  uint64_t total = codec;
  for (uint32_t i = 0; i < p.buffers; ++i) total += view.buffer_bytes[i];
  bool bulk = bulk_allowed && total >= kBulkMin;
  writer_.put(ValueHead{codec, p.references, p.buffers, bulk});
  for (uint32_t i = 0; i < p.references; ++i) put_ref(view.handles[p.dependencies + i]);
  if (!bulk) writer_.bytes(view.codec, codec);
  for (uint32_t i = 0; i < p.buffers; ++i) writer_.put(view.buffer_bytes[i]);
  for (uint32_t i = 0; i < p.buffers && !bulk; ++i) writer_.bytes(view.buffer(i), view.buffer_bytes[i]);
  return bulk;
}

// Into the result line of h, which only we write now. False: the store is full, or the frame is bad.
bool Link::get_value(Reader& in, Handle h, uint64_t* flags, bool* bulk) {
  ValueHead head = in.get<ValueHead>();
  Record& r = segment_.record(h);
  *flags = 0;
  *bulk = false;
  if (head.references != 0 || head.buffers != 0 || head.bulk != 0 || head.codec_bytes > kInlineResult)
    return get_payload(in, head, h, flags, bulk);
  const uint8_t* codec = in.bytes(head.codec_bytes);
  if (codec == nullptr) return false;
  memcpy(r.result, codec, head.codec_bytes);
  r.result_bytes = head.codec_bytes;
  return true;
}

bool Link::get_payload(Reader& in, const ValueHead& head, Handle h, uint64_t* flags, bool* bulk) {
  Record& r = segment_.record(h);
  if (head.references > in.left() / sizeof(RefHead) || head.buffers > in.left() / 8) {
    in.fail();
    return false;
  }
  std::vector<Handle> refs;
  for (uint32_t i = 0; i < head.references && !in.bad(); ++i) refs.push_back(get_ref(in));
  *bulk = head.bulk != 0;
  const uint8_t* codec = *bulk ? nullptr : in.bytes(head.codec_bytes);
  std::vector<uint64_t> lengths;
  std::vector<const uint8_t*> buffers;
  for (uint32_t i = 0; i < head.buffers; ++i) lengths.push_back(in.get<uint64_t>());
  for (uint32_t i = 0; i < head.buffers && !*bulk; ++i) buffers.push_back(in.bytes(lengths[i]));
  if (in.bad()) return false;
  PayloadShape shape{refs.data(), 0, head.references, codec, head.codec_bytes, lengths.data(), head.buffers};
  PayloadView view;
  Offset offset = process_.make_payload(shape, h, &view);
  if (offset == 0) return false;
  for (uint32_t i = 0; i < buffers.size(); ++i) memcpy(view.buffer(i), buffers[i], lengths[i]);
  for (Handle ref : refs) {
    if (r.kind == kObject)
      (void)process_.hold(ref);
    else
      (void)process_.contain(ref, h);
  }
  r.result_heap = HeapRef{offset, head.codec_bytes};
  r.result_bytes = head.codec_bytes;
  *flags = kFlagResultHeap | (refs.empty() ? 0 : uint64_t{kFlagRefs});
  return true;
}

// ---- fetching --------------------------------------------------------------------------------------------

void Link::fetch(Handle asked, bool here) {
  if (fetching_.count(asked) != 0) return;  // twice in the queue: what is away there now was asked for already
  Handle there = Process::away_of(segment_.record(asked)).handle;
  if (held_.count(asked) == 0) return fetch_copy(asked, there);
  fetching_.insert(asked);
  writer_.begin(kFrameFetch);
  writer_.put(there);
  writer_.put(asked);
  writer_.put(here ? kFetchHere : kFetchAny);
  writer_.end();
}

void Link::on_fetch(Reader& in) {
  Handle h = in.get<uint64_t>();
  uint64_t tag = in.get<uint64_t>(), how = in.get<uint64_t>();
  if (!in.bad() && how == kFetchCopy) return on_fetch_copy(h, tag);
  if (in.bad() || exported_.count(h) == 0) return in.fail();
  if (process_.sealed(h) && !names_unknown(segment_.record(h))) return answer_fetch(h, tag);
  if (how == kFetchAny && process_.is_away(h)) {
    Away away = Process::away_of(segment_.record(h));
    if (away.bytes >= kBulkMin && away.node != peer_) {  // from there, without the way over this node
      writer_.begin(kFrameElsewhere);
      writer_.put(tag);
      writer_.put(away.node);
      writer_.put(away.handle);
      return writer_.end();
    }
  }
  (void)process_.mark_awaited(&h, 1);  // asks, when it is away from here too
  fetch_waits_.push_back(FetchWait{h, tag});
}

void Link::answer_fetch(Handle h, uint64_t tag) {
  const Record& r = segment_.record(h);
  writer_.begin(kFrameValue);
  writer_.put(tag);
  writer_.put(uint64_t{state_of(r.state.load(std::memory_order_acquire))});
  (void)put_value(r, true);
  writer_.end();
}

void Link::on_value(Reader& in) {
  Handle h = in.get<uint64_t>();
  State state = static_cast<State>(in.get<uint64_t>());
  if (in.bad() || index_of(h) >= kRecordsMax || (state != kDone && state != kFailed && state != kFree)) return in.fail();
  auto fetched = fetched_copies_.find(h);
  Handle copy = fetched == fetched_copies_.end() ? 0 : fetched->second;
  if (copy != 0) fetched_copies_.erase(fetched);
  fetching_.erase(h);
  if (state == kFree) return orphans_.push_back(h);
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  bool wanted = is_asked(w) && word_gen(w) == gen_of(h);
  uint64_t flags;
  bool bulk = false;
  if (!wanted && copy != 0) release_there(copy, 1);
  if (!wanted) return;
  uint64_t remote = copy != 0 ? copy : Process::away_of(r).handle;
  if (!get_value(in, h, &flags, &bulk)) {
    if (in.bad()) return;
    uint64_t bytes = in.left();
    process_.write_error(r, kErrorStoreFull, &bytes, sizeof bytes, &flags, h);
    state = kFailed;
  }
  if (bulk) {
    fetching_.insert(h);
    return bulk_.push_back(Bulk{h, remote, r.result_heap.offset, r.result_bytes, flags, copy != 0});
  }
  (void)process_.seal_promise(h, state, flags);
  if (copy != 0) release_there(copy, 1);
}

// What was fetched is here, or will not come. The value may have been asked for again meanwhile, at a node
// that has computed it again: then another payload is in its place, or none yet, and this one is nobody's.
bool Link::finish_bulk(const Bulk& bulk, bool complete) {
  if (bulk.task != 0) return finish_arguments(bulk, complete), false;
  fetching_.erase(bulk.local);
  Record& r = segment_.record(bulk.local);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  bool wanted = is_asked(w) && word_gen(w) == gen_of(bulk.local);
  bool again = wanted && r.result_heap.offset != bulk.payload;
  if (bulk.copy) release_there(bulk.remote, 1);
  if (complete && wanted && !again) return process_.seal_promise(bulk.local, kDone, bulk.flags);
  process_.allocator().release(bulk.payload);
  if (again) return false;
  if (bulk.copy)
    orphans_.push_back(bulk.local);
  else if (wanted && process_.unask(bulk.local)) process_.recover(bulk.local);
  return false;
}

// ---- the end ---------------------------------------------------------------------------------------------

void Link::down(const std::string& error) {
  for (Handle h : staged_)
    if (again_.count(h) == 0) outstanding_.insert(h);
  staged_.clear();
  again_.clear();
  for (auto& [h, hosted] : std::exchange(hosted_, {})) {  // first: what was in flight there follows from it
    if (hosted.next != 0) process_.drop(hosted.next);
    if (hosted.torn != 0 || !process_.lose_host(h)) ended_.push_back(Ended{h, kEndNodeGone});
  }
  std::vector<Handle> tasks(outstanding_.begin(), outstanding_.end());
  outstanding_.clear();
  auto earlier = [&](Handle a, Handle b) { return segment_.record(a).id < segment_.record(b).id; };
  std::sort(tasks.begin(), tasks.end(), earlier);  // the calls of an actor in their order
  for (Handle h : tasks) fail_task(h, error);
  for (auto& [h, held] : std::exchange(held_, {})) {
    Record& r = segment_.record(h);
    if (word_gen(r.state.load(std::memory_order_acquire)) != gen_of(h)) continue;
    process_.ask_for(h);
    if (!held.mirror) gone_.push_back(h);
    if (!held.mirror) {
      if (process_.unask(h)) process_.recover(h);
      continue;
    }
    if (is_asked(r.state.load(std::memory_order_acquire))) {
      uint64_t flags;
      process_.write_error(r, kErrorOwnerDied, nullptr, 0, &flags, h);
      (void)process_.seal_promise(h, kFailed, flags);
    }
    process_.drop(h);
  }
  mirrors_.clear();
  for (const Import& import : std::exchange(imports_, {})) {
    int running;
    if (!process_.sealed(import.local)) (void)process_.cancel(import.local, &running);
    drop_import(import);
  }
  for (auto& [h, count] : std::exchange(exported_, {})) process_.drop(h);
  fetch_waits_.clear();
  for (auto& [h, copy] : std::exchange(fetched_copies_, {})) orphans_.push_back(h);
  logged_calls_.clear();
  hosting_.clear();
}

}  // namespace fastray
