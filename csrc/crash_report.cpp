// See crash_report.h.
#include "crash_report.h"

namespace fastray {

std::vector<EventReport> read_events(const FlightRecorder& recorder, uint64_t now_ticks, double ticks_per_us,
                                     uint32_t most) {
  std::vector<EventReport> found;
  auto nanoseconds = [&](uint64_t ticks) { return static_cast<int64_t>(static_cast<double>(ticks) / ticks_per_us * 1e3); };
  uint64_t end = recorder.written.load(std::memory_order_relaxed), n = recorder.oldest();
  if (end - n > most) n = end - most;
  for (; n < end; ++n) {
    const FlightEvent& e = recorder.events[n % kFlightEvents];
    uint64_t began = e.begin.load(std::memory_order_relaxed), ended = e.end.load(std::memory_order_relaxed);
    uint64_t what = e.what.load(std::memory_order_relaxed);
    EventReport r;
    r.ago_ns = now_ticks > began ? nanoseconds(now_ticks - began) : 0;
    r.took_ns = ended == 0 ? -1 : ended > began ? nanoseconds(ended - began) : 0;
    r.record = e.record.load(std::memory_order_relaxed);
    r.what = what >> 8 << 9 | (ended & 1) << 8 | (what & 0xFF);
    found.push_back(r);
  }
  return found;
}

void AttemptLog::add(uint64_t task, const AttemptReport& attempt) {
  auto [it, fresh] = by_task_.try_emplace(task);
  if (it->second.size() == kAttemptsMax) it->second.erase(it->second.begin());
  it->second.push_back(attempt);
  if (!fresh) return;
  order_.push_back(task);
  for (; by_task_.size() > kTasksMax; order_.pop_front()) by_task_.erase(order_.front());
  if (order_.size() > 2 * kTasksMax)  // names of tasks that were taken
    std::erase_if(order_, [&](uint64_t t) { return by_task_.count(t) == 0; });
}

std::vector<AttemptReport> AttemptLog::take(uint64_t task) {
  auto node = by_task_.extract(task);
  return node.empty() ? std::vector<AttemptReport>{} : std::move(node.mapped());
}

}  // namespace fastray
