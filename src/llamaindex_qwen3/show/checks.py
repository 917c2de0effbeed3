"""Outcomes of checks, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from .text import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..verify import Check

_MARKS = {"pass": ("✓", "green"), "fail": ("✗", "bold red"), "not checked": ("-", "yellow")}
_NAME_WIDTH = 46


def check(outcome: Check) -> list[RenderableType]:
    """Show one outcome: what was checked, how far it is off, and what to know about it."""
    mark, style = _MARKS[outcome.status]
    line = Text.assemble((f"{mark} ", style), outcome.name)
    if outcome.difference is not None and outcome.tolerance is not None:
        relation = "≤" if outcome.status == "pass" else ">"
        line.append(" " * max(1, _NAME_WIDTH - len(outcome.name)))
        line.append(f"{outcome.difference:.1e} {relation} {outcome.tolerance:.0e}", style)
    elif outcome.status == "not checked":
        line.append(" " * max(1, _NAME_WIDTH - len(outcome.name)))
        line.append("not checked", style)
    blocks: list[RenderableType] = [Padding(line, (0, 0, 0, 1), expand=False)]
    if outcome.note:
        blocks.append(Padding(Text(clean(outcome.note), "dim"), (0, 0, 0, 5), expand=False))
    return blocks


def check_summary(outcomes: Sequence[Check]) -> Text:
    """Count outcomes."""
    counts = Counter(outcome.status for outcome in outcomes)
    text = Text(f"{counts['pass']} passed, ")
    text.append(f"{counts['fail']} failed", "bold red" if counts["fail"] else "")
    return text.append(f", {counts['not checked']} not checked")
