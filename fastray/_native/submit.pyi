from typing import Any

from fastray._native.object_ref import ObjectRef

class TaskFunction:
    cached: bool
    counted: bool
    def remote(self, *args: Any, **kwargs: Any) -> Any: ...
    def _takes(self, args_min: int, args_max: int) -> None: ...
    def _exported(
        self, function: int, cls: int, returns: int, streaming: bool, ahead_max: int, group: int = 0,
        group_life: int = 0,
    ) -> None: ...

def create_actor(
    actor: int, function: int, args: tuple[object, ...], kwargs: dict[str, object], record_id: int = 0
) -> ObjectRef[Any]: ...
