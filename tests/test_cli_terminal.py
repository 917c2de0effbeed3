"""The command line on a terminal: links, colours, progress and Ctrl-C."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import serve
from shell import Shell, filled_shell

from llamaindex_qwen3 import cli
from llamaindex_qwen3.cli.bars import hidden_bars

ASK = ("ask", "where are rows", "--models", "pair", "--brief")
CHAT = ("chat", "--models", "pair")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?3[0-7]m")


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Iterator[Shell]:
    """Return a folder whose pages are stored in its default database."""
    with filled_shell(tmp_path_factory.mktemp("terminal"), embedding_dir, reranker_dir) as shell:
        yield shell


def test_citations_link_to_their_files(shell: Shell) -> None:
    """Make the number in the answer and the place in the list links to a file that is there."""
    with (
        serve(["In buckets [", "2]."]) as (url, _),
        shell.terminal(*ASK, "--llm-base-url", url) as terminal,
    ):
        assert terminal.wait() == 0
    links = re.findall(r"\x1b\]8;[^;]*;file://([^\x1b]+)\x1b\\(.*?)\x1b\]8;;\x1b\\", terminal.raw)
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", text) for _, text in links]
    assert all(Path(path).is_file() for path, _ in links)
    assert shown[0] == "[2]"
    # Each source once, beside the one in the answer.
    assert len(links) == 4
    assert links[0][0] == links[2][0]


def test_a_terminal_that_reads_no_codes(shell: Shell) -> None:
    """Send no escape sequence at all to one that calls itself dumb."""
    with (
        serve(["In buckets [2]."]) as (url, _),
        shell.terminal(*ASK, "--llm-base-url", url, TERM="dumb") as terminal,
    ):
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.raw
    assert "In buckets [2]." in terminal.text


@pytest.mark.parametrize(
    ("environment", "links"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "linux"}, False),
        ({"TERM": "xterm-256color", "FORCE_HYPERLINK": "0"}, False),
        ({"TERM": "linux", "FORCE_HYPERLINK": "1"}, True),
    ],
)
def test_where_links_are_shown(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], links: bool
) -> None:
    """Leave links out on terminals that would show their code, and where they are not wanted."""
    monkeypatch.setattr(cli.app.out, "_force_terminal", True)
    monkeypatch.delenv("FORCE_HYPERLINK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.app.shows_links() is links


def test_what_takes_time_is_named_in_colour(shell: Shell) -> None:
    """Say what is waited for, and leave nothing of it behind."""
    with shell.terminal("compare", "where are rows", "--models", "pair") as terminal:
        assert terminal.wait() == 0
    assert "Loading pair/embedding" in terminal.text
    assert "Searching and reranking" in terminal.text
    # Each is written over: the cursor is shown again as often as it was hidden.
    assert terminal.raw.count("\x1b[?25l") == terminal.raw.count("\x1b[?25h")
    assert COLOUR.search(terminal.raw)


def test_no_color_is_respected(shell: Shell) -> None:
    """Set no colour when NO_COLOR is set."""
    with shell.terminal("compare", "where are rows", "--models", "pair", NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
    assert not COLOUR.search(terminal.raw)


def test_interrupting_an_answer(shell: Shell) -> None:
    """Exit with 130 and a word when Ctrl-C comes in mid-answer, with what was written shown."""
    hold = threading.Event()
    with (
        serve(["In buckets", " and more"], hold) as (url, _),
        shell.terminal(*ASK, "--llm-base-url", url) as terminal,
    ):
        terminal.until("In buckets")
        terminal.interrupt()
        assert terminal.wait() == 130
        hold.set()
    assert "Interrupted." in terminal.text
    assert "and more" not in terminal.text


def test_chat_on_a_terminal(shell: Shell) -> None:
    """Ask for questions, answer with sources, and end with Ctrl-D."""
    with serve(["In buckets [1]."]) as (url, requests):
        with shell.terminal(*CHAT, "--llm-base-url", url) as terminal:
            terminal.until("> ")
            terminal.type("where are rows\r")
            terminal.until("Sources")
            terminal.until("\n> ", times=2)
            terminal.type("/help\r")
            terminal.until("/quit", times=2)
            terminal.type("\x04")
            assert terminal.wait() == 0
        assert len(requests) == 1
    assert "In buckets [1]." in terminal.text


def test_chat_goes_on_after_an_interrupted_answer(shell: Shell) -> None:
    """Stop the answer at Ctrl-C, keep what was read of it, and take the next question."""
    hold = threading.Event()
    with serve(["In buckets", " and more"], hold) as (url, requests):
        with shell.terminal(*CHAT, "--llm-base-url", url) as terminal:
            terminal.until("> ")
            terminal.type("where are rows\r")
            terminal.until("In buckets")
            terminal.interrupt()
            terminal.until("Stopped.")
            hold.set()
            terminal.until("\n> ", times=2)
            terminal.type("and schemas?\r")
            terminal.until("and more")
            terminal.until("\n> ", times=3)
            # Where a question is asked for, the same key ends the conversation.
            terminal.interrupt()
            assert terminal.wait() == 130
        told = [message["content"] for message in requests[-1]["body"]["messages"]]
    # The question and the part of the answer that was read, then the next question.
    assert told[1:] == ["where are rows", "In buckets", "and schemas?"]


def test_a_stopped_answer_as_json(shell: Shell) -> None:
    """Print what was read of an answer that Ctrl-C stops, and say that it was stopped."""
    hold = threading.Event()
    with (
        serve(["In buckets [1]", " and more"], hold) as (url, _),
        shell.terminal(*CHAT, "--llm-base-url", url, "--json") as terminal,
    ):
        terminal.until("> ")
        terminal.type("where are rows\r")
        terminal.until("waiting for the answer")
        terminal.interrupt()
        terminal.until("Stopped.", times=2)
        hold.set()
        terminal.until("\n> ", times=2)
        terminal.type("/quit\r")
        assert terminal.wait() == 0
    [line] = [line for line in terminal.text.splitlines() if line.startswith("{")]
    turn = json.loads(line)
    assert turn["question"] == "where are rows"
    assert turn["error"] == "Stopped."
    assert turn["answer"] in (None, "In buckets [1]")


def test_no_bars_of_others(shell: Shell) -> None:
    """Show no bar of transformers where a hub's model is loaded, on a terminal or in a pipe."""
    cached = shell.folder / "hub" / "models--Qwen--Qwen3-Embedding-0.6B"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(shell.folder / "pair" / "embedding")
    settings = {"HF_HUB_CACHE": str(shell.folder / "hub"), "HF_HUB_OFFLINE": "1"}
    args = ("ingest", "docs", "--models", "0.6b", "--collection", "hub")
    with shell.terminal(*args, **settings) as terminal:
        assert terminal.wait() == 0
    assert "Loading Qwen/Qwen3-Embedding-0.6B" in terminal.text
    assert "Loading weights" not in terminal.text
    assert shell.process(*args, **settings).err == ""


def test_bars_are_left_as_they_were() -> None:
    """Hide the bars of transformers and of the hub while a model is loaded, and no longer."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (True, False)
    with hidden_bars():
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (False, True)
    with hidden_bars(downloads=True):
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (False, False)
    assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (True, False)
