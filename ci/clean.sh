#!/usr/bin/env bash
# Removes everything that was built; nothing that git tracks.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build dist wheelhouse ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks .hypothesis
find fastray -name '*.so' -delete
find fastray tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
