// Arguments of tasks that run on the other node: small ones in the task's frame, large ones by Flight, as values.
//
//   portion    tasks are claimed until the arguments for their frames are kStagedMax bytes; the rest waits in its queue
//   expected   the last dependency of a task whose arguments are on their way: a record of ours that is sealed (with
//              None) when they are here. So the task waits, and whatever waits behind it in its actor's order, as for
//              any dependency; the codec does not name it
//
// The payload of such a task is its own from the beginning, and the link holds the task as long as somebody writes there.
#include "link.h"

namespace fastray {

namespace {
constexpr size_t kPortion = 64;    // tasks, between two looks at how many bytes that were
constexpr uint8_t kCodecNone = 1;  // NONE of codec_format.pxd
}  // namespace

// Its codec; fills in how long it and the buffers are, and whether they go by Flight.
const uint8_t* Link::describe_arguments(const Record& r, TaskHead* head, PayloadView* view) const {
  if (r.args_bytes != kArgsInHeap) return r.args + (size_t{head->dependencies} + head->references) * sizeof(Handle);
  *view = Process::view_payload(segment_, r.args_heap.offset);
  head->codec_bytes = view->header->codec_bytes;
  head->buffers = view->header->buffers;
  uint64_t total = head->codec_bytes;
  for (uint32_t i = 0; i < head->buffers; ++i) total += view->buffer_bytes[i];
  head->bulk = total >= kBulkMin;
  return view->codec;
}

template <class F>
size_t Link::claim_portions(size_t n, F claim_some) {
  uint64_t bytes = 0;
  size_t taken = 0;
  while (taken < n && bytes < kStagedMax) {
    size_t before = staged_.size();
    taken += claim_some(std::min(n - taken, kPortion));
    if (staged_.size() == before) break;
    for (size_t i = before; i < staged_.size(); ++i) {
      const Record& r = segment_.record(staged_[i]);
      uint64_t all = r.args_bytes == kArgsInHeap ? Process::view_payload(segment_, r.args_heap.offset).header->total_bytes : 0;
      if (all < kBulkMin) bytes += all;
    }
  }
  return taken;
}

size_t Link::claim(uint32_t cls, size_t n) {
  return claim_portions(n, [&](size_t some) { return process_.claim_many(cls, some, &staged_); });
}

size_t Link::claim_calls(uint32_t actor, size_t n) {
  if (actor_there(kActorClass + actor) == 0) return 0;
  return claim_portions(n, [&](size_t some) { return process_.claim_calls(kActorClass + actor, some, &staged_); });
}

// One dependency more. False: no room for its record.
bool Link::expect_arguments(TaskHead* head, std::vector<Handle>* refs) {
  Handle expected = process_.make_asked();
  if (expected == 0) return false;
  refs->insert(refs->begin() + head->dependencies, expected);
  ++head->dependencies;
  return true;
}

// Into a record that is not published yet. False: the store is full, or the frame is bad.
bool Link::get_arguments(Reader& in, const TaskHead& head, const std::vector<Handle>& refs, Record* r, Handle h,
                         uint64_t* flags) {
  const uint8_t* codec = head.bulk != 0 ? nullptr : in.bytes(head.codec_bytes);
  if (in.bad()) return false;
  size_t handles = refs.size() * sizeof(Handle);
  r->dependencies = r->references = 0;
  if (head.bulk == 0 && head.buffers == 0 && handles + head.codec_bytes <= kInlineArgs) {
    if (handles != 0) memcpy(r->args, refs.data(), handles);
    memcpy(r->args + handles, codec, head.codec_bytes);
    r->args_bytes = static_cast<uint8_t>(head.codec_bytes);
    r->dependencies = static_cast<uint8_t>(head.dependencies);
    r->references = static_cast<uint8_t>(head.references);
    return true;
  }
  std::vector<uint64_t> lengths;
  std::vector<const uint8_t*> buffers;
  for (uint32_t i = 0; i < head.buffers; ++i) lengths.push_back(in.get<uint64_t>());
  for (uint32_t i = 0; i < head.buffers && head.bulk == 0; ++i) buffers.push_back(in.bytes(lengths[i]));
  PayloadShape shape{refs.data(), head.dependencies, head.references, codec, head.codec_bytes, lengths.data(), head.buffers};
  PayloadView view;
  Offset offset = in.bad() ? 0 : process_.make_payload(shape, h, &view);
  if (offset == 0) return false;
  for (uint32_t i = 0; i < buffers.size(); ++i) memcpy(view.buffer(i), buffers[i], lengths[i]);
  r->args_heap = HeapRef{offset, head.codec_bytes};
  r->args_bytes = kArgsInHeap;
  *flags |= kFlagArgHeap;
  return true;
}

// The task is published: what it expects is fetched.
void Link::await_arguments(const TaskHead& head, const std::vector<Handle>& refs, Handle h) {
  (void)process_.hold(h);
  Offset payload = segment_.record(h).args_heap.offset;
  bulk_.push_back(Bulk{refs[head.dependencies - 1], head.wire, payload, 0, 0, false, h});
}

void Link::finish_arguments(const Bulk& bulk, bool complete) {
  Record& r = segment_.record(bulk.local);
  uint64_t flags = 0;
  if (complete) {
    r.result[0] = kCodecNone;
    r.result_bytes = 1;
  } else {
    static const std::string why = "its arguments could not be brought to the node where it was to run";
    process_.write_error(r, kErrorSystem, why.data(), why.size(), &flags, bulk.local);
  }
  (void)process_.seal_promise(bulk.local, complete ? kDone : kFailed, flags);
  process_.drop(bulk.local);
  process_.drop(bulk.task);
}

}  // namespace fastray
