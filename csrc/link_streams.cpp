// Streams between two nodes: the importer's agent consumes what the task makes and sends each item; the exporter's appends
// it to the stream that was asked for. See link.h.
//
// A stream with a limit (ahead) goes on only as its real consumer does: the exporter tells how far that is, and the
// importer takes no more items than may wait.
#include "link.h"

namespace fastray {

// ---- where it runs ---------------------------------------------------------------------------------------

void Link::put_items(Import& import) {
  while (import.ahead == 0 || import.sent - import.consumed < import.ahead) {
    Handle h = process_.take_item(import.local);
    if (h == 0) return;
    const Record& r = segment_.record(h);
    writer_.begin(kFrameItem);
    writer_.put(import.wire);
    writer_.put(static_cast<uint32_t>(import.sent++));
    writer_.put(static_cast<uint32_t>(state_of(r.state.load(std::memory_order_acquire))));
    (void)put_value(r, false);
    writer_.end();
    process_.drop(h);
  }
}

// Sealed; what is left of its items goes first.
void Link::put_stream_end(const Import& import) {
  Import rest = import;
  rest.ahead = 0;
  put_items(rest);
  const Record& r = segment_.record(import.local);
  State state = state_of(r.state.load(std::memory_order_acquire));
  Offset error = state == kFailed ? Process::stream_of(const_cast<Record&>(r)).error : 0;
  writer_.begin(kFrameResult);
  writer_.put(ResultHead{import.wire, static_cast<uint32_t>(state), kWholeTask});
  if (error != 0) {
    PayloadView view = Process::view_payload(segment_, error);
    writer_.put(ValueHead{view.header->codec_bytes, 0, 0, 0});
    writer_.bytes(view.codec, view.header->codec_bytes);
  } else {
    writer_.put(ValueHead{0, 0, 0, 0});
  }
  writer_.end();
  process_.drop(import.local);
}

void Link::on_consumed(Reader& in) {
  uint64_t wire = in.get<uint64_t>(), items = in.get<uint64_t>();
  for (Import& import : imports_)
    if (import.wire == wire) import.consumed = static_cast<uint32_t>(items);
}

// ---- where it was submitted ------------------------------------------------------------------------------

void Link::on_item(Reader& in) {
  Handle task = in.get<uint64_t>();
  uint32_t number = in.get<uint32_t>();
  State state = static_cast<State>(in.get<uint32_t>());
  if (in.bad() || outstanding_.count(task) == 0 || (state != kDone && state != kFailed)) return in.fail();
  if (!ours(task)) return;
  Record& t = segment_.record(task);
  if (!(segment_.function(t.function).flags & kStreaming)) return in.fail();
  if (number < Process::stream_of(t).produced.load(std::memory_order_acquire)) return;  // of an attempt before
  if (t.state.load(std::memory_order_acquire) & kFlagDetached) return send_cancel(task, false);  // nobody takes it
  Record* item = process_.begin_item(task, number);
  if (item == nullptr) return;
  Handle h = process_.handle_of(item);
  uint64_t flags;
  bool bulk;
  if (!get_value(in, h, &flags, &bulk)) {
    if (in.bad()) return process_.unallocate(item);
    uint64_t bytes = in.left();
    process_.write_error(*item, kErrorStoreFull, &bytes, sizeof bytes, &flags, h);
    state = kFailed;
  }
  auto limited = streams_.find(task);
  if (limited != streams_.end())
    Process::stream_of(t).producer_sleeps.store(process_.slot() + 1, std::memory_order_seq_cst);
  process_.append_item(task, item, state, flags);
}

void Link::send_consumed() {
  for (auto& [task, told] : streams_) {
    if (!ours(task)) continue;
    uint32_t consumed = Process::stream_of(segment_.record(task)).consumed.load(std::memory_order_acquire);
    if (consumed == told) continue;
    told = consumed;
    writer_.begin(kFrameConsumed);
    writer_.put(task);
    writer_.put(uint64_t{consumed});
    writer_.end();
  }
}

void Link::finish_stream(Handle task, State state, Reader& in) {
  streams_.erase(task);
  Record& r = segment_.record(task);
  ValueHead head = in.get<ValueHead>();
  const uint8_t* error = in.bytes(head.codec_bytes);
  uint64_t flags = 0;
  if (state == kFailed && error != nullptr && head.codec_bytes != 0)
    flags = process_.write_failure(r, task, static_cast<ErrorCode>(error[0]), error + 1, head.codec_bytes - 1);
  (void)process_.seal(task, state, flags);
}

}  // namespace fastray
