"""Results in the order in which they arrive: `as_completed` and `map_unordered`. Match those of `ray.util`.

Both take up to `chunk_size` finished references at a time, so that a long list costs few waits; only the
public API of fastray is used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any


def _drain(pending: list[Any], chunk_size: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    """Waits for one of `pending`, then takes up to `chunk_size` that are done."""
    import fastray
    from fastray.exceptions import GetTimeoutError

    ready, rest = fastray.wait(pending, num_returns=1, timeout=timeout)
    if not ready:
        raise GetTimeoutError(f"no result within {timeout} s; {len(pending)} are pending")
    if chunk_size > 1 and rest:
        more, rest = fastray.wait(rest, num_returns=min(chunk_size - 1, len(rest)), timeout=0)
        ready += more
    return ready, rest


def _check_chunk_size(chunk_size: int) -> None:
    from fastray.exceptions import InvalidOptionError

    if chunk_size < 1:
        raise InvalidOptionError(f"chunk_size={chunk_size} must be at least 1", option="chunk_size")


def as_completed(
    refs: Sequence[Any], *, chunk_size: int = 10, yield_obj_refs: bool = False, timeout: float | None = None
) -> Iterator[Any]:
    """Values of `refs` (or the references themselves) in the order in which they are done.

    Raises what `fastray.get` raises for the value that is next; GetTimeoutError when nothing was done within
    `timeout` seconds; InvalidOptionError for a `chunk_size` under 1.
    """
    _check_chunk_size(chunk_size)
    return _as_completed(list(refs), chunk_size, yield_obj_refs, timeout)


def _as_completed(
    pending: list[Any], chunk_size: int, yield_refs: bool, timeout: float | None
) -> Iterator[Any]:
    import fastray

    while pending:
        ready, pending = _drain(pending, chunk_size, timeout)
        yield from ready if yield_refs else map(fastray.get, ready)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    timeout: float | None = None,
) -> Iterator[Any]:
    """Values of `fn.remote(item)` for all items, in the order in which they are done.

    At most `backpressure_size` tasks are in flight (None: all at once); `items` is read as tasks finish.
    Raises as `as_completed` does, and InvalidOptionError for a `backpressure_size` under `chunk_size`.
    """
    from fastray.exceptions import InvalidOptionError

    _check_chunk_size(chunk_size)
    if backpressure_size is not None and backpressure_size < chunk_size:
        raise InvalidOptionError(
            f"backpressure_size={backpressure_size} must be at least chunk_size={chunk_size}",
            option="backpressure_size",
        )
    if not hasattr(fn, "remote"):
        raise TypeError(f"map_unordered needs a remote function (or an actor's method), not {fn!r}")
    return _map_unordered(fn, iter(items), backpressure_size, chunk_size, yield_obj_refs, timeout)


def _map_unordered(
    fn: Any,
    items: Iterator[Any],
    in_flight_max: int | None,
    chunk_size: int,
    yield_refs: bool,
    timeout: float | None,
) -> Iterator[Any]:
    import itertools

    import fastray

    pending = [fn.remote(item) for item in itertools.islice(items, in_flight_max)]
    while pending:
        ready, pending = _drain(pending, chunk_size, timeout)
        pending += [fn.remote(item) for item in itertools.islice(items, len(ready))]
        yield from ready if yield_refs else map(fastray.get, ready)
