"""Questions with what answers them, and the figures of a ranking."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import NodeWithScore, TextNode

from llamaindex_qwen3.errors import InvalidArgumentError
from llamaindex_qwen3.evaluation.metrics import NAMES, intervals, measure, quality
from llamaindex_qwen3.evaluation.questions import Question, ranked, read_questions


def nodes(*texts: str, section: str | None = None) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(id_=f"id {text}", text=text, metadata={"section_id": section or text}),
            score=0.5,
        )
        for text in texts
    ]


def test_several_relevant_sections_by_hand() -> None:
    """Count recall as a share, and let the ideal be that all relevant ones come first."""
    figures = measure(["x", "a", "y", "b"], ["a", "b", "c"])
    assert figures["recall@1"] == 0
    assert figures["recall@3"] == pytest.approx(1 / 3)
    assert figures["recall@10"] == pytest.approx(2 / 3)
    assert figures["mrr@10"] == pytest.approx(1 / 2)
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert figures["ndcg@10"] == pytest.approx(gain / ideal)


def test_more_relevant_sections_than_places() -> None:
    """Give a ranking that could not be better an nDCG of 1, however many are left out."""
    relevant = [f"s{i}" for i in range(25)]
    figures = measure(relevant[3:13], relevant)
    assert figures["ndcg@10"] == pytest.approx(1)
    assert figures["recall@10"] == pytest.approx(10 / 25)


NAMED = st.lists(st.sampled_from("abcdefghijklmnop"), unique=True, max_size=16)


@given(ranking=NAMED, relevant=NAMED.filter(bool))
def test_figures_of_any_ranking(ranking: list[str], relevant: list[str]) -> None:
    """Agree with the formulas written out, and lie between 0 and 1."""
    figures = measure(ranking, relevant)
    hits = [place for place, name in enumerate(ranking[:10], 1) if name in relevant]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(10, len(relevant)) + 1))
    assert figures["mrr@10"] == pytest.approx(1 / hits[0] if hits else 0)
    assert figures["ndcg@10"] == pytest.approx(sum(1 / math.log2(p + 1) for p in hits) / ideal)
    for k in (1, 3, 10):
        found = set(ranking[:k]) & set(relevant)
        assert figures[f"recall@{k}"] == pytest.approx(len(found) / len(relevant))
    assert all(0 <= value <= 1 + 1e-12 for value in figures.values())


def test_means_by_name() -> None:
    """Give the mean of each figure, also by its name."""
    mean = quality([measure(["a"], ["a"]), measure(["x", "a"], ["a"])])
    assert mean.questions == 2
    assert mean["recall@1"] == mean.recall[1] == 0.5
    assert mean["mrr@10"] == mean.mrr == 0.75
    assert set(NAMES) == {"recall@1", "recall@3", "recall@10", "mrr@10", "ndcg@10"}


def test_a_relevant_text_is_found_in_its_passage() -> None:
    """Take a passage for relevant that contains the text or lies within it, whatever its spaces."""
    question = Question("q", texts=("Rows are  kept\nin a bucket.",))
    found = ranked(question, nodes("Other", "So: rows are kept in a BUCKET. Always."))
    assert found == ["Other", *question.relevant]
    # A chunk of a long relevant text.
    assert ranked(question, nodes("rows are kept")) == list(question.relevant)
    assert measure(found, question.relevant)["mrr@10"] == 0.5


def test_chunks_count_where_the_best_stands() -> None:
    """Count the chunks of a section, and the passages of one text, once."""
    found = nodes("one", "two", section="a.md#s") + nodes("three", section="a.md#t")
    assert ranked(Question("q", "a.md#t"), found) == ["a.md#s", "a.md#t"]
    assert ranked(Question("q", "id three"), found) == ["a.md#s", "id three"]


@pytest.mark.parametrize(
    ("row", "sections", "texts"),
    [
        ({"section": "a#b"}, ("a#b",), ()),
        ({"section": ["a#b", "a#c", "a#b"]}, ("a#b", "a#c"), ()),
        ({"sections": ["a#b"]}, ("a#b",), ()),
        ({"text": "some words"}, (), ("some words",)),
        ({"texts": ["x y", "z"], "section": "a#b"}, ("a#b",), ("x y", "z")),
    ],
)
def test_what_answers_a_question(
    tmp_path: Path, row: dict[str, object], sections: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    """Read one or several sections or texts."""
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "q?", **row}))
    [question] = read_questions(path)
    assert (question.sections, question.texts) == (sections, texts)


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "q"}',
        '{"question": "q", "section": []}',
        '{"question": "q", "section": [""]}',
        '{"question": "q", "section": 3}',
        '{"question": " ", "section": "a#b"}',
        '{"section": "a#b"}',
        "[1]",
        "{",
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    """Say which line is wrong and how one should look."""
    path = tmp_path / "q.jsonl"
    path.write_text(f'{{"question": "a", "section": "s"}}\n{line}\n')
    with pytest.raises(InvalidArgumentError, match=r"line 2.*JSON object with 'question'"):
        read_questions(path)


def test_groups_of_questions() -> None:
    """Group by language, by what the file says of a question, and by file of its section."""
    question = Question("q", "guide/a.md#b", "ko", metadata={"level": 3})
    assert question.value("language") == "ko"
    assert question.value("level") == "3"
    assert question.value("file") == "guide/a.md"
    assert question.value("colour") == Question("q", "s").value("language") == "not stated"


def test_intervals_hold_what_they_promise() -> None:
    """Cover the true mean about as often as they say: at 60 questions, in 19 of 20 samples."""
    random = np.random.default_rng(1)
    samples = random.random((400, 60)) < 0.7
    found = intervals({i: sample.astype(float) for i, sample in enumerate(samples)})
    covered = sum(low <= 0.7 <= high for low, high in found.values())
    assert 0.91 <= covered / 400 <= 0.98


def test_intervals_of_differences_are_paired() -> None:
    """Leave out what makes questions hard for both settings."""
    random = np.random.default_rng(2)
    hard = random.random(60)
    better = hard + 0.05 + 0.01 * random.random(60)
    found = intervals({"worse": hard, "better": better, "difference": better - hard})
    assert found["difference"][0] > 0
    # Side by side the two would overlap.
    assert found["worse"][1] > found["better"][0]


def test_intervals_at_the_edges() -> None:
    """Give none for one question, a point where all agree, and the same again."""
    assert intervals({"one": [0.5]}) == {}
    assert intervals({"all": [1.0] * 9}) == {"all": (1.0, 1.0)}
    values = {"some": [0.0, 1.0, 1.0, 0.5]}
    assert intervals(values) == intervals(values)
