"""Amounts of resources, in 1/10000 of a unit as in csrc/types.h: whole numbers add up without an error.

Called by everything in this package.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNIT = 10_000

Units = dict[str, int]


def units(amounts: Mapping[str, float]) -> Units:
    """Without what is zero."""
    return {name: round(amount * UNIT) for name, amount in amounts.items() if round(amount * UNIT)}


def amounts(given: Mapping[str, int]) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in given.items()}


def fits(asked: Mapping[str, int], there: Mapping[str, int]) -> bool:
    return all(there.get(name, 0) >= amount for name, amount in asked.items())


def add(to: Units, given: Mapping[str, int], sign: int = 1) -> None:
    for name, amount in given.items():
        to[name] = to.get(name, 0) + sign * amount


def missing(
    asked: Mapping[str, int], there: Iterable[Mapping[str, int]]
) -> dict[str, tuple[float, float]]:
    """Resource -> (asked for, the most that one of them has), of those that none has enough of."""
    found = list(there)
    most = {name: max((one.get(name, 0) for one in found), default=0) for name in asked}
    return {
        name: (amount / UNIT, most[name] / UNIT) for name, amount in asked.items() if most[name] < amount
    }
