"""Fixtures of the integration tests: whole programs and sessions against a real node.

`node` (a session for a module) and `fresh_node` (one for a test) are in tests/conftest.py. This folder goes
on `sys.path`, so that tests and their workers (which inherit it) import `integration_helpers`; what a test
module itself defines is pickled by value, since workers need not be able to import it.
"""

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


@pytest.fixture
def run_program(tmp_path):
    """`run_program(source, *arguments, ...)`: a Python program in a process of its own, waited for."""
    from integration_helpers import run_program as run

    def run_here(source, *arguments, **options):
        return run(source, tmp_path, *arguments, **options)

    return run_here


@pytest.fixture
def start_program(tmp_path):
    """`start_program(source, *arguments)`: the same, running; killed at the end of the test."""
    from integration_helpers import start_program as start

    started = []

    def start_here(source, *arguments, **options):
        process = start(source, tmp_path, *arguments, **options)
        started.append(process)
        return process

    yield start_here
    for process in started:
        process.kill()
        process.wait(10)
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream is not None:
                stream.close()
