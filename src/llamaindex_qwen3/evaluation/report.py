"""What outcomes say: figures, intervals, differences, times, and groups of questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .metrics import INTERVAL, NAMES, Interval, intervals, measure
from .questions import Question
from .settings import Outcome, Seconds, Setting

FOUND = "found"
STAGES = ("embed", "search", "rerank", "total")
_METHOD = {
    "interval": INTERVAL,
    "change": "after reranking minus before, question by question",
    "against": "after reranking, this setting minus the reference, question by question",
    "found": "share of what is relevant that is among the candidates: the most reranking can reach",
    "recall": "share of the relevant sections; a section stands where its best chunk does",
    "latency_ms": "per question, one after another, after a warm-up; a pair of a question and a "
    "passage is timed once, as its share by length of the call that scored it",
}


@dataclass(frozen=True)
class Figure:
    """A mean over questions and its interval, None for a single question."""

    mean: float
    interval: Interval | None = None


Figures = dict[str, Figure]


@dataclass(frozen=True)
class Result:
    """What one setting gave.

    Args:
        setting: What was tried.
        on_copy: A copy in Milvus Lite was searched, not the collection.
        questions: How many.
        before: Figures by embedding (or fusion), by the names in `metrics.NAMES`, and `found`.
        after: The same after reranking.
        change: Differences of the two.
        against: Differences after reranking to the reference; empty for that itself.
        latency_ms: Median and 95th percentile, by stage.
        ranks: Of each question, the place of the first relevant section before and after; None
            where no candidate is relevant.
        by: The same for groups of questions: by key, by value.
    """

    setting: Setting
    on_copy: bool
    questions: int
    before: Figures
    after: Figures
    change: Figures
    against: Figures
    latency_ms: dict[str, dict[str, float]]
    ranks: list[tuple[int | None, int | None]]
    by: dict[str, dict[str, Result]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The results of one run; `reference` is the setting others are held against."""

    results: list[Result]
    reference: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in types that JSON knows."""
        return {
            "method": _METHOD,
            "reference": self.reference,
            "settings": [_as_dict(result) for result in self.results],
        }


def report(
    questions: Sequence[Question], outcomes: Sequence[Outcome], by: Sequence[str] = ()
) -> Report:
    """Work out what outcomes say.

    Args:
        questions: What was asked, in the order of the outcomes.
        outcomes: One or more settings.
        by: Keys to group questions by: "language", "file" or metadata of theirs.
    """
    reference = reference_of([outcome.setting for outcome in outcomes])
    figures = [_figures(questions, outcome) for outcome in outcomes]
    everything = range(len(questions))
    results = []
    for outcome, own in zip(outcomes, figures, strict=True):
        other = None if outcome is outcomes[reference] else figures[reference]
        groups = {
            key: {
                value: _result(outcome, own, other, members)
                for value, members in _groups(questions, key).items()
            }
            for key in by
        }
        results.append(_result(outcome, own, other, everything, groups))
    return Report(results, reference)


def reference_of(settings: Sequence[Setting]) -> int:
    """Return which setting plots hold fixed and others are held against.

    Of the first models, task and search: the most dimensions, and ten candidates or else the most.
    """
    first = settings[0]

    def preference(i: int) -> tuple[bool, int, bool, int]:
        each = settings[i]
        same = (each.models, each.task, each.search) == (first.models, first.task, first.search)
        return same, each.dimensions, each.candidates == 10, each.candidates

    return max(range(len(settings)), key=preference)


@dataclass(frozen=True)
class _PerQuestion:
    """Figures of each question, before and after reranking."""

    before: list[dict[str, float]]
    after: list[dict[str, float]]
    ranks: list[tuple[int | None, int | None]]


def _figures(questions: Sequence[Question], outcome: Outcome) -> _PerQuestion:
    own = _PerQuestion([], [], [])
    for question, asked in zip(questions, outcome.asked, strict=True):
        relevant = question.relevant
        found = len(set(relevant) & set(asked.before)) / len(relevant)
        own.before.append({**measure(asked.before, relevant), FOUND: found})
        own.after.append({**measure(asked.after, relevant), FOUND: found})
        own.ranks.append((_rank(asked.before, relevant), _rank(asked.after, relevant)))
    return own


def _rank(ranking: Sequence[str], relevant: Sequence[str]) -> int | None:
    places = [place for place, name in enumerate(ranking, 1) if name in relevant]
    return places[0] if places else None


def _groups(questions: Sequence[Question], key: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        groups.setdefault(question.value(key), []).append(i)
    return groups


def _result(
    outcome: Outcome,
    own: _PerQuestion,
    reference: _PerQuestion | None,
    members: Sequence[int],
    by: dict[str, dict[str, Result]] | None = None,
) -> Result:
    before = _columns(own.before, members)
    after = _columns(own.after, members)
    values = {("before", name): before[name] for name in before}
    values |= {("after", name): after[name] for name in after}
    values |= {("change", name): _less(after[name], before[name]) for name in NAMES}
    if reference is not None:
        other = _columns(reference.after, members)
        values |= {("against", name): _less(after[name], other[name]) for name in NAMES}
    figures = _means(values)
    return Result(
        setting=outcome.setting,
        on_copy=outcome.on_copy,
        questions=len(members),
        before=figures["before"],
        after=figures["after"],
        change=figures["change"],
        against=figures.get("against", {}),
        latency_ms=_latency([outcome.asked[i].seconds for i in members]),
        ranks=[own.ranks[i] for i in members],
        by=by or {},
    )


def _columns(rows: Sequence[dict[str, float]], members: Sequence[int]) -> dict[str, list[float]]:
    return {name: [rows[i][name] for i in members] for name in (*NAMES, FOUND)}


def _less(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _means(values: dict[tuple[str, str], list[float]]) -> dict[str, Figures]:
    """Return means and intervals, all from the same resamples."""
    spread, figures = intervals(values), defaultdict[str, Figures](dict)
    for (part, name), each in values.items():
        figures[part][name] = Figure(float(np.mean(each)), spread.get((part, name)))
    return figures


def _latency(seconds: Sequence[Seconds]) -> dict[str, dict[str, float]]:
    latency = {}
    for stage in STAGES:
        values = [1000 * getattr(each, stage) for each in seconds]
        p50, p95 = np.percentile(values, [50, 95])
        latency[stage] = {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}
    return latency


def _as_dict(result: Result) -> dict[str, Any]:
    return {
        **asdict(result.setting),
        "searched": "copy" if result.on_copy else "collection",
        **_group_dict(result),
        "by": {
            key: {value: _group_dict(group) for value, group in groups.items()}
            for key, groups in result.by.items()
        },
    }


def _group_dict(result: Result) -> dict[str, Any]:
    return {
        "questions": result.questions,
        "before": _figures_dict(result.before),
        "after": _figures_dict(result.after),
        "change": _figures_dict(result.change),
        "against": _figures_dict(result.against),
        "latency_ms": result.latency_ms,
        "ranks": result.ranks,
    }


def _figures_dict(figures: Figures) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}
