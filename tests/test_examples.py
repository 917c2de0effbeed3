"""Every example does what it says, run as its reader runs it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import nbformat
import openai_server
import pytest
from servers.fake_servers import FakeServer

from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ANSWER = "".join(openai_server.ANSWER)
SCORED = r"^\s+(\d\.\d+)\s+(.*)$"

# What their reader may have set, for other models or other servers than the tests'.
SETTINGS = ("OPENAI_", "QWEN3_", "RAY_", "PORT")


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment without settings of the examples, and with these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    return {**kept, "HF_HUB_OFFLINE": "1", **settings}


def run(name: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run an example in an empty folder."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )


def scored(text: str) -> list[tuple[float, str]]:
    """Return the lines that are a score and what has it."""
    return [(float(score), rest) for score, rest in re.findall(SCORED, text, re.M)]


def best(text: str) -> str:
    """Return what has the first score, having asserted that none is higher."""
    lines = scored(text)
    assert lines, text
    assert lines == sorted(lines, key=lambda line: -line[0])
    return lines[0][1]


# --- what each one shows ------------------------------------------------------------------------


def quickstart(shown: str) -> None:
    """Three sections, the best first, and an answer."""
    ranking, _, answer = shown.partition("\n\n")
    assert best(re.sub("^", " ", ranking, flags=re.M)) == "## Choosing a log backend"
    assert len(ranking.splitlines()) == 3
    assert answer.strip() == ANSWER


def existing_app(shown: str) -> None:
    """Another passage comes first once the reranker is there."""
    before, after = re.split(r"by embedding|after reranking", shown)[1:]
    rows = [re.findall(r"^  \d  (0\.\d+)  (\S+)", part, re.M) for part in (before, after)]
    assert [len(part) for part in rows] == [3, 3]
    assert [part[0][1] for part in rows] == ["flush.md", "storage.md"]
    for part in rows:
        assert part == sorted(part, key=lambda row: -float(row[0]))


def custom_task(shown: str) -> None:
    """Three tasks, and under each the same five texts with other scores."""
    assert "hardly reads another" in shown
    blocks = re.split(r"\n\n", shown)[1:]
    assert ["Given a" in block for block in blocks] == [True] * 3
    scores = [dict(re.findall(r"^ +0\.\d+ +(0\.\d+)  (.*)$", b, re.M)[::-1]) for b in blocks]
    texts = [re.findall(r"^ +0\.\d+ +0\.\d+  (.*)$", block, re.M) for block in blocks]
    assert [len(part) for part in texts] == [5, 5, 5]
    assert sorted(texts[0]) == sorted(texts[1]) == sorted(texts[2])
    assert len({tuple(sorted(part)) for part in scores}) == 3


def dimensions(shown: str) -> None:
    """A row for each length, that costs in proportion and finds more when longer."""
    assert "60 questions on 74 sections; vectors of 256 values" in shown
    rows = re.findall(r"^ +(\d+) +(\d+)  (\d\.\d\d) / (\d\.\d\d)$", shown, re.M)
    assert [int(row[0]) for row in rows] == [32, 64, 128, 256]
    assert [int(row[1]) for row in rows] == [128, 256, 512, 1024]
    assert float(rows[-1][2]) > float(rows[0][2])
    assert float(rows[-1][3]) > float(rows[0][3])


def hybrid_search(shown: str) -> None:
    """The section with the exact term rises to the first place."""
    parts = shown.split("\n\n")
    assert [part.splitlines()[0] for part in parts] == [
        "What is dataCoord.segment.sealProportion for?", "by vectors", "by vectors, reranked",
        "by vectors and words", "by vectors and words, reranked",
    ]  # fmt: skip
    assert "Automatic sealing rules" not in parts[1]
    assert best(parts[3]) == best(parts[4]) == "Automatic sealing rules"


def multilingual(shown: str) -> None:
    """Six languages, and a word on what the demo pair cannot read."""
    assert "reads English only" in shown
    found = dict(re.findall(r"^(\w+) +(\d+) of 10 +\d+ of 10 ", shown, re.M))
    assert set(found) == {"English", "Korean", "Japanese", "Russian", "Chinese", "Indonesian"}
    assert int(found.pop("English")) >= 8
    assert max(map(int, found.values())) < 8


def async_batch(shown: str) -> None:
    """All questions, the same both ways."""
    assert "60 questions" in shown
    assert "same sections: True" in shown
    assert re.search(r"without Pulsar or Kafka\? -> Choosing a log backend", shown)


def fine_tuned(shown: str) -> None:
    """Training has changed what is found, and the collection of the base model refuses it."""
    before, after = (int(n) for n in re.findall(r"(\d+) of the 30 trained on", shown))
    assert after > before
    assert "was built with model" in shown
    assert "cannot be compared" in shown


def observability(shown: str) -> None:
    """Spans with the events of embedding, retrieval and reranking, the whole query last."""
    spans = re.findall(r"^ +\d+\.\d ms  (\S+) +(.*)$", shown, re.M)
    events = {name: found for name, found in spans if found}
    assert events["Qwen3Embedding.get_query_embedding"] == "EmbeddingStartEvent, EmbeddingEndEvent"
    assert events["VectorIndexRetriever.retrieve"] == "RetrievalStartEvent, RetrievalEndEvent"
    assert events["Qwen3Reranker._postprocess_nodes"] == "ReRankStartEvent, ReRankEndEvent"
    assert spans[-1] == ("RetrieverQueryEngine.query", "QueryStartEvent, QueryEndEvent")


def chat_engine(shown: str) -> None:
    """Two turns: each with an answer and three sources, the second rewritten."""
    turns = shown.split("\n> ")[1:]
    assert len(turns) == 2
    for turn in turns:
        assert f"\n{ANSWER}\n" in turn
        assert len(scored(turn)) == 3
        best(turn)
    assert best(turns[0]).startswith("Choosing a log backend (storage.md)")
    # The scripted model rewrites a question as it answers one.
    assert f"Condensed question: {ANSWER}" in turns[1]


def agent_tool(shown: str) -> None:
    """A call of the tool, what it read, and the answer."""
    assert "called milvus_documentation('Can I run Milvus without Pulsar or Kafka?')" in shown
    assert len(scored(shown)) == 3
    assert best(shown).startswith("Choosing a log backend (storage.md)")
    assert shown.rstrip().endswith(f"\n\n{ANSWER}")


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        quickstart, existing_app, custom_task, dimensions, hybrid_search, multilingual,
        async_batch, fine_tuned, observability, chat_engine, agent_tool,
    )
}  # fmt: skip
WITH_TESTS_OF_THEIR_OWN = {"fastapi_streaming", "vllm_serving", "ray_ingest", "tutorial"}


def test_no_example_is_forgotten() -> None:
    """Run each file below, and name it in the table."""
    files = {path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert {path.stem for path in files} == {*CHECKS, *WITH_TESTS_OF_THEIR_OWN}
    table = re.findall(r"^\| \[(.*?)\]\((.*?)\) \|", (EXAMPLES / "README.md").read_text(), re.M)
    assert sorted(table) == sorted((path.name, path.name) for path in files)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Start the examples that were chosen, as many at once as there are cores."""
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.originalname == "test_example"
    ]
    with (
        openai_server.serve() as (url, _),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        settings = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url, "OMP_NUM_THREADS": "1"}
        yield {
            name: pool.submit(run, name, tmp_path_factory.mktemp(name), **settings)
            for name in chosen
        }


@pytest.mark.parametrize("name", CHECKS)
def test_example(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    """Show what it is for, with nothing to worry about beside it."""
    done = runs[name].result()
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    CHECKS[name](done.stdout)


@pytest.mark.parametrize("name", ["chat_engine", "agent_tool", "vllm_serving"])
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    """Fail in one line that says what to set, before any model is loaded."""
    done = run(name, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert ("QWEN3_RAG_RERANKER_URL" if name == "vllm_serving" else "OPENAI_API_KEY") in line


def test_unknown_models(tmp_path: Path) -> None:
    """Take other models by the one setting that all examples share."""
    for path in EXAMPLES.glob("*.py"):
        assert 'model_pair(os.environ.get("QWEN3_MODELS", "demo"))' in path.read_text(), path.name
    done = run("dimensions", tmp_path, QWEN3_MODELS="no-such-models")
    assert done.returncode == 1
    assert "Unknown models 'no-such-models': use demo, 0.6b, 4b, 8b" in done.stderr


# --- those that need something beside them --------------------------------------------------------


def test_fastapi_streaming(tmp_path: Path) -> None:
    """Serve ranked passages and a streamed answer until it is interrupted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(EXAMPLES / "fastapi_streaming.py")]
    with openai_server.serve() as (url, asked):
        settings = {"PORT": str(port), "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url}
        service = subprocess.Popen(
            command, cwd=tmp_path, env=environment(**settings),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_until_open(port, service)
            query = {"q": "Can I run Milvus without Pulsar or Kafka?"}
            found = httpx.get(f"{address}/search", params=query, timeout=60).json()
            assert asked == []
            assert [list(hit) for hit in found] == [["score", "section", "text"]] * 3
            assert found[0]["section"] == "storage.md#choosing-a-log-backend"
            with httpx.stream("GET", f"{address}/ask", params=query, timeout=60) as answer:
                assert answer.headers["transfer-encoding"] == "chunked"
                assert "".join(answer.iter_text()) == ANSWER
            (request,) = asked
            assert found[0]["text"] in request["body"]["messages"][-1]["content"]
            service.send_signal(signal.SIGINT)
            out, errors = service.communicate(timeout=60)
        finally:
            service.kill()
            service.communicate()
    assert f"curl -NG 127.0.0.1:{port}/ask" in out
    assert "Traceback" not in errors


def wait_until_open(port: int, service: subprocess.Popen[str]) -> None:
    """Wait until a service takes connections."""
    for _ in range(1200):
        assert service.poll() is None, service.communicate()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the service does not start")


def test_vllm_serving(serve: Callable[..., FakeServer], tmp_path: Path) -> None:
    """Give with servers what the same models give in this process."""
    from components import embedder, reranker
    from llama_index.core import VectorStoreIndex

    pair = model_pair("demo")
    embedding_server = serve("vllm", Path(pair.embedding).resolve())
    reranker_server = serve("vllm", Path(pair.reranker).resolve(), role="reranker")
    done = run(
        "vllm_serving",
        tmp_path,
        QWEN3_RAG_EMBEDDING_URL=embedding_server.url,
        QWEN3_RAG_RERANKER_URL=reranker_server.url,
    )
    assert done.returncode == 0, done.stderr
    sections = split_sections(read_documents([EXAMPLES / "data" / "milvus_faq"]))
    index = VectorStoreIndex(sections, embed_model=embedder(Path(pair.embedding)))
    question = "Can I run Milvus without Pulsar or Kafka?"
    found = index.as_retriever(similarity_top_k=10).retrieve(question)
    expected = reranker(Path(pair.reranker)).postprocess_nodes(found, query_str=question)
    shown = scored(done.stdout)
    assert [title for _, title in shown] == [
        f"{node.metadata['section']} ({node.metadata['file']})" for node in expected
    ]
    assert [score for score, _ in shown] == pytest.approx([n.score for n in expected], abs=1e-3)


@pytest.mark.ray
def test_ray_ingest(tmp_path: Path) -> None:
    """Embed all chunks once."""
    pytest.importorskip("ray", reason="Ray is not installed")
    done = run("ray_ingest", tmp_path, RAY_AUTH_TOKEN=secrets.token_hex(16))
    assert done.returncode == 0, done.stderr
    assert "first run: 12 files, 74 chunks embedded on Ray, 0 unchanged" in done.stdout
    assert "second run: 12 files, 0 chunks embedded on Ray, 74 unchanged" in done.stdout
    assert best(done.stdout) == "Metadata kept in etcd"


# --- the notebook -------------------------------------------------------------------------------

NUMBER = r"\d+\.\d+"


@pytest.fixture(scope="module")
def stored() -> Any:
    """Return the notebook as it is in the repository."""
    return nbformat.read(EXAMPLES / "tutorial.ipynb", as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the notebook as a process of its own has executed it, with a model that answers."""
    folder = tmp_path_factory.mktemp("notebook")
    own = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_CONFIG_DIR": str(folder / "jupyter")}
    (folder / "data").symlink_to(EXAMPLES / "data")
    (folder / "tutorial.ipynb").symlink_to(EXAMPLES / "tutorial.ipynb")
    jupyter_execute = Path(sys.executable).with_name("jupyter-execute")
    with openai_server.serve() as (url, _):
        done = subprocess.run(
            [str(jupyter_execute), "--output=out", "tutorial.ipynb"],
            cwd=folder,
            env=environment(OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=url, **own),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return nbformat.read(folder / "out.ipynb", as_version=4)


def printed(notebook: Any) -> list[str]:
    """Return what each cell of code prints."""
    return [
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_shows_what_it_gives(stored: Any, executed: Any) -> None:
    """Store what a run prints, but for the answer, which needs a key."""
    before, after = printed(stored), printed(executed)
    (answered,) = [i for i, text in enumerate(after) if text == ANSWER]
    assert before[answered].rstrip().endswith("Set OPENAI_API_KEY to have it answered.")
    assert "<question>" in before[answered]
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if i != answered:
            assert re.sub(NUMBER, "#", new) == re.sub(NUMBER, "#", old)
            numbers = [[float(n) for n in re.findall(NUMBER, text)] for text in (old, new)]
            assert numbers[1] == pytest.approx(numbers[0], abs=2e-3)


def test_the_notebook_follows_the_tutorial(stored: Any) -> None:
    """Split, embed, store, retrieve ten, rerank, keep three, compare and answer, in this order."""
    headers = re.findall(
        r"^## \d\. (.*)$", "\n".join(c.source for c in stored.cells if c.cell_type == "markdown"),
        re.M,
    )  # fmt: skip
    assert headers == [
        "The data", "The embedding model", "The reranker", "Milvus", "Retrieve ten, rerank, keep three",
        "What reranking changed", "The answer", "Measure it on your own data",
    ]  # fmt: skip
    output = printed(stored)
    assert "74 rows stored" in "".join(output)
    candidates = next(text for text in output if text.startswith("by embedding"))
    assert len(candidates.splitlines()) == 11


def test_the_notebook_is_clean(stored: Any) -> None:
    """Hold every cell run once in order, without errors, and no path of a machine."""
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert {output.output_type for cell in code for output in cell.outputs} == {"stream"}
    assert {output.name for cell in code for output in cell.outputs} == {"stdout"}
    outputs = json.dumps([cell.outputs for cell in code])
    assert not re.search(r"/(home|root|tmp|work|usr|Users|opt)/", outputs)
    assert all(cell.metadata == {} for cell in stored.cells)
