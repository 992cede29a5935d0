// A writer of a log is killed at every instruction: what it had appended before is there, whole; what it was
// appending is there or not; and the next writer of the file goes on behind it. Files are not in the segment, so
// this steps by itself: the page cache of a stopped writer is what a SIGKILL there leaves.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "../../csrc/durable_index.h"
#include "step_kill.h"

using namespace fastray;
using namespace fastray::testing;

namespace {

constexpr uint64_t kId = uint64_t{1} << 16 | 2;
const size_t kSizes[] = {2, 40, 300};

Key key_of(uint64_t n) { return absorb(Key{}, &n, sizeof n); }
std::string text_of(uint64_t n) { return std::string(kSizes[n % 3], static_cast<char>('a' + n)); }
bool append(LogWriter& w, uint64_t n) {
  std::string text = text_of(n);
  LogPart part{text.data(), text.size()};
  return w.append(key_of(n), kEntryInline, n, 0, &part, 1);
}

uint64_t entries(const std::string& name) {
  LogFile f;
  CHECK(f.open(name).empty());
  EntryView e;
  uint64_t n = 0;
  for (uint64_t at = LogFile::first(); f.read(at, &e); at = e.next, ++n)
    CHECK(LogFile::is_whole(e) && e.key == key_of(n) &&
          std::string(reinterpret_cast<const char*>(e.data), e.bytes) == text_of(n));
  return n;
}

void copy(const std::string& from, const std::string& to) {
  std::vector<char> bytes(1 << 20);
  int in = open(from.c_str(), O_RDONLY), out = open(to.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  CHECK(in >= 0 && out >= 0);
  ssize_t n = read(in, bytes.data(), bytes.size());
  CHECK(n >= 0 && write(out, bytes.data(), static_cast<size_t>(n)) == n);
  close(in);
  close(out);
}

// `before` entries are there when the stepping begins.
void appending(uint64_t before, bool opening) {
  char folder[] = "/tmp/durable_test_XXXXXX";
  CHECK(mkdtemp(folder) != nullptr);
  std::string name = log_name(folder, kId), next = log_name(folder, kId + 1);
  LogWriter writer;  // a copy of it is the child's
  if (!opening) CHECK(writer.open(name, kId).empty());
  for (uint64_t n = 0; n < before; ++n) CHECK(append(writer, n));
  pid_t child = step_kill_internal::start([&] {
    if (opening) CHECK(writer.open(name, kId).empty());
    for (uint64_t n = before; n < before + 3; ++n) CHECK(append(writer, n));
    _exit(0);
  });
  uint64_t least = before, steps = 0;
  do {
    if (access(name.c_str(), F_OK) != 0) continue;
    uint64_t found = entries(name);
    CHECK(found >= least && found <= before + 3);
    least = found;
    if (steps % 97 != 0) continue;
    copy(name, next);
    LogWriter after;
    CHECK(after.open(next, kId + 1).empty() && append(after, found));
    CHECK(entries(next) == found + 1);
  } while (++steps, step_kill_internal::step(child));
  CHECK(entries(name) == before + 3);
  printf("%s: %lu instructions\n", opening ? "opening and appending" : "appending", steps);
  CHECK(system((std::string("rm -rf ") + folder).c_str()) == 0);
}

}  // namespace

int main() {
  appending(0, true);
  appending(0, false);
  appending(5, false);
  printf("ok\n");
}
