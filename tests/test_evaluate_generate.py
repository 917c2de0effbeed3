"""Questions written by a language model: what is refused, kept, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from components import embedder
from llama_index.core.llms import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    CustomLLM,
    LLMMetadata,
)
from milvus_lite.server_manager import server_manager_instance
from openai_server import ANSWER, serve

from llamaindex_qwen3 import milvus_vector_store
from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.errors import GenerationError, InvalidArgumentError
from llamaindex_qwen3.evaluation.corpus import Collection
from llamaindex_qwen3.evaluation.generate import (
    Passage,
    generate_questions,
    objection,
    read_passages,
)
from llamaindex_qwen3.evaluation.questions import read_questions
from llamaindex_qwen3.pipeline import ingest

PASSAGES = [
    Passage(f"a.md#s{i}", f"## S{i}\nShelf number {i} holds the books on subject {i}, in order.")
    for i in range(6)
]


class Writer(CustomLLM):
    """A language model that answers by a function of the conversation so far."""

    answer: Callable[[list[str]], str]
    asked: list[list[str]]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="writer")

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        told = [message.content or "" for message in messages]
        self.asked.append(told)
        text = self.answer(told)
        for end in (len(text) // 2, len(text)):
            start = 0 if end < len(text) else len(text) // 2
            delta = text[start:end]
            yield ChatResponse(message=ChatMessage(content=text[:end]), delta=delta)

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not asked for")

    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not asked for")


def about(told: list[str]) -> str:
    """Ask about the number of the shelf, another thing in each turn."""
    number = told[1].split("Shelf number ")[1].split()[0]
    return f"What would one find on shelf {number} in turn {told[1].count('?')}?"


def writer(answer: Callable[[list[str]], str] = about) -> Writer:
    return Writer(answer=answer, asked=[])


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("How large may a segment grow?", "A segment holds 512 MB."),
        ("What does IVF_FLAT cost in memory?", "IVF_FLAT keeps all vectors."),
        ("How do I delete a document by its id?", "delete() removes entities."),
        ("How long may the text of a VARCHAR be?", "A VARCHAR holds 65,535 bytes."),
        ("IVF_FLAT 인덱스는 언제 쓰나요?", "IVF_FLAT 인덱스는 메모리가 충분할 때 쓴다."),
        ("IVF_FLAT 索引适合什么场景？", "数据量不大时使用 IVF_FLAT 索引。"),
        ("この文字列の上限は?", "文字列は65535バイトまでです。"),
        ("Как очистить сегмент?", "Сегменты очищает сборщик."),
    ],
)
def test_good_questions_pass(question: str, passage: str) -> None:
    """Let through what a person could ask, terms of the trade and all."""
    assert objection(question, passage) is None


ENGLISH = "A segment is closed at 512 MB."


@pytest.mark.parametrize(
    ("question", "passage", "reason"),
    [
        ("", ENGLISH, "empty"),
        ("?!", ENGLISH, "empty"),
        ("Why " * 100, ENGLISH, "longer than 300"),
        ("When is a  SEGMENT closed", ENGLISH, "asked before"),
        ("A segment is closed", ENGLISH, "repeats the passage"),
        ("What does this passage say of segments?", ENGLISH, "this passage"),
        ("According to the text, when is a segment closed?", ENGLISH, "According to the"),
        ("When does the document say segments close?", ENGLISH, "the document say"),
        ("Which sizes are mentioned above?", ENGLISH, "mentioned above"),
        ("Apa yang dijelaskan teks ini?", "Segmen ditutup pada 512 MB.", "teks ini"),
        ("О чём говорится в этом тексте?", "Сегмент закрывается.", "этом текст"),
        ("本文讲了什么？", "段在512MB时关闭。", "本文"),
        ("この文章は何を述べていますか?", "セグメントは閉じられます。", "この文章"),
        ("이 글은 무엇을 말하나요?", "세그먼트는 닫힌다.", "이 글"),
        ("When is it closed?", "Сегмент закрывается при 512 МБ.", "language"),
        ("段什么时候关闭？", ENGLISH, "language"),
        ("セグメントはいつ閉じますか?", "段在512MB时关闭。", "language"),
        ("세그먼트는 언제 닫히나요?", "セグメントは閉じられます。", "language"),
    ],
)
def test_bad_questions_are_refused(question: str, passage: str, reason: str) -> None:
    """Refuse what is empty, known, copied, in another script, or speaks of the passage."""
    assert reason in (objection(question, passage, {"when is a segment closed"}) or "")


def test_questions_are_written_and_read(tmp_path: Path) -> None:
    """Write one question a passage, each for its section, in a file that eval reads."""
    path = tmp_path / "q.jsonl"
    seen: list[tuple[int, int]] = []
    done = generate_questions(PASSAGES, writer(), path, 4, "en", lambda *args: seen.append(args))
    assert (done.kept, done.written) == (0, 4)
    assert seen == [(i, 4) for i in range(5)]
    questions = read_questions(path, "en")
    assert len({question.sections for question in questions}) == 4
    for question in questions:
        assert f"shelf {question.sections[0].removeprefix('a.md#s')} " in question.text
    assert [q.metadata["id"] for q in questions] == ["g0001", "g0002", "g0003", "g0004"]
    assert questions[0].metadata["generated_by"] == "writer"


def test_more_questions_than_passages(tmp_path: Path) -> None:
    """Ask again about passages, and tell the model what was asked."""
    path, llm = tmp_path / "q.jsonl", writer()
    assert generate_questions(PASSAGES[:2], llm, path, 6).written == 6
    assert "Ask for something else than: What would one find on shelf" in llm.asked[-1][1]
    assert len({question.text for question in read_questions(path)}) == 6
    # Three of each are enough.
    assert generate_questions(PASSAGES[:2], llm, path, 7).written == 0


def test_a_refused_question_is_written_anew(tmp_path: Path) -> None:
    """Tell the model what was wrong, up to three times, and then leave the passage out."""

    def answer(told: list[str]) -> str:
        tries = sum("Not this one" in each for each in told)
        if "Shelf number 0" in told[1] or tries == 0:
            return "What does this passage say?"
        return "<think>Not\nthat.</think>\n\nQuestion: **" + about(told) + "**"

    path, llm = tmp_path / "q.jsonl", writer(answer)
    done = generate_questions(PASSAGES, llm, path, 6)
    texts = [question.text for question in read_questions(path)]
    assert all(text.startswith("What would one") and text.endswith("?") for text in texts)
    assert "'this passage'" in llm.asked[1][-1]
    assert [reason for reason in done.rejected if "this passage" in reason]
    assert all("#s0" not in q.sections[0] for q in read_questions(path))
    assert max(len(told) for told in llm.asked) == 2 + 2 * 2


def test_a_model_that_cannot_is_given_up(tmp_path: Path) -> None:
    """Stop after many passages without a question, instead of asking about all of them."""
    many = [Passage(f"a.md#s{i}", f"{i} is the number of shelf {i}.") for i in range(200)]
    llm = writer(lambda told: "")
    done = generate_questions(many, llm, tmp_path / "q.jsonl", 100)
    assert (done.written, len(llm.asked)) == (0, 60)


@pytest.mark.parametrize("broken", ["", '{"id": "g0004", "question": "What wou'])
def test_a_broken_run_goes_on(tmp_path: Path, broken: str) -> None:
    """Keep what was written, drop a half-written line, and ask no passage twice."""
    path, whole = tmp_path / "q.jsonl", tmp_path / "whole.jsonl"

    def fail(told: list[str]) -> str:
        if path.exists() and path.read_text().count("\n") == 3:
            raise KeyboardInterrupt
        return about(told)

    with pytest.raises(KeyboardInterrupt):
        generate_questions(PASSAGES, writer(fail), path, 6)
    with path.open("a") as file:
        file.write(broken)
    llm = writer()
    done = generate_questions(PASSAGES, llm, path, 6)
    assert (done.kept, done.written, len(llm.asked)) == (3, 3, 3)
    generate_questions(PASSAGES, writer(), whole, 6)
    assert path.read_text() == whole.read_text()


def test_a_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    """Go on after a file that an editor left without a last line feed."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "mine?", "section": "a.md#s1"}')
    assert generate_questions(PASSAGES, writer(), path, 3).kept == 1
    assert read_questions(path)[0].text == "mine?"
    assert len(read_questions(path)) == 3


def test_files_of_another_kind_are_left_alone(tmp_path: Path) -> None:
    """Refuse a file that holds something else, and a folder that is not there."""
    path = tmp_path / "notes.md"
    for text in ("# Notes\nnot lost\n", "# Notes\nnot lost", "one line"):
        path.write_text(text)
        with pytest.raises(InvalidArgumentError, match="line 1"):
            generate_questions(PASSAGES, writer(), path, 3)
        assert path.read_text() == text
    with pytest.raises(InvalidArgumentError, match="Cannot write"):
        generate_questions(PASSAGES, writer(), tmp_path / "gone" / "q.jsonl", 3)


def test_passages_of_a_collection(embedding_dir: Path, tmp_path: Path) -> None:
    """Read each section once, by its longest chunk, without those too short to ask about."""
    (tmp_path / "docs").mkdir()
    long = "A sentence of several words stands here. " * 200
    (tmp_path / "docs" / "a.md").write_text(
        f"## Long\n{long}\n## Short\nNo.\n## 한국어\n"
        + "세그먼트는 오백 메가바이트에서 닫힌다. " * 3
    )
    model, uri = embedder(embedding_dir), str(tmp_path / "g.db")
    ingest([tmp_path / "docs"], model, milvus_vector_store(model, uri, "c"))
    passages = read_passages(Collection.find(uri, "c"))
    assert [passage.section for passage in passages] == ["a.md#long", "a.md#한국어"]
    llm = writer(lambda told: "세그먼트는 언제?" if "한국어" in told[1] else "When does it stand?")
    generate_questions(passages, llm, tmp_path / "q.jsonl", 2, "en")
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert {row["section"]: row["language"] for row in rows} == {
        "a.md#long": "en",
        "a.md#한국어": "ko",
    }
    server_manager_instance.release_server(uri)


def test_a_real_server_is_asked(tmp_path: Path) -> None:
    """Speak OpenAI's protocol, and tell of a key that is refused in plain words."""
    path = tmp_path / "q.jsonl"
    with serve() as (url, requests):
        done = generate_questions(PASSAGES[:1], chat_model("own", url), path, 1)
        assert done.written == 1
        assert read_questions(path)[0].text == "".join(ANSWER)
        assert "<passage>\n## S0" in requests[0]["body"]["messages"][-1]["content"]
        with pytest.raises(GenerationError, match="key was refused"):
            generate_questions(PASSAGES, chat_model("own", url, api_key="wrong"), path, 2)
    assert len(read_questions(path)) == 1
