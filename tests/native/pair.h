// Two nodes in one address space, and the link between their agents, for tests.
#pragma once

#include <memory>

#include "../../csrc/link.h"
#include "session.h"

namespace fastray::testing {

inline constexpr uint32_t kRouted = 1;                  // the class of tasks that run on the other node
inline constexpr size_t kBig = Link::kInlineMax + 1000;  // stays where it is
inline constexpr uint64_t kRings = 64 << 10;             // queues and edges, when no value is left

struct Node {
  Session session;
  std::unique_ptr<Process> node, driver, worker, agent;
  std::unique_ptr<Link> link;
  uint64_t number;

  explicit Node(uint64_t name) : number(name) {
    node = session.process(kProcNode, 0);
    driver = session.process(kProcDriver, 1);
    worker = session.process(kProcWorker, 2);
    agent = session.process(kProcAgent, 3);
    Header& header = session.segment.header();
    header.agent_slot.store(3);
    header.clustered.store(1);
    Class& c = session.segment.cls(kRouted);
    c.routed = 1;
    c.state.store(kEntryUsed);
    header.classes_used.store(2);
  }
  Handle submit_routed(const std::vector<Handle>& deps = {}, uint16_t returns = 1) {
    Record* r;
    uint64_t flags;
    Handle h = make_task(*driver, deps, &r, &flags);
    r->cls = kRouted;
    r->ret = returns;
    if (returns > 1) {
      CHECK(driver->make_promises(*r, h));
      flags |= kFlagMulti | kFlagShared;
    }
    if (!deps.empty()) driver->remember_lineage(h);
    CHECK(deps.empty() ? driver->publish(r, h, flags) : driver->publish_waiting(r, h, flags));
    return h;
  }
  uint64_t objects() {
    for (Process* p : {driver.get(), worker.get(), agent.get()}) p->sweep();
    return ObjectAllocator::usage(session.segment).object_bytes;
  }
};

struct Pair {
  Node a{1}, b{2};

  Pair() {
    a.link = std::make_unique<Link>(a.agent.get(), 1, 2);
    b.link = std::make_unique<Link>(b.agent.get(), 2, 1);
    b.link->know(kFunction, Link::LocalFunction{kFunction, 0});
  }
  static void carry(Node& from, Node& to) {
    std::string batch = from.link->take_out();
    const uint8_t* message;
    size_t bytes;
    auto* data = reinterpret_cast<const uint8_t*>(batch.data());
    CHECK(to.link->receive(data, batch.size(), &message, &bytes) == batch.size());
    CHECK(message == nullptr && !to.link->bad());
  }
  void send() {
    a.link->send_staged();
    carry(a, b);
  }
  void answer() {
    b.link->collect();
    carry(b, a);
  }
  // Until nobody has anything to say: fetches, values, releases.
  void talk() {
    for (int i = 0; i < 6; ++i) {
      for (Node* n : {&a, &b}) {
        std::vector<Handle> asked;
        n->agent->take_asked(&asked);
        for (Handle h : asked) n->link->fetch(h);
        n->link->collect();
        n->link->sweep();
        n->agent->sweep();
      }
      carry(a, b);
      carry(b, a);
    }
  }
};

// What `get` does.
inline void ask(Pair& p, Process& who, Handle h) {
  if (!who.sealed(h)) (void)who.mark_awaited(&h, 1);
  p.talk();
}

}  // namespace fastray::testing
