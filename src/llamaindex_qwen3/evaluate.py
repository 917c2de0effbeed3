"""Recall, MRR and nDCG before and after reranking, of one setting or of many compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .evaluation.corpus import Collection, shorten
from .evaluation.metrics import CUTOFFS, Quality, intervals, measure, quality
from .evaluation.plots import write_plots
from .evaluation.questions import Question, ranked, read_questions
from .evaluation.report import Figure, Report, Result, report
from .evaluation.run import measure as compare
from .evaluation.settings import Asked, Grid, Outcome, Seconds, Setting
from .pipeline import Ranking

__all__ = [
    "CUTOFFS",
    "Asked",
    "Collection",
    "Figure",
    "Grid",
    "Outcome",
    "Quality",
    "Question",
    "Report",
    "Result",
    "Seconds",
    "Setting",
    "compare",
    "evaluate",
    "intervals",
    "read_questions",
    "report",
    "shorten",
    "write_plots",
]


def evaluate(
    questions: Iterable[Question], rank: Callable[[str], Ranking]
) -> tuple[Quality, Quality]:
    """Rank the candidates of each question and return the quality before and after reranking.

    LlamaIndex's RetrieverEvaluator would retrieve twice for that, and counts each chunk of a long
    section; its metrics are what both use.

    Args:
        questions: What to ask.
        rank: Retrieves and reranks, as `pipeline.rank` does.
    """
    before, after = [], []
    for question in questions:
        ranking = rank(question.text)
        before.append(measure(ranked(question, ranking.candidates), question.relevant))
        after.append(measure(ranked(question, ranking.reranked), question.relevant))
    return quality(before), quality(after)
