"""Fields of the operations: what each may hold, checked when one is made, in words for whoever wrote its JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

from .shapes import NAMES

Check = Callable[[Any], str]  # a field's value -> what is allowed, or "" where the value is
MOST_FRAMES = 10_000_000  # 4 days at 25 frames per second


def option(default: Any, check: Check) -> Any:
    """A field that refuses what ``check`` has words for."""
    return field(default=default, metadata={"check": check})


def number(default: float | None, low: float, high: float) -> Any:
    """Any finite number in a range; null too where that is the default."""

    def check(value: Any) -> str:
        is_right = _is_number(value) and low <= value <= high
        or_null = ", or null" if default is None else ""
        return "" if is_right or (value is None and default is None) else f"a number from {low:g} to {high:g}{or_null}"

    return option(default, check)


def whole(default: int | None, low: int, high: int) -> Any:
    """The same of whole numbers."""

    def check(value: Any) -> str:
        is_right = _is_whole(value) and low <= value <= high
        or_null = ", or null" if default is None else ""
        return "" if is_right or (value is None and default is None) else f"a whole number from {low} to {high}{or_null}"

    return option(default, check)


def flag(default: bool) -> Any:
    """True or false."""
    return option(default, lambda value: "" if isinstance(value, bool) else "true or false")


def curve_points() -> Any:
    """Points of a curve, frames ascending; empty by default."""

    def check(value: Any) -> str:
        is_list = isinstance(value, (list, tuple)) and all(_is_point(point) for point in value)
        is_ascending = is_list and all(a[0] < b[0] for a, b in zip(value, value[1:], strict=False))
        return "" if is_ascending else "a list of [frame, number] with ascending whole frames and numbers from -1000 to 1000"

    return option((), check)


def shape_name(default: str) -> Any:
    """The name of one of ``shapes.NAMES``."""
    return option(default, lambda value: "" if value in NAMES else f"one of {', '.join(NAMES)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and _is_whole(value[0]) and 0 <= value[0] <= MOST_FRAMES and _is_number(value[1]) and abs(value[1]) <= 1000
