#!/usr/bin/env bash
# Benchmarks, one file per claim; JSON into build/. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
exec "${PYTHON:-python}" -m pytest benchmarks --benchmark-json=build/benchmarks.json "$@"
