"""Conversations from a pipe: what is sent to the language model, and how failures are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import serve
from shell import Shell, filled_shell

CHAT = ("chat", "--models", "pair", "--llm", "my-own-model")


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Iterator[Shell]:
    """Return a folder whose pages are stored in its default database."""
    with filled_shell(tmp_path_factory.mktemp("chat"), embedding_dir, reranker_dir) as shell:
        yield shell


def test_a_follow_up_is_made_to_stand_alone(shell: Shell) -> None:
    """Have a question after the first rewritten from the conversation, and retrieve by that."""
    with serve(["paging [1]"]) as (url, requests):
        done = shell.run(*CHAT, "--llm-base-url", url, stdin="where are rows\nand before?\n")
    assert done.code == 0, done.err
    first, condense, second = (request["body"] for request in requests)
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert "passage: 1" in first["messages"][0]["content"]
    asked = condense["messages"][-1]["content"]
    assert "where are rows" in asked
    assert "and before?" in asked
    contents = [message["content"] for message in second["messages"]]
    assert contents[1:] == ["where are rows", "paging [1]", "and before?"]


def test_questions_answers_and_sources_are_shown(shell: Shell) -> None:
    """Show each question as it was read, its answer, and the sources that it names."""
    with serve(["In buckets [2]."]) as (url, _):
        done = shell.run(*CHAT, "--llm-base-url", url, "--top-n", "2", stdin="\nwhere are rows\n")
    lines = [line for line in done.out.splitlines() if line.strip()]
    assert lines[0] == "> where are rows"
    assert lines[1] == "In buckets [2]."
    assert lines[2] == "Sources"
    assert [line[:5] for line in lines[3:]] == ["  [1]", "• [2]"]


def test_clear_forgets(shell: Shell) -> None:
    """Send nothing of what came before /clear, and nothing at all after /quit."""
    questions = "where are rows\n/clear\nand schemas?\n/quit\nnot asked\n"
    with serve() as (url, requests):
        done = shell.run(*CHAT, "--llm-base-url", url, stdin=questions)
    assert done.code == 0, done.err
    last = requests[-1]["body"]["messages"]
    assert [message["content"] for message in last[1:]] == ["and schemas?"]
    assert len(requests) == 2


def test_a_failed_question_is_told_and_forgotten(shell: Shell) -> None:
    """Say what failed in one line, take the next question, and exit with 1 in the end."""
    with serve() as (url, requests):
        done = shell.run(*CHAT, "--llm-base-url", url, stdin="one\ntwo\n", OPENAI_API_KEY="wrong")
    assert done.code == 1
    assert done.err.count("key was refused") == 2
    # The first question is in none of the later requests.
    assert len(requests) == 2
    assert "one" not in [message["content"] for message in requests[1]["body"]["messages"]]


def test_without_a_language_model(shell: Shell) -> None:
    """Say what is needed before anything is loaded."""
    done = shell.run("chat", "--models", "no-such-models")
    assert done.code == 1
    assert "OPENAI_API_KEY" in done.err
    assert "qwen3-rag ask" in done.err


def test_in_a_process_of_its_own(shell: Shell) -> None:
    """Work from a pipe with no terminal anywhere, and leave standard error empty."""
    with serve(["In {braces} and [brackets] [1]."]) as (url, _):
        done = shell.process(*CHAT, "--llm-base-url", url, stdin="where are {context_str}\nand?\n")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.out.count("In {braces} and [brackets] [1].") == 2


def test_turns_as_json(shell: Shell) -> None:
    """Print each turn as one line of JSON and nothing else, blank lines and commands none."""
    questions = "where are rows\n\n/clear\nand schemas?\n"
    with serve(["In buckets [", "2]."]) as (url, _):
        done = shell.run(*CHAT, "--llm-base-url", url, "--json", "--top-n", "2", stdin=questions)
    assert done.code == 0, done.err
    turns = [json.loads(line) for line in done.out.splitlines()]
    assert [turn["question"] for turn in turns] == ["where are rows", "and schemas?"]
    for turn in turns:
        assert turn["answer"] == "In buckets [2]."
        assert turn["llm"] == "my-own-model"
        assert turn["error"] is None
        assert [row["number"] for row in turn["passages"]] == [1, 2]
        assert [row["cited"] for row in turn["passages"]] == [False, True]
        for row in turn["passages"]:
            line = Path(row["path"]).read_text().splitlines()[row["line"] - 1]
            assert line.removeprefix("## ") == row["section"]
            assert row["section"] in row["text"]


def test_a_failed_turn_as_json(shell: Shell) -> None:
    """Give a failed question a line as well, so that lines match questions; exit code 1."""
    options = ("--llm-base-url", "http://127.0.0.1:9/v1", "--json")
    done = shell.process(*CHAT, *options, stdin="one\n")
    assert done.code == 1
    [turn] = map(json.loads, done.out.splitlines())
    assert turn["question"] == "one"
    assert turn["answer"] is None
    assert [row["cited"] for row in turn["passages"]] == [False] * 3
    assert "Cannot reach 127.0.0.1" in turn["error"]
    assert turn["error"] in done.err
