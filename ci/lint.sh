#!/usr/bin/env bash
# ruff for Python; clang-format for C++ where it is installed; tabs and trailing blanks everywhere else.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python}" -m ruff check .
if command -v clang-format >/dev/null; then
  find csrc tests/native \( -name '*.h' -o -name '*.cpp' \) -print0 | xargs -0 -r clang-format --dry-run --Werror
else
  echo "clang-format is not installed: C++ is not checked" >&2
fi
if grep -rnE --include='*.'{h,cpp,py,pyx,pxd,pyi,sh} '[[:space:]]+$' csrc fastray tests ci benchmarks examples; then
  echo "trailing blanks" >&2
  exit 1
fi
