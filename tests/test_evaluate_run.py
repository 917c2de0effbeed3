"""Many settings in one run: the same results as each alone, and nothing computed twice."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Shape
from components import COSINE_TOLERANCE, embedder, reranker
from conftest import Factory
from milvus_lite.server_manager import server_manager_instance
from servers import fake_servers, milvus_servers
from texts import SENTENCES

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker, evaluate, milvus_vector_store
from llamaindex_qwen3.errors import InvalidArgumentError, StoreError
from llamaindex_qwen3.evaluation.corpus import Collection, shorten
from llamaindex_qwen3.evaluation.generate import read_passages
from llamaindex_qwen3.evaluation.questions import Question
from llamaindex_qwen3.evaluation.run import measure
from llamaindex_qwen3.evaluation.settings import Grid, Outcome
from llamaindex_qwen3.pipeline import ingest, open_index, rank

TASK = "Given a question, retrieve passages that answer it"
QUESTIONS = [
    Question("capital of China", "asia.md#section-0"),
    Question("Where is data stored?", ("asia.md#section-2", "asia.md#section-11")),
    Question("gravity", texts=("Gravity is a force",)),
]


@pytest.fixture(scope="module")
def model(embedding_dir: Path) -> Qwen3Embedding:
    return embedder(embedding_dir).load()


@pytest.fixture(scope="module")
def judge(reranker_dir: Path) -> Qwen3Reranker:
    return reranker(reranker_dir).load()


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    sections = [f"## Section {i}\n{text}\n" for i, text in enumerate(SENTENCES)]
    (folder / "asia.md").write_text("\n".join(sections), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def uri(
    tmp_path_factory: pytest.TempPathFactory, docs: Path, model: Qwen3Embedding
) -> Iterator[str]:
    uri = str(tmp_path_factory.mktemp("store") / "e.db")
    ingest([docs], model, milvus_vector_store(model, uri, "whole"))
    ingest([docs], model, milvus_vector_store(model, uri, "words", hybrid=True))
    yield uri
    server_manager_instance.release_server(uri)


@pytest.fixture(scope="module")
def whole(uri: str) -> Collection:
    return Collection.find(uri, "whole")


def run(
    whole: Collection, model: Qwen3Embedding, judge: Qwen3Reranker, grid: Grid, **options: Any
) -> list[Outcome]:
    return measure(QUESTIONS, "tiny", model, judge, whole, grid, **options)


def rankings(outcome: Outcome) -> list[tuple[list[str], list[str]]]:
    return [(each.before, each.after) for each in outcome.asked]


@pytest.mark.parametrize("size", [32, 33, 48, 64])
def test_shortening_is_embedding_at_that_dimension(model: Qwen3Embedding, size: int) -> None:
    """Give the vectors that the model gives at a dimension, also when shortened before."""
    full = np.asarray(model.get_text_embedding_batch(list(SENTENCES)), dtype=np.float32)
    short = model.model_copy(update={"dimensions": size})
    expected = np.asarray(short.get_text_embedding_batch(list(SENTENCES)))
    for found in (shorten(full, size), shorten(shorten(full, 64), size)):
        assert found.shape == expected.shape
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
        assert (1 - (found * expected).sum(axis=1)).max() < COSINE_TOLERANCE
    with pytest.raises(InvalidArgumentError, match="outside 1 to 64"):
        shorten(full[:, :64], 65)


def test_one_setting_is_what_rank_gives(
    whole: Collection, uri: str, model: Qwen3Embedding, judge: Qwen3Reranker
) -> None:
    """Rank as the library does with the same models, collection and number of candidates."""
    [outcome] = run(whole, model, judge, Grid(candidates=[7]))
    assert not outcome.on_copy
    assert outcome.setting.dimensions == model.dim
    store = milvus_vector_store(model, uri, "whole")
    for question, (before, after) in list(zip(QUESTIONS, rankings(outcome), strict=True))[:2]:
        ranking = rank(question.text, model, judge, store, candidates=7)
        assert before == [n.metadata["section_id"] for n in ranking.candidates]
        assert after == [n.metadata["section_id"] for n in ranking.reranked]


def test_many_settings_are_as_each_alone(
    whole: Collection, model: Qwen3Embedding, judge: Qwen3Reranker
) -> None:
    """Give each setting of a grid what it gives alone, though pairs are shared between them."""
    grid = Grid(
        dimensions=[32, model.dim], candidates=[3, 12, 5], searches=["dense", "hybrid"],
        tasks=[TASK, "Find the capital"],
    )  # fmt: skip
    outcomes = run(whole, model, judge, grid)
    assert len(outcomes) == 24
    assert len({outcome.setting for outcome in outcomes}) == 24
    # Every fifth meets each dimension, search, task and number of candidates.
    for outcome in outcomes[::5]:
        setting = outcome.setting
        [alone] = run(
            whole, model, judge,
            Grid([setting.dimensions], [setting.candidates], [setting.search], [setting.task]),
        )  # fmt: skip
        assert rankings(alone) == rankings(outcome), setting
        own = setting.dimensions == model.dim and setting.search == "dense"
        assert outcome.on_copy is not own


def test_a_copy_finds_what_a_collection_built_so_finds(
    whole: Collection,
    docs: Path,
    tmp_path: Path,
    model: Qwen3Embedding,
    judge: Qwen3Reranker,
) -> None:
    """Find in shortened copies what an ingest at that dimension, with words, would find."""
    short = model.model_copy(update={"dimensions": 40})
    uri = str(tmp_path / "short.db")
    store = milvus_vector_store(short, uri, "short", hybrid=True)
    ingest([docs], short, store)
    dense, hybrid = run(
        whole, model, judge, Grid([40], candidates=[9], searches=["dense", "hybrid"])
    )
    for outcome, mode in ((dense, {}), (hybrid, {"vector_store_query_mode": "hybrid"})):
        retriever = open_index(short, store).as_retriever(
            similarity_top_k=9, sparse_top_k=9, hybrid_top_k=9, **mode
        )
        for question, (before, _) in list(zip(QUESTIONS, rankings(outcome), strict=True))[:2]:
            found = [n.metadata["section_id"] for n in retriever.retrieve(question.text)]
            assert before == found
    server_manager_instance.release_server(uri)


def test_nothing_is_computed_twice(
    whole: Collection,
    model: Qwen3Embedding,
    judge: Qwen3Reranker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Embed no passage, each question once a task, and score each pair once."""
    scored: list[tuple[str, str, str]] = []
    embedded: list[str] = []
    score, embed = Qwen3Reranker.score, Qwen3Embedding._embed

    def note_scores(self: Qwen3Reranker, query: str, texts: Sequence[str]) -> list[float]:
        scored.extend((self.instruction, query, text) for text in texts)
        return score(self, query, texts)

    def note_texts(self: Qwen3Embedding, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        embedded.extend(texts)
        return embed(self, texts, *args, **kwargs)

    monkeypatch.setattr(Qwen3Reranker, "score", note_scores)
    monkeypatch.setattr(Qwen3Embedding, "_embed", note_texts)
    grid = Grid([32, 48, model.dim], [2, 4, 10], ["dense", "hybrid"], [TASK])
    seen: list[tuple[str, int, int]] = []
    run(whole, model, judge, grid, on_progress=lambda *args: seen.append(args))
    asked = [question.text for question in QUESTIONS]
    assert [text for text in embedded if text != "warm up"] == asked
    pairs = [pair for pair in scored if pair[1] != "warm up"]
    assert len(pairs) == len(set(pairs))
    assert seen[-1] == ("Reranking pairs", len(pairs), len(pairs))


def test_time_grows_with_candidates(
    whole: Collection, model: Qwen3Embedding, judge: Qwen3Reranker
) -> None:
    """Count the time of the first candidates into that of more of them."""
    outcomes = run(whole, model, judge, Grid(candidates=[2, 5, 20]))
    for times in zip(*(outcome.asked for outcome in outcomes), strict=True):
        few, more, most = (each.seconds for each in times)
        assert 0 < few.rerank < more.rerank < most.rerank
        assert few.embed == more.embed == most.embed > 0
        assert few.total == few.embed + few.search + few.rerank


def test_the_collection_stays_as_it_is(
    whole: Collection, uri: str, model: Qwen3Embedding, judge: Qwen3Reranker
) -> None:
    """Leave its rows, its record and no copy behind."""
    before = {path for path in Path(tempfile.gettempdir()).iterdir()}
    run(whole, model, judge, Grid([32], searches=["hybrid"]))
    assert Collection.find(uri, "whole") == whole
    assert len(whole.open().select('id != ""', ["id"])) == len(SENTENCES)
    left = {path for path in Path(tempfile.gettempdir()).iterdir()} - before
    assert not [path for path in left if (path / "copies.db").exists()]


def test_other_models_embed_the_passages_again(
    whole: Collection,
    uri: str,
    docs: Path,
    judge: Qwen3Reranker,
    make_embedding: Factory,
    tmp_path: Path,
) -> None:
    """Refuse another model unless told to embed anew, and then rank as with its own collection."""
    other = embedder(make_embedding(shape=Shape(seed=5))).load()
    with pytest.raises(StoreError, match="was built with"):
        run(whole, other, judge, Grid())
    seen: list[tuple[str, int, int]] = []
    [outcome] = run(
        whole, other, judge, Grid(candidates=[6]), embed_again=True,
        on_progress=lambda *args: seen.append(args),
    )  # fmt: skip
    assert outcome.on_copy
    assert ("Embedding passages", len(SENTENCES), len(SENTENCES)) in seen
    own = str(tmp_path / "other.db")
    store = milvus_vector_store(other, own)
    ingest([docs], other, store)
    [expected] = measure(
        QUESTIONS, "tiny", other, judge, Collection.find(own, "qwen3_docs"), Grid(candidates=[6])
    )
    assert rankings(outcome) == rankings(expected)
    server_manager_instance.release_server(own)


def test_words_of_the_collection_are_used(
    uri: str, model: Qwen3Embedding, judge: Qwen3Reranker
) -> None:
    """Search a hybrid collection itself, with the results of a copy."""
    words = Collection.find(uri, "words")
    assert words.hybrid
    [own] = run(words, model, judge, Grid(searches=["hybrid"]))
    [copy] = run(replace(words, hybrid=False), model, judge, Grid(searches=["hybrid"]))
    assert (own.on_copy, copy.on_copy) == (False, True)
    assert [set(before) for before, _ in rankings(own)] == [set(b) for b, _ in rankings(copy)]


def test_what_is_not_stored_is_named(whole: Collection) -> None:
    """Return the sections that no passage has; ids of nodes count as well."""
    [row] = whole.open().select('section_id == "asia.md#section-3"', ["id"])
    assert whole.missing(["asia.md#section-0", "gone.md#x", row["id"], "gone.md#x"]) == [
        "gone.md#x"
    ]


def test_mistakes_are_told(
    whole: Collection, uri: str, model: Qwen3Embedding, judge: Qwen3Reranker
) -> None:
    """Refuse dimensions that the model has not, no questions, and an empty collection."""
    with pytest.raises(InvalidArgumentError, match=f"dimensions=4096 is outside 32 to {model.dim}"):
        run(whole, model, judge, Grid([4096]))
    with pytest.raises(InvalidArgumentError, match="no question"):
        measure([], "tiny", model, judge, whole, Grid())
    with pytest.raises(InvalidArgumentError, match="does not exist or is empty"):
        Collection.find(uri, "nothing")


@pytest.mark.milvus
def test_a_server_gives_what_lite_gives(
    whole: Collection,
    docs: Path,
    model: Qwen3Embedding,
    judge: Qwen3Reranker,
    tmp_path: Path,
) -> None:
    """Read, copy and search a collection on a Milvus server as one in a file."""
    if reason := milvus_servers.unavailable():
        pytest.skip(reason)
    grid = Grid([32, model.dim], searches=["dense", "hybrid"])
    expected = run(whole, model, judge, grid)
    with milvus_servers.standalone(tmp_path / "data") as server:
        store = milvus_vector_store(model, server.uri, "whole", token=server.token)
        ingest([docs], model, store)
        there = Collection.find(server.uri, "whole", server.token)
        assert replace(there, uri=whole.uri, token="") == whole
        assert there.missing(["asia.md#section-0", "gone.md#x"]) == ["gone.md#x"]
        assert len(read_passages(there)) > 0
        found = run(there, model, judge, grid)
    assert [rankings(outcome) for outcome in found] == [rankings(each) for each in expected]


def test_from_python_as_from_the_command_line(
    whole: Collection, model: Qwen3Embedding, judge: Qwen3Reranker, tmp_path: Path
) -> None:
    """Compare, report and plot by the names of the public module alone."""
    assert all(hasattr(evaluate, name) for name in evaluate.__all__)
    outcomes = evaluate.compare(
        QUESTIONS, "tiny", model, judge, whole, evaluate.Grid(dimensions=[32, 64])
    )
    made = evaluate.report(QUESTIONS, outcomes, by=["language"])
    assert [result.setting.dimensions for result in made.results] == [32, 64]
    assert len(evaluate.write_plots(made, "ndcg@10", tmp_path)) == 4


def test_served_models_measure_the_same(
    whole: Collection,
    model: Qwen3Embedding,
    judge: Qwen3Reranker,
    embedding_dir: Path,
    reranker_dir: Path,
) -> None:
    """Rank by models on servers as by local ones, without embedding a passage again."""
    grid = Grid([32, model.dim], candidates=[4, 8])
    expected = run(whole, model, judge, grid)
    with fake_servers.running() as servers:
        served = (
            embedder(embedding_dir, base_url=servers.start("vllm", embedding_dir).url),
            reranker(
                reranker_dir, base_url=servers.start("vllm", reranker_dir, role="reranker").url
            ),
        )
        seen: list[str] = []
        found = run(whole, *served, grid, on_progress=lambda stage, *_: seen.append(stage))
        for component in served:
            component.close()
    assert [rankings(outcome) for outcome in found] == [rankings(each) for each in expected]
    assert "Embedding passages" not in seen
