"""What the inspector answers over HTTP, held against the components and the reference."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from components import SCORE_TOLERANCE, embedder, reranker
from inspecting import running, stages, stored
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from openai_server import ANSWER, serve
from passes import ForwardPasses
from reference import ReferenceEmbedder, ReferenceReranker

from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.evaluate import read_questions
from llamaindex_qwen3.inspector import Inspector, Settings
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.pipeline import open_index
from llamaindex_qwen3.prompts import DEFAULT_TASK

QUESTION = "Where are rows kept?"
OTHER_TASK = "Given a question, retrieve the page on filters"
PAGES = {
    "storage.md": "# Storage\n## Where rows live\nRows are kept in a bucket of object storage.\n"
    "## Metadata\nSchemas are kept in etcd, <b>not</b> in the bucket.\n"
    "## Long\n" + "Binlogs, delta logs and indexes are kept next to one another. " * 30,
    "search.md": "# Search\n## Filters\nA filter keeps the rows that match a condition.\n"
    "## Paging\nAn offset skips the first results of a search.\n",
}
PASSAGES = 5


class Page(NamedTuple):
    """A running inspector and what it works on."""

    url: str
    store: CheckedMilvusVectorStore
    questions: Path


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Iterator[Page]:
    """Run an inspector that has no language model."""
    folder = tmp_path_factory.mktemp("inspector")
    questions = tmp_path_factory.mktemp("judged") / "questions.jsonl"
    model = embedder(embedding_dir)
    with stored(folder, PAGES, model) as store:
        inspector = Inspector(
            model, reranker(reranker_dir), store, settings=Settings(questions=questions)
        )
        with running(inspector) as url:
            yield Page(url, store, questions)


def rank(page: Page | str, instruction: str = DEFAULT_TASK, **options: object) -> dict[str, dict]:
    """Rank the passages of the question."""
    url = page if isinstance(page, str) else page.url
    return stages(url, "rank", question=QUESTION, instruction=instruction, **options)


def test_stages_in_order(page: Page) -> None:
    """Embed, search and rerank, each told when it is done and how long it took."""
    found = rank(page)
    assert list(found) == ["embedded", "found", "reranked"]
    assert all(stage["ms"] > 0 for stage in found.values())


def test_candidates_are_those_of_the_retriever(page: Page, embedding_dir: Path) -> None:
    """Show the passages and scores of a dense search, best first."""
    retriever = open_index(embedder(embedding_dir), page.store).as_retriever(similarity_top_k=3)
    shown = rank(page, candidates=3)["found"]["candidates"]
    expected = retriever.retrieve(QUESTION)
    assert [passage["id"] for passage in shown] == [node.node_id for node in expected]
    for passage, node in zip(shown, expected, strict=True):
        assert passage["score"] == pytest.approx(node.score, abs=1e-5)
        assert passage["text"] == node.node.get_content()
        assert passage["section"] == node.metadata["section"]
        assert passage["section_id"] == node.metadata["section_id"]
        assert passage["file"] == node.metadata["file"]


@pytest.mark.parametrize("instruction", [DEFAULT_TASK, OTHER_TASK])
def test_the_new_order_is_the_rerankers(
    page: Page, reference_reranker: ReferenceReranker, instruction: str
) -> None:
    """Order all candidates by the reference's scores under the instruction given."""
    found = rank(page, instruction)
    read = {passage["id"]: passage["read"] for passage in found["found"]["candidates"]}
    expected = {
        name: reference_reranker.score(QUESTION, text, instruction) for name, text in read.items()
    }
    order = found["reranked"]["order"]
    assert len(order) == PASSAGES
    assert [place["id"] for place in order] == sorted(expected, key=lambda name: -expected[name])
    for place in order:
        assert place["score"] == pytest.approx(expected[place["id"]], abs=SCORE_TOLERANCE)


def test_prompts_and_their_tokens(
    page: Page, reference_embedder: ReferenceEmbedder, reference_reranker: ReferenceReranker
) -> None:
    """Show what the models read, to the letter and to the token."""
    found = rank(page, OTHER_TASK)
    embedded, reranked = found["embedded"], found["reranked"]
    assert embedded["prompt"] == f"Instruct: {OTHER_TASK}\nQuery:{QUESTION}"
    assert embedded["tokens"] == len(reference_embedder.query_ids(QUESTION, OTHER_TASK))
    assert embedded["truncated_tokens"] == 0
    tokens = {place["id"]: place["tokens"] for place in reranked["order"]}
    for passage in found["found"]["candidates"]:
        ids = reference_reranker.ids(QUESTION, passage["read"], OTHER_TASK)
        prompt = reranked["before"] + passage["read"] + reranked["after"]
        assert reference_reranker.tokenizer.markup(prompt) == ids
        assert tokens[passage["id"]] == len(ids)
        assert passage["tokens"] == len(reference_reranker.tokenizer.text(passage["read"]))


def test_truncation_is_shown(page: Page, embedding_dir: Path, reranker_dir: Path) -> None:
    """Say how many tokens of a passage each model did not read."""
    short = Inspector(
        embedder(embedding_dir, max_length=60), reranker(reranker_dir, max_length=160), page.store
    )
    with running(short) as url, pytest.warns(UserWarning, match="cut at their end"):
        found = rank(url)
    passages = {passage["id"]: passage for passage in found["found"]["candidates"]}
    whole = rank(page)
    lengths = {place["id"]: place["tokens"] for place in whole["reranked"]["order"]}
    cut = {place["id"]: place["truncated_tokens"] for place in found["reranked"]["order"]}
    assert cut == {name: max(0, length - 160) for name, length in lengths.items()}
    assert sorted(count > 0 for count in cut.values()).count(True) == 1
    for passage in passages.values():
        # One place of sixty is the end token's.
        assert passage["unembedded_tokens"] == max(0, passage["tokens"] - 59)


def test_hybrid_search(tmp_path: Path, embedding_dir: Path, reranker_dir: Path) -> None:
    """Search by words as well, where the collection was built for it."""
    model = embedder(embedding_dir)
    with (
        stored(tmp_path, PAGES, model, hybrid=True) as store,
        running(Inspector(model, reranker(reranker_dir), store)) as url,
    ):
        assert httpx.get(f"{url}/api/about").json()["hybrid"] is True
        shown = rank(url, candidates=4, mode="hybrid")["found"]["candidates"]
        retriever = open_index(model, store).as_retriever(
            similarity_top_k=4, sparse_top_k=4, hybrid_top_k=4,
            vector_store_query_mode=VectorStoreQueryMode.HYBRID,
        )  # fmt: skip
        expected = retriever.retrieve(QUESTION)
    assert [passage["id"] for passage in shown] == [node.node_id for node in expected]
    scores = [node.score for node in expected]
    assert [passage["score"] for passage in shown] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "hybrid"}, "ingest --hybrid"),
        ({"instruction": " "}, "The instruction is empty"),
        ({"instruction": "Instruct: a\nQuery:"}, "give only the task"),
    ],
)
def test_errors_in_plain_words(page: Page, options: dict[str, str], words: str) -> None:
    """Tell the reader of the page what the library said."""
    assert words in rank(page, **options)["failed"]["message"]


def test_an_unexpected_error_keeps_its_details(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Log what nobody expected, and show its kind alone."""

    def fail(*_: object) -> None:
        raise RuntimeError("a path and a secret")

    monkeypatch.setattr("llamaindex_qwen3.inspector.service.open_index", fail)
    with caplog.at_level(logging.ERROR):
        found = rank(page)
    assert "RuntimeError" in found["failed"]["message"]
    assert "secret" not in json.dumps(found)
    assert "a path and a secret" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"question": " "}, {"question": 3}, {"candidates": 0}, {"candidates": 100000},
        {"mode": "sparse"}, {"unknown": 1},
    ],
)  # fmt: skip
def test_bad_requests(page: Page, change: dict[str, object]) -> None:
    """Refuse what is not asked for in the form that the page uses, and name the field."""
    body = {"question": QUESTION, "instruction": DEFAULT_TASK, **change}
    response = httpx.post(f"{page.url}/api/rank", json=body)
    assert response.status_code == 422
    assert next(iter(change)) in response.json()["message"]


def test_leaving_stops_the_work(
    page: Page, embedding_dir: Path, reranker_dir: Path, passes: ForwardPasses
) -> None:
    """Run no further forward pass for a browser that has gone, as one does that asks anew."""
    judge = reranker(reranker_dir, max_batch_tokens=1)
    held, go = threading.Event(), threading.Event()
    with running(Inspector(embedder(embedding_dir), judge, page.store)) as url:
        rank(url)
        started = passes.count

        def before(number: int) -> None:
            # The first pass of the reranker: the one before embeds the question.
            if number == started + 2:
                held.set()
                assert go.wait(60)

        passes.before = before
        body = {"question": QUESTION, "instruction": OTHER_TASK}
        with httpx.stream("POST", f"{url}/api/rank", json=body, timeout=60) as response:
            assert response.status_code == 200
            assert held.wait(60)
        [job] = judge._loaded()._worker._queue.jobs
        deadline = time.monotonic() + 30
        while not job.future.cancelled() and time.monotonic() < deadline:
            time.sleep(0.01)
        go.set()
    assert passes.count == started + 2


# --- answers --------------------------------------------------------------------------------


def answer(url: str, passages: list[str]) -> dict[str, dict]:
    """Ask for the answer from these passages."""
    return stages(url, "answer", question=QUESTION, passages=passages)


def best(page: Page, kept: int = 2) -> list[str]:
    """Return the ids of the best passages."""
    return [place["id"] for place in rank(page)["reranked"]["order"][:kept]]


def test_the_answer_and_its_prompt(page: Page, embedding_dir: Path, reranker_dir: Path) -> None:
    """Stream what the language model writes, and show exactly what it was sent."""
    model, judge = embedder(embedding_dir), reranker(reranker_dir)
    with serve() as (llm_url, requests):
        inspector = Inspector(model, judge, page.store, chat_model("gpt-4o", llm_url))
        with running(inspector) as url:
            found = answer(url, best(page))
    assert found["piece"]["text"] == "".join(ANSWER)
    assert found["answered"]["ms"] >= found["answered"]["first_ms"] > 0
    [request] = requests
    [call] = found["prompted"]["calls"]
    sent = [(message["role"], message["content"]) for message in request["body"]["messages"]]
    assert [(message["role"], message["text"]) for message in call] == sent
    assert "passage: 1" in sent[1][1]
    assert sent[1][1].index("passage: 1") < sent[1][1].index("passage: 2")


def test_without_a_language_model(page: Page) -> None:
    """Show the prompt, and say what is missing."""
    found = answer(page.url, best(page))
    assert list(found) == ["prompted", "no_llm"]
    assert "OPENAI_API_KEY" in found["no_llm"]["message"]


def test_a_language_model_that_refuses(page: Page, embedding_dir: Path, reranker_dir: Path) -> None:
    """Say that the key was refused, without saying the key."""
    model, judge = embedder(embedding_dir), reranker(reranker_dir)
    with serve() as (llm_url, _):
        llm = chat_model("gpt-4o", llm_url, api_key="wrong", max_retries=0)
        with running(Inspector(model, judge, page.store, llm)) as url:
            found = answer(url, best(page))
            about = httpx.get(f"{url}/api/about").text
    assert "The API key was refused" in found["failed"]["message"]
    assert '"wrong"' not in about
    assert llm_url not in about


def test_a_passage_that_is_gone(page: Page) -> None:
    """Say so when the collection has changed meanwhile."""
    found = answer(page.url, ["no-such-passage"])
    assert "no longer in the collection" in found["failed"]["message"]


# --- judged questions -----------------------------------------------------------------------


def save(page: Page, **judged: str) -> httpx.Response:
    """Save a judged question."""
    return httpx.post(f"{page.url}/api/judged", json=judged)


def test_judged_questions(page: Page) -> None:
    """Append what eval reads, once, and say when there is another answer already."""
    section = "storage.md#where-rows-live"
    page.questions.write_text(
        '{"question": "Чем?", "section": "a.md#b", "language": "ru"}', encoding="utf-8"
    )
    first = save(page, question=QUESTION, section=section, language="en").json()
    assert first == {"file": "questions.jsonl", "questions": 2, "added": True}
    again = save(page, question=f" {QUESTION.upper()} ", section=section, language="en").json()
    assert again == {"file": "questions.jsonl", "questions": 2, "added": False}
    other = save(page, question=QUESTION, section="search.md#filters", language="en")
    assert other.status_code == 400
    assert section in other.json()["message"]
    questions = read_questions(page.questions)
    assert [q.text for q in questions] == ["Чем?", QUESTION]
    assert questions[1].sections == (section,)
    assert questions[1].language == "en"
    lines = page.questions.read_text(encoding="utf-8").splitlines()
    assert list(json.loads(lines[1])) == ["question", "section", "language"]
    assert rank(page)["found"]["judged"] == [section]


def test_a_file_that_is_no_question_file(page: Page) -> None:
    """Name the line that cannot be read, add nothing to it, and rank all the same."""
    page.questions.write_text("{}\n")
    response = save(page, question="Why?", section="a.md#b", language="en")
    assert response.status_code == 400
    assert "line 1" in response.json()["message"]
    assert page.questions.read_text() == "{}\n"
    assert rank(page)["found"]["judged"] == []
    page.questions.unlink()


def test_a_file_that_cannot_be_written(
    page: Page, embedding_dir: Path, reranker_dir: Path, tmp_path: Path
) -> None:
    """Say what to do when there is no such folder."""
    settings = Settings(questions=tmp_path / "nowhere" / "questions.jsonl")
    inspector = Inspector(
        embedder(embedding_dir), reranker(reranker_dir), page.store, settings=settings
    )
    with running(inspector) as url:
        body = {"question": "Why?", "section": "a.md#b", "language": "en"}
        response = httpx.post(f"{url}/api/judged", json=body)
    assert response.status_code == 400
    assert "--questions" in response.json()["message"]


@pytest.mark.parametrize("language", ["", "english!", "e"])
def test_a_language_that_is_none(page: Page, language: str) -> None:
    """Take language tags only."""
    assert save(page, question="Why?", section="a", language=language).status_code == 422
