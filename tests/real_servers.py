"""What tests of real model servers share: tiny checkpoints, texts, and the comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape
from components import cosine_distance
from servers import model_servers
from texts import random_text

# vLLM cannot run narrower heads on a CPU.
SHAPE = Shape(head_dim=32)
# What servers' own products may differ by in float32.
COSINE_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4

SCRIPTS = ("latin_accented", "cyrillic", "arabic", "devanagari", "han", "hangul")
CUSTOM_TASK = "Given a claim, retrieve documents that support or refute the claim"
TEMPLATE = Path(__file__).parents[1] / "examples" / "serving" / "qwen3_reranker.jinja"


def texts(count: int, seed: int, longest: int) -> list[str]:
    """Return texts of the scripts in turn, of one to `longest` words."""
    rng = random.Random(seed)
    return [
        random_text(rng, SCRIPTS[i % len(SCRIPTS)], rng.randint(1, longest)) for i in range(count)
    ]


def vllm(
    directory: Path, role: model_servers.Role, data_dir: Path, **options: Any
) -> AbstractContextManager[model_servers.Server]:
    """Return a vLLM to start, or skip the test where there is none."""
    if reason := model_servers.unavailable("vllm"):
        pytest.skip(reason)
    return model_servers.vllm(directory, role, data_dir, **options)


def check_vectors(given: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    """Assert that vectors point where others do, each in its place."""
    assert len(given) == len(expected)
    distances = [
        cosine_distance(one, torch.tensor(other))
        for one, other in zip(given, expected, strict=True)
    ]
    assert max(distances) < COSINE_TOLERANCE, distances
