#!/usr/bin/env bash
# Compiles every tests/native/*_test.cpp with csrc/*.cpp under ThreadSanitizer and AddressSanitizer, and runs it.
# Arguments: names of sanitizers (thread, address); both by default.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
jobs=${FASTRAY_JOBS:-$(nproc)}
flags=(-std=c++20 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -DFASTRAY_CHECK -UNDEBUG -Icsrc -Itests/native -pthread)
export TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1"
export ASAN_OPTIONS="detect_leaks=1 abort_on_error=0"
export UBSAN_OPTIONS="halt_on_error=1 print_stacktrace=1"

shopt -s nullglob
tests=(tests/native/*_test.cpp)
[ ${#tests[@]} -gt 0 ] || { echo "no tests/native/*_test.cpp" >&2; exit 1; }
for sanitizer in "${@:-thread address}"; do
  for kind in $sanitizer; do
    out=build/sanitize-$kind
    mkdir -p "$out"
    with=(-fsanitize="$kind")
    [ "$kind" = address ] && with=(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
    printf '%s\0' csrc/*.cpp | xargs -0 -P "$jobs" -I{} sh -c \
      'src=$1; shift; out=$1; shift; exec "$@" -c "$src" -o "$out/$(basename "$src" .cpp).o"' _ {} "$out" \
      "$cxx" "${flags[@]}" "${with[@]}"
    for test in "${tests[@]}"; do
      name=$(basename "$test" .cpp)
      "$cxx" "${flags[@]}" "${with[@]}" "$test" "$out"/*.o -o "$out/$name"
      echo "== $name under $kind"
      "$out/$name"
    done
  done
done
