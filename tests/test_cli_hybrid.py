"""Collections whose words are indexed: how one is made, and that every command notices it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import serve
from shell import Shell, filled_shell

WORDS = ("--models", "pair", "--collection", "words")
# What reciprocal rank fusion gives the first of one list.
FIRST_OF_ONE = 1 / 61


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Iterator[Shell]:
    """Return a folder with a collection of vectors, and one whose words are indexed as well."""
    with filled_shell(tmp_path_factory.mktemp("hybrid"), embedding_dir, reranker_dir) as shell:
        done = shell.run("ingest", "docs", *WORDS, "--hybrid")
        assert done.code == 0, done.err
        yield shell


def passages(shell: Shell, *args: str) -> dict[str, Any]:
    data = json.loads(shell.run("compare", "schemas in etcd", "--json", *args).out)
    return {"search": data["search"], **{row["section"]: row for row in data["passages"]}}


def test_words_are_searched_as_well(shell: Shell) -> None:
    """Put the passage with the words of the question first, whatever a random model thinks."""
    found = passages(shell, *WORDS)
    assert found["search"] == "hybrid"
    assert found["Metadata"]["retrieval_rank"] == 1
    assert found["Metadata"]["retrieval_score"] > FIRST_OF_ONE
    assert found["Filters"]["retrieval_score"] <= FIRST_OF_ONE


def test_by_vector_alone_where_asked(shell: Shell) -> None:
    """Give with --dense what the collection without words gives."""
    by_vector, dense = passages(shell, "--models", "pair"), passages(shell, *WORDS, "--dense")
    assert by_vector == dense
    assert dense["search"] == "dense"


def test_the_table_says_what_was_searched(shell: Shell) -> None:
    """Head the candidates by how they were found."""
    assert "By vector and words" in shell.run("compare", "schemas in etcd", *WORDS).out
    assert "words" not in shell.run("compare", "etcd", *WORDS, "--dense").out


def test_answers_come_from_both(shell: Shell) -> None:
    """Send the passage that words alone find to the language model, from ask and from chat."""
    two = (*WORDS, "--candidates", "2", "--top-n", "2", "--llm", "my-own-model")
    for command in (("ask", "etcd"), ("chat",)):
        for how, is_found in (((), True), (("--dense",), False)):
            with serve() as (url, requests):
                args = (*command, *two, *how, "--llm-base-url", url)
                done = shell.run(*args, stdin="etcd\n")
            assert done.code == 0, done.err
            sent = json.dumps(requests[0]["body"]["messages"])
            assert ("Schemas are kept in etcd" in sent) is is_found, args


def test_a_second_ingest_keeps_up_the_words(shell: Shell) -> None:
    """Index the words of what is added later, with or without the option."""
    (shell.folder / "docs" / "new.md").write_text("# New\n## Compaction\nMerges small segments.\n")
    try:
        done = shell.run("ingest", "docs", *WORDS)
        assert done.code == 0, done.err
        assert "Stored 1 chunk" in done.out
        data = json.loads(shell.run("compare", "compaction", *WORDS, "--json").out)
        best = min(data["passages"], key=lambda row: int(row["retrieval_rank"]))
        assert best["section"] == "Compaction"
    finally:
        (shell.folder / "docs" / "new.md").unlink()
    assert "1 removed" in shell.run("ingest", "docs", *WORDS, "--hybrid").out


def test_words_cannot_be_added_later(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say so before a model is loaded, and build the collection anew where that is asked for."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was made")

    again = ("ingest", "docs", "--models", "pair", "--hybrid")
    with monkeypatch.context() as patch:
        patch.setattr("llamaindex_qwen3.embedding.Qwen3Embedding.__init__", fail)
        done = shell.run(*again)
    assert done.code == 1
    assert "without an index of its words" in done.err
    assert "--overwrite" in done.err
    other = (*again, "--collection", "other")
    assert shell.run(*other[:-3], "--collection", "other").code == 0
    assert shell.run(*other, "--overwrite").code == 0
    assert "not indexed" not in shell.run("info", "--collection", "other").out


def test_other_collections_are_named(shell: Shell) -> None:
    """List what there is to ask where a name is mistyped."""
    done = shell.run("ask", "x", "--models", "pair", "--collection", "wrods")
    assert done.code == 1
    assert "with --collection: " in done.err
    assert "qwen3_docs, words" in done.err
