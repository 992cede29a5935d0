// The object allocator, killed at each instruction of each operation. After each kill another process
// recovers, all that is left is checked against what may be there, everything is released, and nothing may
// be left over: no block, no region, no intent.
#include <string.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "../../csrc/object_allocator.h"
#include "../../csrc/os.h"
#include "step_kill.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr size_t kBigBytes = 2200000;  // two regions; little to save and put back
constexpr uint32_t kVictim = 1, kOther = 2, kReaper = 3, kSecondReaper = 4,
                   kTakers = 5;

// A record as far as the allocator cares, in the segment: the block it points at, or 0. Record 0 is none.
std::atomic<uint64_t>& link(const Segment& s, uint32_t i) {
  return *reinterpret_cast<std::atomic<uint64_t>*>(&s.record(i).args_heap.offset);
}
bool is_live(void* ctx, Handle h, Offset o) {
  return link(*static_cast<Segment*>(ctx), index_of(h)).load(std::memory_order_acquire) == o;
}

struct Fixture {
  Segment segment = make_segment(256 * kMiB);
  std::unique_ptr<ObjectAllocator> victim, other, reaper = std::make_unique<ObjectAllocator>();
  std::vector<uint32_t> records;    // in use: their blocks must survive with their bytes
  std::vector<uint32_t> uncertain;  // the operation links or unlinks them: there wholly or not at all
  uint32_t next = 1;
  bool other_lives = false;
  bool finish_release = false;  // the other's intent is the last thing its release still has to clear
  bool greedy = false;
  std::vector<std::unique_ptr<ObjectAllocator>> takers;

  Fixture() {
    victim = std::make_unique<ObjectAllocator>();
    other = std::make_unique<ObjectAllocator>();
    victim->attach(segment, kVictim);
    other->attach(segment, kOther);
  }
  ~Fixture() { segment.detach(); }

  uint32_t put(ObjectAllocator& a, size_t bytes) {
    uint32_t i = next++;
    Offset o = a.allocate(bytes, make_handle(i, 1));
    CHECK(o != 0);
    *segment.at<uint64_t>(o) = i;
    link(segment, i).store(o, std::memory_order_release);
    return i;
  }
  // The rule of object_allocator.h
  void drop(ObjectAllocator& a, uint32_t i) {
    Offset o = link(segment, i).load(std::memory_order_relaxed);
    a.begin_release(o);
    link(segment, i).store(0, std::memory_order_release);
    a.release(o);
  }
  void keep(uint32_t i) { records.push_back(i); }
  void may_go(uint32_t i) { uncertain.push_back(i); }

  // After `dead` died (in this order one allocator recovers them). The other process may live on: then it
  // must find all its own by itself; else it counts as dead too, as its copy here would be used up.
  void check_after(const std::vector<uint32_t>& dead) {
    if (!other_lives) return check(dead);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      check(dead);
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }

  // New processes take what regions are free: one that was freed too early has a new owner then.
  void take_regions() {
    for (uint32_t i = 0; greedy && i < 4; ++i) {
      takers.push_back(std::make_unique<ObjectAllocator>());
      takers.back()->attach(segment, kTakers + static_cast<uint32_t>(takers.size()));
      CHECK(takers.back()->allocate(2000, make_handle(1u << 20, 1)) != 0);
    }
  }

  void check(const std::vector<uint32_t>& dead) {
    auto reaper = std::make_unique<ObjectAllocator>();
    reaper->attach(segment, kSecondReaper);
    for (uint32_t d : dead) {
      reaper->recover(d, is_live, &segment);
      take_regions();
    }
    for (auto& t : takers) CHECK(t->is_valid());
    for (size_t i = 0; i < takers.size(); ++i)
      reaper->recover(kTakers + static_cast<uint32_t>(i) + 1, is_live, &segment);
    takers.clear();
    if (other_lives) {
      if (finish_release) segment.proc(kOther).freeing.store(0, std::memory_order_release);
      other->collect();
      CHECK(other->is_valid());
    } else {
      reaper->recover(kOther, is_live, &segment);
    }
    reaper->collect();
    CHECK(reaper->is_valid());
    uint64_t expected = 0;
    auto held = [&](uint32_t i, bool must) {
      Offset o = link(segment, i).load(std::memory_order_acquire);
      if (o == 0) {
        CHECK(!must);
        return;
      }
      ++expected;
      CHECK(*segment.at<uint64_t>(o) == i);
      CHECK(ObjectAllocator::owner_record(segment, o) == make_handle(i, 1));
    };
    for (uint32_t i : records) held(i, true);
    for (uint32_t i : uncertain) held(i, false);
    CHECK(ObjectAllocator::usage(segment).blocks == expected);  // nothing leaked
    std::vector<uint32_t> all = records;
    all.insert(all.end(), uncertain.begin(), uncertain.end());
    for (uint32_t i : all)
      if (link(segment, i).load(std::memory_order_relaxed) != 0) drop(*reaper, i);
    if (other_lives) other->trim(0);
    reaper->trim(0);
    CHECK(reaper->is_valid());
    auto u = ObjectAllocator::usage(segment);
    CHECK(u.blocks == 0 && u.object_bytes == 0 && u.region_bytes == 0);
    for (uint32_t s = 0; s < 16; ++s) CHECK(segment.proc(s).freeing.load(std::memory_order_relaxed) == 0);
    heap::View v(segment);  // every region is in the pool
    for (uint32_t r = 1; r < v.node().high.load(std::memory_order_acquire); ++r)
      CHECK(v.regions[r].word.load(std::memory_order_acquire) == 0);
  }
};

uint64_t g_steps = 0, g_checks = 0;
const char* g_only = nullptr;

void run(const char* name, const std::function<void(Fixture&)>& setup,
         const std::function<void(Fixture&)>& operation, std::vector<uint32_t> dead, uint64_t stride = 1,
         bool really = false) {
  if (g_only != nullptr && strcmp(name, g_only) != 0) return;
  Fixture f;
  int64_t t0 = os::now_ns();
  auto kill = really ? real_kill : step_kill;
  StepKillResult r = kill(
      f.segment, [&] { setup(f); }, [&] { operation(f); }, [&](uint64_t) { f.check_after(dead); },
      {.stride = stride});
  g_steps += r.steps;
  g_checks += r.checks;
  printf("  %-34s %6lu instructions %6lu kills %6.2f s\n", name, static_cast<unsigned long>(r.steps),
         static_cast<unsigned long>(r.checks), static_cast<double>(os::now_ns() - t0) / 1e9);
  fflush(stdout);
}

void some_blocks(Fixture& f, ObjectAllocator& a) {
  for (size_t n : {16u, 100u, 5000u, 40000u}) f.keep(f.put(a, n));
}

// A slab (and its page region) made on memory full of what looks like heads, used bits and handles.
void allocate_on_old_data(const char* name, size_t old_bytes, uint8_t fill, uint64_t stride = 1) {
  run(
      name,
      [=](Fixture& f) {
        uint32_t old = f.put(*f.victim, old_bytes);
        // every other line: so that used bits and handles are full of it, and remote bits are not
        for (size_t at = 64; at + 64 <= old_bytes; at += 128)
          memset(f.segment.at<char>(link(f.segment, old).load(std::memory_order_relaxed) + at), fill, 64);
        f.drop(*f.victim, old);
        f.may_go(f.next);
      },
      [](Fixture& f) { f.put(*f.victim, 3000); }, {kVictim}, stride);
}

// put: allocate, fill, link. The first of a class makes a slab, perhaps a page region.
void allocate(const char* name, size_t bytes, bool warm_up, uint64_t stride = 1, bool really = false) {
  run(
      name,
      [=](Fixture& f) {
        if (warm_up) some_blocks(f, *f.victim);
        if (warm_up) f.drop(*f.victim, f.put(*f.victim, bytes));
        f.may_go(f.next);
      },
      [=](Fixture& f) { f.put(*f.victim, bytes); }, {kVictim}, stride, really);
}

void release(const char* name, size_t bytes, uint64_t stride = 1, bool really = false) {
  run(
      name,
      [=](Fixture& f) {
        some_blocks(f, *f.victim);
        f.keep(f.put(*f.victim, bytes));
        f.may_go(f.put(*f.victim, bytes));
        f.keep(f.put(*f.victim, bytes));
      },
      [=](Fixture& f) { f.drop(*f.victim, f.uncertain[0]); }, {kVictim}, stride, really);
}

void remote_release(const char* name, size_t bytes, std::vector<uint32_t> order) {
  run(
      name,
      [=](Fixture& f) {
        f.other_lives = order.size() == 1;
        some_blocks(f, *f.other);
        f.keep(f.put(*f.victim, 16));
        f.may_go(f.put(*f.other, bytes));
      },
      [=](Fixture& f) { f.drop(*f.victim, f.uncertain[0]); }, order);
}

const std::vector<size_t> kMixed = {16, 16, 200, 5000, 70000, 50000};

void collect() {
  run(
      "collect",
      [](Fixture& f) {
        some_blocks(f, *f.victim);
        std::vector<uint32_t> gone;
        for (size_t n : kMixed) gone.push_back(f.put(*f.victim, n));
        gone.push_back(f.put(*f.victim, kBigBytes));
        for (uint32_t i : gone) f.drop(*f.other, i);
      },
      [](Fixture& f) { f.victim->collect(); }, {kVictim}, 2);
}

void collect_beside_an_intent() {
  for (size_t n : {size_t{100}, size_t{70000}, kBigBytes})
    run(
        "collect, a releaser half-way",
        [n](Fixture& f) {
          some_blocks(f, *f.victim);
          uint32_t i = f.put(*f.victim, n);
          Offset o = link(f.segment, i).load(std::memory_order_relaxed);
          f.drop(*f.other, i);
          // as if it had all but come to the end
          f.segment.proc(kOther).freeing.store(o, std::memory_order_release);
          f.other_lives = f.finish_release = true;
        },
        [](Fixture& f) { f.victim->collect(); }, {kVictim}, 2);
}

void trim() {
  run(
      "trim",
      [](Fixture& f) {
        std::vector<uint32_t> gone;
        for (size_t n : kMixed) gone.push_back(f.put(*f.victim, n));
        gone.push_back(f.put(*f.victim, kBigBytes));
        f.keep(f.put(*f.victim, 40000));
        for (uint32_t i : gone) f.drop(*f.victim, i);
      },
      [](Fixture& f) { f.victim->trim(0); }, {kVictim}, 2);
}

// The recoverer is killed; another recovers the dead one again, and the recoverer: in both orders.
void recover(const char* name, std::vector<size_t> sizes, std::vector<uint32_t> order) {
  run(
      name,
      [sizes](Fixture& f) {
        f.reaper->attach(f.segment, kReaper);
        f.greedy = sizes.size() == 1;
        for (size_t n : sizes) f.keep(f.put(*f.victim, n));
        for (size_t n : sizes) {
          uint32_t dropped = f.put(*f.victim, n);
          f.drop(*f.other, dropped);  // remotely released, not collected
          uint32_t lost = f.put(*f.victim, n);
          link(f.segment, lost).store(0, std::memory_order_relaxed);  // not live
        }
        // and the victim died releasing a block of the other
        uint32_t theirs = f.put(*f.other, 100);
        f.victim->begin_release(link(f.segment, theirs).load(std::memory_order_relaxed));
        link(f.segment, theirs).store(0, std::memory_order_relaxed);
      },
      [](Fixture& f) { f.reaper->recover(kVictim, is_live, &f.segment); }, order,
      sizes.size() > 1 ? 3 : 1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) g_only = argv[1];
  int64_t t0 = os::now_ns();
  allocate("allocate, slab at hand", 100, true);
  allocate("allocate, new page region, slab", 3000, false);
  allocate("allocate, run at hand", 70000, true);
  allocate("allocate, big warm", kBigBytes, true);
  allocate("allocate, big fresh", kBigBytes, false);
  allocate_on_old_data("allocate, slab on old data", 400000, 0xFF);
  allocate_on_old_data("allocate, page region on old data", kBigBytes, 0x02, 5);
  release("release, slab", 100);
  release("release, run", 70000);
  release("release, big", kBigBytes);
  for (auto order : {std::vector<uint32_t>{kVictim}, {kVictim, kOther}, {kOther, kVictim}}) {
    remote_release("remote release, slab", 100, order);
    remote_release("remote release, run", 70000, order);
    remote_release("remote release, big", kBigBytes, order);
  }
  collect();
  collect_beside_an_intent();
  trim();
  for (auto order : {std::vector<uint32_t>{kVictim, kReaper}, std::vector<uint32_t>{kReaper, kVictim}}) {
    recover("recover, killed: small, runs", kMixed, order);
    recover("recover, killed: big", {kBigBytes}, order);
  }
  allocate("allocate, slab, SIGKILL", 100, true, 7, true);
  release("release, run, SIGKILL", 70000, 13, true);
  printf("%lu instructions, %lu kills, %.1f s\n", static_cast<unsigned long>(g_steps),
         static_cast<unsigned long>(g_checks), static_cast<double>(os::now_ns() - t0) / 1e9);
  puts("ok");
}
