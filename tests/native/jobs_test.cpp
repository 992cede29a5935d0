// What a job leaves when its driver is gone: Reaper::drop_job, names_job, forget_job, with Process objects in one
// address space. Clean under ThreadSanitizer and AddressSanitizer.
#include "../../csrc/reaper.h"
#include "session.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

constexpr uint32_t kOurs = 5, kOthers = 6;  // jobs
constexpr uint32_t kOurClass = 1, kOurFunction = 3;
const CrashInfo kGone{1234, 9, 0, ""};

// Slots: 0 node, 2 the driver that goes, 3 another job's, 4 a worker of the first.
struct Jobs {
  Session s;
  std::unique_ptr<Process> node, driver, other, worker;
  std::unique_ptr<Reaper> reaper;

  Jobs() {
    node = s.process(kProcNode, 0);
    driver = s.process(kProcDriver, 2);
    other = s.process(kProcDriver, 3);
    worker = s.process(kProcWorker, 4);
    reaper = std::make_unique<Reaper>(node.get());
    driver->self().job = worker->self().job = kOurs;
    other->self().job = kOthers;
    Class& c = s.segment.cls(kOurClass);
    c.job = kOurs;
    c.state.store(kEntryUsed);
    s.segment.header().classes_used.store(2);
    Function& f = s.segment.function(kOurFunction);
    f.max_retries = -1;
    f.returns = 1;
    f.job = kOurs;
    f.blob = driver->allocator().allocate(1000, make_handle(0, kBlockBlob | kOurFunction));
    f.blob_bytes = 1000;
    f.state.store(kEntryUsed);
    s.segment.header().functions_used.store(4);
    worker->self().lease.store(kOurClass + 1);
  }
  Handle submit(Process& p, const std::vector<Handle>& deps = {}) {
    Record* r;
    uint64_t flags;
    Handle h = make_task(p, deps, &r, &flags);
    r->cls = kOurClass;
    r->function = kOurFunction;
    CHECK(deps.empty() ? p.publish(r, h, flags) : p.publish_waiting(r, h, flags));
    return h;
  }
  Reaper::Remains driver_goes() {
    reaper->job_is_over(kOurs);
    reaper->recover(2, kGone);
    return reaper->drop_job(kOurs, {0});
  }
  bool failed_with(Handle h, ErrorCode code) const {
    return state_of(s.word(h)) == kFailed && s.segment.record(h).result[0] == code;
  }
};

void what_has_not_started_never_does() {
  Jobs j;
  Handle ready = j.submit(*j.driver), waiting = j.submit(*j.driver, {ready}), unwanted = j.submit(*j.driver);
  j.other->hold(ready);
  j.other->hold(waiting);
  CHECK(j.driver_goes().running.empty());
  CHECK(j.failed_with(ready, kErrorOwnerDied) && j.failed_with(waiting, kErrorOwnerDied));
  CHECK(!j.s.lives(unwanted));
  CHECK(j.worker->claim_next() == 0);
  j.other->drop(ready);
  j.other->drop(waiting);
  j.reaper->sweep();
  CHECK(!j.s.lives(ready) && !j.s.lives(waiting) && !j.reaper->has_adopted());
}

void what_runs_is_named_and_fails_with_its_worker() {
  Jobs j;
  Handle h = j.submit(*j.driver);
  j.other->hold(h);
  CHECK(j.worker->claim_next() == h);
  Reaper::Remains remains = j.driver_goes();
  CHECK(remains.running == std::vector<uint32_t>{4} && remains.actors.empty());
  CHECK(state_of(j.s.word(h)) == kClaimed);
  j.reaper->recover(4, kGone);  // its function would be tried again for ever
  CHECK(j.failed_with(h, kErrorOwnerDied));
}

void what_a_living_process_owns_goes_on() {
  Jobs j;
  auto keeper = j.s.process(kProcWorker, 5);  // a detached actor's
  Handle kept = j.submit(*keeper), lost = j.submit(*j.driver);
  j.other->hold(lost);
  (void)j.driver_goes();
  CHECK(j.failed_with(lost, kErrorOwnerDied));
  CHECK(state_of(j.s.word(kept)) == kReady);
  CHECK(j.worker->claim_next() == kept && run(*j.worker, kept) && j.s.value(kept) == 1);
}

void what_a_dead_worker_made_ready_for_others_is_queued_again() {
  Jobs j;
  auto keeper = j.s.process(kProcWorker, 5);
  Handle first = j.submit(*j.driver);
  Handle next = j.submit(*keeper, {first});
  CHECK(j.worker->claim_next() == first && run(*j.worker, first));  // `next` stands in the worker's queue now
  CHECK(state_of(j.s.word(next)) == kReady);
  (void)j.driver_goes();
  j.reaper->recover(4, kGone);
  auto fresh = j.s.process(kProcWorker, 6);
  fresh->self().lease.store(kOurClass + 1);
  CHECK(fresh->claim_next() == next && run(*fresh, next));
}

void a_driver_that_reads_on_owns_nothing_that_runs() {
  Jobs j;
  Handle ready = j.submit(*j.driver), array = put(*j.driver, 7, 5000);
  j.reaper->job_is_over(kOurs);
  (void)j.reaper->drop_job(kOurs, {0, 2});
  CHECK(j.failed_with(ready, kErrorOwnerDied));
  CHECK(j.s.lives(array) && j.s.value(array) == 7);
  CHECK(j.worker->claim_next() == 0);
  j.reaper->recover(2, kGone);
  CHECK(!j.s.lives(array));
}

void a_job_is_forgotten_when_no_record_names_it() {
  Jobs j;
  Handle h = j.submit(*j.driver);
  CHECK(j.worker->claim_next() == h && run(*j.worker, h));
  j.other->hold(h);
  (void)j.driver_goes();
  j.reaper->recover(4, kGone);
  CHECK(j.reaper->names_job(kOurs));  // lent
  j.other->drop(h);
  j.reaper->sweep();
  CHECK(!j.reaper->names_job(kOurs));
  uint64_t blocks = ObjectAllocator::usage(j.s.segment).blocks;
  j.reaper->forget_job(kOurs);
  j.node->allocator().collect();
  CHECK(j.s.segment.cls(kOurClass).state.load() == 0 && j.s.segment.function(kOurFunction).state.load() == 0);
  CHECK(j.s.segment.cls(0).state.load() == kEntryUsed && j.s.segment.function(kFunction).state.load() == kEntryUsed);
  CHECK(ObjectAllocator::usage(j.s.segment).blocks == blocks - 1);
}

}  // namespace

int main() {
  what_has_not_started_never_does();
  what_runs_is_named_and_fails_with_its_worker();
  what_a_living_process_owns_goes_on();
  what_a_dead_worker_made_ready_for_others_is_queued_again();
  a_driver_that_reads_on_owns_nothing_that_runs();
  a_job_is_forgotten_when_no_record_names_it();
  puts("jobs_test ok");
  return 0;
}
