"""Puts this folder on `sys.path`, so that its tests import `gcs_transcripts`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("msgspec")

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
