"""Checkpoints of the published geometries with random weights, made on the spot.

Time and memory depend on shapes, not on what the weights say. The tokenizer is the demo models'
one, whose vocabulary is smaller than the network's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / ".bench"
DEMO = ROOT / "examples" / "demo_models"

# hidden, layers, heads, intermediate, vocabulary, tied; key/value heads and head size are 8 and 128
# in all published ones.
GEOMETRIES = {
    "tiny": (128, 2, 8, 384, 20_000, True),
    "small": (512, 8, 8, 1536, 50_000, True),
    "0.6b": (1024, 28, 16, 3072, 151_669, True),
    "4b": (2560, 36, 32, 9728, 151_669, True),
    "8b": (4096, 36, 32, 12288, 151_669, False),
}

# What sentence-transformers needs to read a pair as the model card does.
_CHAT_TEMPLATE = """\
{%- set ns = namespace(query='', document='', task='') -%}
{%- for message in messages -%}
{%- if message.role == 'query' -%}{%- set ns.query = message.content -%}
{%- elif message.role == 'document' -%}{%- set ns.document = message.content -%}
{%- elif message.role == 'system' -%}{%- set ns.task = message.content -%}{%- endif -%}
{%- endfor -%}
{{ PREFIX }}{{ '<Instruct>: ' + (ns.task or TASK) + '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document }}{{ SUFFIX }}"""


def config(size: str) -> Qwen3Config:
    """Return the configuration of a size."""
    hidden, layers, heads, intermediate, vocabulary, tied = GEOMETRIES[size]
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )


def parameters(size: str) -> int:
    """Return how many weights a token is multiplied with: all but the vocabulary."""
    hidden, layers, heads, intermediate, *_ = GEOMETRIES[size]
    return layers * (hidden * 128 * (2 * heads + 2 * 8) + 3 * hidden * intermediate)


def checkpoint(role: str, size: str, device: str = "cpu") -> Path:
    """Return the directory of a random checkpoint, making it at the first call.

    It stays in .bench/ (2 bytes a weight) for the next run.
    """
    directory = DIRECTORY / f"{role}-{size}"
    if (directory / "done").exists():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config(size))
    finally:
        torch.set_default_dtype(torch.float32)
    (model if role == "reranker" else model.model).save_pretrained(directory)
    for file in (DEMO / role).iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            copy = shutil.copytree if file.is_dir() else shutil.copy
            copy(file, directory / file.name)
    if role == "reranker":
        from llamaindex_qwen3.prompts import DEFAULT_TASK, RERANKER_PREFIX, RERANKER_SUFFIX

        template = _CHAT_TEMPLATE
        for name, text in (
            ("PREFIX", RERANKER_PREFIX),
            ("SUFFIX", RERANKER_SUFFIX),
            ("TASK", DEFAULT_TASK),
        ):
            template = template.replace(name, json.dumps(text))
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    (directory / "done").touch()
    return directory
