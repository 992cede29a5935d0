"""The files that a runtime_env names, as packages where other nodes find them. In a cluster only.

    published   the package is in the store of the node, `<session directory>/env/DIGEST.zip`, and PACKAGES of the
                runtime_env says which it is and which node has it
    named       DIGEST@JOB is there while the job lives: then the package stays (transfer/packages.py removes it after)

On the node itself tasks use the files as they are; on others, what was published: a job packs each file or directory
once, when a task that names it is first called, or in `init`. Called by runtime.py.
"""

from __future__ import annotations

import fcntl
import os

from fastray.runtime_env import PACKAGES, STAMPS
from fastray.runtime_envs.packages import pack
from fastray.runtime_envs.store import Store, session_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from fastray.runtime import Runtime

def files_of(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, path) of what a runtime_env names."""
    for path in fields.get("py_modules") or ():
        yield "py_modules", path
    if fields.get("working_dir"):
        yield "working_dir", fields["working_dir"]


def publish(fields: dict[str, Any], runtime: Runtime) -> None:
    """Packs what is not published yet; `fields` get PACKAGES. Raises RuntimeEnvSetupError when it is too large."""
    known = dict(fields.get(PACKAGES) or {})
    for field, path in files_of(fields):
        if path in known:
            continue
        excludes = fields.get("excludes") or []
        key = (path, tuple(excludes), (fields.get(STAMPS) or {}).get(path))
        if key not in runtime.published:
            runtime.published[key] = _publish(field, path, excludes, runtime)
        known[path] = (runtime.published[key], runtime.attachment.session_id)
    fields[PACKAGES] = known


def publish_here(fields: dict[str, Any]) -> None:
    """The same, when this process is part of a cluster."""
    from fastray.runtime import current_runtime, is_running

    if is_running() and current_runtime().session_path:
        publish(fields, current_runtime())


def _publish(field: str, path: str, excludes: list[str], runtime: Runtime) -> str:
    store = session_store(runtime.session_path)
    unfinished = store.path(f"packing.{os.urandom(8).hex()}")  # drivers of several PID namespaces come here
    prefix = f"{os.path.basename(path)}/" if field == "py_modules" and os.path.isdir(path) else ""
    try:
        digest = pack(path, unfinished, excludes, prefix, field)
        lock = store.lock(digest, fcntl.LOCK_SH)  # it is not removed now
        try:
            name_it(store, digest, runtime.attachment.job)
            os.replace(unfinished, store.path(digest) + ".zip")  # the same bytes, if it was there
        finally:
            os.close(lock)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
    return digest


def name_it(store: Store, digest: str, job: int) -> None:
    """The job needs the package."""
    with open(store.path(f"{digest}@{job}"), "wb"):
        pass
