"""The plot of where the first relevant section stands before and after reranking."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .plot_style import GREEN, GREY, ORANGE, heading, held_text
from .report import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Places after the tenth share a cell.
_BINS = ((11, 20), (21, 50), (51, 100), (101, None))


def rank_plot(figure: Figure, result: Result) -> None:
    """Count questions by the place of the first relevant section, before and after."""
    figure.set_size_inches(7, 6.6)
    axes = figure.subplots()
    found = [(old, new) for old, new in result.ranks if old is not None and new is not None]
    cells = Counter((cell_of(old), cell_of(new)) for old, new in found)
    moved = {
        "moved up": (GREEN, [c for c in cells if c[1] < c[0]]),
        "stayed": (GREY, [c for c in cells if c[1] == c[0]]),
        "moved down": (ORANGE, [c for c in cells if c[1] > c[0]]),
    }
    last = max([1, *(place for cell in cells for place in cell)])
    most = max(cells.values(), default=1)
    # Diameters in points: the largest just fills its cell.
    room = min(34.0, 300 / last)
    axes.plot([0.5, last + 0.5], [0.5, last + 0.5], color="#BBBBBB", linewidth=1, zorder=1)
    counts = {
        "moved up": sum(new < old for old, new in found),
        "stayed": sum(new == old for old, new in found),
        "moved down": sum(new > old for old, new in found),
    }
    for label, (colour, places) in moved.items():
        sizes = [(room * (0.45 + 0.55 * (cells[cell] / most) ** 0.5)) ** 2 for cell in places]
        axes.scatter(
            [x for x, _ in places], [y for _, y in places], s=sizes, color=colour,
            label=f"{label}: {counts[label]}", zorder=2,
        )  # fmt: skip
        for cell in places:
            axes.annotate(
                str(cells[cell]), cell, ha="center", va="center", color="white", fontsize=9,
                fontweight="bold", zorder=3,
            )  # fmt: skip
    names = [cell_name(place) for place in range(1, last + 1)]
    axes.set(xlim=(0.5, last + 0.5), ylim=(last + 0.5, 0.5), aspect="equal")
    axes.set_xticks(range(1, last + 1), [name.replace("-", "-\n") for name in names])
    axes.set_yticks(range(1, last + 1), names)
    axes.set_xlabel("place by embedding" if result.setting.search == "dense" else "place by fusion")
    axes.set_ylabel("place after reranking")
    lost = result.questions - len(found)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    notes = ["Numbers count questions"]
    if lost:
        notes.append(f"{lost} of {result.questions} are not shown: nothing relevant was found")
    heading(
        figure,
        "Place of the first relevant section before and after reranking",
        f"{held_text(result, ('models', 'dimensions', 'candidates'))}\n{'; '.join(notes)}",
    )


def cell_of(place: int) -> int:
    """Return the cell of a place: 1 to 10, then one for each bin."""
    if place <= 10:
        return place
    return next(11 + i for i, (_, high) in enumerate(_BINS) if high is None or place <= high)


def cell_name(cell: int) -> str:
    """Return the places that a cell stands for."""
    if cell <= 10:
        return str(cell)
    low, high = _BINS[cell - 11]
    return f"{low}-{high}" if high else f"{low}+"
