"""What is built on tasks and objects and needs nothing inside of fastray. Matches `ray.util`.

Names are loaded on first use, so that `import fastray` pays for none of them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastray.actor import list_named_actors
    from fastray.serialization import deregister_serializer, inspect_serializability, register_serializer
    from fastray.util import placement_group
    from fastray.util.actor_pool import ActorPool
    from fastray.util.iterate import as_completed, map_unordered
    from fastray.util.placement_group import (
        get_current_placement_group,
        get_placement_group,
        placement_group_table,
        remove_placement_group,
    )

__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]

_HOMES = {
    "ActorPool": "fastray.util.actor_pool",
    "get_current_placement_group": "fastray.util.placement_group",
    "get_placement_group": "fastray.util.placement_group",
    "placement_group_table": "fastray.util.placement_group",
    "remove_placement_group": "fastray.util.placement_group",
    "list_named_actors": "fastray.actor",
    "as_completed": "fastray.util.iterate",
    "map_unordered": "fastray.util.iterate",
    "deregister_serializer": "fastray.serialization",
    "inspect_serializability": "fastray.serialization",
    "register_serializer": "fastray.serialization",
}


def __getattr__(name: str) -> object:
    import importlib

    if name in ("placement_group", "queue", "scheduling_strategies", "state"):
        return importlib.import_module(f"{__name__}.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *__all__})


def get_node_ip_address(address: str | None = None) -> str:
    """The address by which other machines reach this one (towards `address`, "host:port", if given).

    127.0.0.1 on a machine without a network. Nothing is sent. Matches `ray.util.get_node_ip_address`.
    """
    import socket

    host, _, port = (address or "192.0.2.1:9").rpartition(":")  # an address that is reserved for examples
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))  # a datagram socket only looks up the route
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
