// What is noted of attempts that failed, for the cluster's task table (failure_log.h). See process.h.
#include <string.h>

#include <algorithm>

#include "crash_report.h"
#include "process.h"

namespace fastray {

// Where and when it ran, when that was here.
static void fill_run(const FlightRecorder& recorder, uint64_t task, int64_t now, Failure* f) {
  for (const EventReport& e : read_events(recorder, os::ticks(), os::ticks_per_us())) {
    if (e.record != task || (e.what & 0xFF) != kEventTask) continue;
    f->began_ns = now - e.ago_ns;
    if (e.took_ns >= 0) f->ended_ns = f->began_ns + e.took_ns;
  }
}

void Process::note_failure(const Record& r, ErrorCode code, const char* text, size_t bytes, Failure f) {
  int64_t now = os::wall_ns();
  if (f.pid == 0 && self_->kind == kProcWorker) {
    fill_run(*recorder_, r.id, now, &f);
    if (f.began_ns != 0 || self_->claim.load(std::memory_order_relaxed) == handle_of(&r)) f.pid = self_->pid;
  }
  if (f.ended_ns == 0) f.ended_ns = now;
  f.task = r.id;
  f.parent = r.parent == 0 ? 0 : segment_.record(r.parent).id;
  uint32_t owner = std::atomic_ref<const uint16_t>(r.owner).load(std::memory_order_relaxed);
  f.job = segment_.cls(r.cls).job;
  if (f.job == 0 && owner < kProcsMax) f.job = segment_.proc(owner).job;
  f.attempt = r.attempts;
  f.code = static_cast<uint8_t>(code);
  f.actor = is_actor_class(r.cls);
  f.text_bytes = static_cast<uint32_t>(std::min(bytes, kFailureText));
  if (f.text_bytes != 0) memcpy(f.text, text, f.text_bytes);
  memcpy(f.name, segment_.function(r.function).name, sizeof f.name);
  segment_.failures().note(f);
}

bool Process::fail(Record& r, Handle h, ErrorCode code, const void* more, size_t bytes) {
  bool says = code == kErrorAgent;  // the others' codes say enough, their bytes are no text
  note_failure(r, code, says ? static_cast<const char*>(more) : nullptr, says ? bytes : 0);
  return seal(h, kFailed, write_failure(r, h, code, more, bytes));
}

}  // namespace fastray
