// See durable.h.
#include "durable.h"

#include <string.h>

namespace fastray {
namespace {

constexpr Key kRootKey{0x6661737472617930, 0x6472697665723030};
constexpr Key kValueSeed{0x76616C7565303030, 0x636F6E74656E7430};
constexpr uint64_t kLargeBytes = 1024;    // the content of values from here on is remembered
constexpr size_t kContentsMax = 1 << 16;
constexpr int kDepthMax = 16;             // references in values of references
constexpr uint32_t kSpareLogs = 15;       // when a child of a dead worker still holds the log of its slot

// Codec bytes and buffers of a payload, without its references.
Key payload_content(Key key, const PayloadView& v, uint64_t codec_bytes) {
  key = absorb(key, v.codec, codec_bytes);
  for (uint32_t i = 0; i < v.header->buffers; ++i) key = absorb(key, v.buffer(i), v.buffer_bytes[i]);
  return key;
}

}  // namespace

std::string Durable::open(Process* process) {
  segment_ = process->segment();
  const Header& header = segment_.header();
  area_ = segment_.at<DurableArea>(header.durable);
  inherited_ = segment_.at<Inherited>(header.inherited);
  index_.attach(area_);
  std::string path = area_->path, problem;
  for (uint32_t spare = 0; spare < kSpareLogs; ++spare) {
    uint64_t id = uint64_t{area_->generation} << 16 | (process->slot() + spare * kProcsMax);
    problem = log_.open(log_name(path, id), id);
    if (problem.empty()) break;
    log_.abandon();
  }
  return problem;
}

// ---- keys ------------------------------------------------------------------------------------------------

Content Durable::content_of(Handle h, int depth, Key* out) {
  const Record& r = segment_.record(h);
  uint64_t w = r.state.load(std::memory_order_acquire);  // SYNC POINT: record-state
  if (word_gen(w) != gen_of(h) || r.kind == kActor || depth > kDepthMax) return Content::kNever;
  if (!is_sealed(w)) return Content::kNotYet;
  if (state_of(w) == kFailed || (w & kFlagMulti)) return Content::kNever;
  if (!(w & kFlagResultHeap)) {
    *out = absorb(*out, absorb(kValueSeed, r.result, r.result_bytes));
    return Content::kKnown;
  }
  PayloadView v = Process::view_payload(segment_, r.result_heap.offset);
  bool large = v.header->total_bytes >= kLargeBytes && v.header->references == 0;
  uint32_t attempts = r.kind == kPromise ? segment_.record(r.args_heap.offset).attempts : r.attempts;
  auto found = large ? contents_.find(h) : contents_.end();
  bool known = found != contents_.end() && found->second.attempts == attempts;
  Key key = known ? found->second.key : payload_content(kValueSeed, v, r.result_bytes);
  if (large && !known) {
    if (contents_.size() >= kContentsMax) contents_.clear();
    contents_[h] = {key, attempts};
  }
  for (uint32_t i = 0; i < v.header->references; ++i) {
    Content c = content_of(v.handles[v.header->dependencies + i], depth + 1, &key);
    if (c != Content::kKnown) return c;
  }
  *out = absorb(*out, key);
  return Content::kKnown;
}

Content Durable::arguments_of(const Record& r, Key* key) {
  uint32_t dependencies = r.dependencies, references = r.references;
  auto* handles = reinterpret_cast<const Handle*>(r.args);
  if (r.args_bytes == kArgsInHeap) {
    PayloadView v = Process::view_payload(segment_, r.args_heap.offset);
    dependencies = v.header->dependencies;
    references = v.header->references;
    handles = v.handles;
    *key = is_key(arguments_) ? absorb(*key, arguments_) : payload_content(*key, v, v.header->codec_bytes);
  } else {
    *key = absorb(*key, r.args + (dependencies + references) * sizeof(Handle), r.args_bytes);
  }
  for (uint32_t i = 0; i < dependencies + references; ++i) {
    Content c = content_of(handles[i], 0, key);
    if (c != Content::kKnown) return c;
  }
  return Content::kKnown;
}

Content Durable::find_key(Handle h, const Handle* captured, size_t n) {
  const Record& r = segment_.record(h);
  const Inherited* from = r.parent != 0 ? &inherited_[index_of(h)] : nullptr;
  Key key = from != nullptr && from->mode == kFromKeyed ? from->key : kRootKey;
  content_key::block(key, digest_.lo, digest_.hi);
  Content c = arguments_of(r, &key);
  for (size_t i = 0; i < n && c == Content::kKnown; ++i) c = content_of(captured[i], 0, &key);
  key_ = c == Content::kKnown ? key : Key{};
  return c;
}

bool Durable::holds_code(Handle h) const {
  static constexpr char kMark[] = "cloudpickle.cloudpickle";
  const Record& r = segment_.record(h);
  if (r.args_bytes != kArgsInHeap) return false;  // too short for it
  PayloadView v = Process::view_payload(segment_, r.args_heap.offset);
  if (memmem(v.codec, v.header->codec_bytes, kMark, sizeof kMark - 1) != nullptr) return true;
  for (uint32_t i = 0; i < v.header->buffers; ++i) {
    const uint8_t* p = v.buffer(i);
    bool pickle = v.buffer_bytes[i] > 2 && p[0] == 0x80 && p[1] == 5;
    if (pickle && memmem(p, v.buffer_bytes[i], kMark, sizeof kMark - 1) != nullptr) return true;
  }
  return false;
}

Content Durable::begin(Handle h, const Key& digest, const Handle* captured, size_t n, const Key& arguments) {
  const Record& r = segment_.record(h);
  key_ = Key{};
  late_ = spawned_ = false;
  children_ = kFromRoot;
  id_ = r.id;
  digest_ = digest;
  arguments_ = arguments;
  if (r.parent != 0 && inherited_[index_of(h)].mode == kNotDurable) {
    children_ = kNotDurable;
    return Content::kNever;
  }
  if (!is_key(digest)) return Content::kNever;
  Content c = find_key(h, captured, n);
  if (c == Content::kKnown) children_ = kFromKeyed;
  if (c == Content::kNotYet) {
    captured_.assign(captured, captured + n);
    children_ = kNotDurable;
    late_ = true;
  }
  return c;
}

std::vector<Handle> Durable::open_references(Handle h) const {
  std::vector<Handle> open;
  auto look = [&](Handle ref) {
    if (segment_.record(ref).kind != kActor && !is_sealed(segment_.record(ref).state.load(std::memory_order_acquire)))
      open.push_back(ref);
  };
  uint32_t dependencies, references;
  const Handle* handles = Process::argument_handles(segment_, segment_.record(h), &dependencies, &references);
  for (uint32_t i = 0; i < dependencies + references; ++i) look(handles[i]);
  for (Handle ref : captured_) look(ref);
  return open;
}

// ---- results ---------------------------------------------------------------------------------------------

bool Durable::may_recall(Handle h) const { return !index_.is_empty() || segment_.record(h).attempts != 0; }

bool Durable::recall(Handle h, EntryView* out) {
  const Record& r = segment_.record(h);
  uint64_t place[2];
  if (!is_key(key_) || !index_.take(key_, h, static_cast<uint32_t>(r.id), r.attempts != 0, out, &place[0], &place[1])) return false;
  if (r.parent != 0 && inherited_[index_of(h)].mode == kFromKeyed) {
    LogPart part{place, sizeof place};
    (void)log_.append(key_, kEntryTaken | kEntryHasParent, 0, inherited_[index_of(h)].id, &part, 1);
  }
  return true;
}

bool Durable::wants(Handle h) {
  if (late_) {
    late_ = false;
    find_key(h, captured_.data(), captured_.size());
  }
  return is_key(key_);
}

bool Durable::keep(Handle h, EntryFlag kind, const LogPart* parts, int n) {
  const Record& r = segment_.record(h);
  uint8_t flags = kind;
  uint64_t parent = 0;
  // an earlier attempt may have submitted tasks too: its id is this one's
  if (children_ == kFromKeyed && (spawned_ || r.attempts != 0)) flags |= kEntryHasId;
  if (r.parent != 0 && inherited_[index_of(h)].mode == kFromKeyed) {
    flags |= kEntryHasParent;
    parent = inherited_[index_of(h)].id;
  }
  return log_.append(key_, flags, r.id, parent, parts, n);
}

bool Durable::warn_once() { return area_->warned.exchange(1, std::memory_order_relaxed) == 0; }

}  // namespace fastray
