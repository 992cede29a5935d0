"""fastray: Python functions in parallel, with Ray Core's API, at millions of tasks per second.

    import fastray as ray

    @ray.remote
    def f(x):
        return x + 1

    ray.get([f.remote(i) for i in range(1_000_000)])

The names here are those of Ray Core (see the README for what is the same and what is more). Importing fastray
imports no numpy, no grpc, no pyarrow.
"""

from fastray import exceptions
from fastray._native.object_ref import ObjectRef
from fastray._native.objects import empty, put
from fastray._native.streams import ObjectRefGenerator
from fastray._native.wait import get, wait
from fastray.api import (
    available_resources,
    cancel,
    cluster_resources,
    evict,
    get_actor,
    get_gpu_ids,
    init,
    is_initialized,
    kill,
    method,
    nodes,
    remote,
    replay,
    shutdown,
)
from fastray.runtime_context import get_runtime_context

__version__ = "0.1.0"
DynamicObjectRefGenerator = ObjectRefGenerator

__all__ = [
    "DynamicObjectRefGenerator",
    "ObjectRef",
    "ObjectRefGenerator",
    "available_resources",
    "cancel",
    "cluster_resources",
    "empty",
    "evict",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "replay",
    "shutdown",
    "wait",
]


def __getattr__(name: str) -> object:
    """Submodules that a Ray program reaches as attributes (`fastray.util`, ...) load on first use."""
    import importlib

    if name in ("util", "runtime_env", "cluster_utils", "actor", "dag", "cloudpickle", "state"):
        return importlib.import_module(f"fastray.{name}")
    raise AttributeError(f"module 'fastray' has no attribute {name!r}")
