from typing import Any

def take_reference(index: int) -> Any: ...
def loads(
    data: bytes,
    references: list[Any] | None = None,
    buffers: list[Any] | None = None,
    writable: bool = False,
) -> Any: ...
def loads_call(
    data: bytes,
    dependencies: list[Any] | None = None,
    references: list[Any] | None = None,
    buffers: list[Any] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]: ...
def loads_pickle(data: bytes, references: list[Any]) -> Any: ...
