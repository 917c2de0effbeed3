"""What all plots have in common: colours, type, headings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which the usual kinds of colour blindness can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    # The same figures give the same file.
    "svg.hashsalt": "llamaindex-qwen3",
}
DPI = 150


def heading(figure: Figure, title: str, conditions: str) -> None:
    """Put a title over a finished figure, and under it what was held fixed."""
    text = figure.suptitle(title, ha="left", fontweight="bold", fontsize=12)
    first = figure.axes[0]
    first.set_title(conditions, loc="left", fontsize=9, color=GREY)
    # Both begin above the axes, whose place the layout decides, in a second pass where their sides
    # are to be equal.
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    text.set_x(first.get_position().x0)


def held_text(result: Result, names: Sequence[str]) -> str:
    """Say which models, dimensions and candidates, as far as named, a result is of."""
    setting = result.setting
    words = {
        "models": f"{Path(setting.models).name} models",
        "dimensions": f"{setting.dimensions} dimensions",
        "candidates": f"{setting.candidates} candidates",
    }
    return ", ".join(words[name] for name in names)
