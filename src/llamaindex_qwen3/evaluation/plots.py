"""Plots of a report, as PNG and SVG: quality by dimension, by candidates and time, and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from .metrics import CONFIDENCE, LABELS
from .plot_style import BLUE, DPI, GREY, ORANGE, PALETTE, STYLE, heading, held_text
from .rank_plot import rank_plot
from .report import FOUND, Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TASK_CHARACTERS = 40
_Series = tuple[str, list[Result]]


def need_matplotlib() -> None:
    """Refuse to plot where that cannot be.

    Raises:
        InvalidArgumentError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidArgumentError(
            "Plots need matplotlib: pip install 'llamaindex-qwen3[plots]'."
        ) from None


def write_plots(report: Report, metric: str, folder: Path) -> list[Path]:
    """Write each plot that the settings of a report allow, as PNG and as SVG.

    Args:
        report: Several dimensions give dimensions.*, several numbers of candidates candidates.*;
            ranks.* is always written, of the reference.
        metric: The figure of `metrics.NAMES` to plot.
        folder: Made if it is not there.

    Returns:
        The files written.

    Raises:
        InvalidArgumentError: matplotlib is not installed, or the folder cannot be written to.
    """
    need_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    plots: dict[str, Callable[[Figure], None]] = {}
    if by_dimension := _held(report, "candidates"):
        plots["dimensions"] = lambda figure: _dimensions(figure, by_dimension, metric)
    if by_candidates := _held(report, "dimensions"):
        plots["candidates"] = lambda figure: _candidates(figure, by_candidates, metric)
    plots["ranks"] = lambda figure: rank_plot(figure, report.results[report.reference])
    written: list[Path] = []
    with rc_context(STYLE):
        for name, draw in plots.items():
            figure = Figure(layout="constrained")
            draw(figure)
            written += _save(figure, folder / name)
    return written


def _save(figure: Figure, stem: Path) -> Iterator[Path]:
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            figure.savefig(stem.with_suffix(suffix), dpi=DPI, metadata=metadata)
            yield stem.with_suffix(suffix)
    except OSError as error:
        raise InvalidArgumentError(
            f"Cannot write plots to {str(stem.parent)!r}: {error}."
        ) from error


def _held(report: Report, held: str) -> list[_Series]:
    """Return the results of each models, search and task with `held` as in the reference.

    None, if nothing then varies.
    """
    varies = "dimensions" if held == "candidates" else "candidates"
    series: dict[tuple[str, ...], list[Result]] = {}
    for result in report.results:
        setting = result.setting
        series.setdefault((setting.models, setting.search, setting.task), []).append(result)
    fixed: dict[tuple[str, ...], list[Result]] = {}
    for key, results in series.items():
        values = [getattr(each.setting, held) for each in results]
        wanted = getattr(report.results[report.reference].setting, held)
        # Models of another width do not have the reference's.
        value = wanted if wanted in values else max(values)
        some = [each for each in results if getattr(each.setting, held) == value]
        fixed[key] = sorted(some, key=lambda each: int(getattr(each.setting, varies)))
    if max(map(len, fixed.values())) < 2:
        return []
    return list(zip(_names(list(fixed)), fixed.values(), strict=True))


def _names(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Name series by what differs between them."""
    shown = [
        (Path(models).name, search, shorten(task, _TASK_CHARACTERS, placeholder=" …"))
        for models, search, task in keys
    ]
    differs = [i for i in range(3) if len({each[i] for each in keys}) > 1]
    return [", ".join(each[i] for i in differs) for each in shown]


def _dimensions(figure: Figure, series: Sequence[_Series], metric: str) -> None:
    figure.set_size_inches(8, 4.8)
    axes = figure.subplots()
    _curves(axes, series, metric, lambda each: each.setting.dimensions)
    _ticks(axes, [each.setting.dimensions for _, results in series for each in results])
    axes.set_xlabel("values kept of each vector (dimensions)")
    first = series[0][1][0]
    axes.set_ylabel(f"{LABELS[metric]}, mean of {first.questions} questions")
    _legend(figure, series)
    _title(figure, f"{LABELS[metric]} by vector dimension", series, varies="dimensions")


def _candidates(figure: Figure, series: Sequence[_Series], metric: str) -> None:
    figure.set_size_inches(10, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    _curves(left, series, metric, lambda each: each.setting.candidates, with_found=True)
    _ticks(left, [each.setting.candidates for _, results in series for each in results])
    left.set_xlabel("candidates retrieved and reranked")
    left.set_ylabel(f"mean of {series[0][1][0].questions} questions")
    _against_time(right, series, metric)
    _legend(figure, series)
    title = f"{LABELS[metric]} by number of candidates, and what it costs in time"
    _title(figure, title, series, varies="candidates")


def _against_time(axes: Axes, series: Sequence[_Series], metric: str) -> None:
    """Plot quality against time, a point for each number of candidates."""
    from matplotlib.ticker import LogLocator, NullLocator

    order = sorted(series, key=lambda each: -each[1][-1].after[metric].mean)
    for i, (name, results) in enumerate(series):
        before, after = _colours(i, len(series))
        # The best has its numbers above, the others below.
        offset = 7 if name == order[0][0] else -15
        without = [
            each.latency_ms["embed"]["p50"] + each.latency_ms["search"]["p50"] for each in results
        ]
        axes.plot(
            without[-1:], [results[-1].before[metric].mean],
            color=before, marker="o", markerfacecolor="white", linestyle="none",
        )  # fmt: skip
        times = [each.latency_ms["total"] for each in results]
        quality = [each.after[metric].mean for each in results]
        slower = [each["p95"] - each["p50"] for each in times]
        axes.errorbar(
            [each["p50"] for each in times], quality, xerr=[[0.0] * len(times), slower],
            color=after, marker="o", elinewidth=1, capsize=2, ecolor=_lighter(after),
        )  # fmt: skip
        for each, time, height in zip(results, times, quality, strict=True):
            axes.annotate(
                str(each.setting.candidates), (time["p50"], height), (0, offset),
                textcoords="offset points", ha="center", fontsize=9, color=after,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(
        "milliseconds a question: median, whisker to the 95th percentile\n"
        "(numbers: candidates; hollow: without reranking)"
    )


def _curves(
    axes: Axes,
    series: Sequence[_Series],
    metric: str,
    x: Callable[[Result], int],
    with_found: bool = False,
) -> None:
    """Plot a figure before and after reranking, with the bands of their intervals.

    Several series have bands after reranking only, since more would cover each other.
    """
    one = len(series) == 1
    for i, (name, results) in enumerate(series):
        before, after = _colours(i, len(series))
        places = [x(each) for each in results]
        first = "fusion" if results[0].setting.search == "hybrid" else "embedding"
        for label, colour, style, face, figures, band in (
            (f"by {first}", before, "--", "white", [each.before[metric] for each in results], one),
            ("after reranking", after, "-", after, [each.after[metric] for each in results], True),
        ):
            axes.plot(
                places, [each.mean for each in figures], style, color=colour, marker="o",
                markerfacecolor=face, label=_label(name, f"{LABELS[metric]} {label}"),
            )  # fmt: skip
            bounds = [each.interval or (each.mean, each.mean) for each in figures]
            if band:
                axes.fill_between(
                    places, [low for low, _ in bounds], [high for _, high in bounds],
                    color=colour, alpha=0.14, linewidth=0,
                )  # fmt: skip
        if with_found:
            axes.plot(
                places, [each.before[FOUND].mean for each in results], ":",
                color=GREY if one else after, label=_label(name, "found among the candidates"),
            )  # fmt: skip
    # Room for markers at the top.
    axes.set_ylim(0, 1.03)
    axes.margins(x=0.06)


def _legend(figure: Figure, series: Sequence[_Series]) -> None:
    """Put the legend below the figure, a column for each series where there is room."""
    figure.legend(loc="outside lower center", ncols=3 if len(series) == 1 else min(len(series), 2))


def _title(figure: Figure, title: str, series: Sequence[_Series], varies: str) -> None:
    firsts = [results[0] for _, results in series]
    names = [
        name
        for name in ("models", "dimensions", "candidates")
        if name != varies and len({getattr(each.setting, name) for each in firsts}) == 1
    ]
    held = held_text(firsts[0], names) or "whole vectors"
    bands = "Bands" if len(series) == 1 else "Bands, after reranking"
    conditions = f"{held}. {bands}: {CONFIDENCE:.0%} bootstrap intervals over questions"
    heading(figure, title, conditions)


def _ticks(axes: Axes, places: Sequence[int]) -> None:
    distinct = sorted(set(places))
    axes.set_xscale("log", base=2)
    axes.set_xticks(distinct, [str(place) for place in distinct])
    axes.minorticks_off()


def _label(name: str, what: str) -> str:
    return f"{name}: {what}" if name else what


def _colours(series: int, of: int) -> tuple[str, str]:
    """Return the colours before and after: those of the two stages, or that of the series."""
    return (BLUE, ORANGE) if of == 1 else (PALETTE[series % len(PALETTE)],) * 2


def _lighter(colour: str) -> tuple[str, float]:
    return colour, 0.45
