#!/usr/bin/env bash
# The test suite against the fastray that PYTHON imports; arguments are pytest's, paths from the repository's root.
# Runs outside of the root, so that an installed fastray is tested and not a checkout that was never built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
args=()
paths=0
for arg in "$@"; do
  if [ -e "$root/${arg%%::*}" ] && [ "${arg#-}" = "$arg" ]; then
    args+=("$root/$arg")
    paths=1
  else
    args+=("$arg")
  fi
done
[ "$paths" = 1 ] || args+=("$root/tests")
cd "$root/tests"
exec "${PYTHON:-python}" -m pytest -c "$root/pyproject.toml" --rootdir "$root" "${args[@]}" </dev/null
