#!/usr/bin/env bash
# Wheel and sdist into dist/; the wheel must be small and import in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
bytes_max=$((6 << 20))
"$python" -m pip wheel -q --no-deps -w dist .
"$python" - <<'PY'
# Build backends are called directly: no `build` package needed.
from setuptools import build_meta

print("sdist:", build_meta.build_sdist("dist"))
PY
wheel=$(ls -t dist/fastray-*.whl | head -1)
size=$(stat -c %s "$wheel")
echo "wheel: $wheel, $size bytes"
[ "$size" -le "$bytes_max" ] || { echo "larger than $bytes_max bytes" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q "$wheel"
cd "$scratch"
"$scratch/venv/bin/python" -c "import fastray; print('imports from', fastray.__file__)"
"$scratch/venv/bin/fastray" version
