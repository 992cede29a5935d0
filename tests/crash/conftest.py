"""Fixtures of the crash tests. This folder goes on `sys.path`, so that tests and their workers import
`crash_helpers`; what a test module itself defines is pickled by value."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture(scope="module", autouse=True)
def _by_value(module_goes_by_value):
    """Functions of the test module travel by value."""
