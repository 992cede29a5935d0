#!/usr/bin/env bash
# Compiles every tests/native/*_test.cpp with csrc/*.cpp under ThreadSanitizer and AddressSanitizer (with the
# undefined-behaviour one), and runs it. Tests that single-step a process with ptrace, *_step_kill_test.cpp, run
# without a sanitizer ("plain"): under one, its own instructions are stepped through as well. Most of those of
# the reaper run with AddressSanitizer too, at every 1009th instruction.
# Arguments: thread, address, plain; all three by default.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
jobs=${FASTRAY_JOBS:-$(nproc)}
test_seconds_max=${FASTRAY_NATIVE_SECONDS_MAX:-600}
flags=(-std=c++20 -g -fno-omit-frame-pointer -Wall -Wextra -DFASTRAY_CHECK -UNDEBUG -Icsrc -Itests/native -pthread)
export TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1"
export ASAN_OPTIONS="detect_leaks=1"
export UBSAN_OPTIONS="halt_on_error=1 print_stacktrace=1"

shopt -s nullglob
compile() {  # source object flags...
  local source=$1 object=$2
  shift 2
  "$cxx" "$@" -c "$source" -o "$object"
}
export -f compile
export cxx

[ $# -gt 0 ] || set -- thread address plain
for kind in "$@"; do
  case "$kind" in
    thread) with=(-O1 -fsanitize=thread -Wno-tsan) ;;
    address) with=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined) ;;
    plain) with=(-O2) ;;
    *) echo "unknown sanitizer: $kind" >&2; exit 2 ;;
  esac
  tests=()
  for test in tests/native/*_test.cpp; do
    case "$test" in
      */allocator_step_kill_test.cpp | */tables_step_kill_test.cpp) [ "$kind" != plain ] || tests+=("$test") ;;
      *_step_kill_test.cpp) [ "$kind" = thread ] || tests+=("$test") ;;
      *) [ "$kind" = plain ] || tests+=("$test") ;;
    esac
  done
  [ ${#tests[@]} -gt 0 ] || { echo "no tests for $kind" >&2; continue; }
  out=build/sanitize-$kind
  rm -rf "$out" && mkdir -p "$out/core"
  for source in csrc/*.cpp; do
    printf '%s\0%s\0' "$source" "$out/core/$(basename "$source" .cpp).o"
  done | xargs -0 -n 2 -P "$jobs" bash -c 'compile "${@: -2}" "${@:1:$#-2}"' _ "${flags[@]}" "${with[@]}"
  for test in "${tests[@]}"; do
    name=$(basename "$test" .cpp)
    "$cxx" "${flags[@]}" "${with[@]}" "$test" "$out"/core/*.o -o "$out/$name"
    echo "== $name, $kind"
    timeout "$test_seconds_max" "$out/$name" </dev/null
  done
done
