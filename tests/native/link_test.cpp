// Two nodes in one address space, and the link between their agents: tasks, references, values that stay away, what is
// fetched, what is given back, and what is left when the link breaks.
#include <string.h>

#include <tuple>

#include "pair.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

void run_big(Process& worker) {
  while (Handle h = worker.claim_next()) CHECK(run(worker, h, kBig));
}

void small_tasks() {
  Pair p;
  std::vector<Handle> tasks;
  for (int i = 0; i < 1000; ++i) tasks.push_back(p.a.submit_routed());
  CHECK(p.a.agent->waiting_in(kRouted) == 1000);
  CHECK(p.a.link->claim(kRouted, 600) == 600 && p.a.link->claim(kRouted, 600) == 400);
  CHECK(p.a.link->unknown_functions() == std::vector<uint32_t>{kFunction});
  p.send();
  CHECK(p.b.link->imported() == 1000 && p.a.link->outstanding() == 1000);
  CHECK(drain(*p.b.worker) == 1000);
  p.answer();
  for (Handle h : tasks) {
    CHECK(p.a.driver->sealed(h) && p.a.session.value(h) == 1);
    p.a.driver->drop(h);
  }
  CHECK(p.a.link->outstanding() == 0 && p.b.link->imported() == 0);
}

// Tasks of a placement group: in a class that the peer was told of, not in their function's.
void classes_of_groups() {
  constexpr uint32_t kInGroup = 2, kThere = 4;
  Pair p;
  for (auto [node, c, life] : {std::tuple{&p.a, kInGroup, 7u}, std::tuple{&p.b, kThere, 3u}}) {
    Class& cls = node->session.segment.cls(c);
    cls.group = 1;
    cls.group_life = life;
    cls.state.store(kEntryUsed);
    node->session.segment.header().classes_used.store(c + 1);
  }
  auto submit = [&] {
    Record* r;
    uint64_t flags;
    Handle h = make_task(*p.a.driver, {}, &r, &flags);
    r->cls = kInGroup;
    CHECK(p.a.driver->publish(r, h, flags) && p.a.link->claim(kInGroup, 10) == 1);
    return h;
  };
  Handle first = submit();
  CHECK(p.a.link->unknown_classes() == std::vector<uint32_t>{kInGroup});
  p.a.link->describe_class(kInGroup, "");
  CHECK(p.a.link->unknown_classes().empty());
  (void)p.a.link->take_out();  // the message, which is Python's
  p.b.link->know_class(kInGroup + 1, kThere);
  p.send();
  CHECK(p.b.agent->waiting_in(kThere) == 1 && p.a.link->outstanding_in(kInGroup) == 1 && p.a.link->outstanding_in(0) == 0);
  Handle second = submit();
  p.b.session.segment.cls(kThere).group_life = 4;  // it was removed there, and the class is another's
  p.send();
  p.answer();
  CHECK(p.a.driver->sealed(second) && p.a.session.segment.record(second).result[0] == kErrorGroupRemoved);
  Handle third = submit();
  p.b.link->know_class(kInGroup + 1, Link::kNoClass);
  p.send();
  p.answer();
  CHECK(p.a.driver->sealed(third) && p.a.session.segment.record(third).result[0] == kErrorGroupRemoved);
  for (Handle h : {first, second, third}) p.a.driver->drop(h);
}

// ---- arguments that go by Flight -------------------------------------------------------------------------

constexpr size_t kHuge = Link::kBulkMin + 5000;

// A task with `bytes` in its codec and the same in a buffer.
Handle submit_with(Node& n, size_t bytes, const std::vector<Handle>& deps = {}) {
  Record* r;
  uint64_t flags, length = bytes;
  Handle h = make_task(*n.driver, {}, &r, &flags);
  PayloadView view;
  uint32_t count = static_cast<uint32_t>(deps.size());
  Offset o = n.driver->make_payload(PayloadShape{deps.data(), count, 0, nullptr, bytes, &length, 1}, h, &view);
  CHECK(o != 0);
  memset(view.codec, 5, bytes);
  memset(view.buffer(0), 6, bytes);
  r->args_heap = HeapRef{o, bytes};
  r->args_bytes = kArgsInHeap;
  r->cls = kRouted;
  for (Handle d : deps) (void)n.driver->hold(d);
  flags |= kFlagArgHeap | (deps.empty() ? 0 : uint64_t{kFlagRefs});
  CHECK(deps.empty() ? n.driver->publish(r, h, flags) : n.driver->publish_waiting(r, h, flags));
  return h;
}

// What fastray/transfer/flight.py does.
void bring(Pair& p, const Link::Bulk& bulk) {
  PayloadView from = Process::view_payload(p.a.session.segment, p.a.session.segment.record(bulk.remote).args_heap.offset);
  PayloadView to = Process::view_payload(p.b.session.segment, bulk.payload);
  CHECK(to.header->codec_bytes == from.header->codec_bytes && to.header->buffers == 1);
  memcpy(to.codec, from.codec, from.header->codec_bytes);
  memcpy(to.buffer(0), from.buffer(0), from.buffer_bytes[0]);
}

// Sends it; what the importer is to bring for it.
Link::Bulk send_huge(Pair& p, Handle task) {
  CHECK(p.a.link->claim(kRouted, 10) == 1);
  p.a.link->send_staged();
  CHECK(p.a.link->out_bytes() < 2000);
  Pair::carry(p.a, p.b);
  std::vector<Link::Bulk> expected = p.b.link->take_bulk();
  CHECK(expected.size() == 1 && expected[0].remote == task && drain(*p.b.worker) == 0);
  return expected[0];
}

void large_arguments_come_before_the_task_runs() {
  Pair p;
  Handle small = put(*p.a.driver, 10, 300);
  Handle task = submit_with(p.a, kHuge, {small});
  Link::Bulk expected = send_huge(p, task);
  bring(p, expected);
  CHECK(!p.b.link->finish_bulk(expected, true));
  Handle there = expected.task;
  PayloadView view = Process::view_payload(p.b.session.segment, p.b.session.segment.record(there).args_heap.offset);
  CHECK(view.header->dependencies == 2 && view.codec[kHuge - 1] == 5 && view.buffer(0)[kHuge - 1] == 6);
  CHECK(drain(*p.b.worker) == 1);
  p.answer();
  CHECK(p.a.driver->sealed(task) && state_of(p.a.session.segment.record(task).state.load()) == kDone);
  p.a.driver->drop(task);
  p.a.driver->drop(small);
  p.talk();
  CHECK(p.a.objects() <= kRings && p.b.objects() <= kRings);
}

void large_arguments_that_do_not_come_fail_what_waits_for_them() {
  Pair p;
  Handle task = submit_with(p.a, kHuge);
  Link::Bulk expected = send_huge(p, task);
  CHECK(!p.b.link->finish_bulk(expected, false));
  const Record& there = p.b.session.segment.record(expected.local);  // a worker that finds it fails the task
  CHECK(state_of(there.state.load()) == kFailed);
  CHECK(drain(*p.b.worker) == 1);
  p.answer();
  CHECK(p.a.driver->sealed(task));
  p.a.driver->drop(task);
  p.talk();
  CHECK(p.a.objects() <= kRings && p.b.objects() <= kRings);
}

// Cancelled, or the way to the exporter gone, while somebody writes into its payload: that stays until he is done.
void large_arguments_outlive_their_task() {
  for (bool down : {false, true}) {
    Pair p;
    Handle task = submit_with(p.a, kHuge);
    Link::Bulk expected = send_huge(p, task);
    if (down) {
      p.b.link->down("");
    } else {
      int running;
      CHECK(p.b.agent->cancel(expected.task, &running));
      p.answer();
      CHECK(p.a.driver->sealed(task));
    }
    (void)p.b.objects();
    bring(p, expected);
    CHECK(!p.b.link->finish_bulk(expected, true) && drain(*p.b.worker) == 0);
    for (int i = 0; i < 3; ++i) (void)p.b.objects();
    CHECK(p.b.objects() <= kRings);
  }
}

// However many wait: what one batch has to carry is bounded, and what goes by Flight does not count.
void claims_are_bounded_by_bytes() {
  constexpr size_t kMiddle = 400 << 10;  // twice that: in the frame
  Pair p;
  for (int i = 0; i < 200; ++i) (void)submit_with(p.a, kMiddle);
  size_t first = p.a.link->claim(kRouted, 1000);
  CHECK(first >= Link::kStagedMax / (2 * kMiddle) && first < 200);
  p.a.link->send_staged();
  CHECK(p.a.link->out_bytes() >= first * 2 * kMiddle);
  CHECK(p.a.link->claim(kRouted, 1000) > 0);
  Pair q;
  for (int i = 0; i < 100; ++i) (void)submit_with(q.a, kHuge);
  CHECK(q.a.link->claim(kRouted, 1000) == 100);
}

// ---- arguments by reference, and results -------------------------------------------------------------------

// A value that is there goes along once; one that is not is fetched when the other node needs it.
void arguments() {
  Pair p;
  Handle small = put(*p.a.driver, 10, 300), pending = submit(*p.a.driver), big = put(*p.a.driver, 1000, kBig);
  Handle first = p.a.submit_routed({small, big}), second = p.a.submit_routed({small});
  CHECK(p.a.link->claim(kRouted, 10) == 2);
  p.a.link->send_staged();
  CHECK(p.a.link->counts().exported == 2);
  Pair::carry(p.a, p.b);
  CHECK(p.b.link->counts().mirrors == 2);
  CHECK(drain(*p.b.worker) == 1);  // the second; the first waits for what is big, which was asked for
  p.talk();
  CHECK(drain(*p.b.worker) == 1);
  p.answer();
  CHECK(p.a.session.value(first) == 1011 && p.a.session.value(second) == 11);
  Handle third = p.a.submit_routed({pending});
  CHECK(p.a.link->claim(kRouted, 10) == 0);  // not ready
  CHECK(drain(*p.a.worker) == 1);
  CHECK(p.a.link->claim(kRouted, 10) == 1);
  p.send();
  CHECK(drain(*p.b.worker) == 1);
  p.answer();
  CHECK(p.a.session.value(third) == 2);
  for (Handle h : {first, second, third, small, pending, big}) p.a.driver->drop(h);
  for (int i = 0; i < 4; ++i) p.talk();
  CHECK(p.a.link->counts().exported == 0 && p.b.link->counts().held == 0 && p.b.link->counts().mirrors == 0);
  CHECK(p.a.objects() < kRings && p.b.objects() < kRings);
}

Handle far_result(Pair& p, const std::vector<Handle>& deps = {}) {
  Handle h = p.a.submit_routed(deps);
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  run_big(*p.b.worker);
  p.answer();
  CHECK(p.a.agent->is_away(h));
  return h;
}

void big_results_stay() {
  Pair p;
  Handle h = far_result(p);
  CHECK(p.a.objects() < kRings && p.b.objects() > kBig);
  ask(p, *p.a.driver, h);
  CHECK(p.a.driver->sealed(h) && p.a.session.value(h) == 1);
  Handle unread = far_result(p);
  p.a.driver->drop(h);
  p.a.driver->drop(unread);
  for (int i = 0; i < 4; ++i) p.talk();
  CHECK(p.b.link->counts().exported == 0 && p.a.link->counts().held == 0);
  CHECK(p.a.objects() < kRings && p.b.objects() < kRings);
}

// A task whose argument is away is routed: it can follow it, or have it brought.
void tasks_follow_their_arguments() {
  Pair p;
  Handle far = far_result(p);
  Handle there = submit(*p.a.driver, {far}), here = submit(*p.a.driver, {far});
  std::vector<Handle> routed;
  CHECK(p.a.agent->claim_many(kRouteClass, 10, &routed) == 2);
  CHECK(routed[0] == there && p.a.link->bytes_there(there) > kBig);
  p.a.link->stage(there);
  p.send();
  CHECK(p.a.link->counts().exported == 0);  // it was named as theirs
  CHECK(drain(*p.b.worker) == 1);
  p.answer();
  CHECK(p.a.session.value(there) == 2 && p.a.agent->is_away(far));
  CHECK(p.a.agent->put_back(here, 0));
  CHECK(drain(*p.a.worker) == 0);
  p.talk();
  CHECK(p.a.driver->sealed(far) && drain(*p.a.worker) == 1 && p.a.session.value(here) == 2);
  Handle local = submit(*p.a.driver, {far});  // it is here now
  CHECK(p.a.agent->waiting_in(kRouteClass) == 0 && drain(*p.a.worker) == 1 && p.a.session.value(local) == 2);
}

// Who waits for a task that becomes away need not ask again.
void awaited_results_come() {
  Pair p;
  Handle h = p.a.submit_routed(), follower = submit(*p.a.driver, {h});
  (void)p.a.driver->mark_awaited(&h, 1);
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  run_big(*p.b.worker);
  p.answer();
  p.talk();
  CHECK(p.a.driver->sealed(h) && p.a.session.value(h) == 1);
  std::vector<Handle> routed;
  if (p.a.agent->claim_many(kRouteClass, 1, &routed) == 1) CHECK(p.a.agent->put_back(follower, 0));
  CHECK(drain(*p.a.worker) == 1 && p.a.session.value(follower) == 2);
}

void several_returns() {
  Pair p;
  Handle task = p.a.submit_routed({}, 3);
  std::vector<Handle> values = promises_of(p.a.session, task);
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  CHECK(drain(*p.b.worker) == 1);
  p.answer();
  for (uint64_t i = 0; i < 3; ++i) CHECK(p.a.driver->sealed(values[i]) && p.a.session.value(values[i]) == 1 + i);
  CHECK(p.a.driver->sealed(task));
  for (Handle h : values) p.a.driver->drop(h);
  CHECK(!p.a.session.lives(task));
}

// ---- failures ----------------------------------------------------------------------------------------------

void a_task_without_its_function_fails() {
  Pair p;
  p.b.link = std::make_unique<Link>(p.b.agent.get(), 2, 1);
  Handle h = p.a.submit_routed();
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  p.answer();
  CHECK(state_of(p.a.session.word(h)) == kFailed && p.a.session.segment.record(h).result[0] == kErrorSystem);
}

void a_broken_link() {
  Pair p;
  Handle far = far_result(p), running = p.a.submit_routed(), follower = p.a.submit_routed({far});
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  std::string error(1, static_cast<char>(kErrorSystem));
  p.a.link->down(error);
  p.b.link->down(error);
  CHECK(state_of(p.a.session.word(running)) == kReady && state_of(p.a.session.word(far)) != kAway);
  CHECK(p.b.link->counts().exported == 0 && p.b.link->imported() == 0);
  // what was away is computed again, when somebody asks
  (void)p.a.driver->mark_awaited(&far, 1);
  std::vector<Handle> claimed;
  for (uint32_t c : {kRouteClass, kRouted}) p.a.agent->claim_many(c, 10, &claimed);
  for (Handle h : claimed) CHECK(p.a.agent->put_back(h, 0));
  drain(*p.a.worker);
  claimed.clear();
  for (uint32_t c : {kRouteClass, kRouted}) p.a.agent->claim_many(c, 10, &claimed);
  for (Handle h : claimed) CHECK(p.a.agent->put_back(h, 0));
  drain(*p.a.worker);
  CHECK(p.a.session.value(running) == 1 && p.a.session.value(far) == 1 && p.a.session.value(follower) == 2);
  drain(*p.b.worker);
  CHECK(p.b.objects() < kRings);
}

void attempts_end() {
  Pair p;
  p.a.session.segment.function(kFunction).max_retries = 0;
  Handle h = p.a.submit_routed();
  CHECK(p.a.link->claim(kRouted, 1) == 1);
  p.send();
  p.a.link->down(std::string(1, static_cast<char>(kErrorSystem)) + "gone");
  CHECK(state_of(p.a.session.word(h)) == kFailed);
}

// What the other side sends is checked: half frames, and frames with any word changed.
void garbage() {
  Random random(seed_or(5));
  Pair source;
  Handle small = put(*source.a.driver, 10, 300);
  for (int i = 0; i < 3; ++i) (void)source.a.submit_routed({small});
  CHECK(source.a.link->claim(kRouted, 10) == 3);
  source.a.link->send_staged();
  std::string good = source.a.link->take_out();
  for (int round = 0; round < 400; ++round) {
    Pair p;
    std::string batch = good.substr(0, round % 2 == 0 ? random.below(good.size()) : good.size());
    if (round % 2 == 1) batch[random.below(batch.size())] ^= static_cast<char>(1 + random.below(255));
    const uint8_t* message;
    size_t bytes;
    auto* copy = static_cast<uint8_t*>(malloc(batch.size() + 1));  // so that a sanitizer sees the end
    memcpy(copy, batch.data(), batch.size());
    size_t at = 0;
    do {
      at += p.b.link->receive(copy + at, batch.size() - at, &message, &bytes);
    } while (message != nullptr && !p.b.link->bad());
    free(copy);
  }
}

}  // namespace

int main() {
  small_tasks();
  classes_of_groups();
  large_arguments_come_before_the_task_runs();
  large_arguments_that_do_not_come_fail_what_waits_for_them();
  large_arguments_outlive_their_task();
  claims_are_bounded_by_bytes();
  arguments();
  big_results_stay();
  tasks_follow_their_arguments();
  awaited_results_come();
  several_returns();
  a_task_without_its_function_fails();
  a_broken_link();
  attempts_end();
  garbage();
  puts("ok");
  return 0;
}
