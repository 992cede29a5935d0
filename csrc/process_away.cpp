// Values on other nodes: records in state kAway, and what of them is asked for. See process.h, bridge.h.
//
//   away     the value is on another node; the result line says where (Away). Its owner and all references to it are
//            as for any record, and whoever waits for it asks for it
//   asked    kPromised with holder kAsked: its handle stands in a queue of kFetchClass, and the node agent brings it
//   routed   a task that is ready but for values that are away: it goes to the agent, by kRouteClass, which runs it
//            where they are or has them brought here first
//
// An away dependency counts as done for a task of a worker's class (it will be routed), and not for an actor's call,
// which runs here: that one asks. Only the agent makes records away, and only it seals what is asked for. When it dies,
// what was asked for is lost (kLost) and computed again, as what the other node held for it is gone too.
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "process.h"

namespace fastray {

bool Process::is_away(Handle h) const {
  uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  return state_of(w) == kAway && word_gen(w) == gen_of(h);
}

bool Process::needs_away(Handle h) const {
  const Record& r = segment_.record(h);
  Handle dependency;
  for (uint32_t i = 0; (dependency = peek_dependency(r, h, i)) != 0 && dependency != kGone; ++i)
    if (is_away(dependency)) return true;
  return false;
}

// ---- asking ------------------------------------------------------------------------------------------

// Nothing happens when somebody else was first. A death between the swap and the queue: `recovering` names it, or what
// needs it, and the reaper queues it.
void Process::ask_for(Handle h) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  for (;;) {
    if (state_of(w) != kAway || word_gen(w) != gen_of(h)) return;
    if (is_walked(w)) {  // its edges are being walked: a few stores, or the reaper does it
      sched_yield();
      w = r.state.load(std::memory_order_acquire);
      continue;
    }
    // SYNC POINT: record-state
    if (r.state.compare_exchange_weak(w, with_state(w, kPromised, kAsked), std::memory_order_acq_rel)) break;
  }
  push_asked(h);
}

void Process::push_asked(Handle h) {
  QueueProducer* q = producer(kFetchClass);
  if (q != nullptr && q->push(h)) return notify(*q);
  // No room for a longer queue: it is computed again instead, or fails.
  if (unask(h)) recover(h);
}

// Asked for, and cannot be had: kLost. False: it was not asked for (any more).
bool Process::unask(Handle h) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  while (is_asked(w) && word_gen(w) == gen_of(h))
    if (r.state.compare_exchange_weak(w, with_state(w, kLost, 0), std::memory_order_acq_rel)) return true;
  return false;
}

// ---- making records away -------------------------------------------------------------------------------

Handle Process::make_mirror(const Away& away) {
  Record* r = allocate_record();
  if (r == nullptr) return 0;
  Handle h = handle_of(r);
  r->id = next_id();
  r->function = 0;
  r->cls = 0;
  r->parent = 0;
  r->kind = kObject;
  r->depth = 0;
  r->ret = 1;
  r->args_bytes = r->dependencies = r->references = r->attempts = 0;
  memcpy(r->result, &away, sizeof away);
  r->result_bytes = sizeof away;
  publish_state(r, h, kAway, 0);
  return h;
}

// The same, asked for by whoever makes it, and known to nobody else: it is sealed by seal_promise.
Handle Process::make_asked() {
  Handle h = make_mirror(Away{});
  if (h == 0) return 0;
  std::atomic<uint64_t>& state = segment_.record(h).state;
  state.store(with_state(state.load(std::memory_order_relaxed), kPromised, kAsked), std::memory_order_release);
  return h;
}

Away Process::away_of(const Record& r) {
  Away away;
  memcpy(&away, r.result, sizeof away);
  return away;
}

// What we claimed is done, elsewhere. False: it was not ours (any more).
bool Process::seal_away(Handle h, const Away& away) {
  uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);
  bool ours = state_of(w) == kClaimed && word_holder(w) == slot_ && word_gen(w) == gen_of(h);
  return ours && become_away(h, w, away);
}

// The same for a return value of a task that we claimed.
bool Process::seal_promise_away(Handle h, const Away& away) {
  uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);
  bool open = state_of(w) == kPromised && !is_asked(w) && word_gen(w) == gen_of(h);
  return open && become_away(h, w, away);
}

bool Process::become_away(Handle h, uint64_t w, const Away& away) {
  Record& r = segment_.record(h);
  uint64_t from = w & (kStateMask | kHolderMask);
  memcpy(r.result, &away, sizeof away);
  r.result_bytes = sizeof away;
  uint64_t next;
  do {
    if ((w & (kStateMask | kHolderMask)) != from || word_gen(w) != gen_of(h)) return false;
    next = with_state(w, kAway, w & kFlagEdges ? kWalking : 0);
    // SYNC POINT: record-state (release: result line before state)
  } while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel));
  bool wanted = w & kFlagAwaited;
  for (uint32_t e = w & kFlagEdges ? r.edges.load(std::memory_order_acquire) : 0; e != 0;) {  // SYNC POINT: edges
    Edge edge = *segment_.edge(e);
    uint32_t cls = edge.kind == kEdgeRecord ? segment_.record(edge.target).cls : 0;
    wanted = wanted || edge.kind == kEdgeProcess || (edge.kind == kEdgeRecord && is_ordered(cls));
    e = edge.next;
  }
  if (w & kFlagEdges) walk_edges(r, false);
  if (wanted) ask_for(h);
  return true;
}

// Lineage alone holds a value of ours that is away: kLost, and whoever holds it for us there will be told. False: a
// task that needs it runs again.
bool Process::forget_away(Record& r, Handle h) {
  uint64_t w = r.state.load(std::memory_order_acquire);
  if (state_of(w) != kAway || word_holder(w) != 0 || word_gen(w) != gen_of(h)) return false;
  uint64_t lost = with_state(w, kLost, 0);
  if (!r.state.compare_exchange_strong(w, lost, std::memory_order_seq_cst)) return false;
  std::atomic_thread_fence(std::memory_order_seq_cst);  // SYNC POINT: eviction
  if (dependents_settled(h)) return true;
  uint64_t now = lost;
  while (state_of(now) == kLost && word_gen(now) == gen_of(h))
    if (r.state.compare_exchange_weak(now, with_state(now, kAway, 0), std::memory_order_acq_rel)) return false;
  return true;
}

// ---- the agent's queues ----------------------------------------------------------------------------------

// Claims up to n tasks of this class, deeper nesting first, for a process that holds many claims at once.
size_t Process::claim_many(uint32_t cls, size_t n, std::vector<Handle>* claimed) {
  std::vector<Queue*> queues = queues_of(cls);
  size_t taken = 0;
  while (taken < n) {
    Queue* best = nullptr;
    uint32_t best_depth = 0;
    for (Queue* q : queues) {
      uint32_t depth = q->depth.load(std::memory_order_relaxed);
      if ((best != nullptr && depth <= best_depth) || task_queue::looks_empty(*q)) continue;
      best = q;
      best_depth = depth;
    }
    if (best == nullptr) break;
    for (Handle h; taken < n && (h = task_queue::claim(segment_, *best, slot_, *self_)) != 0; ++taken)
      claimed->push_back(h);
  }
  self_->claim.store(0, std::memory_order_release);
  return taken;
}

size_t Process::claim_calls(uint32_t cls, size_t n, std::vector<Handle>* claimed) {
  const Class& c = segment_.cls(cls);
  size_t taken = 0;
  auto take_from = [&](uint32_t slot) {
    uint32_t q = c.queues[slot].load(std::memory_order_acquire);
    if (q == 0) return;
    for (Handle h; taken < n && (h = task_queue::claim(segment_, segment_.queue(q), slot_, *self_)) != 0; ++taken)
      claimed->push_back(h);
  };
  take_from(slot_);  // what was in flight when a node went
  take_from(0);
  proc_set::find(c.producers, [&](uint32_t slot) {
    if (slot != slot_ && slot != 0) take_from(slot);
    return false;
  });
  self_->claim.store(0, std::memory_order_release);
  return taken;
}

bool Process::lose_host(Handle creation) {
  Record& r = segment_.record(creation);
  if (word_gen(r.state.load(std::memory_order_acquire)) != gen_of(creation) || r.kind != kActor) return true;
  Actor& actor = segment_.actor_of_class(r.cls);
  uint32_t restarts = actor.restarts.load(std::memory_order_acquire);
  bool again = !(actor.flags.load(std::memory_order_acquire) & kActorNoRestart) &&
               (actor.max_restarts < 0 || restarts < static_cast<uint32_t>(actor.max_restarts));
  if (!again) return false;
  actor.restarts.store(restarts + 1, std::memory_order_release);
  actor.slot.store(0, std::memory_order_release);
  actor.state.store(kActorRestarting, std::memory_order_release);  // SYNC POINT: actor-entry
  return true;
}

// An ActorDeath and its texts, for calls of an actor whose node is gone.
std::string Process::describe_lost(uint32_t a) const {
  const Actor& actor = segment_.actor(a);
  ActorDeath d{};
  memcpy(d.id, actor.id, sizeof d.id);
  d.time_ns = os::wall_ns();
  d.end = kEndNodeGone;
  d.restarts = actor.restarts.load(std::memory_order_relaxed);
  d.max_restarts = actor.max_restarts;
  std::string texts[2] = {actor.class_name, actor.name};
  for (size_t i = 0; i < 2; ++i) d.text_bytes[i] = static_cast<uint32_t>(texts[i].size());
  return std::string(reinterpret_cast<const char*>(&d), sizeof d) + texts[0] + texts[1];
}

// What was asked for since the last call.
void Process::take_asked(std::vector<Handle>* asked) {
  for (Queue* q : queues_of(kFetchClass)) {
    for (;;) {
      uint64_t tail = q->tail.load(std::memory_order_acquire);  // SYNC POINT: queue-tail
      uint64_t head = q->head.load(std::memory_order_acquire);
      if (head >= tail) break;
      Handle h = task_queue::peek(segment_, *q, head);
      if (h == 0 || !q->head.compare_exchange_strong(head, head + 1, std::memory_order_acq_rel)) continue;
      uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);
      if (is_asked(w) && word_gen(w) == gen_of(h)) asked->push_back(h);
    }
  }
}

std::vector<Queue*> Process::queues_of(uint32_t cls) const {
  std::vector<Queue*> queues;
  const Class& c = segment_.cls(cls);
  proc_set::find(c.producers, [&](uint32_t slot) {
    uint32_t q = c.queues[slot].load(std::memory_order_acquire);
    if (q != 0) queues.push_back(&segment_.queue(q));
    return false;
  });
  return queues;
}

uint64_t Process::waiting_in(uint32_t cls) const {
  uint64_t n = 0;
  for (const Queue* q : queues_of(cls)) {
    uint64_t tail = q->tail.load(std::memory_order_relaxed), head = q->head.load(std::memory_order_relaxed);
    if (tail > head) n += tail - head;
  }
  return n;
}

// A task that we claimed goes to workers here, in class `cls`, when what is away of its arguments has come.
bool Process::put_back(Handle h, uint32_t cls) {
  Record& r = segment_.record(h);
  uint32_t n, refs;
  const Handle* deps = argument_handles(segment_, r, &n, &refs);
  for (uint32_t i = 0; i < n; ++i)
    if (is_away(deps[i])) ask_for(deps[i]);
  r.cls = static_cast<uint16_t>(cls);
  uint64_t w = r.state.load(std::memory_order_acquire), next;
  do {
    if (state_of(w) != kClaimed || word_holder(w) != slot_ || word_gen(w) != gen_of(h)) return false;
    next = with_state(w, kWaiting, 0xFFF);
    // SYNC POINT: record-state (release: the class before the word)
  } while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel));
  bool done = advance(r, h, next, 0);
  if (!lost_.empty()) recover_all(&lost_);
  return done;
}

// Sleeps until one of these classes has work, something is asked for, or somebody wakes us. GIL released.
Wake Process::sleep_for_classes(const uint32_t* classes, size_t n, uint32_t seen, int64_t timeout_ns) {
  Proc& self = *self_;
  self.sleepers.fetch_add(1, std::memory_order_seq_cst);  // SYNC POINT: proc-futex
  for (size_t i = 0; i < n; ++i) {
    proc_set::add(segment_.cls(classes[i]).sleeping, slot_);  // SYNC POINT: sleep-bit
    proc_set::take(segment_.cls(classes[i]).polling, slot_);
  }
  if (fences_)
    std::atomic_thread_fence(std::memory_order_seq_cst);
  else
    os::membarrier_all();
  bool work = false;
  for (size_t i = 0; i < n && !work; ++i)
    work = is_actor_class(classes[i]) ? has_call(segment_.cls(classes[i]), false) : waiting_in(classes[i]) != 0;
  int result = work || self.exiting.load(std::memory_order_seq_cst) != 0 ? 0 : os::futex_wait(&self.futex, seen, timeout_ns);
  for (size_t i = 0; i < n; ++i) {
    proc_set::take(segment_.cls(classes[i]).sleeping, slot_);
    proc_set::take(segment_.cls(classes[i]).polling, slot_);
  }
  self.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  if (result == -ETIMEDOUT) return Wake::kTimeout;
  return result == -EINTR ? Wake::kInterrupted : Wake::kKicked;
}

}  // namespace fastray
