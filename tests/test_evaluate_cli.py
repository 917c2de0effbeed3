"""qwen3-rag eval: one setting, many, plots, and questions that a model writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from checkpoints import Shape
from components import embedder
from conftest import Factory
from milvus_lite.server_manager import server_manager_instance
from openai_server import ANSWER, serve
from typer.testing import CliRunner

from llamaindex_qwen3 import cli, milvus_vector_store
from llamaindex_qwen3.cli.eval_options import METRICS
from llamaindex_qwen3.evaluation.metrics import NAMES
from llamaindex_qwen3.pipeline import ingest

PAGES = {
    "storage.md": "# Storage\n## Where rows live\nRows are kept in a bucket of object storage.\n"
    "## Metadata\nSchemas are kept in etcd, and not in the bucket with the rows.\n",
    "search.md": "# Search\n## Filters\nA filter keeps the rows that match a condition.\n"
    "## Paging\nAn offset skips the first results of a search, up to a limit.\n",
}
QUESTIONS = [
    {"question": "where are rows kept", "section": "storage.md#where-rows-live", "language": "en"},
    {"question": "skip results", "section": "search.md#paging", "language": "en", "level": 1},
    {
        "question": "조건과 버킷",
        "section": ["search.md#filters", "storage.md#metadata"],
        "language": "ko",
    },
    {"question": "an offset", "text": "skips the first results", "language": "en"},
]


class Result(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.out)


class Evaluation(NamedTuple):
    """A folder with two pairs of tiny models, a database and questions."""

    folder: Path

    def run(self, *args: str, width: int = 120, **environment: str) -> Result:
        """Run qwen3-rag eval in this folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in {"OPENAI_API_KEY": "", "NO_COLOR": "1", **environment}.items():
                patch.setenv(name, value)
            for name in ("OPENAI_BASE_URL", "QWEN3_RAG_URI"):
                patch.delenv(name, raising=False)
            for console in (cli.app.out, cli.app.err):
                patch.setattr(console, "width", width)
            done = CliRunner().invoke(cli.app.app, ["eval", *args])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def evaluation(
    tmp_path_factory: pytest.TempPathFactory,
    embedding_dir: Path,
    reranker_dir: Path,
    make_embedding: Factory,
) -> Iterator[Evaluation]:
    folder = tmp_path_factory.mktemp("eval")
    shutil.copytree(embedding_dir, folder / "pair" / "embedding")
    shutil.copytree(make_embedding(shape=Shape(seed=3)), folder / "other" / "embedding")
    for pair in ("pair", "other"):
        shutil.copytree(reranker_dir, folder / pair / "reranker")
    (folder / "docs").mkdir()
    for name, text in PAGES.items():
        (folder / "docs" / name).write_text(text)
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    uri = str(folder / "milvus_qwen3.db")
    model = embedder(folder / "pair" / "embedding")
    ingest([folder / "docs"], model, milvus_vector_store(model, uri))
    yield Evaluation(folder)
    server_manager_instance.release_all()


def test_one_setting(evaluation: Evaluation) -> None:
    """Show every figure before and after reranking, the time of each stage, and languages."""
    done = evaluation.run("q.jsonl", "--models", "pair", "--by", "level")
    assert done.code == 0, done.err
    for part in ("4 questions", *METRICS[:3], "MRR@10", "nDCG@10", "95th percentile", "rerank",
                 "By language", "ko", "By level", "not stated"):  # fmt: skip
        assert part in done.out, part


def test_as_json(evaluation: Evaluation) -> None:
    """Print the same as JSON and nothing else, with everything found among four sections."""
    done = evaluation.run("q.jsonl", "--models", "pair", "--json")
    [setting] = done.json["settings"]
    assert (setting["models"], setting["candidates"], setting["search"]) == ("pair", 10, "dense")
    assert setting["searched"] == "collection"
    assert setting["before"]["recall@10"]["mean"] == setting["after"]["recall@10"]["mean"] == 1
    assert set(setting["by"]["language"]) == {"en", "ko"}
    assert set(setting["latency_ms"]) == {"embed", "search", "rerank", "total"}
    assert done.json["questions"]["count"] == 4


def test_settings_are_compared(evaluation: Evaluation) -> None:
    """Try each with each, models that the collection was not built with among them."""
    done = evaluation.run(
        "q.jsonl", "--models", "pair", "--models", "other", "--dimensions", "full,32",
        "--candidates", "3,2,3", "--task", "Find the answer", "--task", "Find the page", "--hybrid",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    settings = done.json["settings"]
    keys = ("models", "dimensions", "candidates", "search", "task")
    assert len({tuple(each[key] for key in keys) for each in settings}) == len(settings) == 32
    assert {each["dimensions"] for each in settings} == {32, 64}
    assert {each["candidates"] for each in settings} == {2, 3}
    itself = [each for each in settings if each["searched"] == "collection"]
    assert {(e["models"], e["dimensions"], e["search"]) for e in itself} == {("pair", 64, "dense")}


def test_the_table_fits(evaluation: Evaluation) -> None:
    """Show a row a setting, with intervals where there is room."""
    args = ("q.jsonl", "--models", "pair", "--dimensions", "all", "--metric", "MRR@10")
    wide, narrow = evaluation.run(*args), evaluation.run(*args, width=60)
    assert "4 questions: MRR@10" in wide.out
    assert "[" in wide.out.split("reference")[0]
    assert max(map(len, narrow.out.splitlines())) <= 60


def test_plots_are_written(evaluation: Evaluation) -> None:
    """Write the three plots, the table and the JSON, comparing what was not chosen by itself."""
    done = evaluation.run("q.jsonl", "--models", "pair", "--plots", "new/plots", "--language", "en")
    assert done.code == 0, done.err
    folder = evaluation.folder / "new" / "plots"
    names = {
        f"{plot}.{kind}"
        for plot in ("dimensions", "candidates", "ranks")
        for kind in ("png", "svg")
    }
    assert {path.name for path in folder.iterdir()} == {*names, "results.json", "results.txt"}
    assert all(f"Wrote new/plots/{name}" in done.out for name in names)
    data = json.loads((folder / "results.json").read_text())
    assert {each["candidates"] for each in data["settings"]} == {5, 10, 20}
    assert {each["dimensions"] for each in data["settings"]} == {32, 64}
    assert data["questions"]["count"] == 3
    assert "3 questions: nDCG@10" in (folder / "results.txt").read_text()


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("q.jsonl", "--candidates", "0"),
        ("q.jsonl", "--candidates", "ten"),
        ("q.jsonl", "--dimensions", "32,wide"),
        ("q.jsonl", "--metric", "precision"),
        ("q.jsonl", "--models", "pair", "--models", "other", "--base-url", "http://127.0.0.1:9"),
        ("--generate", "3"),
        ("--generate", "0", "--out", "new.jsonl"),
        ("q.jsonl", "--generate", "3", "--out", "new.jsonl"),
    ],
)
def test_wrong_usage(evaluation: Evaluation, args: tuple[str, ...]) -> None:
    """Exit with 2 before anything is loaded or written."""
    assert evaluation.run(*args).code == 2
    assert not (evaluation.folder / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("q.jsonl", "--models", "other"), "was built with"),
        (("q.jsonl", "--models", "pair", "--dimensions", "128"), "outside 32 to 64"),
        (("q.jsonl", "--models", "pair", "--collection", "none"), "qwen3-rag ingest"),
        (("elsewhere.jsonl", "--models", "pair"), "None of the sections"),
    ],
)
def test_failures_are_one_line(evaluation: Evaluation, args: tuple[str, ...], told: str) -> None:
    """Exit with 1 and say what to do."""
    row = {"question": "q", "section": "gone.md#away"}
    (evaluation.folder / "elsewhere.jsonl").write_text(json.dumps(row))
    done = evaluation.run(*args)
    assert done.code == 1
    assert told in done.err


def test_sections_that_are_not_stored_are_named(evaluation: Evaluation) -> None:
    """Warn of them, and count them as not found."""
    rows = [*QUESTIONS[:1], {"question": "q", "section": "gone.md#away"}]
    (evaluation.folder / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = evaluation.run("some.jsonl", "--models", "pair", "--json")
    assert "gone.md#away" in done.err
    assert done.json["questions"]["not_in_collection"] == ["gone.md#away"]
    assert done.json["settings"][0]["after"]["recall@10"]["mean"] == 0.5


def test_a_model_writes_questions(evaluation: Evaluation) -> None:
    """Have questions written and checked, go on with the file, and measure by it."""
    with serve() as (url, requests):
        args = ("--out", "made.jsonl", "--llm", "own", "--llm-base-url", url, "--language", "en")
        done = evaluation.run("--generate", "1", *args)
        assert done.code == 0, done.err
        assert "made.jsonl has 1 question on 4 passages, 1 of them new" in done.out
        [row] = map(json.loads, (evaluation.folder / "made.jsonl").read_text().splitlines())
        assert (row["question"], row["language"]) == ("".join(ANSWER), "en")
        assert row["section"] in {"storage.md#where-rows-live", "storage.md#metadata",
                                  "search.md#filters", "search.md#paging"}  # fmt: skip
        # This server says the same each time, which is no second question.
        more = evaluation.run("--generate", "2", *args, "--json")
    assert more.code == 1
    assert more.json["questions"] == 1
    assert "it was asked before" in more.json["rejected"]
    assert "The same command tries again" in more.err
    assert all("stream" in request["body"] for request in requests)
    assert evaluation.run("made.jsonl", "--models", "pair").code == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# Questions\n", "line 1 is not JSON. Each line"),
        ("[1]\n", "line 1 is no JSON object. Each line"),
        ("{}\n", "line 1 has no 'question'. Each line"),
        (json.dumps(QUESTIONS[0]), "it has en"),
    ],
)
def test_files_of_no_questions(evaluation: Evaluation, text: str, told: str) -> None:
    """Exit with 2 and say what a line should be, in plain words."""
    (evaluation.folder / "bad.jsonl").write_text(text)
    done = evaluation.run("bad.jsonl", "--models", "pair", "--language", "fr")
    assert done.code == 2
    assert told in done.err
    (evaluation.folder / "bad.jsonl").write_bytes(b"\xff\xfe")
    assert "is not text in UTF-8" in evaluation.run("bad.jsonl", "--models", "pair").err


def test_plots_without_matplotlib(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the extra before the questions are read."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = evaluation.run("missing.jsonl", "--models", "pair", "--plots", "none")
    assert done.code == 1
    assert "llamaindex-qwen3[plots]" in done.err


def test_the_table_is_shown_if_plots_fail(evaluation: Evaluation) -> None:
    """Lose no figures to a folder that cannot be written to."""
    (evaluation.folder / "taken").write_text("")
    done = evaluation.run(
        "q.jsonl", "--models", "pair", "--plots", "taken/plots", "--dimensions", "full",
        "--candidates", "3",
    )  # fmt: skip
    assert done.code == 1
    assert "4 questions" in done.out
    assert "Cannot write plots" in done.err


def test_no_key_is_one_line(evaluation: Evaluation) -> None:
    """Say that a key is missing before the collection is opened, and write nothing."""
    done = evaluation.run("--generate", "1", "--out", "none.jsonl", "--collection", "none")
    assert done.code == 1
    assert "OPENAI_API_KEY" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (evaluation.folder / "none.jsonl").exists()


def test_metrics_are_those_of_the_library() -> None:
    """Offer what is measured."""
    assert METRICS == NAMES


def test_progress_is_for_terminals(evaluation: Evaluation, tmp_path: Path) -> None:
    """Print no bar into a pipe, and no warning of a library."""
    shutil.copytree(evaluation.folder / "pair", tmp_path / "pair")
    shutil.copy(evaluation.folder / "q.jsonl", tmp_path)
    uri, model = str(tmp_path / "own.db"), embedder(tmp_path / "pair" / "embedding")
    ingest([evaluation.folder / "docs"], model, milvus_vector_store(model, uri))
    # Milvus Lite serves one process at a time.
    server_manager_instance.release_server(uri)
    done = subprocess.run(
        [sys.executable, "-m", "llamaindex_qwen3.cli", "eval", "q.jsonl", "--models", "pair",
         "--uri", "own.db", "--dimensions", "all", "--json"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["settings"]) == 2
