"""`Queue`: a first-in, first-out queue that tasks, actors and drivers share. Matches `ray.util.queue`.

The items are in an asyncio actor; a Queue is a handle of it, so it can be passed on, stored and returned. It ends
when no Queue is left that refers to it, or by `shutdown`.
"""

from __future__ import annotations

import asyncio
import queue

import fastray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from fastray.actor import ActorHandle


class Empty(queue.Empty):
    """There was no item (in time)."""


class Full(queue.Full):
    """There was no room (in time)."""


class Queue:
    """A queue of at most `maxsize` items (0: any number). `actor_options` are those of its actor."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor: ActorHandle | None = fastray.remote(_QueueActor).options(**(actor_options or {})).remote(maxsize)

    def _call(self) -> ActorHandle:
        if self.actor is None:
            raise RuntimeError("this queue was shut down")
        return self.actor

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items are in it."""
        return int(fastray.get(self._call().qsize.remote()))

    qsize = size

    def empty(self) -> bool:
        """True when nothing is in it."""
        return bool(fastray.get(self._call().empty.remote()))

    def full(self) -> bool:
        """True when there is no room."""
        return bool(fastray.get(self._call().full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item; waits for room, up to `timeout` seconds.

        Raises Full; ValueError for a negative timeout.
        """
        if not block:
            self.put_nowait(item)
            return
        if not fastray.get(self._call().put.remote(item, _checked(timeout))):
            raise Full

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put` for coroutines."""
        done = self._call().put.remote(item, _checked(timeout)) if block else self._call().put_nowait.remote(item)
        if not await done:
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the oldest item; waits for one, up to `timeout` seconds.

        Raises Empty; ValueError for a negative timeout.
        """
        if not block:
            return self.get_nowait()
        return _item(fastray.get(self._call().get.remote(_checked(timeout))))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get` for coroutines."""
        found = self._call().get.remote(_checked(timeout)) if block else self._call().get_nowait.remote()
        return _item(await found)

    def put_nowait(self, item: Any) -> None:
        """`put` that raises Full instead of waiting."""
        if not fastray.get(self._call().put_nowait.remote(item)):
            raise Full

    def get_nowait(self) -> Any:
        """`get` that raises Empty instead of waiting."""
        return _item(fastray.get(self._call().get_nowait.remote()))

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all items, or none and raises Full."""
        batch = list(items)
        if not fastray.get(self._call().put_nowait_batch.remote(batch)):
            raise Full(f"no room for {len(batch)} items in a queue of {self.maxsize}")

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes that many items, or none and raises Empty."""
        if not isinstance(num_items, int) or num_items < 0:
            raise ValueError(f"num_items must be a whole number, not negative: {num_items!r}")
        found = fastray.get(self._call().get_nowait_batch.remote(num_items))
        if found is None:
            raise Empty(f"there are not {num_items} items")
        return list(found)

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the queue's actor: after what was asked of it, within `grace_period_s` seconds; at once if `force`."""
        if self.actor is None:
            return
        if not force:
            last = self.actor.__ray_terminate__.remote()
            force = not fastray.wait([last], timeout=grace_period_s)[0]
        if force:
            fastray.kill(self.actor, no_restart=True)
        self.actor = None


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative: {timeout!r}")
    return timeout


def _item(found: tuple[Any, ...]) -> Any:
    if not found:
        raise Empty
    return found[0]


class _QueueActor:
    """The items. What cannot be done is told by the result, not by an exception: that would be a failed call."""

    def __init__(self, maxsize: int) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue(max(0, maxsize))

    async def qsize(self) -> int:
        return self._items.qsize()

    async def empty(self) -> bool:
        return self._items.empty()

    async def full(self) -> bool:
        return self._items.full()

    async def put(self, item: Any, timeout: float | None) -> bool:
        try:
            await asyncio.wait_for(self._items.put(item), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def get(self, timeout: float | None) -> tuple[Any, ...]:
        try:
            return (await asyncio.wait_for(self._items.get(), timeout),)
        except asyncio.TimeoutError:
            return ()

    async def put_nowait(self, item: Any) -> bool:
        if self._items.full():
            return False
        self._items.put_nowait(item)
        return True

    async def get_nowait(self) -> tuple[Any, ...]:
        return () if self._items.empty() else (self._items.get_nowait(),)

    async def put_nowait_batch(self, items: list[Any]) -> bool:
        if 0 < self._items.maxsize < self._items.qsize() + len(items):
            return False
        for item in items:
            self._items.put_nowait(item)
        return True

    async def get_nowait_batch(self, count: int) -> list[Any] | None:
        if count > self._items.qsize():
            return None
        return [self._items.get_nowait() for _ in range(count)]
