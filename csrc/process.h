// A process's part of the node: the records it owns, the queues it produces into, the tasks it claims,
// the references it borrows. Every driver and worker has one `Process`; so has the node itself (as reaper).
//
// Who may call what: one thread at a time (Python code holds the GIL), except the functions marked
// `any thread`, which touch atomics only and run with the GIL released.
//
//   process_records.cpp   allocate, hold, drop, free; payloads
//   process_tasks.cpp     publish, dependencies, claim, seal, cancel
//   process_returns.cpp   several returns, streams
//   process_lineage.cpp   what finished tasks keep alive; lost results, computed again
//   process_filed.cpp     lineage over its budget: in a file
//   process_away.cpp      values that are on other nodes, and tasks that the node agent takes
//   process_borrow.cpp    ledger: what this process borrows; limbo: what others borrow from it
//   process_actors.cpp    creating actors, their calls in order, those in flight, their log
//   process_wait.cpp      sleeping and waking
#pragma once

#include <memory>
#include <deque>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lineage_file.h"
#include "object_allocator.h"
#include "proc_set.h"
#include "segment.h"
#include "task_queue.h"

namespace fastray {

enum class Wake { kSealed, kKicked, kTimeout, kInterrupted };

// What a payload is made of; the caller copies the bytes in.
struct PayloadShape {
  const Handle* handles;
  uint32_t dependencies;
  uint32_t references;
  const uint8_t* codec;
  uint64_t codec_bytes;
  const uint64_t* buffer_bytes;
  uint32_t buffers;
};
struct PayloadView {
  PayloadHeader* header = nullptr;
  Handle* handles = nullptr;
  uint8_t* codec = nullptr;
  uint64_t* buffer_bytes = nullptr;
  uint8_t* buffer(uint32_t i) const;  // walks the table
};

// Spinning pays when the one waited for runs meanwhile on another CPU, and is pure loss when it needs this
// one. So everybody notes the CPU it runs on, and spins longer than a wake-up takes, or not at all.
inline constexpr uint32_t kWorkSpinUs = 60;
inline constexpr uint32_t kResultSpinUs = 40;
// After waking a sleeper: it may have been put on this very CPU, which only failure tells. Each failure halves
// the time, a success restores it, and every 16th try finds out whether times changed.
inline constexpr uint32_t kProbeEvery = 16;
inline constexpr uint32_t kNeighboursMax = 32;  // processes looked at before spinning

class Process {
 public:
  // Takes a process slot (or uses the one given) and becomes alive in it.
  std::string attach(const Segment& segment, uint32_t kind, int slot, int bell_fd);
  // Claims an empty slot for a process about to be forked; -1 when the table is full.
  static int reserve_slot(const Segment& segment, uint32_t kind);
  // The same for this slot; false when it is taken.
  static bool take_slot(const Segment& segment, uint32_t slot, uint32_t kind);
  // After fork(): this copy must never touch the segment again.
  void abandon();

  const Segment& segment() const { return segment_; }
  Proc& self() const { return *self_; }
  FlightRecorder& recorder() const { return *recorder_; }
  uint32_t slot() const { return slot_; }
  ObjectAllocator& allocator() { return allocator_; }

  // ---- records -----------------------------------------------------------------------------
  // A record of ours in state kFree, spec line to be filled; nullptr when the table is full.
  Record* allocate_record() {
    if (free_.empty()) [[unlikely]] {
      if (!refill()) return nullptr;
    }
    uint32_t index = free_.back();
    free_.pop_back();
    return &segment_.record(index);
  }
  // Undoes allocate_record before anything was published.
  void unallocate(Record* r) { free_.push_back(index_of_record(r)); }
  uint32_t index_of_record(const Record* r) const { return static_cast<uint32_t>(r - segment_.records()); }
  Handle handle_of(const Record* r) const {
    return make_handle(index_of_record(r), word_gen(r->state.load(std::memory_order_relaxed)));
  }
  uint64_t next_id() { return id_base_ | sequence_++; }
  // One more / one less reference held by this process, as owner or borrower.
  // False when our ledger is full (a borrower of a million records): then nothing is held.
  bool hold(Handle h);
  void drop(Handle h) {
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    // the common case: ours, held once, sealed, nothing hangs on it
    if (r.owner == slot_ && is_sealed(w) && (w & ((kFlagsMask & ~uint64_t{kFlagAwaited}) | kHolderMask)) == 0 &&
        word_gen(w) == gen_of(h)) [[likely]] {
      recycle(r, w, index_of(h));
      return;
    }
    drop_generic(h);
  }
  // Frees sealed records nobody will ask about, returned records, and borrowed ones let go of.
  void sweep();
  Offset make_payload(const PayloadShape& shape, Handle for_record, PayloadView* view);
  static PayloadView view_payload(const Segment& segment, Offset offset);
  // The handles a record's arguments name (dependencies first).
  static const Handle* argument_handles(const Segment& segment, const Record& r, uint32_t* dependencies,
                                        uint32_t* references);

  // ---- lineage -----------------------------------------------------------------------------
  // A task with references was submitted: its arguments are kept as lineage (see sweep_lineage).
  void remember_lineage(Handle task) { lineage_.push_back(task); }
  void sweep_lineage(size_t most);
  // Gives the memory of a result of ours back (kDone -> kLost), when this one reference is all that holds it but
  // lineage. `also_lost`: also when no task can make it again. False: it is in use, or there is nothing to give.
  bool evict(Handle h, bool also_lost);
  // Lost: its task runs again, after what that needs; or it fails, when that is impossible.
  void recover(Handle h);
  // The same for a return value whose task is running again: kLost -> kPromised.
  bool revive(Handle promise);
  // Filed lineage is its owner's alone. `began` is called when the first task is filed (GIL held, in the middle of
  // whatever led there): from then on somebody has to call answer_wanted() whenever answer_word() has changed.
  void on_filing(void (*began)()) { filing_began_ = began; }
  void answer_wanted();
  uint32_t answer_word() const { return self_->answer_futex.load(std::memory_order_seq_cst); }  // SYNC POINT: wanted
  void sleep_until_wanted(uint32_t seen) const { os::futex_wait(&self_->answer_futex, seen, -1); }  // any thread
  static void wake_answerer(Proc& owner);
  // ---- values on other nodes ------------------------------------------------------------------
  bool is_away(Handle h) const;
  static Away away_of(const Record& r);
  // A record of ours whose value is there, held once; 0: no room.
  Handle make_mirror(const Away& away);
  Handle make_asked();
  bool seal_away(Handle h, const Away& away);
  bool seal_promise_away(Handle h, const Away& away);
  void ask_for(Handle h);
  void push_asked(Handle h);
  bool unask(Handle h);
  // The node agent's part: tasks it takes from this class, values that were asked for, tasks it gives back.
  size_t claim_many(uint32_t cls, size_t n, std::vector<Handle>* claimed);
  void take_asked(std::vector<Handle>* asked);
  uint64_t waiting_in(uint32_t cls) const;
  bool put_back(Handle h, uint32_t cls);
  // Calls of an actor, each caller's in their order; what runs again first.
  size_t claim_calls(uint32_t cls, size_t n, std::vector<Handle>* claimed);
  // The node of this actor of ours is gone. True: it is to start elsewhere.
  bool lose_host(Handle creation);
  std::string describe_lost(uint32_t a) const;
  Wake sleep_for_classes(const uint32_t* classes, size_t n, uint32_t seen, int64_t timeout_ns);

  // From the reaper: goes on with what a dead process was recovering.
  void recover_again(Handle root, uint32_t dead);

  // ---- tasks -------------------------------------------------------------------------------
  // r is filled, state kFree; after this a worker may have it. `flags`: kFlagArgHeap etc.
  // False when the queue cannot grow (the store is full); the record is then free again.
  [[nodiscard]] bool publish(Record* r, Handle h, uint64_t flags) {
    QueueProducer* q = producer(r->cls);
    if (q == nullptr) [[unlikely]] return false;
    // SYNC POINT: record-state (release: spec line before state)
    r->state.store(uint64_t{gen_of(h)} << kGenShift | flags | kReady, std::memory_order_release);
    if (!q->push(h)) [[unlikely]] {
      r->state.store(uint64_t{gen_of(h)} << kGenShift, std::memory_order_relaxed);
      return false;
    }
    notify(*q);
    return true;
  }
  // The same for a task with dependencies: waits in their lists until all are sealed.
  [[nodiscard]] bool publish_waiting(Record* r, Handle h, uint64_t flags);
  // A record that waits for the run of another one (kPromised), or is sealed from the start.
  void publish_state(Record* r, Handle h, State state, uint64_t flags) {
    r->state.store(uint64_t{gen_of(h)} << kGenShift | flags | state, std::memory_order_release);
  }
  // Next task of our lease's class, 0 when there is none.
  Handle claim_next();
  // Seals what we claimed, after its result line is written. False: it was not ours (any more).
  bool seal(Handle h, State state, uint64_t flags) {
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_relaxed), next;
    do {
      if (state_of(w) != kClaimed || word_holder(w) != slot_ || word_gen(w) != gen_of(h)) return false;
      next = with_state(w, state, w & kFlagEdges ? kWalking : 0) | flags;
      // SYNC POINT: record-state (release: result line before state)
    } while (!r.state.compare_exchange_weak(w, next, std::memory_order_acq_rel, std::memory_order_relaxed));
    if ((w & (kFlagAwaited | kFlagEdges)) != 0 || state == kFailed) [[unlikely]] after_seal(r, h, w);
    return true;
  }
  // Nesting depth of the task that starts: what it submits comes before shallower tasks.
  void set_depth(uint32_t depth) {
    if (self_->depth == depth) return;
    self_->depth = depth;
    for (auto& q : producers_)
      if (q != nullptr) q->queue().depth.store(depth + 1, std::memory_order_relaxed);
  }
  // The claim is over: the reaper has nothing to look after.
  void end_task() { self_->claim.store(0, std::memory_order_release); }
  // Seals a promise or item of ours or of the task we run (kPromised -> sealed).
  bool seal_promise(Handle h, State state, uint64_t flags);
  // Claimed by us -> ready again with one attempt more (a retry of a user exception).
  bool retry(Handle h);
  // The same, but it stands in no queue: the node is to be told (kRetryLater), and queues it after a delay.
  bool retry_later(Handle h) { return next_attempt(h, kReady); }
  // Stays ours, with one attempt more (a retry of an actor's call).
  bool run_again(Handle h);
  // True when no process that is at work shares our CPU: the record may be sealed while we spin.
  bool may_spin() const;
  // Spins until h is sealed, for a few microseconds; false: sleep instead.
  bool spin_until_sealed(Handle h);
  // Makes sure everything that waits on a sealed record knows: used by the reaper after a death.
  void notify_again(Handle h);
  // Not started yet: sealed as cancelled, true. Running: marked, and the worker's slot in *running.
  bool cancel(Handle h, int* running);
  // The error of one value; sets the flags to seal it with.
  void write_error(Record& r, ErrorCode code, const void* more, size_t bytes, uint64_t* flags, Handle h);
  // The error of a task we claimed, for all its returns (a stream keeps it in Stream::error).
  uint64_t write_failure(Record& r, Handle h, ErrorCode code, const void* more, size_t bytes);
  // Claimed by us: noted as failed, and sealed with this error.
  bool fail(Record& r, Handle h, ErrorCode code, const void* more, size_t bytes);
  // Notes that this attempt failed; `text` says why when the code alone does not, `run` where when it was not here.
  void note_failure(const Record& r, ErrorCode code, const char* text, size_t bytes, Failure run = {});
  static const Handle* promise_handles(const Segment& segment, const Record& r);
  // Ready again for somebody else, from the reaper: pushes it into our queue.
  bool push_ready(Handle h);

  // ---- waiting (any thread) ------------------------------------------------------------------
  bool sealed(Handle h) const {
    uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    return is_sealed(w) || word_gen(w) != gen_of(h);
  }
  bool is_lost(Handle h) const {
    uint64_t w = segment_.record(h).state.load(std::memory_order_acquire);  // SYNC POINT: record-state
    return state_of(w) == kLost && word_gen(w) == gen_of(h);
  }
  // Nobody here has its value: who waits for it has to recover it.
  static bool is_gone(uint64_t w) { return state_of(w) == kLost || state_of(w) == kAway; }
  // Marks each of them so that its completion wakes us; true when one is sealed already. GIL held.
  bool mark_awaited(const Handle* handles, size_t n);
  // Sleeps until one of the (marked) handles is sealed. Any thread, GIL released.
  // `seen`: wake_word() from before the caller last looked, so that no wake-up since then is lost.
  Wake sleep_on(const Handle* handles, size_t n, uint32_t seen, int64_t timeout_ns);
  static void wake_process(const Segment& segment, uint32_t slot);
  // Wakes another worker for whatever stands in our queues.
  void nudge();
  void ring_bell();

  // ---- leases (worker) -------------------------------------------------------------------------
  // Next task, spinning for a while (not at all when `spin` is off); 0 when there was none.
  Handle poll_for_work(bool spin);
  // After a claim: wakes another worker when the backlog will outlast `estimate_ticks` a task.
  void spread(uint64_t estimate_ticks);
  // Sleeps until there may be work, the lease changes or we must exit. GIL released.
  // `seen`: wake_word() from before the last look around, so that no wake-up since then is lost.
  Wake sleep_for_work(uint32_t seen, int64_t timeout_ns);
  uint32_t wake_word() const { return self_->futex.load(std::memory_order_seq_cst); }
  bool backlog(const Class& c) const;
  bool lease_is_over();  // gives the lease back when the node asked for it

  // ---- borrowing -----------------------------------------------------------------------------
  // Our ledger says: the result `container` names `record`; kept until the container is freed.
  bool contain(Handle record, Handle container);
  std::unordered_set<Handle> named_by_ledgers(uint32_t but = kProcsMax) const;
  size_t borrowed() const { return borrows_.size(); }
  size_t owned_pending() const { return zombies_.size(); }
  size_t owned_lent() const { return limbo_.size(); }
  size_t owned_lineage() const { return lineage_.size() + kept_.size(); }
  size_t owned_filed() const { return filed_.size(); }
  bool is_filed(Handle h) const { return filed_.count(h) != 0; }
  // Becomes the owner of a record somebody else made for us (stream items).
  void adopt(Handle h, uint32_t pins);

  // ---- several returns, streams ----------------------------------------------------------------
  // Records for the r.ret return values of a task that is not published yet. False: no room.
  bool make_promises(Record& r, Handle h);
  // Undoes it, when the task cannot be published after all.
  void drop_promises(Record& r, uint32_t made);
  static Stream& stream_of(Record& r) { return *reinterpret_cast<Stream*>(r.result); }
  static Item& item_of(Record& r) { return *reinterpret_cast<Item*>(r.args); }
  // Producer: a record for item `number`, its value to be written; nullptr when the table is full.
  Record* begin_item(Handle task, uint32_t number);
  // Its value is written: behind the last item. One store publishes it.
  void append_item(Handle task, Record* item, State state, uint64_t flags);
  // Consumer: the next item, held once for the caller; 0 when there is none yet.
  Handle take_item(Handle task);

  // ---- actors -----------------------------------------------------------------------------------
  // An entry of the actor table for us to fill in; -1 when all are in use.
  int take_actor();
  void untake_actor(uint32_t a);
  int find_name(const uint64_t hash[2], const char* name_space, const char* name, int mine) const;
  // The entry, its class and the creation record r (state kFree) are filled: the node starts the actor.
  void publish_actor(uint32_t a, Record* r, Handle h, uint64_t flags);
  int enter_flight(uint32_t a, Handle h, bool waits);
  void start_flight(uint32_t a, uint32_t place);
  void leave_flight(uint32_t a, uint32_t place);
  bool log_call(uint32_t a, Handle h);
  uint64_t checkpoint_position(Handle checkpoint) const;
  bool set_checkpoint(uint32_t a, Handle checkpoint, uint64_t position);
  void sweep_logs();
  // A call that can be claimed now; with `waiting` also one that waits for a dependency.
  bool has_call(const Class& c, bool waiting) const;
  bool is_ordered(uint32_t cls) const;
  // The constructor returned for the first time, or never will.
  void seal_creation(Handle h, State state);
  // Fails all calls of a dead actor with this ActorDeath (the node).
  void fail_calls(uint32_t cls, const std::string& death);
  void fail_queued(uint32_t cls, ErrorCode code, const void* more, size_t n);
  std::vector<bool> named_classes() const;
  static std::string for_call(const std::string& death, bool may_have_run);

  QueueProducer* producer(uint32_t cls) {
    if (cls < producers_.size() && producers_[cls] != nullptr) [[likely]] return producers_[cls].get();
    return make_producer(cls);
  }
  void recycle_returned(Record& r, Handle h);
  const std::vector<uint32_t>& free_list() const { return free_; }
  // Unfinished tasks that process `owner` submitted from task `parent` (a record index).
  std::vector<Handle> children_of(uint32_t owner, uint32_t parent) const;

 private:
  friend class Reaper;
  struct Borrow {
    uint32_t count;
    uint32_t entry;
    bool edge;  // an edge to us hangs on it already
  };
  bool refill();
  bool take_chunk();
  void collect_returned();
  void recycle(Record& r, uint64_t w, uint32_t index) {
    // SYNC POINT: record-state (release: nobody sees the next life before this one's end)
    r.state.store(next_life(w), std::memory_order_release);
    free_.push_back(index);
  }
  void note_moment(EventKind kind, uint64_t detail, uint64_t record) {
    uint64_t now = os::ticks();
    recorder_->note(kind, detail, record, now, now & ~uint64_t{1});
  }
  void keep_actor(Record& r, Handle h);
  bool actor_is_over(const Record& r, Handle h) const;
  bool clustered() const { return segment_.header().clustered.load(std::memory_order_relaxed) != 0; }
  bool needs_away(Handle h) const;
  bool become_away(Handle h, uint64_t w, const Away& away);
  bool forget_away(Record& r, Handle h);
  std::vector<Queue*> queues_of(uint32_t cls) const;
  bool keeps_arguments(const Record& r, uint64_t w) const;
  bool next_attempt(Handle h, State state);
  struct Place {
    uint8_t kind;
    uint16_t cls;
  };
  static constexpr Handle kGone = ~Handle{0};
  static Place place_of(const Record& r);
  static bool is_alive(const Record& r, Handle h);
  Handle peek_dependency(const Record& r, Handle h, uint32_t i) const;
  bool push_ready(Handle h, uint32_t cls);
  bool made_ready(Handle h, Place at);
  void wake_class(uint32_t cls);
  Handle claim_call();
  void drop_generic(Handle h);
  void free_record(Handle h);
  void release_parts(Record& r, uint64_t w, Handle h, std::vector<Handle>* dropped);
  int maker_to_wake(Offset block, bool in_any_case);
  int release_blocks(Record& r, uint64_t w);  // the process to wake afterwards, or -1
  uint32_t take_ledger_entry(Handle record, Handle container);
  void release_stream(Stream& s, std::vector<Handle>* dropped);
  Handle next_item(const Stream& s) const;
  void drop_borrow(Handle h, std::unordered_map<Handle, Borrow>::iterator it);
  void sweep_zombies(size_t most);
  void let_go(Record& r, const Handle* handles, uint32_t n);
  void keep_failed(Handle h, const Handle* handles, uint32_t n);
  void forget_failed(bool large, size_t most);
  bool keep_lineage(Handle h, const Handle* handles, uint32_t deps, uint32_t refs);
  void forget_dependent(Handle task, const Handle* handles, uint32_t n);
  void only_lineage_may_hold(Handle h);
  void sweep_evictable();
  bool drop_data(Record& r, Handle h);
  bool dependents_settled(Handle h) const;
  bool can_rerun(const Record& task) const;
  bool can_be_made_again(const Record& r, uint64_t w) const;
  struct Lost {
    Handle h;
    int32_t by;  // index of the one that needs it, -1: somebody asked
  };
  void recover_all(std::vector<Lost>* lost);
  void recover_one(std::vector<Lost>* lost, size_t i);
  void run_producer(std::vector<Lost>* lost, size_t i);
  void rerun(Record& r, Handle h, uint64_t w, std::vector<Lost>* lost, size_t i);
  bool hold_arguments(Record& r, Handle h, uint64_t w);
  struct Filed {
    uint64_t place;
    Handle again;    // the record it came back as, held once by this entry; or 0
    uint32_t holds;  // arguments of our tasks that name the old handle
  };
  void file_lineage();
  bool file_batch(size_t n);
  bool file(Handle h, uint32_t holds);
  bool describe_spec(const Record& r, LineageFile::Spec* spec) const;
  void release_filed(Handle h);
  bool restore_arguments(const Handle* handles, uint32_t n);
  Handle restore(uint64_t place, std::vector<Handle>* todo);
  Handle restore_value(const std::string& value);
  bool restore_places(Handle h, std::unordered_map<uint64_t, Handle>* made, std::vector<Handle>* todo);
  bool asks_owner(const Record& r) const;
  void ask_owner(const Record& r, Handle h);
  void give_up(Handle h, LostReason why, const std::vector<Lost>& lost, size_t i);
  std::string describe(Handle h) const;
  std::vector<Handle> dependencies_of(Handle h) const;
  void sweep_limbo();
  void sweep_contained();
  QueueProducer* make_producer(uint32_t cls);
  void notify(QueueProducer& q) {
    if (fences_) std::atomic_thread_fence(std::memory_order_seq_cst);  // SYNC POINT: sleep-bit
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (proc_set::any(segment_.cls(q.queue().cls).sleeping)) [[unlikely]] notify_slow(q);
  }
  void notify_slow(QueueProducer& q);
  void wake_one(Class& c);
  void after_seal(Record& r, Handle h, uint64_t w);
  void wake_owner(const Record& r);
  void walk_edges(Record& r, bool again);
  static bool clear_entry(const Segment& segment, LedgerEntry& entry);
  void fire(uint32_t index, uint32_t gen, uint32_t stage, bool again);
  bool advance(Record& d, Handle h, uint64_t w, uint32_t stage);
  bool add_edge(Handle on, EdgeKind kind, uint32_t target, uint32_t gen, uint32_t stage);

  Segment segment_;
  Proc* self_ = nullptr;
  FlightRecorder* recorder_ = nullptr;
  uint32_t slot_ = 0;
  int bell_fd_ = -1;
  bool fences_ = false;
  uint64_t id_base_ = 0;
  uint64_t sequence_ = 1;
  ObjectAllocator allocator_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> my_chunks_;
  std::vector<Handle> zombies_;  // dropped before they were done; a ring, see sweep_zombies
  size_t zombie_at_ = 0;
  std::deque<Handle> failed_[2];  // the last that failed, with small arguments and with large ones: for replay()
  std::deque<Handle> kept_;      // finished ones among them that keep their arguments
  std::unordered_map<Handle, Filed> filed_;
  std::unique_ptr<LineageFile> file_;
  void (*filing_began_)() = nullptr;
  size_t filing_from_ = 0, evicted_ = 0;  // see file_lineage
  uint32_t filed_again_ = 0;     // of filed_, those that came back
  std::vector<uint64_t> released_bytes_;  // by slot: payloads of it given back since it was woken for that
  bool sweeping_lineage_ = false;
  std::deque<Handle> lineage_;   // our tasks that hold their arguments, oldest first
  std::unordered_map<Handle, std::vector<Handle>> dependents_;  // big results of ours: finished tasks that hold them
  std::vector<Handle> evictable_;  // of those, candidates for eviction
  uint32_t evictable_epoch_ = 0;
  std::vector<Lost> lost_;       // dependencies found lost, to be recovered when the walk is over
  bool recovering_ = false;
  std::vector<Handle> limbo_;    // ours, dropped, still borrowed by others
  uint32_t limbo_epoch_ = 0;
  uint32_t returned_seen_ = 0;
  std::unordered_map<Handle, Borrow> borrows_;
  std::vector<uint32_t> ledger_free_;
  std::vector<uint32_t> contained_;  // ledger entries with a container
  std::vector<std::unique_ptr<QueueProducer>> producers_;
  // claim side
  std::vector<Queue*> sources_;
  Queue* first_ = nullptr;   // actors: the node's queue
  size_t next_source_ = 0;   // actors: callers take turns
  std::vector<uint32_t> flight_free_;
  uint32_t sources_seen_ = 0;
  uint32_t sources_class_ = 0;
  uint32_t claims_ = 0;
  bool polling_ = false;
  uint32_t last_owner_ = 0;
  bool woke_ = false;  // a worker had to be woken for what we wait for
  uint32_t woke_spin_us_ = kResultSpinUs;
  uint32_t woke_tries_ = 0;
  uint64_t spread_at_ticks_ = 0;
};

}  // namespace fastray
