"""`ref.future()` and `await ref`: one thread per process watches all references somebody asked a future of.

The thread is started with the first future and ends with the last one. It sleeps in the same wait as `get`;
a new future kicks it, so that it looks at the longer list.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

from fastray._native.object_ref import ObjectRef
from fastray._native.wait import get, kick, ready_now
from fastray.exceptions import TaskError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_lock = threading.Lock()
_waiting: dict[ObjectRef[Any], list[Future[Any]]] = {}
_thread: threading.Thread | None = None


def future_of(ref: ObjectRef[Any]) -> Future[Any]:
    """A future that gets the value of `ref`, or the exception that `get` would raise."""
    global _thread
    future: Future[Any] = Future()
    if ready_now([ref], 0):
        _settle(ref, [future])
        return future
    with _lock:
        _waiting.setdefault(ref, []).append(future)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_watch, name="fastray-futures", daemon=True)
            _thread.start()
    kick()
    return future


def forget() -> None:
    """The session ended: futures that are still open are cancelled."""
    with _lock:
        abandoned = [f for futures in _waiting.values() for f in futures]
        _waiting.clear()
    for future in abandoned:
        future.cancel()


def _watch() -> None:
    global _thread
    while True:
        with _lock:
            refs = list(_waiting)
            if not refs:
                _thread = None
                return
        try:
            ready = ready_now(refs)
        except Exception as error:  # the session ended, or the node died: everybody learns why
            with _lock:
                open_futures = [f for futures in _waiting.values() for f in futures]
                _waiting.clear()
            for future in open_futures:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            continue
        for ref in ready:
            with _lock:
                futures = _waiting.pop(ref, [])
            _settle(ref, futures)


def _settle(ref: ObjectRef[Any], futures: list[Future[Any]]) -> None:
    try:
        value, error = get(ref), None
    except BaseException as raised:  # it belongs to whoever asked for the future
        value, error = None, raised
    for future in futures:
        if not future.set_running_or_notify_cancel():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error.as_plain() if isinstance(error, TaskError) and _refused(error) else error)


def _refused(error: BaseException) -> bool:
    """True for what a future does not take, or takes for its own cancellation."""
    return isinstance(error, (StopIteration, CancelledError))
