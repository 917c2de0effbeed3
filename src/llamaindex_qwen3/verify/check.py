"""One check, its outcome, and how far two computations of the same may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "not checked"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    `difference` and `tolerance` are in the unit that `name` gives; `note` says where an expected
    value comes from, why something was not checked, or what a failure means.
    """

    name: str
    status: Status
    difference: float | None = None
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Tolerance:
    """How far a model's results may differ from what is right, by their precision.

    In float32 the order of sums is all that differs. bfloat16 keeps eight bits of each number, and
    each of some thirty layers rounds again: what is right to three digits is all that can be asked.
    """

    published_cosine: float
    published_log_odds: float
    cosine_distance: float
    probability: float


#: Smaller effects are taken for rounding.
LEAST_EFFECT = 1e-6

FLOAT32 = Tolerance(1e-3, 1e-3, 1e-6, 1e-5)
BFLOAT16 = Tolerance(1e-2, 0.3, 5e-3, 2e-2)


def tolerance_of(dtype: str) -> Tolerance:
    """Return the tolerance of a precision; of one that is not known the wider."""
    return FLOAT32 if dtype == "float32" else BFLOAT16


def within(name: str, difference: float, tolerance: float, note: str = "") -> Check:
    """Return a check that passes when a difference is small enough; NaN is not."""
    return Check(name, "pass" if difference <= tolerance else "fail", difference, tolerance, note)


def effect(name: str, effect: float, noise: float, what: str) -> Check:
    """Return a check that passes when an effect stands out from what differs without a cause.

    One that does not is no failure: these weights may heed little of what changed.
    """
    least = max(noise, LEAST_EFFECT)
    told = f"{what} by {effect:.2g}"
    if effect > least:
        return Check(name, "pass", note=told)
    return Check(
        name, "not checked", note=f"{told}, which cannot be told from the noise of {least:.2g}"
    )


def same(name: str, found: Mapping[str, object], expected: Mapping[str, object]) -> Check:
    """Return a check that passes when all values are equal, and shows those that are not."""
    wrong = [
        f"{key!r} gives {found.get(key)} and should give {value}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if not wrong:
        return Check(name, "pass")
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Check(name, "fail", note=f"{'; '.join(wrong[:3])}{more}")


def largest(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the largest difference of two rows of numbers."""
    return max(abs(a - b) for a, b in zip(left, right, strict=True))
