"""Actors that run several calls at once: threads, or an event loop for classes with `async def` methods.

    ThreadServer  the main thread claims a call when a thread is free (with concurrency groups: at once, and keeps
                  it for its group) and hands it over
    LoopServer    a callback of the event loop claims calls and makes asyncio tasks of them. While there is work it
                  schedules itself; when there is none, a watcher thread sleeps for it and schedules it again

Calls are `Call` objects of fastray/_native/actor_worker.pyx. Which call a thread or coroutine runs stands in a
ContextVar, for get_runtime_context() and for the tasks it submits.
"""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from collections import deque
from queue import SimpleQueue
from types import CoroutineType

from fastray._native import actor_worker as native_actor
from fastray._native import worker as native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.actor_worker import Call
    from fastray.actor_info import ActorInfo

DRAIN_MAX = 64  # calls started before the event loop gets its turn

_running: contextvars.ContextVar[tuple[int, str]] = contextvars.ContextVar("fastray_call")


def serve_concurrently(info: ActorInfo) -> None:
    """Runs calls until the actor is over."""
    native.serve_actor(_running, None, None)
    native_actor.run_concurrently(_running)
    limits: dict[str | None, int] = {None: info.max_concurrency}
    limits.update(info.groups)
    if info.is_async:
        LoopServer(limits).run()
    else:
        ThreadServer(limits).run()


class _Group:
    """Calls of one concurrency group: how many run, how many may, which wait."""

    __slots__ = ("free", "queue", "waiting")

    def __init__(self, limit: int) -> None:
        self.free = limit
        self.waiting: deque[Call] = deque()
        self.queue: SimpleQueue[Call] = SimpleQueue()


# ---- threads -------------------------------------------------------------------------------------------


class ThreadServer:
    """Threads of each group take its calls from a queue."""

    def __init__(self, limits: dict[str | None, int]) -> None:
        self._groups = {name: _Group(limit) for name, limit in limits.items()}
        self._only = self._groups[None] if len(limits) == 1 else None
        self._room = threading.Semaphore(limits[None])  # without groups: threads that are free
        self._busy = 0
        self._lock = threading.Lock()
        for name, limit in limits.items():
            for number in range(limit):
                threading.Thread(
                    target=self._work, args=(self._groups[name],), name=f"{name or 'call'}-{number}", daemon=True
                ).start()

    def run(self) -> None:
        while True:
            if self._only is not None:
                self._room.acquire()
            call = native_actor.next_call(self._busy == 0, self._only is None)
            if call is not None:
                with self._lock:
                    self._busy += 1
                self._groups[call.group].queue.put(call)
                continue
            if self._only is not None:
                self._room.release()
            if self._busy == 0 and native_actor.nothing_left():
                return
            if not native_actor.wait_for_work():
                return

    def _work(self, group: _Group) -> None:
        while True:
            call = group.queue.get()
            _running.set(call.cell)
            while True:
                try:
                    call.finish(call.begin())
                    break
                except BaseException as error:
                    if not call.fail(error):
                        break
            del call
            with self._lock:
                self._busy -= 1
            if self._only is not None:
                self._room.release()
            native_actor.kick_if_ending()


# ---- event loop ----------------------------------------------------------------------------------------


class LoopServer:
    """An event loop in the main thread; each call is an asyncio task."""

    def __init__(self, limits: dict[str | None, int]) -> None:
        self._groups = {name: _Group(limit) for name, limit in limits.items()}
        self._only = self._groups[None] if len(limits) == 1 else None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._waiting = 0  # calls kept for a group
        self._watching = False
        self._full = False
        self._go = threading.Semaphore(0)
        self._loop = _new_event_loop()

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.add_signal_handler(signal.SIGUSR1, self._on_cancel)
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()
        self._loop.call_soon(self._drain)
        self._loop.run_forever()

    def _watch(self) -> None:
        """Thread: sleeps until there may be a call, then lets the loop look."""
        while True:
            self._go.acquire()
            native_actor.wait_for_work()
            self._loop.call_soon_threadsafe(self._after_watch)

    def _after_watch(self) -> None:
        self._watching = False
        self._drain()

    def _drain(self) -> None:
        """Starts the calls that are there. Runs again as long as there are any."""
        if self._watching:
            return
        only, started = self._only, 0
        while started < DRAIN_MAX:
            if only is not None and only.free <= 0:
                self._full = True  # the end of a call drains again
                return
            call = native_actor.next_call(not self._tasks and not started, only is None)
            if call is None:
                break
            started += 1
            group = only if only is not None else self._groups[call.group]
            if group.free > 0:
                self._start(call, group)
            else:
                group.waiting.append(call)
                self._waiting += 1
        if started:
            self._loop.call_soon(self._drain)
        elif not self._tasks and not self._waiting and native_actor.nothing_left():
            self._loop.stop()
        else:
            self._watching = True
            self._go.release()

    def _start(self, call: Call, group: _Group) -> None:
        group.free -= 1
        self._tasks[call.handle] = self._loop.create_task(self._serve(call, group))

    async def _serve(self, call: Call, group: _Group) -> None:
        _running.set(call.cell)
        handle = call.handle
        try:
            while True:
                try:
                    value = call.begin()
                    if type(value) is CoroutineType:
                        value = await value
                    elif hasattr(value, "__aiter__") and call.streaming:
                        await _stream(call, value)
                        break
                    elif hasattr(value, "__await__"):
                        value = await value
                    call.finish(value)
                    break
                except asyncio.CancelledError:
                    call.fail(KeyboardInterrupt() if call.cancelled() else asyncio.CancelledError())
                    break
                except BaseException as error:
                    if not call.fail(error):
                        break
        finally:
            del self._tasks[handle]
            group.free += 1
            self._next(group)

    def _next(self, group: _Group) -> None:
        """A call of the group has ended."""
        while group.waiting and group.free > 0:
            self._waiting -= 1
            self._start(group.waiting.popleft(), group)
        if self._full:
            self._full = False
            self._loop.call_soon(self._drain)
        elif not self._tasks:
            native_actor.kick_if_ending()

    def _on_cancel(self) -> None:
        """The node says that a call was cancelled: which one stands in its record."""
        for handle, task in list(self._tasks.items()):
            if native_actor.is_cancelled(handle):
                task.cancel()
        for group in self._groups.values():
            for call in [call for call in group.waiting if call.cancelled()]:
                group.waiting.remove(call)
                self._waiting -= 1
                call.fail(KeyboardInterrupt())


async def _stream(call: Call, values: Any) -> None:
    """Items of an async generator, as they come."""
    number = 0
    loop = asyncio.get_running_loop()
    try:
        async for value in values:
            while not call.has_room():
                await loop.run_in_executor(None, call.wait_for_room)
            if not call.append(value, number):
                await values.aclose()
                break
            number += 1
    except Exception as error:
        call.append_error(error, number)
    call.finish_stream()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
