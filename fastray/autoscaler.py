"""A hook for whoever can add nodes to a cluster: it hears what tasks and actors ask for that no node has.

    hook     a function of a driver, one in a cluster. While its driver lives, what can never run in the cluster as it
             is waits for a node that joins; it would fail with TaskUnschedulableError otherwise
    demand   resources and labels that are asked for together, and how many tasks and actors ask

fastray starts no machines itself: the hook calls whatever does (Slurm, Kubernetes, a cloud), which runs
`fastray start --address=...` there.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from fastray import runtime as _runtime
from fastray.exceptions import GcsUnavailableError, InvalidOptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 5.0  # of one question to the agent, which answers when something has changed
HOOK, DEMANDS = "autoscaler_hook", "autoscaler_demands"  # questions, see cluster/demands.py


class Demand(NamedTuple):
    """What `waiting` tasks and actors ask for: resources by name (bytes for memory), labels as in `label_selector`."""

    resources: dict[str, float]
    labels: dict[str, str]
    waiting: int


_end: threading.Event | None = None  # of the hook of this process


def register_hook(hook: Callable[[list[Demand]], None]) -> None:
    """From now on `hook(demands)` is called, on a thread of its own, whenever the list of unmet demands changes.

    One hook in a cluster: the last that was registered. It is gone with its driver, or after `unregister_hook`. What it
    raises is printed. Raises InvalidOptionError in a session that is no cluster: there nothing can join.
    """
    global _end
    _runtime.ensure_attached()
    runtime = _runtime.current_runtime()
    if not callable(hook):
        raise InvalidOptionError(f"a hook is a function of the list of demands, not {hook!r}", option="hook")
    if runtime.is_worker or not runtime.session_path:
        raise InvalidOptionError(
            "an autoscaler's hook needs a driver of a cluster: fastray start --head, then init(address=...)",
            option="hook",
        )
    unregister_hook()
    from fastray.cluster import inquiry

    inquiry.ask(runtime.session_path, HOOK, runtime.attachment.job)
    _end = threading.Event()
    threading.Thread(target=_listen, args=(hook, runtime.session_path, _end), name="autoscaler", daemon=True).start()


def unregister_hook() -> None:
    """What can never run fails again. Nothing happens without a hook of this process."""
    global _end
    if _end is None:
        return
    _end.set()
    _end = None
    if _runtime.is_running():
        from fastray.cluster import inquiry

        inquiry.ask(_runtime.current_runtime().session_path, HOOK, 0)


def _listen(hook: Callable[[list[Demand]], None], path: str, end: threading.Event) -> None:
    from fastray.cluster import inquiry

    seen = -1
    told: list[Any] = []
    while not end.is_set() and _runtime.is_running():
        try:
            seen, rows = inquiry.ask(path, DEMANDS, {"seen": seen, "wait_s": WAIT_S})
        except GcsUnavailableError:  # the agent, or the session, has ended
            continue
        if rows != told and not end.is_set():
            told = rows
            try:
                hook([Demand(*row) for row in rows])
            except Exception:
                _print_error()


def _print_error() -> None:
    import traceback

    try:
        traceback.print_exc()
    except (OSError, ValueError):  # nobody reads what this process prints any more
        pass


__all__ = ["Demand", "register_hook", "unregister_hook"]
