// Tasks with several results: promises, and streams. See process.h.
//
//   promise   the record of one return value; holds its task, which names it (Returns)
//   item      a record of a stream; the worker makes it, the consumer becomes its owner when it takes it
//   half-made an item that is not published: `produced` does not count it
//
// A stream is a list with one writer at each end. The worker links an item, then counts it (`produced`): that
// store publishes. The consumer keeps the item it took last (`cursor`) for its link; `consumed` follows from
// it. Killed in between, the reaper derives each second word from the first (Reaper::repair_stream).
#include <new>

#include "process.h"

namespace fastray {

// ---- several returns ---------------------------------------------------------------------------------

bool Process::make_promises(Record& r, Handle h) {
  auto* returns = reinterpret_cast<Returns*>(r.result);
  if (r.ret > Returns::kInline) {
    returns->list = allocator_.allocate(r.ret * sizeof(Handle), h);
    if (returns->list == 0) return false;
  }
  auto* handles = const_cast<Handle*>(promise_handles(segment_, r));
  for (uint16_t i = 0; i < r.ret; ++i) {
    Record* p = allocate_record();
    if (p == nullptr) {
      drop_promises(r, i);
      return false;
    }
    p->id = r.id;
    p->function = r.function;
    p->cls = r.cls;
    p->parent = index_of(h);
    p->kind = kPromise;
    p->ret = i;
    p->args_bytes = sizeof(Handle);
    p->dependencies = p->references = 0;
    p->args_heap.offset = h;
    handles[i] = handle_of(p);
    p->pins = 1;
    publish_state(p, handles[i], kPromised, kFlagShared);  // it holds the task: drop() must not just recycle it
  }
  r.pins = r.ret;
  return true;
}

void Process::drop_promises(Record& r, uint32_t made) {
  const Handle* handles = promise_handles(segment_, r);
  for (uint32_t i = 0; i < made; ++i) {
    Record& p = segment_.record(handles[i]);
    recycle(p, p.state.load(std::memory_order_relaxed), index_of(handles[i]));
  }
  if (r.ret > Returns::kInline) allocator_.release(reinterpret_cast<Returns*>(r.result)->list);
}

bool Process::seal_promise(Handle h, State state, uint64_t flags) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_relaxed), next;
  do {
    if (state_of(w) != kPromised || word_gen(w) != gen_of(h)) return false;
    next = with_state(w, state, w & kFlagEdges ? kWalking : 0) | flags;
  } while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel));
  if ((w & (kFlagAwaited | kFlagEdges)) != 0 || state == kFailed) after_seal(r, h, w);
  return true;
}

const Handle* Process::promise_handles(const Segment& segment, const Record& r) {
  auto* returns = reinterpret_cast<const Returns*>(r.result);
  return r.ret > Returns::kInline ? segment.at<Handle>(returns->list) : returns->handles;
}

// ---- streams: the producer -----------------------------------------------------------------------------

Record* Process::begin_item(Handle task, uint32_t number) {
  Record* r = allocate_record();
  if (r == nullptr) return nullptr;
  const Record& t = segment_.record(task);
  r->id = t.id;
  r->function = t.function;
  r->cls = t.cls;
  r->parent = index_of(task);
  r->kind = kItem;
  r->ret = static_cast<uint16_t>(number);
  r->args_bytes = sizeof(Item);
  r->dependencies = r->references = 0;
  new (r->args) Item{0, number};
  return r;
}

void Process::append_item(Handle task, Record* item, State state, uint64_t flags) {
  Record& t = segment_.record(task);
  Stream& s = stream_of(t);
  Handle h = handle_of(item);
  uint32_t number = static_cast<uint32_t>(item_of(*item).number);
  item->pins = 0;
  item->owner = kOwnerStream;
  publish_state(item, h, state, flags | kFlagShared);
  Handle last = s.last.load(std::memory_order_relaxed);
  // SYNC POINT: stream (release, each of the three after the one before: the reaper relies on the order)
  (number == 0 ? s.first : item_of(segment_.record(last)).next).store(h, std::memory_order_release);
  s.produced.store(number + 1, std::memory_order_release);
  s.last.store(h, std::memory_order_release);
  wake_owner(t);
}

// ---- streams: the consumer -----------------------------------------------------------------------------

void Process::adopt(Handle h, uint32_t pins) {
  Record& r = segment_.record(h);
  uint32_t chunk = index_of(h) / kChunkRecords;
  self_->chunks[chunk / 64].fetch_or(uint64_t{1} << chunk % 64, std::memory_order_acq_rel);
  r.owner = static_cast<uint16_t>(slot_);
  r.pins = pins;
  r.state.fetch_or(kFlagShared, std::memory_order_acq_rel);
}

Handle Process::next_item(const Stream& s) const {
  Handle cursor = s.cursor.load(std::memory_order_relaxed);
  return (cursor == 0 ? s.first : item_of(segment_.record(cursor)).next).load(std::memory_order_acquire);
}

Handle Process::take_item(Handle task) {
  Stream& s = stream_of(segment_.record(task));
  uint32_t taken = s.consumed.load(std::memory_order_relaxed);
  if (s.produced.load(std::memory_order_acquire) == taken) return 0;  // SYNC POINT: stream
  Handle before = s.cursor.load(std::memory_order_relaxed), h = next_item(s);
  adopt(h, 2);  // the reference given out, and the cursor
  s.cursor.store(h, std::memory_order_release);
  s.consumed.store(taken + 1, std::memory_order_release);
  if (before != 0) drop(before);
  uint32_t sleeper = s.producer_sleeps.load(std::memory_order_seq_cst);
  if (sleeper != 0) wake_process(segment_, sleeper - 1);
  return h;
}

// The task is freed: so are the items nobody took, and the one kept for its link.
void Process::release_stream(Stream& s, std::vector<Handle>* dropped) {
  uint32_t left = s.produced.load(std::memory_order_acquire) - s.consumed.load(std::memory_order_relaxed);
  Handle item = left != 0 ? next_item(s) : 0;
  if (s.cursor != 0) dropped->push_back(s.cursor);
  for (; left > 0; --left) {
    adopt(item, 1);
    dropped->push_back(item);
    item = item_of(segment_.record(item)).next.load(std::memory_order_acquire);
  }
}

}  // namespace fastray
