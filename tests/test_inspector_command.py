"""qwen3-rag serve as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from components import embedder
from inspecting import stages, stored

from llamaindex_qwen3.inspector import listen

PAGES = {"storage.md": "# Storage\n## Rows\nRows are kept in a bucket.\n## Logs\nA log.\n"}
COMMAND = [sys.executable, "-m", "llamaindex_qwen3.cli", "serve", "--models", "pair"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Path:
    """Return a folder with a pair of models and a database that nobody has open."""
    folder = tmp_path_factory.mktemp("serve")
    shutil.copytree(embedding_dir, folder / "pair" / "embedding")
    shutil.copytree(reranker_dir, folder / "pair" / "reranker")
    with stored(folder, PAGES, embedder(folder / "pair" / "embedding")):
        pass
    return folder


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of the command."""
    plain = {"OPENAI_API_KEY": "", "QWEN3_RAG_URI": "pages.db", "COLUMNS": "200", "NO_COLOR": "1"}
    return {**os.environ, **plain, **changes}


@contextmanager
def serving(folder: Path, *options: str, **changes: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield the address that the command prints, and its process."""
    process = subprocess.Popen(
        [*COMMAND, "--no-browser", *options],
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        address = re.match(r"Inspector at (http://\S+)/ ", line)
        assert address, line + process.stderr.read()
        yield address[1], process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *options], cwd=folder, env=environment(), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_serves_until_interrupted(folder: Path) -> None:
    """Print where it is, rank, keep the key to itself, and end with 0 at Ctrl-C."""
    with serving(folder, "--llm", "gpt-4o-mini", OPENAI_API_KEY="sk-secret") as (url, process):
        assert url.startswith("http://127.0.0.1:")
        about = httpx.get(f"{url}/api/about")
        assert about.json()["llm"] == "gpt-4o-mini"
        pages = [httpx.get(url + path).text for path in ("/", "/static/main.js")]
        assert "<title>Inspector" in pages[0]
        assert "sk-secret" not in "".join([*pages, about.text])
        found = stages(url, "rank", question="rows", instruction="Find rows", candidates=2)
        assert len(found["reranked"]["order"]) == 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in errors


def test_questions_go_to_the_file_named(folder: Path) -> None:
    """Append judged questions to the file that --questions names, in the current folder."""
    with serving(folder, "--questions", "mine.jsonl") as (url, _):
        body = {"question": "Where?", "section": "storage.md#rows", "language": "en"}
        assert httpx.post(f"{url}/api/judged", json=body).json()["file"] == "mine.jsonl"
    assert '"storage.md#rows"' in (folder / "mine.jsonl").read_text()


def test_a_port_that_is_taken(folder: Path) -> None:
    """Say so at once, before a model is loaded."""
    with listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        done = run(folder, "--no-browser", "--port", port)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr


def test_nothing_stored(folder: Path) -> None:
    """Say how to store something."""
    done = run(folder, "--no-browser", "--collection", "empty")
    assert done.returncode == 1
    assert "qwen3-rag ingest" in done.stderr


def test_without_the_extra(folder: Path) -> None:
    """Name the extra when its packages are not installed."""
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['qwen3-rag', 'serve', '--models', "
        "'pair']; from llamaindex_qwen3.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "llamaindex-qwen3[inspector]" in done.stderr
