"""`ActorPool`: work for a fixed set of actors. Matches `ray.util.ActorPool`.

    pool = ActorPool([Worker.remote() for _ in range(4)])
    print(list(pool.map(lambda actor, value: actor.double.remote(value), range(100))))

Each actor has one call at a time; what comes while all are busy waits in the pool, and starts when results are
taken. Not for use by several threads at once.
"""

from __future__ import annotations

from collections import deque

import fastray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from fastray import ObjectRef
    from fastray.actor import ActorHandle

    Call = Callable[[ActorHandle, Any], ObjectRef[Any]]


class ActorPool:
    """Hands work to whichever of its actors is free; results in order, or as they come."""

    def __init__(self, actors: Iterable[ActorHandle]) -> None:
        self._idle: list[ActorHandle] = list(actors)
        self._running: dict[ObjectRef[Any], tuple[int, ActorHandle]] = {}
        self._by_index: dict[int, ObjectRef[Any]] = {}
        self._waiting: deque[tuple[Call, Any]] = deque()
        self._submitted = 0
        self._next_index = 0

    def submit(self, fn: Call, value: Any) -> None:
        """Calls `fn(actor, value)`, which returns a reference, on the next free actor."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        ref = fn(actor, value)
        self._running[ref] = (self._submitted, actor)
        self._by_index[self._submitted] = ref
        self._submitted += 1

    def has_next(self) -> bool:
        """True when there are results to be taken, now or later."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission; waits for it up to `timeout` seconds.

        Raises what the call raised; StopIteration when nothing is left; TimeoutError, after which the result can be
        asked for again (`ignore_if_timedout`: it is given up); ValueError after `get_next_unordered`.
        """
        if not self.has_next():
            raise StopIteration("no more results")
        if self._next_index not in self._by_index:
            raise ValueError("get_next() cannot be mixed with get_next_unordered()")
        ref = self._by_index[self._next_index]
        late = timeout is not None and not fastray.wait([ref], timeout=timeout)[0]
        if late and not ignore_if_timedout:
            raise TimeoutError(f"no result within {timeout} s")
        del self._by_index[self._next_index]
        self._next_index += 1
        _, actor = self._running.pop(ref)
        self._return(actor)
        if late:
            raise TimeoutError(f"no result within {timeout} s; it was given up")
        return fastray.get(ref)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Whichever result comes first; waits up to `timeout` seconds. Raises as `get_next`."""
        if not self.has_next():
            raise StopIteration("no more results")
        ready, _ = fastray.wait(list(self._running), num_returns=1, timeout=timeout)
        if not ready and not ignore_if_timedout:
            raise TimeoutError(f"no result within {timeout} s")
        ref = ready[0] if ready else next(iter(self._running))
        index, actor = self._running.pop(ref)
        del self._by_index[index]
        self._next_index = max(self._next_index, index + 1)
        self._return(actor)
        if not ready:
            raise TimeoutError(f"no result within {timeout} s; one was given up")
        return fastray.get(ref)

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """`fn(actor, value)` for all values; an iterator of the results in order. Results left over from before
        are taken and dropped."""
        self._forget()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next)

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """The same, results as they come."""
        self._forget()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next_unordered)

    def _results(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def _forget(self) -> None:
        while self.has_next():
            try:
                self.get_next_unordered(timeout=0, ignore_if_timedout=True)
            except TimeoutError:
                pass

    def has_free(self) -> bool:
        """True when an actor is free and nothing waits for one."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> ActorHandle | None:
        """Takes a free actor out of the pool; None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: ActorHandle) -> None:
        """Adds an actor. Raises ValueError when it is in the pool already."""
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError(f"{actor!r} is in the pool already")
        self._return(actor)

    def _return(self, actor: ActorHandle) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())
