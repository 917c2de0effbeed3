"""The command line: what it prints, for people and as JSON, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai_server import ANSWER, serve
from servers.fake_servers import FakeServer
from shell import COMMAND, OTHER_DATABASE, SETTINGS, Shell, filled_shell

from llamaindex_qwen3.cli.stored import Stored
from llamaindex_qwen3.errors import InvalidArgumentError
from llamaindex_qwen3.models import model_pair


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Iterator[Shell]:
    """Return a folder whose pages are stored in its default database."""
    with filled_shell(tmp_path_factory.mktemp("cli"), embedding_dir, reranker_dir) as shell:
        yield shell


@pytest.fixture
def serve_model(request: pytest.FixtureRequest) -> Callable[..., FakeServer]:
    """Return a function that starts a model server; its usual name is that of another one here."""
    start: Callable[..., FakeServer] = request.getfixturevalue("serve")
    return start


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
    """Print JSON alone, which other tests look into."""
    questions = shell.folder / "questions.jsonl"
    rows = [
        {"question": "where are rows kept", "section": "storage.md#where-rows-live"},
        {"question": "how do I skip results", "section": "search.md#paging", "language": "en"},
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    done = shell.run("eval", "questions.jsonl", "--models", "pair", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("ask", "x", "--models", "pair", "--uri", "new.db"), "qwen3-rag ingest"),
        (("ask", "x", "--models", "pair", "--collection", "empty"), "is empty"),
    ],
)
def test_failures_are_told_in_a_line(shell: Shell, args: tuple[str, ...], told: str) -> None:
    """Exit with 1 and say what to do."""
    done = shell.run(*args)
    assert done.code == 1
    assert told in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("ingest", "nowhere", "--models", "pair"), "no file or folder 'nowhere'"),
        (("ingest", "pair", "--models", "pair"), "nothing to read"),
        (("ingest", "docs", "--models", "docs"), "folders embedding and reranker"),
        (("ask", "x", "--models", "docs"), "folders embedding and reranker"),
        (("verify", "--models", "docs"), "folders embedding and reranker"),
        (("eval", "q.jsonl", "--models", "docs"), "folders embedding and reranker"),
        (("eval", "missing.jsonl", "--models", "pair"), "'missing.jsonl': No such file"),
        (("ingest", "docs", "--models", "pair", "--uri", "plain"), "ends in .db"),
        (("info", "--uri", "plain"), "ends in .db"),
        (("ingest", "docs", "--models", "pair", "--uri", "gone/x.db"), "does not exist"),
        (("info", "--collection", "a b"), "letters, digits"),
        (("ask", "", "--models", "pair"), "question is empty"),
        (("compare", " \n", "--models", "pair"), "question is empty"),
        (("ask", "x", "--models", "pair", "--candidates", "16385"), "16384"),
        (("eval", "q.jsonl", "--models", "pair", "--candidates", "10,16385"), "16,384"),
        (("eval", "q.jsonl", "--plots", "docs/search.md"), "is a file. Give a folder"),
        (("eval", "q.jsonl", "--metric", "map"), "Give one of recall@1"),
        (("ingest", "nowhere", "--models", "pair"), "or give the whole path"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_loaded(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], told: str
) -> None:
    """Exit with 2 and say what is allowed, with no model made."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr("llamaindex_qwen3.embedding.Qwen3Embedding.__init__", fail)
    monkeypatch.setattr("llamaindex_qwen3.reranker.Qwen3Reranker.__init__", fail)
    done = shell.run(*args)
    assert done.code == 2
    assert told in " ".join(done.err.replace("│", " ").split())


def test_other_models_are_told_before_they_are_loaded(shell: Shell) -> None:
    """Name the models that the collection was built with, without reaching for the hub."""
    row = {"question": "where are rows kept", "section": "storage.md#where-rows-live"}
    (shell.folder / "one.jsonl").write_text(json.dumps(row))
    with serve() as (url, _):
        for args in (
            ("ingest", "docs"), ("ingest", "docs", "--hybrid"), ("ask", "rows"), ("compare", "rows"), ("chat", "--llm-base-url", url),
            ("serve", "--no-browser"), ("eval", "one.jsonl"),
        ):  # fmt: skip
            done = shell.run(*args, HF_HUB_OFFLINE="1")
            assert done.code == 1, args
            assert "was built with 'pair/embedding'" in done.err, args
            assert "Add --models pair," in done.err, args


@pytest.mark.parametrize(
    ("built_with", "told"),
    [
        ("Qwen/Qwen3-Embedding-4B", "Add --models 4b,"),
        (str(Path(model_pair("demo").embedding).resolve()), "Add --models demo,"),
        ("/gone/embedding", "or take another --collection"),
    ],
)
def test_the_models_to_add_are_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, built_with: str, told: str
) -> None:
    """Give the name that stands for the pair, where there is one."""
    found = Stored({"model": "other", "name": built_with}, has_words=False)
    monkeypatch.setattr("llamaindex_qwen3.cli.session.look", lambda *_: found)
    done = shell.run("compare", "rows", "--models", "pair")
    assert done.code == 1
    assert told in done.err


def test_ask_briefly_without_a_key(shell: Shell) -> None:
    """Show the passages alone."""
    done = shell.run("ask", "where are rows", "--models", "pair", "--brief")
    assert done.code == 0, done.err
    assert "By embedding" not in done.out
    assert "[1]" in done.out


def test_files_that_need_more_packages_are_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say what was skipped and what reads it, also where nothing else is there to read."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "markdownify" else found(name)
    )
    for folder in ("mixed", "web"):
        (shell.folder / folder).mkdir()
        (shell.folder / folder / "page.html").write_text("<h1>Title</h1><p>A page.</p>")
    (shell.folder / "mixed" / "page.md").write_text("# Rows\nRows have a place.\n")
    args = ("ingest", "mixed", "--models", "pair", "--collection", "mixed")
    done = shell.run(*args)
    assert done.code == 0, done.err
    assert "Stored 1 chunk of 1 file in mixed" in done.out
    assert done.err == "Skipped 1 .html file: pip install 'llamaindex-qwen3[files]'\n"
    assert json.loads(shell.run(*args, "--json").out)["skipped"] == {".html": 1}
    done = shell.run("ingest", "web", "--models", "pair")
    assert done.code == 2
    assert "read .html: pip install 'llamaindex-qwen3[files]'" in done.err


def test_flags_take_no_value(shell: Shell) -> None:
    """Show no type behind a flag in the help of any command."""
    for args in ((), ("ask",), ("ingest",), ("eval",)):
        assert "bool" not in shell.run(*args, "--help").out.lower(), args


def test_the_demo_pair_is_named_as_such(shell: Shell) -> None:
    """Say that demo models are demo models, and how to use the real ones."""
    shutil.copytree(shell.folder / "pair", shell.folder / "demo_models", dirs_exist_ok=True)
    done = shell.run("compare", "rows", "--models", "demo_models")
    assert "Demo models" in done.err
    assert "--models 0.6b" in done.err
    assert "Demo models" not in shell.run("compare", "rows", "--models", "pair").err


def test_a_mistake_in_a_process_of_its_own(shell: Shell) -> None:
    """Exit with 2, with one line and no traceback, outside the tests as well."""
    done = shell.process("ingest", "nowhere", "--models", "pair")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: There is no file or folder 'nowhere'")


def test_help_names_every_command(shell: Shell) -> None:
    """List the commands."""
    done = shell.process("--help")
    assert done.code == 0
    listed = re.findall(r"^│ (\w+) ", done.out, re.M)
    assert listed == ["ingest", "ask", "chat", "compare", "serve", "info", "eval", "verify"]
    assert "Exit codes: 0 done; 1" in done.out
    assert "130" in done.out


@pytest.mark.parametrize(
    "command", ["ingest", "ask", "chat", "compare", "serve", "info", "eval", "verify"]
)
def test_help_has_an_example(shell: Shell, command: str) -> None:
    """Show how each command is called."""
    done = shell.run(command, "--help")
    assert done.code == 0
    assert f"Example: qwen3-rag {command}" in done.out
    assert "--debug" in done.out
    # Words for people, which leave the descriptions more room than Python's types.
    assert not re.search(r"<(str|int|path|list)", done.out)


def test_wrong_usage_is_told_apart(shell: Shell) -> None:
    """Exit with 2 for a call that could not be right whatever is stored."""
    for args in (("ask",), ("ask", "x", "--no-such-option"), ("ask", "x", "--top-n", "0"), ("x",)):
        assert shell.run(*args).code == 2, args


def test_debug_shows_where_it_failed(shell: Shell) -> None:
    """Raise the error itself with --debug, or with the variable that stands for it."""
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        shell.run("ingest", "nowhere", "--models", "pair", "--debug")
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        shell.run("ingest", "nowhere", "--models", "pair", QWEN3_RAG_DEBUG="1")


def test_an_unexpected_error_is_a_line_as_well(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name its kind, and how to see where it came from."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("llamaindex_qwen3.readers.find_files", fail)
    done = shell.run("ingest", "docs", "--models", "pair")
    assert done.code == 1
    assert "ZeroDivisionError: by zero" in done.err
    assert "--debug" in done.err


def test_ask_cites_file_and_section(shell: Shell) -> None:
    """List what the numbers in the answer stand for, and mark those that it names."""
    with serve(["In buckets [", "2], surely", " [9]."]) as (url, requests):
        done = shell.run(
            "ask", "where are rows", "--models", "pair", "--llm-base-url", url, "--brief"
        )
    assert done.code == 0, done.err
    answer, _, sources = done.out.partition("Sources")
    assert answer.strip() == "In buckets [2], surely [9]."
    lines = [line for line in sources.splitlines() if line.strip()]
    assert [line[:5] for line in lines] == ["  [1]", "• [2]", "  [3]"]
    for line in lines:
        place = line.split()[-1]
        path, _, number = place.partition(":")
        header = (shell.folder / path).read_text().splitlines()[int(number) - 1]
        assert header.removeprefix("## ") in line
    prompt = requests[0]["body"]["messages"]
    assert "[1]" in prompt[0]["content"]
    assert re.findall(r"^passage: (\d)$", prompt[1]["content"], re.M) == ["1", "2", "3"]


def test_ask_as_json(shell: Shell) -> None:
    """Give the answer, and each passage with its place, its scores and whether it is cited."""
    with serve(["In buckets [2]."]) as (url, _):
        done = shell.run("ask", "where are rows", "--models", "pair", "--json", OPENAI_BASE_URL=url)
    data = json.loads(done.out)
    assert data["answer"] == "In buckets [2]."
    assert [row["number"] for row in data["passages"]] == [1, 2, 3]
    assert [row["cited"] for row in data["passages"]] == [False, True, False]
    assert all(Path(row["path"]).is_file() for row in data["passages"])
    scores = [row["score"] for row in data["passages"]]
    assert scores == sorted(scores, reverse=True)
    alone = json.loads(shell.run("ask", "where are rows", "--models", "pair", "--json").out)
    assert alone["answer"] is None
    assert [row["id"] for row in alone["passages"]] == [row["id"] for row in data["passages"]]


def test_compare_as_json(shell: Shell) -> None:
    """Give every passage's place before, so that its move can be computed."""
    done = shell.run("compare", "where are rows", "--models", "pair", "--json")
    rows = json.loads(done.out)["passages"]
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert sorted(row["retrieval_rank"] for row in rows) == [1, 2, 3, 4]
    by_embedding = sorted(rows, key=lambda row: -row["retrieval_score"])
    assert [row["retrieval_rank"] for row in by_embedding] == [1, 2, 3, 4]


def test_models_on_servers(
    shell: Shell, serve_model: Callable[..., FakeServer], embedding_dir: Path, reranker_dir: Path
) -> None:
    """Ask a collection that was built here through servers, with the same ranking."""
    local = json.loads(shell.run("compare", "where are rows", "--models", "pair", "--json").out)
    first, second = (serve_model("vllm", embedding_dir) for _ in range(2))
    scorer = serve_model("vllm", reranker_dir, role="reranker")
    options = (
        "compare", "where are rows", "--models", "pair", "--json",
        "--embedding-url", f"{first.url},{second.url}",
    )  # fmt: skip
    done = shell.run(*options, QWEN3_RAG_RERANKER_URL=scorer.url)
    assert done.code == 0, done.err
    served = json.loads(done.out)
    assert [row["id"] for row in served["passages"]] == [row["id"] for row in local["passages"]]
    for here, there in zip(local["passages"], served["passages"], strict=True):
        assert there["score"] == pytest.approx(here["score"], abs=1e-4)
    assert scorer.counts()["posts"] > 0
    assert first.counts()["posts"] + second.counts()["posts"] > 0


def test_servers_that_cannot_be_used(shell: Shell) -> None:
    """Say in a line which server is not there, and that Ray and a server exclude each other."""
    url = ("--embedding-url", "http://127.0.0.1:9")
    done = shell.run("compare", "rows", "--models", "pair", *url)
    assert done.code == 1
    assert "127.0.0.1:9" in done.err
    assert len(done.err.strip().splitlines()) == 1
    done = shell.run("ingest", "docs", "--models", "pair", "--ray", "local", *url)
    assert done.code == 1
    assert "--ray" in done.err


def test_ingest_as_json(shell: Shell) -> None:
    """Give what was done as numbers."""
    done = shell.run("ingest", "docs", "--models", "pair", "--json")
    data = json.loads(done.out)
    assert (data["files"], data["added"], data["unchanged"], data["stopped"]) == (2, 0, 4, False)


def test_a_narrow_terminal_shows_the_reranked_alone(shell: Shell) -> None:
    """Keep titles whole at 60 columns, and no line longer."""
    done = shell.run("compare", "where are rows", "--models", "pair", COLUMNS="60")
    assert "By embedding" not in done.out
    assert done.out.count("Where rows live") == 1
    assert max(map(len, done.out.splitlines())) <= 60


def test_a_database_that_is_open_elsewhere(shell: Shell) -> None:
    """Say so in one line, although Milvus Lite logs a traceback of it."""
    shell.run("compare", "where are rows", "--models", "pair")  # leaves it open in this process
    done = shell.process(
        "compare", "where are rows", "--models", "pair", "--uri", "./milvus_qwen3.db"
    )
    assert done.code == 1
    assert done.err.startswith("Error: ")
    assert "another process has it open" in done.err
    assert len(done.err.splitlines()) == 1


def test_nothing_is_coloured_in_a_pipe(shell: Shell) -> None:
    """Print no escape sequence where no terminal reads it, even without NO_COLOR."""
    done = shell.process("compare", "where are rows", "--models", "pair", NO_COLOR="")
    assert "\x1b" not in done.out + done.err


def test_a_reader_that_goes_away(shell: Shell) -> None:
    """End quietly when the reader of a pipe has seen enough."""
    command = shlex.join([*COMMAND, "compare", "where are rows", "--models", "pair"])
    for option in ("", " --json"):
        done = subprocess.run(
            f"{command}{option} | head -n 1",
            shell=True,
            cwd=shell.folder,
            capture_output=True,
            text=True,
            env={**os.environ, **SETTINGS, **OTHER_DATABASE},
        )
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


def test_completion_of_names(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete model names and directories that hold a pair, and collections of a database."""
    from typer import Context
    from typer.main import get_command

    from llamaindex_qwen3.cli import app, options

    monkeypatch.chdir(shell.folder)
    assert options._model_names("0") == ["0.6b"]
    assert options._model_names("p") == ["pair"]
    assert options._model_names("./") == []
    context = Context(get_command(app.app))
    context.params = {"uri": "./milvus_qwen3.db"}
    assert options._collection_names(context, "qwen") == ["qwen3_docs"]
    assert options._collection_names(context, "x") == []
