"""What the package exports, and what importing and using it does not do."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import llamaindex_qwen3
from llamaindex_qwen3 import errors

OFFLINE = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError(f"network: {args}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def run(code: str, *arguments: str) -> str:
    """Return what a new Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_exported_names() -> None:
    """Export what is promised, and nothing else."""
    assert sorted(llamaindex_qwen3.__all__) == [
        "Qwen3Embedding",
        "Qwen3Reranker",
        "__version__",
        "milvus_vector_store",
    ]
    for name in llamaindex_qwen3.__all__:
        assert getattr(llamaindex_qwen3, name) is not None
    assert set(llamaindex_qwen3.__all__) <= set(dir(llamaindex_qwen3))


def test_version() -> None:
    """Give the version that is installed."""
    assert llamaindex_qwen3.__version__ == importlib.metadata.version("llamaindex-qwen3")


def test_errors() -> None:
    """Give each error the base class that a caller may already catch."""
    bases = {
        errors.InvalidArgumentError: ValueError,
        errors.CheckpointError: Exception,
        errors.InputTooLongError: ValueError,
        errors.NonFiniteError: ArithmeticError,
        errors.StoreError: Exception,
        errors.GenerationError: Exception,
    }
    for error, base in bases.items():
        assert issubclass(error, errors.Qwen3Error)
        assert issubclass(error, base)
    assert issubclass(errors.Qwen3Error, Exception)
    assert not issubclass(errors.TruncationWarning, errors.Qwen3Error)
    assert issubclass(errors.TruncationWarning, UserWarning)


def test_import_is_light() -> None:
    """Import neither torch nor transformers, nor open a connection."""
    code = OFFLINE + (
        "import sys, llamaindex_qwen3, llamaindex_qwen3.prompts, llamaindex_qwen3.errors\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_local_checkpoints_need_no_network(embedding_dir: Path, reranker_dir: Path) -> None:
    """Load and compute with no network, although nothing says that it is offline."""
    code = OFFLINE + (
        "import os, sys\n"
        "os.environ.pop('HF_HUB_OFFLINE', None)\n"
        "from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker\n"
        "vector = Qwen3Embedding(model_name=sys.argv[1]).get_query_embedding('a')\n"
        "scores = Qwen3Reranker(model=sys.argv[2]).score('a', ['b', 'c'])\n"
        "print(len(vector), len(scores))"
    )
    assert run(code, str(embedding_dir), str(reranker_dir)).split() == ["64", "2"]
