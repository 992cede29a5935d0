"""Conditions on labels: the operators of `NodeLabelSchedulingStrategy` and the strings of `label_selector`.

    "a"  "!a"  "in(a, b)"  "!in(a, b)"    a selector's value: equal, not, one of, none of

Called by policy.py and whoever makes requests.
"""

from __future__ import annotations

from fastray.util.scheduling_strategies import DoesNotExist, Exists, In, NotIn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastray.util.scheduling_strategies import Operator


def meets(labels: Mapping[str, str], conditions: Mapping[str, Operator]) -> bool:
    return all(_meets(labels.get(name), operator) for name, operator in conditions.items())


def _meets(label: str | None, operator: Operator) -> bool:
    if isinstance(operator, In):
        return label in operator.values
    if isinstance(operator, NotIn):
        return label not in operator.values
    return (label is None) == isinstance(operator, DoesNotExist)


def conditions(selector: Mapping[str, str]) -> dict[str, Operator]:
    """Of a `label_selector`, which options.py has checked."""
    return {name: _condition(text.strip()) for name, text in selector.items()}


def _condition(text: str) -> In | NotIn:
    negated, text = text.startswith("!"), text.lstrip("!").strip()
    values = [text]
    if text.startswith("in(") and text.endswith(")"):
        values = [value.strip() for value in text[3:-1].split(",")]
    return NotIn(*values) if negated else In(*values)


def describe(wanted: Mapping[str, Operator]) -> str:
    """For people: `zone in (a, b), gpu exists`."""
    words = []
    for name, operator in wanted.items():
        if isinstance(operator, (In, NotIn)):
            sign = "in" if isinstance(operator, In) else "not in"
            words.append(f"{name} {sign} ({', '.join(operator.values)})")
        else:
            words.append(f"{name} {'exists' if isinstance(operator, Exists) else 'does not exist'}")
    return ", ".join(words)
