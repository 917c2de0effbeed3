"""The app of examples/serving, run as its image runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import openai_server
import pytest
from components import candidates, embedder, reranker
from milvus_lite.server_manager import server_manager_instance
from servers.fake_servers import FakeServers, running

from llamaindex_qwen3.errors import ServerAccessError

SERVING = Path(__file__).resolve().parents[1] / "examples" / "serving"
START_SECONDS = 120


@pytest.fixture(scope="module")
def servers() -> Iterator[FakeServers]:
    """Return a process that starts model servers."""
    with running() as process:
        yield process


@pytest.fixture
def app_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the app as a module, with none of its variables set."""
    for name in ("EMBEDDING_URL", "RERANKER_URL", "TOP_N"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("serving_app", SERVING / "app.py")
    module = importlib.util.module_from_spec(spec)
    # Where FastAPI looks for the types of what it is sent.
    monkeypatch.setitem(sys.modules, "serving_app", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        (" , ", None),
        ("http://a:1", "http://a:1"),
        ("http://a:1, http://b:2/v1", ["http://a:1", "http://b:2/v1"]),
    ],
)
def test_the_app_takes_one_address_or_several(
    app_module: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str, expected: object
) -> None:
    """Read addresses with commas between them; none means that the model runs here."""
    monkeypatch.setenv("EMBEDDING_URL", value)
    assert app_module.addresses("EMBEDDING_URL") == expected


@contextmanager
def running_app(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Run the app as its image does, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app:app",
        "--app-dir",
        str(SERVING),
        "--port",
        str(port),
    ]
    log = folder / "app.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_SECONDS * 5):
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail(log.read_text())
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def ask(url: str, question: str) -> list[dict[str, Any]]:
    """Return the lines that the app streams."""
    with httpx.stream("POST", f"{url}/ask", json={"question": question}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.iter_lines()]


def test_the_app_ingests_and_answers(
    tmp_path: Path, servers: FakeServers, embedding_dir: Path, reranker_dir: Path
) -> None:
    """Ingest a folder by served models, then stream sources and an answer."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("segments", "indexes", "replicas"):
        (docs / f"{name}.md").write_text(f"# {name}\n\nWhat there is to say of {name}.\n")
    with openai_server.serve() as (llm_url, requests):
        embedding = servers.start("vllm", embedding_dir, key="secret")
        reranking = servers.start("vllm", reranker_dir, role="reranker", key="secret")
        environment = {
            "EMBEDDING_MODEL": str(embedding_dir),
            "EMBEDDING_URL": embedding.url,
            "RERANKER_MODEL": str(reranker_dir),
            "RERANKER_URL": reranking.url,
            "QWEN3_API_KEY": "secret",
            "MILVUS_ADDRESS": "./milvus.db",
            "MILVUS_COLLECTION": "",
            "LLM_URL": llm_url,
            "TOP_N": "2",
            "RETRY_S": "1",
        }
        done = subprocess.run(
            [sys.executable, str(SERVING / "app.py"), "ingest", str(docs)],
            cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("3 files: 3 chunks added"), done.stdout

        with running_app(environment, tmp_path) as url:
            sources, *pieces, end = ask(url, "Where does Milvus keep segments?")
            assert httpx.post(f"{url}/ask", json={"question": ""}).status_code == 422
            assert httpx.post(f"{url}/ask", json={"question": "x" * 2001}).status_code == 422
            reranking.stop()
            failed = httpx.post(f"{url}/ask", json={"question": "And indexes?"}, timeout=60)

    scores = [source["score"] for source in sources["sources"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert all("What there is to say" in source["text"] for source in sources["sources"])
    assert [piece["text"] for piece in pieces] == openai_server.ANSWER
    assert end == {"done": True}
    prompt = str(requests[-1]["body"]["messages"])
    assert all(source["text"].splitlines()[-1] in prompt for source in sources["sources"])
    # Not with the address of a server inside: that is for the log.
    assert failed.status_code == 503
    assert failed.json() == {"detail": "Search is not available; see the log."}
    assert reranking.url in (tmp_path / "app.log").read_text()


def test_the_app_does_not_start_with_a_wrong_key(
    app_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    servers: FakeServers,
    embedding_dir: Path,
    reranker_dir: Path,
) -> None:
    """Ask each server once before the first question."""
    embedding = servers.start("vllm", embedding_dir, key="secret")
    monkeypatch.setenv("EMBEDDING_MODEL", str(embedding_dir))
    monkeypatch.setenv("EMBEDDING_URL", embedding.url)
    monkeypatch.setenv("RERANKER_MODEL", str(reranker_dir))
    monkeypatch.setenv("QWEN3_API_KEY", "another")
    with pytest.raises(ServerAccessError, match=re.escape(embedding.url)):
        app_module.open_engine()


def test_a_failed_answer_ends_with_an_error(
    app_module: ModuleType, embedding_dir: Path, reranker_dir: Path, tmp_path: Path
) -> None:
    """Tell the caller that the language model failed, and only the log why."""
    nodes = candidates(["Segments are kept in object storage."])
    with openai_server.serve() as (llm_url, _):
        embed_model = embedder(embedding_dir)
        engine = app_module.query_engine(
            embed_model,
            reranker(reranker_dir),
            app_module.milvus_vector_store(embed_model, str(tmp_path / "milvus.db")),
            llm=app_module.chat_model("no-such-model", llm_url),
            streaming=True,
        )
        lines = [json.loads(line) for line in app_module.answer_lines(engine, "Where?", nodes)]
    server_manager_instance.release_all()
    assert lines[0]["sources"][0]["text"] == "Segments are kept in object storage."
    assert lines[1:] == [{"error": "The language model failed; see the log."}]


def test_an_empty_collection_is_no_answer(app_module: ModuleType) -> None:
    """Ask no language model when nothing was found."""
    sources, end = map(json.loads, app_module.answer_lines(None, "Where?", []))
    assert sources == {"sources": []}
    assert end["error"].startswith("Nothing is stored yet")


def test_the_app_refuses_an_unknown_command(
    app_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say how to call it."""
    monkeypatch.setattr(sys, "argv", ["app.py", "ingst", "docs"])
    with pytest.raises(SystemExit, match=r"^usage: python app\.py"):
        app_module.main()
