"""Recall, MRR and nDCG before and after reranking."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.evaluation.retrieval.metrics import MRR, NDCG, HitRate
from llama_index.core.schema import NodeWithScore

from .errors import InvalidArgumentError
from .pipeline import Ranking

CUTOFFS = (1, 3, 10)


@dataclass(frozen=True)
class Question:
    """A question and the section that answers it, as FILE#header-in-lower-case."""

    text: str
    section: str
    language: str = "en"


@dataclass(frozen=True)
class Quality:
    """Means over questions, each from 0 to 1; MRR and nDCG are cut at 10."""

    questions: int
    recall: dict[int, float]
    mrr: float
    ndcg: float


def read_questions(path: Path, language: str | None = None) -> list[Question]:
    """Read a file of JSON objects, one a line: question, section and, optionally, language.

    Raises:
        InvalidArgumentError: The file is missing or malformed, or has no question in `language`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"Cannot read the questions {str(path)!r}: {error}.") from error
    questions = [
        _question(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()
    ]
    chosen = [q for q in questions if language in (None, q.language)]
    if not chosen:
        known = sorted({q.language for q in questions})
        raise InvalidArgumentError(
            f"{path} has no question in language {language!r}; it has {', '.join(known) or 'none'}."
        )
    return chosen


def _question(line: str, place: str) -> Question:
    try:
        row = json.loads(line)
        return Question(row["question"], row["section"], row.get("language", "en"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{place}: {error!r}. Each line is a JSON object with 'question' and 'section'."
        ) from error


def evaluate(
    questions: Iterable[Question], rank: Callable[[str], Ranking]
) -> tuple[Quality, Quality]:
    """Rank the candidates of each question and return the quality before and after reranking."""
    before, after, sections = [], [], []
    for question in questions:
        ranking = rank(question.text)
        before.append(_sections(ranking.candidates))
        after.append(_sections(ranking.reranked))
        sections.append(question.section)
    return _quality(before, sections), _quality(after, sections)


def _sections(nodes: Sequence[NodeWithScore]) -> list[str]:
    """Return the sections of ranked nodes, each once: a long one may be stored as several chunks."""
    return list(dict.fromkeys(str(node.metadata.get("section_id", node.node_id)) for node in nodes))


def _quality(rankings: Sequence[list[str]], relevant: Sequence[str]) -> Quality:
    def mean(metric: HitRate | MRR | NDCG, cutoff: int) -> float:
        scores = [
            # LlamaIndex's metrics raise on an empty result, which finds nothing.
            metric.compute(expected_ids=[section], retrieved_ids=ids[:cutoff]).score if ids else 0.0
            for ids, section in zip(rankings, relevant, strict=True)
        ]
        return sum(scores) / len(scores)

    return Quality(
        questions=len(relevant),
        # One section answers each question, so recall is the share of questions with a hit.
        recall={k: mean(HitRate(), k) for k in CUTOFFS},
        mrr=mean(MRR(), 10),
        ndcg=mean(NDCG(), 10),
    )
