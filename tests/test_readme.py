"""The README's own code and commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from milvus_lite.server_manager import server_manager_instance

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_exist() -> None:
    """Name only targets that the Makefile has."""
    named = set(re.findall(r"\bmake (\w+)", README))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test"} <= named <= targets


def test_the_first_snippet_runs(
    tmp_path: Path,
    embedding_dir: Path,
    reranker_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run what a reader copies, on tiny models and with an answer that repeats its prompt."""
    from llama_index.core import Settings
    from llama_index.core.llms import MockLLM

    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    code = code.replace("Qwen/Qwen3-Embedding-0.6B", str(embedding_dir))
    code = code.replace("Qwen/Qwen3-Reranker-0.6B", str(reranker_dir))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n## One\nfirst text\n## Two\nsecond text\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", None)
    exec(compile(code, "README.md", "exec"), {})  # its own code is what the test is about
    printed = capsys.readouterr().out
    assert "How is data stored in milvus?" in printed
    assert "first text" in printed
    server_manager_instance.release_all()


def test_settings_table_is_complete() -> None:
    """List every field that the components add, and no other."""
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor

    from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker

    table = README.partition("## Settings")[2].partition("\n`.dim`")[0]
    listed = {
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.M)
        for name in re.findall(r"`(\w+)`", row)
    } - {"Qwen3Embedding", "Qwen3Reranker"}
    inherited = {*BaseEmbedding.model_fields, *BaseNodePostprocessor.model_fields}
    own = {*Qwen3Embedding.model_fields, *Qwen3Reranker.model_fields} - inherited
    assert listed - {"model_name", "embed_batch_size"} == own


@pytest.mark.skipif(
    not (ROOT / "examples/demo_models/embedding").is_dir(), reason="needs the demo models"
)
def test_quickstart_prints_a_ranking(tmp_path: Path) -> None:
    """Print three scored sections, best first."""
    # It writes its database where it runs, so it runs in a folder of its own.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    scores = [float(line.split()[0]) for line in done.stdout.strip().splitlines()]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
