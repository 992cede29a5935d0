// Lineage over its budget: specs of old tasks go to a file, and come back when they have to run again. See
// process.h; the file is lineage_file.h.
//
//   filed    a record that was freed, its spec in the file. Its handle is still named by arguments of tasks; which
//            ones are filed, is known to their owner alone
//   batch    the oldest finished tasks. What of them only others of the batch hold, is filed
//
// A filed argument comes back as a new record in state kLost, and takes the place of the old handle in the task that
// needs it. A small argument is filed as its value. What is big and not lost, or nested in a value, keeps its task
// in memory: somebody holds it anyway.
#include <sched.h>
#include <string.h>

#include <algorithm>

#include "process.h"

namespace fastray {
namespace {

constexpr size_t kBatchTasks = 4096;
constexpr int kAskTries = 1000;
constexpr uint64_t kPlace = uint64_t{1} << 31;  // in an argument: a place in the file (records have 25 bits of index)

}  // namespace

// ---- to the file ------------------------------------------------------------------------------------

// When too many finished tasks keep arguments: batch by batch, from the oldest. When all are held by somebody it is
// tried again when a quarter more are there, or a quarter was evicted.
void Process::file_lineage() {
  size_t most = segment_.header().lineage_tasks, idle = 0;
  if (evicted_ >= kept_.size() / 4) filing_from_ = 0;
  while (kept_.size() > std::max(most, filing_from_)) {
    size_t n = std::min(kept_.size(), kBatchTasks);
    idle = file_batch(n) ? 0 : idle + n;
    if (idle < kept_.size()) continue;
    filing_from_ = kept_.size() + kept_.size() / 4;
    evicted_ = 0;
  }
}

bool Process::file_batch(size_t n) {
  std::vector<Handle> batch, rest;
  std::unordered_map<Handle, uint32_t> held;
  uint32_t deps, refs;
  for (; n > 0; --n) {
    Handle h = kept_.front();
    kept_.pop_front();
    const Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(h) || r.owner != slot_ || !(w & kFlagRefs) || !is_settled(w)) continue;
    batch.push_back(h);
    const Handle* handles = argument_handles(segment_, r, &deps, &refs);
    for (uint32_t i = 0; i < deps; ++i) ++held[handles[i]];
  }
  for (Handle h : batch) {
    const Handle* handles = argument_handles(segment_, segment_.record(h), &deps, &refs);
    for (uint32_t i = 0; i < deps; ++i) {  // those without arguments of their own are in no batch
      const Record& a = segment_.record(handles[i]);
      uint64_t w = a.state.load(std::memory_order_acquire);
      bool alive = word_gen(w) == gen_of(handles[i]) && a.owner == slot_;
      if (alive && !(w & kFlagRefs)) (void)file(handles[i], held[handles[i]]);
    }
    auto found = held.find(h);
    if (found == held.end() || !file(h, found->second)) rest.push_back(h);
  }
  bool any = rest.size() < batch.size();
  kept_.insert(any ? kept_.begin() : kept_.end(), rest.begin(), rest.end());
  return any;
}

// Files one task that `holds` arguments of other tasks, and nobody else, name.
bool Process::file(Handle h, uint32_t holds) {
  Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);
  bool alone = (w & kFlagShared) && r.pins == holds && !(w & (kFlagBorrowed | kFlagMulti)) && !is_walked(w);
  if (!alone || r.kind != kTask || !is_settled(w) || state_of(w) == kFailed || !can_rerun(r)) return false;
  LineageFile::Spec spec;
  if (!describe_spec(r, &spec)) return false;
  if (file_ == nullptr) {
    file_ = std::make_unique<LineageFile>(segment_.header().lineage_file_bytes);
    if (filing_began_ != nullptr) filing_began_();
  }
  uint64_t place = file_->append(spec);
  if (place == 0) return false;
  filed_[h] = Filed{place, 0, holds};
  dependents_.erase(h);
  uint32_t deps, refs;
  const Handle* handles = argument_handles(segment_, r, &deps, &refs);
  forget_dependent(h, handles, deps);
  let_go(r, handles, deps);
  std::vector<Handle> none;
  release_parts(r, r.state.load(std::memory_order_acquire), h, &none);
  return true;
}

bool Process::describe_spec(const Record& r, LineageFile::Spec* spec) const {
  uint32_t deps, refs;
  const Handle* handles = argument_handles(segment_, r, &deps, &refs);
  bool kept = deps == 0 || (r.state.load(std::memory_order_relaxed) & kFlagRefs);
  if (refs != 0 || !kept) return false;
  *spec = LineageFile::Spec{r.id, r.function, r.cls, r.depth, r.attempts, {}, "", {}};
  for (uint32_t i = 0; i < deps; ++i) {
    LineageFile::Argument argument;
    const Record& a = segment_.record(handles[i]);
    uint64_t w = a.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(handles[i])) {
      auto filed = filed_.find(handles[i]);
      if (filed == filed_.end() || filed->second.again != 0) return false;
      argument.place = filed->second.place;
    } else if (state_of(w) == kDone && !(w & (kFlagResultHeap | kFlagMulti))) {
      argument.value.assign(reinterpret_cast<const char*>(a.result), a.result_bytes);
    } else {
      return false;
    }
    spec->arguments.push_back(std::move(argument));
  }
  if (r.args_bytes != kArgsInHeap) {
    spec->codec.assign(reinterpret_cast<const char*>(r.args + deps * sizeof(Handle)), r.args_bytes);
    return true;
  }
  PayloadView view = view_payload(segment_, r.args_heap.offset);
  spec->codec.assign(reinterpret_cast<const char*>(view.codec), view.header->codec_bytes);
  for (uint32_t i = 0; i < view.header->buffers; ++i)
    spec->buffers.emplace_back(reinterpret_cast<const char*>(view.buffer(i)), view.buffer_bytes[i]);
  return true;
}

// A task that named it was freed, or has let go of it, or has it back.
void Process::release_filed(Handle h) {
  auto found = filed_.find(h);
  if (found == filed_.end() || --found->second.holds > 0) return;
  Handle again = found->second.again;
  filed_.erase(found);
  if (filed_.empty() && filed_again_ == 0) file_->clear();
  if (again != 0) {
    --filed_again_;
    drop_generic(again);
  }
}

// ---- and back ---------------------------------------------------------------------------------------

// Arguments of a finished task of ours that are filed: as records again, all that they need too, before the task
// names the first of them. Not recursive.
bool Process::restore_arguments(const Handle* handles, uint32_t n) {
  std::unordered_map<uint64_t, Handle> made;  // by place
  std::vector<Handle> todo;
  std::vector<std::pair<uint32_t, Filed*>> filed;
  for (uint32_t i = 0; i < n; ++i) {
    if (word_gen(segment_.record(handles[i]).state.load(std::memory_order_acquire)) == gen_of(handles[i])) continue;
    auto found = filed_.find(handles[i]);
    if (found == filed_.end()) return false;
    filed.emplace_back(i, &found->second);
    Handle& fresh = made.try_emplace(found->second.place, found->second.again).first->second;
    if (fresh == 0) fresh = restore(found->second.place, &todo);
    if (fresh == 0) return false;
  }
  while (!todo.empty()) {
    Handle h = todo.back();
    todo.pop_back();
    if (!restore_places(h, &made, &todo)) return false;
  }
  for (auto [i, entry] : filed) {
    Handle old = handles[i];
    if (entry->again == 0) {
      entry->again = made[entry->place];  // held once, for as long as others name the old handle
      ++filed_again_;
    }
    (void)hold(entry->again);
    std::atomic_ref<Handle>(const_cast<Handle&>(handles[i])).store(entry->again, std::memory_order_release);
    release_filed(old);
  }
  return true;
}

// The record of a filed task, lost; its arguments name places until restore_places() has made those.
Handle Process::restore(uint64_t place, std::vector<Handle>* todo) {
  LineageFile::Spec spec;
  if (!file_->read(place, &spec)) return 0;
  Record* r = allocate_record();
  if (r == nullptr) return 0;
  Handle h = handle_of(r);
  r->id = spec.id;
  r->function = spec.function;
  r->cls = spec.cls;
  r->parent = 0;
  r->kind = kTask;
  r->depth = spec.depth;
  r->ret = 1;
  r->attempts = spec.attempts;
  r->references = 0;
  r->pins = 1;
  uint32_t n = static_cast<uint32_t>(spec.arguments.size());
  uint64_t flags = kFlagShared | (n != 0 ? uint64_t{kFlagRefs} : 0);
  std::vector<Handle> handles;
  for (const LineageFile::Argument& a : spec.arguments) {
    handles.push_back(a.place != 0 ? kPlace | a.place : restore_value(a.value));
    if (handles.back() == 0) return 0;
  }
  if (n * sizeof(Handle) + spec.codec.size() <= kInlineArgs && spec.buffers.empty()) {
    if (n != 0) memcpy(r->args, handles.data(), n * sizeof(Handle));
    memcpy(r->args + n * sizeof(Handle), spec.codec.data(), spec.codec.size());
    r->args_bytes = static_cast<uint8_t>(spec.codec.size());
    r->dependencies = static_cast<uint8_t>(n);
  } else {
    std::vector<uint64_t> lengths;
    for (const std::string& b : spec.buffers) lengths.push_back(b.size());
    PayloadView view;
    auto* codec = reinterpret_cast<const uint8_t*>(spec.codec.data());
    Offset offset = make_payload({handles.data(), n, 0, codec, spec.codec.size(), lengths.data(),
                                  static_cast<uint32_t>(lengths.size())}, h, &view);
    if (offset == 0) return 0;
    for (uint32_t i = 0; i < lengths.size(); ++i) memcpy(view.buffer(i), spec.buffers[i].data(), lengths[i]);
    r->args_heap = HeapRef{offset, spec.codec.size()};
    r->args_bytes = kArgsInHeap;
    r->dependencies = 0;
    flags |= kFlagArgHeap;
  }
  publish_state(r, h, kLost, flags);
  if (n != 0) todo->push_back(h);
  return h;
}

Handle Process::restore_value(const std::string& value) {
  Record* r = allocate_record();
  if (r == nullptr) return 0;
  Handle h = handle_of(r);
  r->id = next_id();
  r->kind = kObject;
  r->cls = 0;
  r->function = r->parent = 0;
  r->args_bytes = r->dependencies = r->references = 0;
  r->attempts = 0;
  memcpy(r->result, value.data(), value.size());
  r->result_bytes = static_cast<uint32_t>(value.size());
  publish_state(r, h, kDone, 0);
  return h;
}

bool Process::restore_places(Handle h, std::unordered_map<uint64_t, Handle>* made, std::vector<Handle>* todo) {
  uint32_t deps, refs;
  auto* handles = const_cast<Handle*>(argument_handles(segment_, segment_.record(h), &deps, &refs));
  bool all = true;
  for (uint32_t i = 0; i < deps; ++i) {
    if (!(handles[i] & kPlace)) continue;
    uint64_t place = handles[i] & ~kPlace;
    auto [it, first] = made->try_emplace(place, 0);
    if (first)
      it->second = restore(place, todo);
    else if (it->second != 0)
      (void)hold(it->second);
    handles[i] = it->second;
    all = all && it->second != 0;
  }
  remember_lineage(h);
  return all;
}

// ---- for those who hold a task of ours --------------------------------------------------------------

// Only a living process has a file; what the node took over is not filed.
bool Process::asks_owner(const Record& r) const {
  return r.owner != slot_ && r.owner != 0 && r.owner < kProcsMax && r.kind == kTask;
}

// Only its owner has the arguments of r, in its file: it is to recover r as soon as it looks.
void Process::ask_owner(const Record& r, Handle h) {
  Proc& owner = segment_.proc(r.owner);
  for (int i = 0; i < kAskTries; ++i) {
    uint64_t none = 0;
    // SYNC POINT: wanted
    if (owner.wanted.compare_exchange_strong(none, h, std::memory_order_acq_rel) || none == h) break;
    wake_answerer(owner);
    sched_yield();
  }
  wake_answerer(owner);
  wake_process(segment_, r.owner);  // an idle worker has no thread for it: it looks when it is woken
}

void Process::wake_answerer(Proc& owner) {
  owner.answer_futex.fetch_add(1, std::memory_order_seq_cst);  // SYNC POINT: wanted
  os::futex_wake(&owner.answer_futex, 1);
}

void Process::answer_wanted() {
  Handle h = self_->wanted.exchange(0, std::memory_order_acq_rel);  // SYNC POINT: wanted
  if (h != 0 && index_of(h) < kRecordsMax) recover(h);
}

}  // namespace fastray
