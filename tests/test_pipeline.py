"""From files to sections, a collection, a query engine and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from components import embedder, reranker
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, TextNode
from milvus_lite.server_manager import server_manager_instance

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker, milvus_vector_store
from llamaindex_qwen3.errors import InvalidArgumentError
from llamaindex_qwen3.evaluate import Question, evaluate, read_questions
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import (
    IngestProgress,
    Ranking,
    ingest,
    query_engine,
    rank,
    read_documents,
    slug,
    split_sections,
)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# A\n## One\nfirst text\n## Two\nsecond text\n")
    (folder / "sub" / "b.md").write_text("# B\nan introduction\n## Three\nthird text\n")
    (folder / "image.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def model(embedding_dir: Path) -> Qwen3Embedding:
    return embedder(embedding_dir)


@pytest.fixture
def judge(reranker_dir: Path) -> Qwen3Reranker:
    return reranker(reranker_dir)


@pytest.fixture
def store(model: Qwen3Embedding, tmp_path: Path) -> Iterator[CheckedMilvusVectorStore]:
    uri = str(tmp_path / "p.db")
    yield milvus_vector_store(model, uri)
    server_manager_instance.release_server(uri)


def texts(store: CheckedMilvusVectorStore) -> list[str]:
    rows = store.client.query(
        store.collection_name, filter="", limit=100, output_fields=[store.text_key]
    )
    return sorted(row[store.text_key] for row in rows)


def test_sections_follow_headers(docs: Path) -> None:
    """Make one node a header with text; a header alone makes none."""
    nodes = split_sections(read_documents([docs]))
    assert [node.metadata["section_id"] for node in nodes] == [
        "a.md#one", "a.md#two", "sub/b.md#b", "sub/b.md#three",
    ]  # fmt: skip
    assert nodes[0].get_content(metadata_mode="embed") == "## One\nfirst text"


def test_ids_depend_on_content_alone(docs: Path) -> None:
    """Give the same ids again, other ids to changed text, and each repeated text its own."""
    (docs / "a.md").write_text("## X\nsame\n## X\nsame\n")
    first, second = (split_sections(read_documents([docs])) for _ in range(2))
    assert [n.node_id for n in first] == [n.node_id for n in second]
    assert len({n.node_id for n in first}) == len(first)
    (docs / "a.md").write_text("## X\nsame\n## X\nsame.\n")
    other = split_sections(read_documents([docs]))
    assert len({n.node_id for n in first} & {n.node_id for n in other}) == len(first) - 1


def test_long_sections_are_split(docs: Path) -> None:
    """Cut a section that no chunk could hold, each part under the section's name."""
    (docs / "a.md").write_text("# A\n## Long\n" + "A sentence of several words here. " * 300)
    nodes = [n for n in split_sections(read_documents([docs / "a.md"]))]
    assert len(nodes) > 3
    assert {n.metadata["section"] for n in nodes} == {"Long"}
    assert len({n.node_id for n in nodes}) == len(nodes)


def test_ingest_again_changes_only_what_changed(
    docs: Path, model: Qwen3Embedding, store: CheckedMilvusVectorStore
) -> None:
    """Add new text, remove text that is gone, and leave the rest."""
    report = ingest([docs], model, store)
    assert (report.files, report.added, report.unchanged, report.removed) == (2, 4, 0, 0)
    (docs / "a.md").write_text("# A\n## One\nfirst text\n## Two\nanother text\n")
    report = ingest([docs], model, store)
    assert (report.added, report.unchanged, report.removed) == (1, 3, 1)
    assert texts(store) == sorted(n.text for n in split_sections(read_documents([docs])))


def test_ingest_reports_progress(
    docs: Path, model: Qwen3Embedding, store: CheckedMilvusVectorStore
) -> None:
    """Count files, bytes and chunks up to all of them."""
    seen: list[IngestProgress] = []
    ingest([docs], model, store, on_progress=seen.append)
    size = sum(file.stat().st_size for file in docs.rglob("*.md"))
    assert seen[-1] == IngestProgress(2, 2, size, size, 4)


def test_rank_orders_all_candidates(
    docs: Path, model: Qwen3Embedding, judge: Qwen3Reranker, store: CheckedMilvusVectorStore
) -> None:
    """Keep every candidate, by dense score on one side and by the reranker on the other."""
    ingest([docs], model, store)
    ranking = rank("second", model, judge, store, candidates=3)
    ids = [n.node_id for n in ranking.candidates]
    assert len(ids) == 3
    assert {n.node_id for n in ranking.reranked} == set(ids)
    dense = [n.score for n in ranking.candidates]
    assert dense == sorted(dense, reverse=True)
    expected = judge.score(
        "second", [n.node.get_content(metadata_mode="embed") for n in ranking.reranked]
    )
    assert [n.score for n in ranking.reranked] == pytest.approx(expected, abs=1e-6)


def test_query_engine_prompts_with_the_reranked(
    docs: Path, model: Qwen3Embedding, judge: Qwen3Reranker, store: CheckedMilvusVectorStore
) -> None:
    """Put only the kept passages into the prompt; MockLLM answers with what it was sent."""
    ingest([docs], model, store)
    engine = query_engine(
        model, judge.model_copy(update={"top_n": 2}), store, llm=MockLLM(), candidates=4
    )
    response = engine.query("second")
    assert len(response.source_nodes) == 2
    for text in ("first text", "second text", "third text", "an introduction"):
        kept = any(text in n.get_content() for n in response.source_nodes)
        assert (text in str(response)) == kept


def _ranking(candidates: list[str], reranked: list[str]) -> Ranking:
    def nodes(sections: list[str]) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(text=s, metadata={"section_id": s}), score=0.5)
            for s in sections
        ]

    return Ranking("q", nodes(candidates), nodes(reranked))


def test_figures_by_hand() -> None:
    """Agree with recall, MRR and nDCG worked out on paper."""
    rankings = {
        "first": _ranking(["a", "b", "c"], ["b", "a", "c"]),  # 'a': rank 1, then 2
        "third": _ranking(["x", "y", "a"], ["a", "x", "y"]),  # 'a': rank 3, then 1
        "missing": _ranking(["x", "y"], ["y", "x"]),
        "nothing": _ranking([], []),
    }
    before, after = evaluate([Question(name, "a") for name in rankings], rankings.__getitem__)
    assert before.recall == {1: 0.25, 3: 0.5, 10: 0.5}
    assert after.recall == {1: 0.25, 3: 0.5, 10: 0.5}
    assert before.mrr == pytest.approx((1 + 1 / 3) / 4)
    assert after.mrr == pytest.approx((1 / 2 + 1) / 4)
    assert before.ndcg == pytest.approx((1 + 1 / math.log2(4)) / 4)
    assert after.ndcg == pytest.approx((1 / math.log2(3) + 1) / 4)


def test_chunks_of_one_section_count_once() -> None:
    """Rank sections, not chunks: a long section must not push the next one down."""
    ranking = _ranking(["x", "x", "a"], ["x", "x", "a"])
    before, _ = evaluate([Question("q", "a")], lambda _: ranking)
    assert before.mrr == pytest.approx(1 / 2)


def test_questions_file(tmp_path: Path) -> None:
    """Read by language, and name the line that is wrong."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "section": "s"}\n\n{"question": "b"}\n')
    with pytest.raises(InvalidArgumentError, match="line 3"):
        read_questions(path)
    path.write_text('{"question": "a", "section": "s", "language": "ko"}\n')
    assert read_questions(path, "ko") == [Question("a", "s", "ko")]
    with pytest.raises(InvalidArgumentError, match="'en'"):
        read_questions(path, "en")


@pytest.mark.parametrize(
    ("title", "expected"),
    [("IVF_FLAT", "ivf-flat"), ("Where rows live?", "where-rows-live"), ("색인 유형", "색인-유형")],
)
def test_slug(title: str, expected: str) -> None:
    """Make a link name of a header in any script."""
    assert slug(title) == expected


def test_model_names(tmp_path: Path) -> None:
    """Stand for the published pairs; never the demo pair in place of another."""
    assert model_pair("4b").reranker == "Qwen/Qwen3-Reranker-4B"
    assert not model_pair("0.6B").is_demo
    with pytest.raises(InvalidArgumentError, match=r"0\.6b"):
        model_pair("7b")


def test_unreadable_paths(tmp_path: Path) -> None:
    """Name the path, and what could be read."""
    with pytest.raises(InvalidArgumentError, match="gone"):
        read_documents([tmp_path / "gone"])
    with pytest.raises(InvalidArgumentError, match=r"\.md"):
        read_documents([tmp_path])


def test_an_empty_question_is_refused(
    docs: Path, model: Qwen3Embedding, judge: Qwen3Reranker, store: CheckedMilvusVectorStore
) -> None:
    """Say so, in the short path as in a query engine."""
    ingest([docs], model, store)
    with pytest.raises(InvalidArgumentError, match="is empty"):
        rank("  ", model, judge, store)
    with pytest.raises(InvalidArgumentError, match="is empty"):
        query_engine(model, judge, store, MockLLM()).query("")
