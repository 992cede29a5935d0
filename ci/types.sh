#!/usr/bin/env bash
# mypy in strict mode over the package.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m mypy "$@"
