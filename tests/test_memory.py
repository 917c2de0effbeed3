"""Scoring needs no logits of the whole vocabulary, and so little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Shape, save_reranker
from reference import PREFIX, SUFFIX, TASK, ReferenceTokenizer
from texts import SENTENCES
from tokenizers import Tokenizer

VOCAB_SIZE = 151_669
CANDIDATES = 10
# Enough to show it, without the 3.4 GB of all of them.
OF_THE_CARD = 4
TOKENS = 500

# Both processes load the weights, score once, and print the peak beyond what they had before.
# The kernel's own peak is read because getrusage's outlives the start of a program: it would
# begin at the size of the process that runs the tests.
PEAK = """
import contextlib, gc, sys
from pathlib import Path

def status_mb(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024

def start():
    gc.collect()
    # Forget the peak of loading; where that is not allowed, the measure is only stricter.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")
"""
PACKAGE = """
from llamaindex_qwen3 import Qwen3Reranker
texts = Path(sys.argv[2]).read_text(encoding="utf-8").split("\\0")
model = Qwen3Reranker(model=sys.argv[1], dtype="float32", device="cpu").load()
before = start()
scores = model.score("where is it?", texts)
assert len(scores) == 10
print(status_mb("VmHWM") - before)
"""
MODEL_CARD = """
import json
import torch
from transformers import Qwen3ForCausalLM
ids = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
model = Qwen3ForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
before = start()
with torch.no_grad():
    logits = model(input_ids=torch.tensor(ids)).logits[:, -1]
print(status_mb("VmHWM") - before)
"""


def has_peak() -> bool:
    """Tell whether the kernel reports the peak memory of a process."""
    status = Path("/proc/self/status")
    return status.is_file() and "VmHWM" in status.read_text(encoding="utf-8")


def growth_mb(code: str, *arguments: Path) -> float:
    """Return by how many megabytes the peak of a new process grows while it scores."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.skipif(not has_peak(), reason="peak memory is read from Linux's /proc/self/status")
def test_reranking_memory(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Rerank 10 candidates of 500 tokens in less than 300 MB beside the weights."""
    directory = save_reranker(
        tmp_path / "model", tokenizer, Shape(hidden_size=64, layers=2), vocab_size=VOCAB_SIZE
    )
    reference = ReferenceTokenizer(directory)
    encoding = reference.plain.encode(" ".join(SENTENCES * 4), add_special_tokens=False)
    # Room for the number that makes each candidate another text.
    words = " ".join(SENTENCES * 4)[: encoding.offsets[TOKENS - 4][0]]
    texts, rows = [], []
    for index in range(CANDIDATES):
        texts.append(f"{index} {words}")
        body = f"<Instruct>: {TASK}\n<Query>: where is it?\n<Document>: {texts[-1]}"
        parts = (reference.markup(PREFIX), reference.text(body), reference.markup(SUFFIX))
        rows.append([token for part in parts for token in part])
    assert all(TOKENS - 5 <= len(reference.text(text)) <= TOKENS for text in texts)
    shortest = min(map(len, rows))

    documents, ids = tmp_path / "documents", tmp_path / "ids"
    documents.write_text("\0".join(texts), encoding="utf-8")
    ids.write_text(str([row[:shortest] for row in rows[:OF_THE_CARD]]), encoding="utf-8")
    ours = growth_mb(PACKAGE, directory, documents)
    card = growth_mb(MODEL_CARD, directory, ids)
    print(f"{CANDIDATES} candidates: {ours:.0f} MB; {OF_THE_CARD} by the model card: {card:.0f} MB")
    assert ours < 300
    # That the measurement sees such memory at all.
    assert card > 1000
