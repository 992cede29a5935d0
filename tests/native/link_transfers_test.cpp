// Values that come by Flight, as the link sees them: when a transfer hangs, and ends late.
#include "pair.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

// A value with a buffer that goes by Flight.
void run_huge(Process& worker) {
  Handle h = worker.claim_next();
  Record& r = worker.segment().record(h);
  uint64_t length = Link::kBulkMin;
  const uint8_t codec[8] = {};
  PayloadView view;
  Offset offset = worker.make_payload(PayloadShape{nullptr, 0, 0, codec, sizeof codec, &length, 1}, h, &view);
  CHECK(offset != 0);
  r.result_heap = HeapRef{offset, sizeof codec};
  r.result_bytes = sizeof codec;
  CHECK(worker.seal(h, kDone, kFlagResultHeap));
  worker.end_task();
}

// A transfer that hung ends when its value is on its way a second time, from where it was computed again.
void a_late_end_of_a_transfer() {
  Pair p;
  Handle h = p.a.submit_routed();
  auto bring = [&] {
    CHECK(p.a.link->claim(kRouted, 1) == 1);
    p.send();
    run_huge(*p.b.worker);
    p.answer();
    ask(p, *p.a.driver, h);
    std::vector<Link::Bulk> bulk = p.a.link->take_bulk();
    CHECK(bulk.size() == 1 && bulk[0].local == h);
    return bulk[0];
  };
  auto asked = [&] { return is_asked(p.a.session.word(h)); };
  Link::Bulk first = bring();
  for (Node* n : {&p.a, &p.b}) n->link->down(std::string(1, static_cast<char>(kErrorSystem)));
  p.a.link = std::make_unique<Link>(p.a.agent.get(), 1, 2);
  p.b.link = std::make_unique<Link>(p.b.agent.get(), 2, 1);
  p.b.link->know(kFunction, Link::LocalFunction{kFunction, 0});
  Link::Bulk second = bring();
  CHECK(asked() && second.payload != first.payload);
  CHECK(!p.a.link->finish_bulk(first, false) && asked());
  CHECK(p.a.link->finish_bulk(second, true));
  CHECK(p.a.driver->sealed(h) && p.a.session.segment.record(h).result_heap.offset == second.payload);
  p.a.driver->drop(h);
  for (int i = 0; i < 4; ++i) p.talk();
  CHECK(p.a.objects() < kRings && p.b.objects() < kRings);
}

// Asked for again while it is on its way, as after a queue that named it twice: it comes once.
void a_value_that_is_asked_for_twice() {
  Pair p;
  Handle h = p.a.submit_routed();
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  run_huge(*p.b.worker);
  p.answer();
  (void)p.a.driver->mark_awaited(&h, 1);
  std::vector<Handle> queued;
  p.a.agent->take_asked(&queued);
  CHECK(queued == std::vector<Handle>{h} && !p.a.link->is_fetching(h));
  p.a.link->fetch(h);
  p.a.link->fetch(h);
  CHECK(p.a.link->is_fetching(h));
  Pair::carry(p.a, p.b);
  Pair::carry(p.b, p.a);
  std::vector<Link::Bulk> bulk = p.a.link->take_bulk();
  CHECK(bulk.size() == 1 && p.a.link->is_fetching(h));
  p.a.link->fetch(h);  // where it is away stands no more in its record
  CHECK(p.a.link->out_bytes() == 0);
  CHECK(p.a.link->finish_bulk(bulk[0], true) && p.a.driver->sealed(h) && !p.a.link->is_fetching(h));
  p.a.driver->drop(h);
  for (int i = 0; i < 4; ++i) p.talk();
  CHECK(p.a.objects() < kRings && p.b.objects() < kRings);
}

}  // namespace

int main() {
  a_late_end_of_a_transfer();
  a_value_that_is_asked_for_twice();
  puts("ok");
  return 0;
}
