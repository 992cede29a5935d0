// Borrowing: which references to other processes' records this one holds, exactly, even after its death.
//
// A borrower writes an entry into *its own* ledger and sets kFlagBorrowed on the record. The owner that
// drops a flagged record puts it into limbo and frees it once no ledger names it. There is no shared
// count: a dead borrower's entries are simply cleared by the reaper.
//
// Why the owner's scan is right although entries move while it reads: a reference only passes on while
// its giver still holds it (by entry, by a task's arguments, by a container). The giver's release bumps
// the owner's release_epoch before and after it clears the entry, so a scan during which the epoch stood
// still saw every entry that existed at its start or was made by someone it also saw.
#include "process.h"

namespace fastray {

// True when it may have been the last handle of an actor: the node has to look.
bool Process::clear_entry(const Segment& segment, LedgerEntry& entry) {
  Handle h = entry.record.load(std::memory_order_relaxed);
  const Record& r = segment.record(h);
  uint32_t slot = r.owner;  // read before: the entry keeps the record, afterwards its next life may be written
  bool actor = r.kind == kActor;
  Proc& owner = segment.proc(slot);
  // SYNC POINT: release-epoch (seq_cst on all three: see the top)
  owner.release_epoch.fetch_add(1, std::memory_order_seq_cst);
  entry.record.store(0, std::memory_order_seq_cst);
  entry.container.store(0, std::memory_order_relaxed);
  owner.release_epoch.fetch_add(1, std::memory_order_seq_cst);
  // In limbo (a hint: the owner may be writing): an idle owner has to be told that it can be freed now.
  if (r.pins != 0 || !(r.state.load(std::memory_order_relaxed) & kFlagShared)) return false;
  Process::wake_process(segment, slot);
  return actor;
}

void Process::drop_borrow(Handle h, std::unordered_map<Handle, Borrow>::iterator it) {
  if (--it->second.count > 0) return;
  uint32_t entry = it->second.entry;
  borrows_.erase(it);
  (void)h;
  if (clear_entry(segment_, segment_.ledger(slot_).entries[entry])) ring_bell();
  ledger_free_.push_back(entry);
}

bool Process::contain(Handle record, Handle container) {
  uint32_t entry = take_ledger_entry(record, container);
  if (entry == kLedgerEntries) return false;
  segment_.record(record).state.fetch_or(kFlagBorrowed, std::memory_order_acq_rel);
  contained_.push_back(entry);
  return true;
}

// An entry of our ledger, filled in; kLedgerEntries when there is none left.
uint32_t Process::take_ledger_entry(Handle record, Handle container) {
  Ledger& ledger = segment_.ledger(slot_);
  uint32_t entry;
  if (!ledger_free_.empty()) {
    entry = ledger_free_.back();
    ledger_free_.pop_back();
  } else {
    entry = ledger.used.load(std::memory_order_relaxed);
    if (entry == kLedgerEntries) return entry;
    ledger.used.store(entry + 1, std::memory_order_release);
  }
  // SYNC POINT: ledger (the entry is there before the owner can see the flag)
  ledger.entries[entry].container.store(container, std::memory_order_relaxed);
  ledger.entries[entry].record.store(record, std::memory_order_release);
  return entry;
}

void Process::sweep_contained() {
  Ledger& ledger = segment_.ledger(slot_);
  for (size_t i = 0; i < contained_.size();) {
    LedgerEntry& entry = ledger.entries[contained_[i]];
    Handle container = entry.container.load(std::memory_order_relaxed);
    uint64_t w = segment_.record(container).state.load(std::memory_order_acquire);
    if (word_gen(w) == gen_of(container)) {
      ++i;
      continue;
    }
    if (clear_entry(segment_, entry)) ring_bell();
    ledger_free_.push_back(contained_[i]);
    contained_[i] = contained_.back();
    contained_.pop_back();
  }
}

// What any process borrows. Right only for owners whose release_epoch stood still meanwhile.
std::unordered_set<Handle> Process::named_by_ledgers(uint32_t but) const {
  std::unordered_set<Handle> named;
  uint32_t procs = segment_.header().procs_used.load(std::memory_order_acquire);
  for (uint32_t slot = 0; slot < procs; ++slot) {
    if (slot == but || segment_.proc(slot).state.load(std::memory_order_acquire) == kProcEmpty) continue;
    Ledger& ledger = segment_.ledger(slot);
    uint32_t used = ledger.used.load(std::memory_order_acquire);
    for (uint32_t e = 0; e < used; ++e) {
      Handle h = ledger.entries[e].record.load(std::memory_order_seq_cst);  // SYNC POINT: ledger
      if (h != 0) named.insert(h);
    }
  }
  return named;
}

// Frees what lies in limbo and stands in no ledger any more.
void Process::sweep_limbo() {
  uint32_t epoch = self_->release_epoch.load(std::memory_order_seq_cst);  // SYNC POINT: release-epoch
  if (epoch + 1 == limbo_epoch_) return;  // nothing was released since the last look
  std::unordered_set<Handle> named = named_by_ledgers();
  if (self_->release_epoch.load(std::memory_order_seq_cst) != epoch) return;  // moved: look again later
  limbo_epoch_ = epoch + 1;
  std::vector<Handle> still;
  still.swap(limbo_);
  for (Handle h : still) {
    Record& r = segment_.record(h);
    uint64_t w = r.state.load(std::memory_order_acquire);
    if (word_gen(w) != gen_of(h) || r.owner != slot_) continue;
    if (r.pins > 0) continue;  // a borrower gave it back to us: dropped again later
    if (named.count(h) != 0 || is_walked(w) || (r.kind == kActor && !actor_is_over(r, h))) {
      if (is_walked(w)) limbo_epoch_ = 0;
      limbo_.push_back(h);
      continue;
    }
    r.state.fetch_and(~uint64_t{kFlagBorrowed}, std::memory_order_acq_rel);
    std::vector<Handle> dropped;
    release_parts(r, w & ~uint64_t{kFlagBorrowed}, h, &dropped);
    for (Handle d : dropped) drop(d);
  }
}

}  // namespace fastray
