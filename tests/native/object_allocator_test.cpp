// Object allocator: units, a shadow-model stress, threads that free each other's blocks, and, when called
// with "bench", what it costs. See allocator_step_kill_test.cpp for crashes.
#include "../../csrc/object_allocator.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "../../csrc/os.h"
#include "testing.h"

using namespace fastray;
using fastray::testing::make_segment;
using fastray::testing::Random;

namespace {

constexpr uint64_t kMiB = 1 << 20;

// Which blocks the records still point at: what the reaper's callback would look up.
struct Records {
  std::set<std::pair<Handle, Offset>> live;
  static bool is_live(void* ctx, Handle h, Offset o) {
    return static_cast<Records*>(ctx)->live.count({h, o}) != 0;
  }
};
bool nothing_is_live(void*, Handle, Offset) { return false; }

struct World {
  Segment segment;
  std::vector<std::unique_ptr<ObjectAllocator>> a;
  World(uint64_t store_bytes, uint32_t n) : segment(make_segment(store_bytes)) {
    for (uint32_t i = 0; i < n; ++i) {
      a.push_back(std::make_unique<ObjectAllocator>());
      a.back()->attach(segment, i + 1);
    }
  }
  ~World() { segment.detach(); }
  ObjectAllocator& operator[](size_t i) { return *a[i]; }
  uint64_t blocks() { return ObjectAllocator::usage(segment).blocks; }
  uint64_t bytes() { return ObjectAllocator::usage(segment).object_bytes; }
  uint64_t region_bytes() { return ObjectAllocator::usage(segment).region_bytes; }
};

size_t random_size(Random& r) {
  switch (r.below(16)) {
    case 0: return r.below(3 * kMiB);
    case 1: return r.below(300 * 1024);
    case 2:
    case 3: return r.below(40000);
    case 4:
    case 5: return r.below(4096);
    default: return r.below(200);
  }
}

void sizes_and_alignments_hold() {
  World w(256 * kMiB, 1);
  std::map<Offset, size_t> held;
  for (size_t n = 0; n < 6 * kMiB; n = n < 2000 ? n + 1 : n + n / 7 + 3) {
    Offset o = w[0].allocate(n, n + 1);
    CHECK(o != 0);
    size_t usable = ObjectAllocator::usable_bytes(w.segment, o);
    CHECK(usable >= n && o % (n <= 32 ? 16 : 64) == 0);
    if (n > 512) CHECK(usable <= n + std::max<size_t>(n / 8, 64) + 1);
    CHECK(ObjectAllocator::owner_record(w.segment, o) == n + 1);
    auto next = held.lower_bound(o);
    CHECK(next == held.end() || o + usable <= next->first);
    CHECK(next == held.begin() || std::prev(next)->first + std::prev(next)->second <= o);
    memset(w.segment.at<char>(o), 0xAB, usable);
    held[o] = usable;
    if (held.size() > 600) {
      w[0].release(held.begin()->first);
      held.erase(held.begin());
    }
  }
  CHECK(w[0].is_valid() && w.blocks() == held.size());
  Offset one = held.begin()->first;
  ObjectAllocator::set_owner_record(w.segment, one, 77);
  CHECK(ObjectAllocator::owner_record(w.segment, one) == 77);
  for (auto& [o, n] : held) w[0].release(o);
  CHECK(w[0].is_valid() && w.blocks() == 0 && w.bytes() == 0);
  w[0].trim(0);
  CHECK(w[0].is_valid() && w.region_bytes() == 0);
}

void a_freed_block_is_used_again_at_once() {
  World w(256 * kMiB, 1);
  for (size_t n : {16u, 64u, 1000u, 30000u, 100000u}) {
    Offset keep = w[0].allocate(n, 1), o = w[0].allocate(n, 1);
    w[0].release(o);
    CHECK(w[0].allocate(n, 1) == o);
    w[0].release(o);
    w[0].release(keep);
  }
  Offset big = w[0].allocate(50 * kMiB, 1), other = w[0].allocate(20 * kMiB, 1);
  w[0].release(big);
  w[0].release(other);
  CHECK(w[0].allocate(50 * kMiB, 1) == big);
  CHECK(w[0].is_valid());
}

void free_neighbours_make_room_for_longer_blocks() {
  World w(64 * kMiB, 1);
  std::vector<Offset> big;
  for (int i = 0; i < 8; ++i) big.push_back(w[0].allocate(4 * kMiB, 1));
  std::sort(big.begin(), big.end());
  for (Offset o : {big[2], big[4], big[3], big[5]}) w[0].release(o);
  CHECK(w[0].is_valid());
  CHECK(w[0].allocate(16 * kMiB, 1) == big[2]);  // the four are one again
  // pages
  std::vector<Offset> runs;
  Offset first = w[0].allocate(40000, 1);
  for (int i = 0; i < 4; ++i) runs.push_back(w[0].allocate(10 * 4096, 1));
  Offset fence = w[0].allocate(40000, 1);
  for (int i : {1, 3, 2, 0}) w[0].release(runs[static_cast<size_t>(i)]);
  CHECK(w[0].allocate(40 * 4096, 1) == runs[0]);
  CHECK(w[0].is_valid() && first != 0 && fence != 0);
}

void spans_are_found_among_warm_and_pool_regions() {
  World w(64 * kMiB, 2);
  std::vector<Offset> mine, theirs;
  for (int i = 0; i < 6; ++i) {
    mine.push_back(w[0].allocate(2 * kMiB, 1));
    theirs.push_back(w[1].allocate(2 * kMiB, 1));
  }
  w[0].release(mine[1]);      // warm with me
  w[1].release(theirs[1]);    // will be in the pool
  w[1].trim(0);
  w[0].release(mine[2]);
  Offset o = w[0].allocate(6 * kMiB, 1);
  CHECK(o == mine[1] && w[0].is_valid() && w[1].is_valid());
}

void remote_releases_come_back() {
  World w(256 * kMiB, 2);
  std::vector<Offset> held;
  Random r(7);
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 300; ++i) held.push_back(w[0].allocate(random_size(r), 5));
    for (Offset o : held) {
      CHECK(o != 0);
      w[1].release(o);
    }
    held.clear();
    CHECK(w.segment.proc(2).freeing.load(std::memory_order_relaxed) == 0);
    w[0].collect();
    CHECK(w[0].is_valid() && w[1].is_valid() && w.blocks() == 0);
  }
  w[0].trim(0);
  CHECK(w.region_bytes() == 0);
}

void an_intent_keeps_a_block_until_it_is_gone() {
  for (size_t n : {100u, 100000u, 3000000u}) {
    World w(256 * kMiB, 3);
    Offset o = w[0].allocate(n, 5);
    w[2].begin_release(o);
    w[1].release(o);  // (two releasers do not happen; here it shows that the intent counts)
    w[0].collect();
    CHECK(w.blocks() == 1);
    w.segment.proc(3).freeing.store(0, std::memory_order_relaxed);
    w[0].collect();  // the flag was kept
    CHECK(w.blocks() == 0);
  }
}

void a_full_store_says_so_and_recovers() {
  World w(32 * kMiB, 2);
  std::vector<Offset> held;
  for (size_t n : {2000u, 30000u, 70000u, 1100000u, 5000000u}) {
    Offset o;
    uint64_t total = 0;
    for (int i = 0; (o = w[i % 2].allocate(n, 1)) != 0; ++i) {
      held.push_back(o);
      total += n;
      CHECK(total <= 32 * kMiB);
    }
    CHECK(total >= 24 * kMiB);
    CHECK(w[0].allocate(512, 1) != 0);  // small blocks and bookkeeping have room beside the store
    CHECK(w[1].allocate(n, 1, Purpose::kBookkeeping) != 0);
    CHECK(w[0].is_valid() && w[1].is_valid());
    for (size_t i = 0; i < held.size(); ++i) w[i % 2].release(held[i]);
    held.clear();
    w[0].recover(2, nothing_is_live, nullptr);  // and what this loop left behind
    w.a[1] = std::make_unique<ObjectAllocator>();
    w[1].attach(w.segment, 2);
    w[1].recover(1, nothing_is_live, nullptr);
    w.a[0] = std::make_unique<ObjectAllocator>();
    w[0].attach(w.segment, 1);
    CHECK(w.blocks() == 0);
  }
  CHECK(w[0].allocate(uint64_t{1} << 50, 1) == 0 && w[0].allocate(~size_t{0}, 1) == 0);
}

void trim_keeps_what_it_is_told() {
  World w(256 * kMiB, 1);
  Offset a = w[0].allocate(40 * kMiB, 1), b = w[0].allocate(20 * kMiB, 1);
  w[0].release(a);
  w[0].release(b);
  w[0].trim(30 * kMiB);
  CHECK(w[0].is_valid() && w[0].warm_bytes() == 30 * kMiB);
  CHECK(w[0].allocate(20 * kMiB, 1) == b);  // freed last, kept longest
  w[0].release(b);
  w[0].trim(0);
  CHECK(w[0].warm_bytes() == 0 && w.region_bytes() == 0);
}

void recover_frees_the_dead_and_adopts_the_live() {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    World w(512 * kMiB, 4);
    Random r(seed);
    Records records;
    std::map<Offset, char> live;
    for (int i = 0; i < 1500; ++i) {
      size_t n = random_size(r);
      Handle h = make_handle(static_cast<uint32_t>(i), 1);
      Offset o = w[0].allocate(n, h);
      CHECK(o != 0);
      uint64_t fate = r.below(4);
      if (fate == 0) {
        records.live.insert({h, o});
        live[o] = static_cast<char>(i);
        memset(w.segment.at<char>(o), i, n);
        ObjectAllocator::set_owner_record(w.segment, o, h);
        live[o] = n > 0 ? static_cast<char>(i) : *w.segment.at<char>(o);
      } else if (fate == 1) {
        w[0].release(o);
      } else if (fate == 2) {
        w[1].release(o);
        if (r.below(50) == 0) w[0].collect();
      }
    }
    // process 1 dies; 2 lets go of one live block halfway; 3 recovers, dies; 4 recovers both
    RecoverStats s = w[2].recover(1, Records::is_live, &records);
    CHECK(s.blocks_adopted == live.size() && w[2].is_valid() && w.blocks() == live.size());
    CHECK(w[2].recover(1, Records::is_live, &records).blocks_freed == 0);
    auto [h, o] = *records.live.begin();
    w[1].begin_release(o);
    s = w[3].recover(2, Records::is_live, &records);
    CHECK(s.releases_undone == 1);
    w.segment.proc(2).freeing.store(o, std::memory_order_relaxed);
    records.live.erase({h, o});
    live.erase(o);
    s = w[3].recover(3, Records::is_live, &records);  // the intent still holds the unlinked one
    CHECK(s.blocks_adopted == live.size() + 1);
    s = w[3].recover(2, Records::is_live, &records);
    CHECK(s.releases_finished == 1);
    w[3].collect();
    CHECK(w.blocks() == live.size() && w[3].is_valid());
    for (auto& [at, c] : live) {
      CHECK(*w.segment.at<char>(at) == c);
      w[3].release(at);
    }
    w[3].trim(0);
    CHECK(w.blocks() == 0 && w.region_bytes() == 0 && w[3].is_valid());
  }
}

// Random steps of four processes against a map of what must be there; deaths included.
void stress_against_a_shadow(uint64_t seed, int steps) {
  World w(128 * kMiB, 4);
  Random r(seed);
  struct Block {
    size_t bytes;
    Handle handle;
    uint8_t fill;
  };
  std::map<Offset, Block> shadow;
  std::vector<Offset> order;
  Records records;
  auto drop = [&](size_t i, ObjectAllocator& by) {
    Offset o = order[i];
    Block b = shadow[o];
    auto* p = w.segment.at<uint8_t>(o);
    for (size_t at : {size_t{0}, b.bytes / 2, b.bytes - 1}) CHECK(b.bytes == 0 || p[at] == b.fill);
    CHECK(ObjectAllocator::owner_record(w.segment, o) == b.handle);
    by.begin_release(o);
    records.live.erase({b.handle, o});
    by.release(o);
    shadow.erase(o);
    order[i] = order.back();
    order.pop_back();
  };
  for (int step = 0; step < steps; ++step) {
    uint64_t who = r.below(4);
    ObjectAllocator& a = w[who];
    uint64_t what = r.below(1000);
    if (what < 500) {
      size_t n = random_size(r);
      Handle h = make_handle(static_cast<uint32_t>(step), 3);
      Offset o = a.allocate(n, h);
      if (o == 0) {
        for (int i = 0; i < 50 && !order.empty(); ++i) drop(r.below(order.size()), a);
        continue;
      }
      auto next = shadow.lower_bound(o);
      CHECK(next == shadow.end() || o + n <= next->first);
      CHECK(next == shadow.begin() || std::prev(next)->first + std::prev(next)->second.bytes <= o);
      Block b{n, h, static_cast<uint8_t>(step)};
      if (n != 0) memset(w.segment.at<uint8_t>(o), b.fill, n);
      shadow[o] = b;
      order.push_back(o);
      records.live.insert({h, o});
    } else if (what < 985) {
      if (!order.empty()) drop(r.below(order.size()), a);
    } else if (what < 990) {
      a.collect();
    } else if (what < 995) {
      a.trim(r.below(8 * kMiB));
    } else if (what == 999) {  // dies; another takes over; a new process takes the slot
      uint64_t heir = (who + 1 + r.below(3)) % 4;
      w[heir].recover(static_cast<uint32_t>(who + 1), Records::is_live, &records);
      w.a[who] = std::make_unique<ObjectAllocator>();
      w[who].attach(w.segment, static_cast<uint32_t>(who + 1));
    }
    if (step % 500 == 0)
      for (auto& each : w.a) CHECK(each->is_valid());
  }
  while (!order.empty()) drop(order.size() - 1, w[r.below(4)]);
  for (auto& each : w.a) {
    each->trim(0);
    CHECK(each->is_valid());
  }
  CHECK(w.blocks() == 0 && w.bytes() == 0 && w.region_bytes() == 0);
}

// Threads as processes: each hands what it allocates to the others to free; one dies and is recovered
// while the others go on releasing its blocks.
void threads_free_each_others_blocks(int rounds) {
  constexpr uint32_t kThreads = 4, kBoxes = 512;
  World w(512 * kMiB, kThreads + 1);
  static std::atomic<uint64_t> boxes[kBoxes];
  for (auto& b : boxes) b.store(0, std::memory_order_relaxed);
  auto work = [&](uint32_t me, int steps) {
    Random r(me * 1000 + 1);
    for (int i = 0; i < steps; ++i) {
      size_t n = r.below(40) == 0 ? random_size(r) : r.below(300);
      Offset o = w[me].allocate(n, make_handle(me, 1));
      if (o != 0 && n >= 8) *w.segment.at<uint64_t>(o) = o;
      // acq_rel: the block goes to whoever takes it out
      uint64_t old = boxes[r.below(kBoxes)].exchange(o, std::memory_order_acq_rel);
      if (old != 0) {
        if (ObjectAllocator::usable_bytes(w.segment, old) > 300) CHECK(*w.segment.at<uint64_t>(old) == old);
        w[me].release(old);
      }
      if (i % 5000 == 4999) w[me].trim(4 * kMiB);
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads - 1; ++t) threads.emplace_back(work, t, rounds);
  std::thread victim(work, kThreads - 1, rounds / 4);
  victim.join();
  // the callback knows all blocks as live: what is in a box or on its way is freed by release()
  auto all_live = [](void*, Handle, Offset) { return true; };
  w[kThreads].recover(kThreads, all_live, nullptr);
  for (auto& t : threads) t.join();
  for (auto& b : boxes) {
    Offset o = b.exchange(0, std::memory_order_acquire);
    if (o != 0) w[0].release(o);
  }
  for (uint32_t t = 0; t <= kThreads; ++t) {
    if (t == kThreads - 1) continue;
    w[t].trim(0);
    CHECK(w[t].is_valid());
  }
  CHECK(w.blocks() == 0 && w.region_bytes() == 0);
}

// ---- costs ------------------------------------------------------------------------------------------

double ns_per(int n, const std::function<void()>& body) {
  double best = 1e18;
  for (int i = 0; i < 5; ++i) {
    int64_t t0 = os::now_ns();
    body();
    best = std::min(best, static_cast<double>(os::now_ns() - t0) / n);
  }
  return best;
}

void bench() {
  constexpr int kN = 100000;
  World w(1024 * kMiB, 2);
  std::vector<Offset> held(kN);
  for (size_t n : {16u, 64u, 256u, 1024u}) {
    double pair = ns_per(kN, [&] {
      for (int i = 0; i < kN; ++i) w[0].release(w[0].allocate(n, 1));
    });
    double allocate = 1e18, release = 1e18, remote = 1e18, collect = 1e18, again = 1e18;
    for (int i = 0; i < 5; ++i) {
      int64_t t0 = os::now_ns();
      for (auto& o : held) o = w[0].allocate(n, 1);
      int64_t t1 = os::now_ns();
      for (Offset o : held) w[0].release(o);
      int64_t t2 = os::now_ns();
      for (auto& o : held) o = w[0].allocate(n, 1);
      int64_t t3 = os::now_ns();
      for (Offset o : held) w[1].release(o);
      int64_t t4 = os::now_ns();
      w[0].collect();
      int64_t t5 = os::now_ns();
      auto least = [](double& d, int64_t ns) { d = std::min(d, static_cast<double>(ns) / kN); };
      least(allocate, t1 - t0);
      least(release, t2 - t1);
      least(again, t3 - t2);
      least(remote, t4 - t3);
      least(collect, t5 - t4);
    }
    printf("%5zu B: pair %.1f ns; 100k allocate %.1f, release %.1f, remote release %.1f, collect %.1f\n", n,
           pair, std::min(allocate, again), release, remote, collect);
  }
  printf("64 KB run: pair %.0f ns\n", ns_per(1000, [&] {
           for (int i = 0; i < 1000; ++i) w[0].release(w[0].allocate(65536, 1));
         }));
  constexpr size_t kBig = 100 * kMiB;
  std::vector<char> source(kBig, 1);
  for (int i = 0; i < 4; ++i) {
    int64_t t0 = os::now_ns();
    Offset o = w[0].allocate(kBig, 1);
    int64_t t1 = os::now_ns();
    memcpy(w.segment.at<char>(o), source.data(), kBig);
    int64_t t2 = os::now_ns();
    w[0].release(o);
    int64_t t3 = os::now_ns();
    printf("100 MiB %s: allocate %.3f ms, copy %.2f ms, release %.3f ms\n", i == 0 ? "fresh" : "again",
           static_cast<double>(t1 - t0) / 1e6, static_cast<double>(t2 - t1) / 1e6,
           static_cast<double>(t3 - t2) / 1e6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "bench") == 0) return bench(), 0;
  sizes_and_alignments_hold();
  a_freed_block_is_used_again_at_once();
  free_neighbours_make_room_for_longer_blocks();
  spans_are_found_among_warm_and_pool_regions();
  remote_releases_come_back();
  an_intent_keeps_a_block_until_it_is_gone();
  a_full_store_says_so_and_recovers();
  trim_keeps_what_it_is_told();
  recover_frees_the_dead_and_adopts_the_live();
  uint64_t seed = testing::seed_or(1);
  for (uint64_t s = seed; s < seed + 6; ++s) stress_against_a_shadow(s, 20000);
  threads_free_each_others_blocks(40000);
  puts("ok");
}
