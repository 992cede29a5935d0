#!/usr/bin/env bash
# Builds the core and the extensions in place. Needs Cython and setuptools; arguments go to build_ext.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" setup.py -q build_ext --inplace "$@"
