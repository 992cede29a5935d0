from collections.abc import Sequence
from typing import Any

from fastray._native.object_ref import ObjectRef

def get(refs: Any, *, timeout: float | None = None, writable: bool = False) -> Any: ...
def wait(
    refs: Sequence[ObjectRef[Any]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]: ...
def ready_now(refs: list[ObjectRef[Any]], timeout: float | None = None) -> list[ObjectRef[Any]]: ...
def kick() -> None: ...
