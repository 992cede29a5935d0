"""`worker_process_setup_hook`: a function that each worker runs before its first task. Called by worker.py."""

from __future__ import annotations

import pickle
import traceback
from importlib import import_module
from typing import Any

from fastray.runtime_env import HOOK


def run_hook(environment: dict[str, Any]) -> Exception | None:
    """Runs the hook of a runtime_env; the error that the worker's tasks fail with, None when there is none."""
    name, pickled = environment["worker_process_setup_hook"], environment.get(HOOK)
    try:
        if pickled is None:
            module, _, function = name.rpartition(".")
            getattr(import_module(module), function)()
        else:
            pickle.loads(pickled)()
    except BaseException:  # SystemExit too: all workers would leave, one after the other
        return RuntimeError(f"worker_process_setup_hook {name!r} failed: {traceback.format_exc()}")
    return None
