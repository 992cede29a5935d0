// Actors that were created on one node and run on another. See link.h; the words are in types_actor.h.
//
//   foreign   kActorForeign: the actor's entry and queues are here, its process is on another node
//   hosted    of our foreign actors, those that run at the peer
//   hosting   actors of the peer's that run here: entries of our own table, owned by our agent
//
// A foreign actor is one to everybody here: calls go into its queues, in order, and the agent, which stands in its
// entry as its worker, sends them. There they are calls of one caller, our agent. Its restarts are that node's business,
// until the node is gone: then it starts elsewhere, if a restart is left.
#include <algorithm>

#include "link.h"

namespace fastray {

// ---- where it was created --------------------------------------------------------------------------------

void Link::send_actor(Handle creation) {
  Actor& actor = segment_.actor_of_class(segment_.record(creation).cls);
  actor.slot.store(process_.slot(), std::memory_order_release);
  actor.host_pid.store(0, std::memory_order_relaxed);
  actor.flags.fetch_or(kActorForeign, std::memory_order_acq_rel);
  actor.state.store(kActorStarting, std::memory_order_release);  // SYNC POINT: actor-entry
  Hosted& hosted = hosted_[creation] = Hosted{};
  hosted.restarts = actor.restarts.load(std::memory_order_acquire);
  send_checkpoint(creation, actor);
  put_task(creation);
}

Handle Link::actor_there(uint32_t cls) const {
  auto it = held_.find(segment_.actor_of_class(cls).creation.load(std::memory_order_acquire));
  return it == held_.end() ? 0 : it->second.remote;
}

void Link::on_actor(Reader& in) {
  ActorHead head = in.get<ActorHead>();
  if (in.bad() || index_of(head.wire) >= kRecordsMax) return in.fail();
  if (hosted_.count(head.wire) == 0) {  // it ended here meanwhile
    writer_.begin(kFrameActorStop);
    writer_.put(head.remote);
    writer_.put(Stop::kKill);
    return writer_.end();
  }
  Record& r = segment_.record(head.wire);
  Actor& actor = segment_.actor_of_class(r.cls);
  if (held_.count(head.wire) == 0) {
    hold_remote(head.wire, head.remote, false);
    stage_log(head.wire);
  }
  actor.host_pid.store(static_cast<uint32_t>(head.pid), std::memory_order_relaxed);  // seen with the state
  actor.restarts.store(hosted_[head.wire].restarts + head.restarts, std::memory_order_release);
  if (head.state == kActorAlive) {
    process_.seal_creation(head.wire, kDone);
    uint32_t starting = kActorStarting;
    actor.state.compare_exchange_strong(starting, kActorAlive, std::memory_order_acq_rel);
  } else if (head.state == kActorDead) {
    forget_hosted(head.wire);
    const uint8_t* cause = in.bytes(head.cause);
    if (cause != nullptr && head.cause != 0) keep_cause(r.cls - kActorClass, cause, head.cause);
    ended_.push_back(Ended{head.wire, head.end});
  }
}

void Link::forget_hosted(Handle creation) {
  auto it = hosted_.find(creation);
  if (it == hosted_.end()) return;
  if (it->second.next != 0) process_.drop(it->second.next);
  hosted_.erase(it);
}

void Link::keep_cause(uint32_t a, const uint8_t* cause, uint64_t bytes) {
  Offset block = process_.allocator().allocate(bytes + 8, make_handle(0, kBlockActor | a));
  if (block == 0) return;
  memcpy(segment_.at<uint8_t>(block), &bytes, 8);
  memcpy(segment_.at<uint8_t>(block) + 8, cause, bytes);
  segment_.actor(a).cause.store(block, std::memory_order_release);
}

void Link::send_actor_stop(Handle creation, Stop how) {
  auto it = held_.find(creation);
  if (how == Stop::kKill) forget_hosted(creation);  // else it says when it has finished
  if (it == held_.end()) return;  // on_actor() does it when it is heard of
  writer_.begin(kFrameActorStop);
  writer_.put(it->second.remote);
  writer_.put(how);
  writer_.end();
}

// An actor's call that was in flight when its node went. False: it runs again, as a task would.
bool Link::fail_call(Record& r, Handle task) {
  Actor& actor = segment_.actor_of_class(r.cls);
  bool restarts = actor.state.load(std::memory_order_acquire) == kActorRestarting;
  bool again = actor.flags.load(std::memory_order_relaxed) & kActorCheckpoints;
  int32_t most = segment_.function(r.function).max_retries;
  if (restarts && (again || most < 0 || r.attempts < most)) return false;
  std::string death = Process::for_call(process_.describe_lost(r.cls - kActorClass), true);
  ErrorCode code = restarts ? kErrorActorUnavailable : kErrorActorDied;
  process_.self().claim.store(task, std::memory_order_release);
  (void)process_.fail(r, task, code, death.data(), death.size());
  process_.self().claim.store(0, std::memory_order_release);
  return true;
}

// ---- handles that travel ---------------------------------------------------------------------------------

bool Link::names_unknown(const Handle* handles, size_t n) {
  bool any = false;
  for (size_t i = 0; i < n; ++i) {
    Handle h = handles[i];
    if (segment_.record(h).kind != kActor || knows_actor(h)) continue;
    unknown_actors_.push_back(h);
    any = true;
  }
  return any;
}

// Of a value.
bool Link::names_unknown(const Record& r) {
  if (!(r.state.load(std::memory_order_acquire) & kFlagResultHeap)) return false;
  PayloadView view = Process::view_payload(segment_, r.result_heap.offset);
  return names_unknown(view.handles + view.header->dependencies, view.header->references);
}

std::vector<Handle> Link::unknown_actors() {
  uint32_t deps, refs;
  for (Handle h : staged_) {
    const Handle* handles = Process::argument_handles(segment_, segment_.record(h), &deps, &refs);
    (void)names_unknown(handles, deps + refs);
  }
  std::vector<Handle> unknown = std::move(unknown_actors_);
  unknown_actors_.clear();
  std::sort(unknown.begin(), unknown.end());
  unknown.erase(std::unique(unknown.begin(), unknown.end()), unknown.end());
  return unknown;
}

bool Link::import_actor(const std::string& ref, uint32_t a) {
  Reader in(reinterpret_cast<const uint8_t*>(ref.data()), ref.size());
  RefHead head = in.get<RefHead>();
  if (in.bad() || head.node != peer_ || mirrors_.count(head.handle) != 0) return false;
  Record* r = process_.allocate_record();
  if (r == nullptr) return false;
  Handle h = process_.handle_of(r);
  r->id = process_.next_id();
  r->function = 0;
  r->cls = static_cast<uint16_t>(kActorClass + a);
  r->parent = 0;
  r->kind = kActor;
  r->depth = 0;
  r->ret = 1;
  r->args_bytes = r->dependencies = r->references = r->attempts = 0;
  Actor& actor = segment_.actor(a);
  actor.flags.fetch_or(kActorForeign, std::memory_order_relaxed);
  actor.slot.store(process_.slot(), std::memory_order_relaxed);
  process_.publish_actor(a, r, h, 0);
  process_.seal_creation(h, kDone);
  actor.state.store(kActorAlive, std::memory_order_release);  // SYNC POINT: actor-entry
  mirrors_[head.handle] = h;
  hold_remote(h, head.handle, true);
  hosted_[h] = Hosted{};
  return true;
}

bool Link::mirrors_actor(Handle creation) const {
  return hosted_.count(creation) != 0 && segment_.record(creation).function == 0;
}

// ---- where it runs ---------------------------------------------------------------------------------------

void Link::on_actor_created(Record* r, Handle h, uint64_t wire, uint64_t flags) {
  uint32_t a = r->cls - kActorClass;
  if (Handle checkpoint = prepared_[wire].checkpoint; checkpoint != 0) {
    (void)process_.contain(checkpoint, h);
    segment_.actor(a).checkpoint.store(checkpoint, std::memory_order_release);
    process_.drop(checkpoint);
  }
  prepared_.erase(wire);
  process_.publish_actor(a, r, h, flags);
  exported_[h] = 1;  // our reference is the peer's
  hosting_.push_back(Hosting{wire, h, a, 0, 0, segment_.actor(a).checkpoint.load(std::memory_order_relaxed), 0});
  report_actors();
}

// Tells the peer what has changed of its actors here.
void Link::report_actors() {
  for (size_t i = 0; i < hosting_.size();) {
    Hosting& hosting = hosting_[i];
    const Actor& actor = segment_.actor(hosting.actor);
    uint32_t state = actor.state.load(std::memory_order_acquire);  // SYNC POINT: actor-entry
    if (actor.creation.load(std::memory_order_acquire) != hosting.local) state = kActorDead;
    uint32_t restarts = actor.restarts.load(std::memory_order_acquire);
    if (state != kActorDead) report_checkpoint(&hosting);
    if (state != hosting.state || restarts != hosting.restarts) {
      hosting.state = state;
      hosting.restarts = restarts;
      Offset block = state == kActorDead ? actor.cause.load(std::memory_order_acquire) : 0;
      uint32_t bytes = block == 0 ? 0 : static_cast<uint32_t>(*segment_.at<uint64_t>(block));
      writer_.begin(kFrameActor);
      uint32_t end = actor.end.load(std::memory_order_acquire), slot = actor.slot.load(std::memory_order_acquire);
      int32_t pid = slot == 0 ? 0 : segment_.proc(slot).pid;
      writer_.put(ActorHead{hosting.wire, hosting.local, state, end, restarts, bytes, pid, 0});
      if (bytes != 0) writer_.bytes(segment_.at<uint8_t>(block) + 8, bytes);
      writer_.end();
    }
    if (state != kActorDead) {
      ++i;
      continue;
    }
    hosting_[i] = hosting_.back();
    hosting_.pop_back();
  }
}

void Link::on_actor_stop(Reader& in) {
  Handle h = in.get<uint64_t>();
  uint64_t how = in.get<uint64_t>();
  auto it = exported_.find(h);
  if (in.bad() || it == exported_.end()) return;  // it ended by itself
  if (how != static_cast<uint64_t>(Stop::kFinish)) {
    kills_.emplace_back(h, how);
    return;
  }
  exported_.erase(it);
  process_.drop(h);  // no handle is left there: it finishes and ends
}

}  // namespace fastray
