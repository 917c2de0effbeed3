"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from milvus_lite.server_manager import server_manager_instance
from openai_server import ANSWER, serve
from typer.testing import CliRunner

from llamaindex_qwen3 import cli

PAGES = {
    "storage.md": "# Storage\n## Where rows live\nRows are kept in a bucket of object storage.\n"
    "## Metadata\nSchemas are kept in etcd [not in the bucket].\n",
    "search.md": "# Search\n## Filters\nA filter keeps the rows that match a condition.\n"
    "## Paging\nAn offset skips the first results of a search.\n",
}


SETTINGS = {
    "OPENAI_API_KEY": "",
    "QWEN3_RAG_URI": "./milvus_qwen3.db",
    "COLUMNS": "120",
    "NO_COLOR": "1",
}


class Result(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


class Shell(NamedTuple):
    """A folder with pages, a pair of tiny models and, when ingested, a database."""

    folder: Path

    def process(self, *args: str, **environment: str) -> Result:
        """Run a command in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "llamaindex_qwen3.cli", *args],
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **SETTINGS, **environment},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def run(self, *args: str, **environment: str) -> Result:
        """Run a command in this process, which saves the start of one."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in {**SETTINGS, **environment}.items():
                patch.setenv(name, value)
            # The consoles looked at the terminal when they were made.
            for console in (cli.app.out, cli.app.err):
                patch.setattr(console, "width", 120)
            done = CliRunner().invoke(cli.app.app, args)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Iterator[Shell]:
    """Return a folder whose pages are stored in its default database."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(embedding_dir, folder / "pair" / "embedding")
    shutil.copytree(reranker_dir, folder / "pair" / "reranker")
    (folder / "docs").mkdir()
    for name, text in PAGES.items():
        (folder / "docs" / name).write_text(text)
    shell = Shell(folder)
    done = shell.process("ingest", "docs", "--models", "pair")
    assert done.code == 0, done.err
    assert "Stored 4 chunks of 2 files" in done.out
    # Before this process opens the database, other processes ask it.
    done = shell.process("ask", "where are rows", "--models", "pair")
    assert done.code == 0, done.err
    assert "OPENAI_API_KEY" in done.out
    yield shell
    server_manager_instance.release_all()


def test_a_second_ingest_adds_nothing(shell: Shell) -> None:
    """Leave what is stored as it is."""
    done = shell.run("ingest", "docs", "--models", "pair")
    assert done.code == 0
    assert "Stored 0 chunks" in done.out
    assert "4 unchanged" in done.out


def test_compare_shows_both_rankings(shell: Shell) -> None:
    """Show every candidate once on each side, with scores and consistent moves."""
    done = shell.run("compare", "where are rows", "--models", "pair")
    assert done.code == 0, done.err
    for section in ("Where rows live", "Metadata", "Filters", "Paging"):
        assert done.out.count(section) == 2
    moves = [int(m.replace("↑", "").replace("↓", "-")) for m in re.findall(r"[↑↓]\d+", done.out)]
    # What some passages gain, others lose.
    assert sum(moves) == 0
    probabilities = [float(p) for p in re.findall(r"\b[01]\.\d{5}\b", done.out)]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(probabilities) == 4


def test_ask_without_a_key_shows_the_passages(shell: Shell) -> None:
    """Show the ranked passages and how to get an answer; that is no failure."""
    done = shell.run("ask", "where are rows", "--models", "pair", "--top-n", "2")
    assert done.code == 0, done.err
    assert "OPENAI_API_KEY" in done.out
    assert "[1]" in done.out
    assert "[2]" in done.out
    assert "[3]" not in done.out


def test_ask_streams_an_answer(shell: Shell) -> None:
    """Send the best passages in the prompt, and print the answer as it is, brackets and all."""
    with serve() as (url, requests):
        done = shell.run(
            "ask", "where are rows", "--models", "pair", "--llm", "my-own-model",
            "--llm-base-url", url,
        )  # fmt: skip
    assert done.code == 0, done.err
    assert "".join(ANSWER) in done.out
    [request] = requests
    assert request["path"] == "/v1/chat/completions"
    assert request["body"]["stream"] is True
    prompt = request["body"]["messages"][-1]["content"]
    assert "<question>\nwhere are rows\n</question>" in prompt
    assert prompt.count("<context>") == 1
    system = request["body"]["messages"][0]
    assert system["role"] == "system"


@pytest.mark.parametrize(
    ("key", "model", "told"),
    [("wrong", "gpt-4o", "key was refused"), ("right", "no-such-model", "no-such-model")],
)
def test_a_refused_request_is_one_line(shell: Shell, key: str, model: str, told: str) -> None:
    """Show the passages, then say what was wrong; exit code 1."""
    with serve() as (url, _):
        done = shell.run(
            "ask", "where are rows", "--models", "pair", "--llm", model, "--llm-base-url", url,
            OPENAI_API_KEY=key,
        )  # fmt: skip
    assert done.code == 1
    assert "[1]" in done.out
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_no_network_is_one_line(shell: Shell) -> None:
    """Name the host that cannot be reached; exit code 1 with the passages shown."""
    done = shell.run(
        "ask", "where are rows", "--models", "pair", "--llm-base-url", "http://127.0.0.1:9/v1"
    )
    assert done.code == 1
    assert "[1]" in done.out
    assert "Cannot reach 127.0.0.1" in done.err


def test_eval_prints_figures(shell: Shell) -> None:
    """Print the same figures as a table and as JSON."""
    questions = shell.folder / "questions.jsonl"
    rows = [
        {"question": "where are rows kept", "section": "storage.md#where-rows-live"},
        {"question": "how do I skip results", "section": "search.md#paging", "language": "en"},
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    done = shell.run("eval", "questions.jsonl", "--models", "pair", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    # Four sections and ten candidates: everything is found.
    assert figures["before"]["recall"]["10"] == figures["after"]["recall"]["10"] == 1.0
    assert 0 < figures["after"]["mrr"] <= 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("ingest", "nowhere", "--models", "pair"), "no file or folder 'nowhere'"),
        (("ingest", "pair", "--models", "pair"), "nothing to read"),
        (("ingest", "docs", "--models", "docs"), "folders embedding and reranker"),
        (("ask", "x", "--models", "pair", "--uri", "new.db"), "qwen3-rag ingest"),
        (("ask", "x", "--models", "pair", "--collection", "empty"), "is empty"),
        (("eval", "missing.jsonl", "--models", "pair"), "missing.jsonl"),
        (("ingest", "docs", "--models", "pair", "--uri", "plain"), "ends in .db"),
    ],
)
def test_mistakes_are_told_in_a_line(shell: Shell, args: tuple[str, ...], told: str) -> None:
    """Exit with 1 and say what to do."""
    done = shell.run(*args)
    assert done.code == 1
    assert told in done.err.replace("\n", " ")


def test_the_demo_pair_is_named_as_such(shell: Shell) -> None:
    """Say that demo models are demo models, and how to use the real ones."""
    shutil.copytree(shell.folder / "pair", shell.folder / "demo_models", dirs_exist_ok=True)
    done = shell.run("compare", "rows", "--models", "demo_models")
    assert "Demo models" in done.err
    assert "--models 0.6b" in done.err
    assert "Demo models" not in shell.run("compare", "rows", "--models", "pair").err


def test_a_mistake_in_a_process_of_its_own(shell: Shell) -> None:
    """Exit with 1, with one line and no traceback, outside the tests as well."""
    done = shell.process("ingest", "nowhere", "--models", "pair")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: There is no file or folder 'nowhere'")


def test_help_names_every_command(shell: Shell) -> None:
    """List the commands."""
    done = shell.process("--help")
    assert done.code == 0
    for command in ("ingest", "ask", "compare", "eval"):
        assert command in done.out
