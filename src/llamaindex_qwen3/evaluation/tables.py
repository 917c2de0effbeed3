"""How results are presented on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..show.text import count
from .metrics import CONFIDENCE, LABELS, NAMES
from .report import FOUND, STAGES, Figure, Report, Result
from .settings import Setting

_STAGE_NAMES = {"embed": "embed question", "search": "search", "rerank": "rerank", "total": "total"}
_COLUMNS = {
    "models": "models", "task": "task", "search": "search", "dimensions": "dim.",
    "candidates": "cand.",
}  # fmt: skip
# Keeps an interval on one line.
_SPACE = "\N{NO-BREAK SPACE}"
_UNLIMITED = 10_000


def tables(report: Report, metric: str, width: int) -> Group:
    """Show a report: one setting in detail, or many with one figure each.

    Args:
        report: What to show.
        metric: The figure of `metrics.NAMES` that comparisons show.
        width: Columns of the terminal. Where they are few, comparisons leave intervals out.
    """
    results = report.results
    compared = _compared(report, metric, wide=True)
    wide = all(Console(width=_UNLIMITED).measure(table).maximum <= width for table in compared)
    if not wide:
        compared = _compared(report, metric, wide=False)
    parts: list[RenderableType] = []
    if len(results) == 1:
        parts += [_quality(results[0]), _latency(results[0])]
        parts += compared
    else:
        parts += [compared[0], *_tasks(results), *compared[1:]]
    parts.append(Text("\n".join(_notes(report, wide)), style="dim"))
    return Group(*parts)


def _compared(report: Report, metric: str, wide: bool) -> list[Table]:
    """Return the tables that hold settings or groups against each other."""
    results = report.results
    settings = [_comparison(report, metric, wide)] if len(results) > 1 else []
    reference = results[report.reference]
    return settings + [_groups(reference, key, metric, wide) for key in reference.by]


def describe(setting: Setting, task: bool = False) -> str:
    """Name a setting in a line."""
    words = [
        setting.models,
        f"{setting.dimensions} dimensions",
        f"{setting.candidates} candidates",
        f"{setting.search} search",
    ]
    return ", ".join([*words, *([f"task: {setting.task}"] if task else [])])


def varying(results: Sequence[Result]) -> list[str]:
    """Return what differs between the settings of results."""
    return [name for name in _COLUMNS if len({getattr(each.setting, name) for each in results}) > 1]


def _quality(result: Result) -> Table:
    title = f"{count(result.questions, 'question')}: {describe(result.setting)}"
    table = _table(title, "", "by embedding", "after reranking", "change")
    if result.setting.search == "hybrid":
        table.columns[1].header = "by fusion"
    for name in NAMES:
        table.add_row(
            LABELS[name],
            _cell(result.before[name]),
            _cell(result.after[name]),
            _change(result.change[name]),
        )
    return table


def _latency(result: Result) -> Table:
    table = _table("Milliseconds a question", "", "median", "95th percentile")
    for stage in STAGES:
        times = result.latency_ms[stage]
        table.add_row(_STAGE_NAMES[stage], _ms(times["p50"]), _ms(times["p95"]))
    return table


def _comparison(report: Report, metric: str, wide: bool) -> Table:
    results, names = report.results, varying(report.results)
    tasks = _distinct_tasks(results)
    table = _table(
        f"{count(results[0].questions, 'question')}: {LABELS[metric]}",
        *(_COLUMNS[name] for name in names),
        *("found", "before", "after", "change", "vs ref.", "ms"),
    )
    for i, result in enumerate(results):
        setting = result.setting
        own = [
            f"task {tasks.index(setting.task) + 1}"
            if name == "task"
            else str(getattr(setting, name))
            for name in names
        ]
        against = (
            _change(result.against[metric], wide)
            if result.against
            else Text("reference" if wide else "ref.")
        )
        table.add_row(
            *map(escape, own),
            f"{result.before[FOUND].mean:.3f}",
            f"{result.before[metric].mean:.3f}",
            _cell(result.after[metric], wide),
            _change(result.change[metric], wide),
            against,
            _ms(result.latency_ms["total"]["p50"]),
            style="bold" if i == report.reference else None,
        )
    return table


def _groups(result: Result, key: str, metric: str, wide: bool) -> Table:
    title = f"By {key}: {LABELS[metric]}, {describe(result.setting)}"
    table = _table(title, key, "questions", "found", "before", "after", "change")
    for value, group in sorted(result.by[key].items()):
        table.add_row(
            escape(value),
            str(group.questions),
            f"{group.before[FOUND].mean:.3f}",
            f"{group.before[metric].mean:.3f}",
            _cell(group.after[metric], wide),
            _change(group.change[metric], wide),
        )
    return table


def _tasks(results: Sequence[Result]) -> Iterator[Text]:
    tasks = _distinct_tasks(results)
    if len(tasks) > 1:
        yield Text("\n".join(f"task {i}: {task}" for i, task in enumerate(tasks, 1)))


def _distinct_tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(each.setting.task for each in results))


def _notes(report: Report, wide: bool) -> Iterator[str]:
    results = report.results
    many = len(results) > 1
    if (wide or not many) and results[0].after["recall@1"].interval:
        yield f"In brackets: {CONFIDENCE:.0%} bootstrap intervals over questions."
    if not wide and (many or results[0].by):
        yield "For the intervals of all figures, use a wider terminal or --json."
    if many or results[0].by:
        yield "found: share of what is relevant that is among the candidates."
    if many:
        yield "ms: median time of a question: embedding it, searching and reranking."
        yield f"vs ref.: after reranking, against {describe(results[report.reference].setting)}."
    if any(each.on_copy for each in results):
        yield (
            "Other dimensions than the collection's, and hybrid search where it has no words, were "
            "searched in exact copies in Milvus Lite."
        )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_style="bold", title_justify="left")
    for i, column in enumerate(columns):
        right = i or column in _NUMBERS
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


_NUMBERS = (_COLUMNS["dimensions"], _COLUMNS["candidates"])


def _cell(figure: Figure, wide: bool = True) -> Text:
    return _with_interval(f"{figure.mean:.3f}", figure, "", "", wide)


def _change(figure: Figure, wide: bool = True) -> Text:
    # Coloured where the interval leaves no doubt of the direction.
    style = ""
    if figure.interval and figure.interval[0] > 0:
        style = "green"
    elif figure.interval and figure.interval[1] < 0:
        style = "red"
    return _with_interval(f"{figure.mean:+.3f}", figure, style, "+", wide)


def _with_interval(mean: str, figure: Figure, style: str, sign: str, wide: bool) -> Text:
    if figure.interval is None or not wide:
        return Text(mean, style)
    low, high = (f"{value:{sign}.2f}" for value in figure.interval)
    return Text.assemble((mean, style), (f" [{low},{_SPACE}{high}]", "dim"))


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
