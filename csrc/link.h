// A link: what the agents of two nodes hold for, ask of and send to each other. Part of the node agent.
//
//   exporter  the node where a task was submitted: its agent claims the task and sends it
//   importer  the node that runs it: its agent submits it there, as its owner, and sends the result
//   wire      the handle of a task at its exporter: its name in frames
//   mirror    a record of ours that stands for one of the peer's (kAway, or with a copy of its value)
//   held      what the peer holds for one of our records: it is told when that record is gone (kFrameRelease)
//   exported  what we hold for the peer, and how many refs to it were sent
//
// Every ref that is sent is counted by its sender and by its receiver; a release says how many the receiver had. So a
// ref on its way is never forgotten. A value of kInlineMax bytes at most travels with its ref or result; a larger one
// stays where it is until somebody asks, and its buffers go by Flight (fastray/transfer/flight.py).
//
// When a link is down, both sides forget it: the exporter's tasks run again or fail, what was away is lost and
// computed again, and the importer drops what it held. One thread (the GIL), as for Process.
//
//   link.cpp          refs, values, releases, the end
//   link_tasks.cpp    tasks and results
//   link_arguments.cpp  arguments of tasks, in their frames or by Flight
//   link_streams.cpp  items of generators
//   link_actors.cpp   actors of one node that run on the other
//   link_copies.cpp   values that come from another node than their owner's
//   link_checkpoints.cpp  their checkpoints and logs, which are kept where they were created
#pragma once

#include <deque>
#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "link_wire.h"
#include "process.h"

namespace fastray {

class Link {
 public:
  static constexpr uint64_t kInlineMax = 100 << 10;
  static constexpr uint64_t kBulkMin = 1 << 20;  // codec and buffers of a value, from which on they go by Flight
  static constexpr uint64_t kStagedMax = 32 << 20;  // arguments in the frames of one batch

  struct Bulk {      // a value, or the arguments of a task, whose codec and buffers are to be brought
    Handle local;    // asked for; of arguments: what the task waits for
    Handle remote;   // of arguments: the task there
    Offset payload;
    uint32_t result_bytes;
    uint64_t flags;
    bool copy;  // not from its owner
    Handle task = 0;  // whose arguments they are
  };
  struct LocalFunction {
    uint32_t function = 0;
    uint16_t cls = 0;
  };

  Link(Process* process, uint64_t self, uint64_t peer) : process_(*process), segment_(process->segment()), self_(self), peer_(peer) {}

  // ---- exporter --------------------------------------------------------------------------------
  // Claims up to n tasks of a class; they are sent by send_staged, when the peer knows their functions.
  size_t claim(uint32_t cls, size_t n);  // fewer when their arguments are many bytes
  void stage(Handle claimed) { staged_.push_back(claimed); }
  std::vector<uint32_t> unknown_functions();
  void describe(uint32_t function, const std::string& message);
  // Classes of placement groups of the claimed tasks that the peer has not been told of.
  std::vector<uint32_t> unknown_classes();
  void describe_class(uint32_t cls, const std::string& message);
  // Of what was sent and not answered yet: tasks of this class.
  size_t outstanding_in(uint32_t cls) const;
  void send_staged();
  bool knows(uint32_t function) const;
  size_t outstanding() const { return outstanding_.size(); }
  void send_cancel(Handle task, bool force);
  // Bytes of the arguments of a task that are at the peer.
  uint64_t bytes_there(Handle task) const;
  // Whether the peer has a record for it, and what is in it or is to come.
  bool holds(Handle h) const { return held_.count(h) != 0; }
  static uint64_t value_bytes(const Segment& segment, const Record& r);

  // ---- actors ----------------------------------------------------------------------------------
  // Creates this actor of ours there (its class and info are known there, see describe).
  void send_actor(Handle creation);
  bool hosts(Handle creation) const { return hosted_.count(creation) != 0; }
  // Claims calls of an actor that runs there; 0 as long as it is not known there.
  size_t claim_calls(uint32_t actor, size_t n);
  enum class Stop : uint64_t { kFinish = 0, kKill = 1, kRestart = 2 };
  void send_actor_stop(Handle creation, Stop how);
  // The next kActor frame with this wire name is created in this entry, which is filled in.
  void prepare_actor(uint64_t wire, uint32_t actor) { prepared_[wire].actor = actor; }
  // Calls from the log of an actor that runs there now: to be sent before all others (send_staged).
  bool has_staged() const { return !staged_.empty(); }
  struct Ended {
    Handle creation;
    uint32_t end;
  };
  // Actors of ours that ended there; and creations of the peer's that are to be killed here.
  std::vector<Ended> take_ended() { return std::move(ended_); }
  std::vector<std::pair<Handle, uint64_t>> take_kills() { return std::move(kills_); }  // and how
  // Actors that something to be sent names and that the peer has not heard of: it is told (a message with
  // export_ref), then the rest is sent.
  std::vector<Handle> unknown_actors();
  // An actor of the peer's, by such a reference: a foreign one in this entry, which is filled in. False: known already.
  bool import_actor(const std::string& ref, uint32_t actor);
  bool knows_actor(Handle creation) const { return exported_.count(creation) != 0 || held_.count(creation) != 0; }
  bool mirrors_actor(Handle creation) const;
  // ---- importer --------------------------------------------------------------------------------
  void know(uint32_t number, LocalFunction function) { functions_[number] = function; }
  static constexpr uint32_t kNoClass = ~0u;  // its group was removed
  void know_class(uint32_t number, uint32_t cls);
  // Sends what has become done. True: something was.
  bool collect();
  // Exporter: tells the importer how far the consumers of its streams are.
  void send_consumed();
  size_t imported() const { return imports_.size(); }
  Handle imported_as(uint64_t wire) const;

  // ---- both ------------------------------------------------------------------------------------
  // Applies frames. Stops behind a message (its place in *message) and returns what it took; bad(): close the link.
  size_t receive(const uint8_t* data, size_t size, const uint8_t** message, size_t* message_bytes);
  bool bad() const { return bad_; }
  void fetch(Handle asked, bool here = false);
  bool is_fetching(Handle asked) const { return fetching_.count(asked) != 0; }
  void send_message(const std::string& body);
  std::string export_ref(Handle h);
  Handle import_ref(const std::string& ref);
  // Tells the peer which of its records nobody here needs any more.
  void sweep();
  std::string take_out() { return std::move(writer_.out); }
  size_t out_bytes() const { return writer_.out.size(); }
  // The peer, or the way to it, is gone.
  void down(const std::string& error);
  std::vector<Bulk> take_bulk() { return std::move(bulk_); }
  // ---- copies (link_copies.cpp) ----------------------------------------------------------------
  struct Copy {
    Handle h;
    uint64_t node;
    Handle there;
  };
  // Asked for; their owner says that another node has them: to be fetched there.
  std::vector<Copy> take_elsewhere() { return std::move(elsewhere_); }
  void fetch_copy(Handle asked, Handle there);
  // Asked for, and not to be had there.
  std::vector<Handle> take_orphans() { return std::move(orphans_); }
  bool mirrors(Handle h) const;
  // The owner of this mirror hears that its value is here.
  void have_copy(Handle mirror);
  // Records of ours that are away, and of which the peer has a copy.
  std::vector<Copy> take_copies() { return std::move(copies_); }
  // Records of ours whose value has come to be away there; and those that are not any more.
  std::vector<Handle> take_moved() { return std::move(moved_); }
  std::vector<Handle> take_gone() { return std::move(gone_); }
  // Before down(): what only the peer had is to come from this copy. False: it is not away there.
  bool switch_to(const Copy& copy);
  bool finish_bulk(const Bulk& bulk, bool complete);
  std::vector<std::pair<Handle, uint64_t>> take_cancels() { return std::move(cancels_); }
  uint64_t peer() const { return peer_; }
  struct Counts {
    size_t outstanding, imports, exported, held, mirrors;
  };
  Counts counts() const { return {outstanding_.size(), imports_.size(), exported_.size(), held_.size(), mirrors_.size()}; }

 private:
  struct Held {
    uint64_t remote;
    uint64_t count;
    bool mirror;     // ours, held once by this table
    bool idle;       // nobody else used it at the last look
  };
  struct Import {
    uint64_t wire;
    Handle local;
    uint16_t returns;
    Multi multi;
    uint32_t ahead = 0, sent = 0, consumed = 0;  // of a stream
    bool again = false;  // of a log: without an answer
  };
  struct FetchWait {
    Handle h;
    uint64_t tag;
  };

  struct Hosting {   // an actor of the peer's that runs here
    uint64_t wire;
    Handle local;
    uint32_t actor, state, restarts;
    Handle checkpoint;  // as the peer knows it
    uint64_t logged;    // entries of its log that the peer knows
  };
  struct Prepared {
    uint32_t actor = 0;
    Handle checkpoint = 0;
  };
  struct Hosted {    // an actor of ours that runs there
    uint32_t restarts = 0;       // before that
    std::deque<uint64_t> there;  // places of our log's entries in the log there; kUnplaced until it has run again
    size_t again = 0;            // entries that have run again there
    Handle next = 0;             // a checkpoint whose value is on its way
    uint64_t next_place = 0;
    uint64_t torn = 0;           // after the place of the last call that did not fit: a restart would lose it
  };
  static constexpr uint64_t kUnplaced = ~uint64_t{0};
  // link.cpp
  void put_ref(Handle h);
  bool put_value(const Record& r, bool bulk_allowed);
  Handle get_ref(Reader& in);
  bool get_value(Reader& in, Handle h, uint64_t* flags, bool* bulk);
  static void skip_value(Reader& in);
  bool get_payload(Reader& in, const ValueHead& head, Handle h, uint64_t* flags, bool* bulk);
  void release(Reader& in);
  void drop_exported(Handle h, uint64_t count);
  void on_cancel(Reader& in);
  void on_fetch(Reader& in);
  void on_value(Reader& in);
  void answer_fetch(Handle h, uint64_t tag);
  void on_fetch_copy(Handle h, uint64_t tag);
  void release_there(uint64_t remote, uint64_t count);
  void on_elsewhere(Reader& in);
  void on_copy(Reader& in);
  void hold_remote(Handle local, uint64_t remote, bool mirror);
  // link_tasks.cpp
  uint64_t identity(uint32_t function) const;
  void put_task(Handle h);
  void on_task(Reader& in);
  Handle import_task(Reader& in, const TaskHead& head, const std::vector<Handle>& refs, uint32_t function, uint32_t cls);
  bool find_class(const TaskHead& head, uint32_t* cls) const;
  // link_arguments.cpp
  template <class F>
  size_t claim_portions(size_t n, F claim_some);
  const uint8_t* describe_arguments(const Record& r, TaskHead* head, PayloadView* view) const;
  bool expect_arguments(TaskHead* head, std::vector<Handle>* refs);
  bool get_arguments(Reader& in, const TaskHead& head, const std::vector<Handle>& refs, Record* r, Handle h, uint64_t* flags);
  void await_arguments(const TaskHead& head, const std::vector<Handle>& refs, Handle h);
  void finish_arguments(const Bulk& bulk, bool complete);
  // link_tasks.cpp
  void refuse(Reader& in, const TaskHead& head, ErrorCode code, const std::string& more);
  bool results_name_unknown(const Import& import);
  void put_results(const Import& import);
  void put_result(uint64_t wire, uint32_t value, Handle h);
  void drop_import(const Import& import);
  void on_result(Reader& in);
  void finish(Handle task, uint32_t value, State state, Reader& in);
  void finish_away(Handle task, uint32_t value, Reader& in);
  bool ours(Handle task) const;
  void fail_task(Handle task, const std::string& error);
  bool fail_call(Record& r, Handle task);
  // link_streams.cpp
  void put_items(Import& import);
  void put_stream_end(const Import& import);
  void on_item(Reader& in);
  void on_consumed(Reader& in);
  void finish_stream(Handle task, State state, Reader& in);
  // link_actors.cpp
  void on_actor_created(Record* r, Handle h, uint64_t wire, uint64_t flags);
  void report_actors();
  void on_actor(Reader& in);
  void on_actor_stop(Reader& in);
  Handle actor_there(uint32_t cls) const;
  bool names_unknown(const Handle* handles, size_t n);
  bool names_unknown(const Record& r);
  // link_checkpoints.cpp
  void report_log(Hosting* hosting);
  void report_checkpoint(Hosting* hosting);
  void on_logged(Reader& in);
  void on_checkpoint(Reader& in);
  void send_checkpoint(Handle creation, const Actor& actor);
  void stage_log(Handle creation);
  void settle_checkpoints();
  void take_checkpoint(Handle creation, Hosted* hosted);
  void forget_hosted(Handle creation);
  void keep_cause(uint32_t a, const uint8_t* cause, uint64_t bytes);

  Process& process_;
  Segment segment_;
  uint64_t self_, peer_;
  Writer writer_;
  bool bad_ = false;
  std::vector<Handle> staged_;
  std::unordered_map<uint32_t, uint64_t> described_;  // function -> its content hash and job
  std::unordered_map<uint32_t, uint64_t> described_classes_;  // -> group and its life
  std::unordered_set<Handle> outstanding_;
  std::unordered_map<uint32_t, LocalFunction> functions_;  // of the peer's numbers
  std::unordered_map<uint32_t, std::pair<uint32_t, uint64_t>> classes_;  // the same; with the group and its life
  std::deque<Import> imports_;
  std::unordered_map<Handle, uint64_t> exported_;  // -> refs sent
  std::unordered_map<Handle, Held> held_;          // by our record
  std::unordered_map<uint64_t, Handle> mirrors_;   // by the peer's handle
  std::vector<FetchWait> fetch_waits_;
  std::unordered_set<Handle> fetching_;  // asked for at the peer, until all of it is here, or will not come
  std::vector<Bulk> bulk_;
  std::unordered_map<Handle, Handle> fetched_copies_;  // asked for -> the copy there
  std::vector<Copy> elsewhere_, copies_;
  std::vector<Handle> orphans_, moved_, gone_;
  std::vector<std::pair<Handle, uint64_t>> cancels_;
  std::unordered_map<Handle, uint32_t> streams_;  // exported streams with a limit -> consumed, as told
  std::unordered_map<Handle, Hosted> hosted_;  // by its creation
  std::unordered_map<uint64_t, Prepared> prepared_;
  std::unordered_set<Handle> again_;                 // of what is staged: from a log
  std::unordered_map<Handle, uint64_t> logged_calls_;  // imported calls of actors with checkpoints -> wire
  std::vector<Hosting> hosting_;
  std::vector<Handle> unknown_actors_;
  std::vector<Ended> ended_;
  std::vector<std::pair<Handle, uint64_t>> kills_;
};

}  // namespace fastray
