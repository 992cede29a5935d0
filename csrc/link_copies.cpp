// Values that come from another node than their owner's: the owner says where they are, and who has a copy tells it.
//
//   elsewhere  a large value that its owner does not have itself: it comes straight from the node that made it
//   copy       a mirror whose value is there. The owner knows of it while its own record is away, and holds nothing:
//              when the node that made the value is gone, the owner asks for the copy, which is there or not
//   orphan     asked for at a node that has it no more, or is gone itself: the owner has to find another way
//
// A copy is held for as long as it is fetched (as exported, until the Release), and not before: the owner's record is held
// for it, and what holds each other is kept for ever.
#include "link.h"

namespace fastray {

void Link::on_elsewhere(Reader& in) {
  Handle h = in.get<uint64_t>();
  uint64_t node = in.get<uint64_t>();
  Handle there = in.get<uint64_t>();
  fetching_.erase(h);
  if (in.bad() || !mirrors(h)) return;
  elsewhere_.push_back(Copy{h, node, there});
}

void Link::fetch_copy(Handle asked, Handle there) {
  if (!fetching_.insert(asked).second) return;
  fetched_copies_[asked] = there;
  writer_.begin(kFrameFetch);
  writer_.put(there);
  writer_.put(asked);
  writer_.put(kFetchCopy);
  writer_.end();
}

void Link::on_fetch_copy(Handle h, uint64_t tag) {
  uint64_t w = index_of(h) < kRecordsMax ? segment_.record(h).state.load(std::memory_order_acquire) : 0;
  if (is_sealed(w) && word_gen(w) == gen_of(h)) {
    auto [it, fresh] = exported_.try_emplace(h, 0);
    if (fresh) (void)process_.hold(h);
    ++it->second;
    if (names_unknown(segment_.record(h))) return fetch_waits_.push_back(FetchWait{h, tag});
    return answer_fetch(h, tag);
  }
  writer_.begin(kFrameValue);
  writer_.put(tag);
  writer_.put(uint64_t{kFree});
  writer_.end();
}

bool Link::mirrors(Handle h) const {
  auto it = held_.find(h);
  return it != held_.end() && it->second.mirror;
}

void Link::have_copy(Handle mirror) {
  if (!mirrors(mirror)) return;
  writer_.begin(kFrameCopy);
  writer_.put(held_[mirror].remote);
  writer_.put(mirror);
  writer_.end();
}

void Link::on_copy(Reader& in) {
  Handle h = in.get<uint64_t>(), there = in.get<uint64_t>();
  if (in.bad() || exported_.count(h) == 0) return;  // let go of meanwhile
  if (process_.is_away(h)) copies_.push_back(Copy{h, peer_, there});
}

bool Link::switch_to(const Copy& copy) {
  Record& r = segment_.record(copy.h);
  auto it = held_.find(copy.h);
  if (it == held_.end() || it->second.mirror) return false;
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  if (word_gen(w) != gen_of(copy.h) || (state_of(w) != kAway && !is_asked(w))) return false;
  held_.erase(it);
  Away away{copy.node, copy.there, Process::away_of(r).bytes};
  memcpy(r.result, &away, sizeof away);  // only we read it
  if (is_asked(w))
    process_.push_asked(copy.h);
  else
    process_.ask_for(copy.h);
  return true;
}

}  // namespace fastray
