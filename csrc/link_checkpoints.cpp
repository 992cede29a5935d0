// Checkpoints and logs of actors that run on another node than the one that created them. See link.h.
//
// An actor writes its state into objects of the node where it runs, and the calls since then into its log there. Both go
// with that node. So the importer tells the exporter of them, which keeps a copy of the state, and the calls, which are
// records of its own: as a log in the actor's entry, as if the actor ran here. When the node is gone the actor starts on
// another one from that state, and the calls of the log are sent to it again, before all others and without an answer.
//
//   place    of a call: its number in the log where the actor runs. Our log has the same calls in the same order,
//            but for those that processes of that node made themselves
//
// A place is told before the result of its call. So a call whose result anybody here has seen is in our log.
#include <utility>

#include "link.h"

namespace fastray {

// ---- where it runs ---------------------------------------------------------------------------------------

// Entries of calls that are done: others may still leave the log (logged_since in actor_worker.pyx).
void Link::report_log(Hosting* hosting) {
  const Actor& actor = segment_.actor(hosting->actor);
  if (!(actor.flags.load(std::memory_order_relaxed) & kActorCheckpoints)) return;
  if (actor.creation.load(std::memory_order_acquire) != hosting->local) return;
  uint64_t end = actor.log_end.load(std::memory_order_acquire);  // SYNC POINT: actor-log
  for (; hosting->logged < end; ++hosting->logged) {
    Handle call = segment_.actor_log(hosting->actor, hosting->logged).load(std::memory_order_relaxed);
    if (!process_.sealed(call)) return;
    auto known = logged_calls_.find(call);
    if (known == logged_calls_.end()) continue;  // made on this node
    writer_.begin(kFrameLogged);
    writer_.put(hosting->wire);
    writer_.put(hosting->logged);
    writer_.put(known->second);
    writer_.end();
  }
}

void Link::report_checkpoint(Hosting* hosting) {
  report_log(hosting);
  const Actor& actor = segment_.actor(hosting->actor);
  Handle checkpoint = actor.checkpoint.load(std::memory_order_acquire);  // SYNC POINT: actor-log
  if (checkpoint == hosting->checkpoint || checkpoint == 0 || !process_.hold(checkpoint)) return;
  if (actor.checkpoint.load(std::memory_order_acquire) == checkpoint) {  // from here on it stays
    report_log(hosting);  // what came before it
    hosting->checkpoint = checkpoint;
    writer_.begin(kFrameCheckpoint);
    writer_.put(hosting->wire);
    writer_.put(process_.checkpoint_position(checkpoint));
    put_ref(checkpoint);
    writer_.end();
  }
  process_.drop(checkpoint);
}

// ---- where it was created --------------------------------------------------------------------------------

void Link::on_logged(Reader& in) {
  uint64_t creation = in.get<uint64_t>(), place = in.get<uint64_t>();
  Handle call = in.get<uint64_t>();
  auto it = hosted_.find(creation);
  if (in.bad() || it == hosted_.end()) return;
  Hosted& hosted = it->second;
  uint32_t cls = segment_.record(creation).cls;
  Actor& actor = segment_.actor_of_class(cls);
  uint64_t start = actor.log_start.load(std::memory_order_relaxed), end = actor.log_end.load(std::memory_order_relaxed);
  uint64_t again = start + hosted.again;
  if (again < end && segment_.actor_log(cls - kActorClass, again).load(std::memory_order_relaxed) == call) {
    hosted.there[hosted.again++] = place;
    return;
  }
  if (index_of(call) >= kRecordsMax || !ours(call) || segment_.record(call).cls != cls) return;  // cancelled meanwhile
  if (end - start >= kActorLogEntries || !process_.log_call(cls - kActorClass, call)) {
    hosted.torn = place + 1;
    return;
  }
  hosted.there.push_back(place);
  hosted.again = hosted.there.size();
}

// Its state after the calls before `place`; of an actor that is about to be created here: what it begins with.
void Link::on_checkpoint(Reader& in) {
  uint64_t creation = in.get<uint64_t>(), place = in.get<uint64_t>();
  Handle checkpoint = in.bad() ? 0 : get_ref(in);
  if (checkpoint == 0) return in.fail();
  auto prepared = prepared_.find(creation);
  if (prepared != prepared_.end()) {
    (void)process_.hold(checkpoint);
    memset(segment_.record(checkpoint).args, 0, sizeof place);  // its log begins anew
    prepared->second.checkpoint = checkpoint;
    return;
  }
  auto it = hosted_.find(creation);
  if (it == hosted_.end()) return;
  Hosted& hosted = it->second;
  if (hosted.next != 0) process_.drop(hosted.next);
  (void)process_.hold(checkpoint);
  (void)process_.mark_awaited(&checkpoint, 1);  // asks for it
  hosted.next = checkpoint;
  hosted.next_place = place;
}

// Checkpoints whose value has come.
void Link::settle_checkpoints() {
  for (auto& [creation, hosted] : hosted_)
    if (hosted.next != 0 && process_.sealed(hosted.next)) take_checkpoint(creation, &hosted);
}

void Link::take_checkpoint(Handle creation, Hosted* hosted) {
  Handle checkpoint = std::exchange(hosted->next, 0);
  uint32_t a = segment_.record(creation).cls - kActorClass;
  Actor& actor = segment_.actor(a);
  bool lives = actor.creation.load(std::memory_order_acquire) == creation;
  bool done = state_of(segment_.record(checkpoint).state.load(std::memory_order_acquire)) == kDone;
  if (lives && done) {
    size_t covered = 0;
    while (covered < hosted->there.size() && hosted->there[covered] < hosted->next_place) ++covered;
    uint64_t position = actor.log_start.load(std::memory_order_relaxed) + covered;
    if (process_.set_checkpoint(a, checkpoint, position)) {  // else the one before it stays, with its log
      hosted->there.erase(hosted->there.begin(), hosted->there.begin() + static_cast<ptrdiff_t>(covered));
      hosted->again -= covered;
      if (hosted->torn <= hosted->next_place) hosted->torn = 0;
    }
  }
  process_.drop(checkpoint);
}

// Before the creation itself.
void Link::send_checkpoint(Handle creation, const Actor& actor) {
  Handle checkpoint = actor.checkpoint.load(std::memory_order_acquire);
  if (checkpoint == 0) return;
  writer_.begin(kFrameCheckpoint);
  writer_.put(creation);
  writer_.put(uint64_t{0});
  put_ref(checkpoint);
  writer_.end();
}

// What it did after its checkpoint, as soon as calls can be sent. What was in flight at the end of the log comes as a
// call of its own.
void Link::stage_log(Handle creation) {
  uint32_t a = segment_.record(creation).cls - kActorClass;
  Actor& actor = segment_.actor(a);
  uint64_t start = actor.log_start.load(std::memory_order_relaxed), end = actor.log_end.load(std::memory_order_relaxed);
  while (end > start && !process_.sealed(segment_.actor_log(a, end - 1).load(std::memory_order_relaxed))) --end;
  actor.log_end.store(end, std::memory_order_release);  // SYNC POINT: actor-log
  Hosted& hosted = hosted_[creation];
  hosted.there.assign(end - start, kUnplaced);
  hosted.again = 0;
  for (uint64_t n = start; n < end; ++n) {
    Handle call = segment_.actor_log(a, n).load(std::memory_order_relaxed);
    again_.insert(call);
    staged_.push_back(call);
  }
}

}  // namespace fastray
