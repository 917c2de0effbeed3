"""What a checkpoint must be, and what is said of one that is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import (
    Shape,
    edit_json,
    edit_weights,
    save_classifier,
    save_modules,
    save_tokenizer,
    write_json,
)
from components import COSINE_TOLERANCE, SCORE_TOLERANCE, cosine_distance, embedder, reranker
from reference import ReferenceEmbedder, ReferenceReranker
from texts import random_texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Qwen3ForCausalLM, Qwen3Model

from llamaindex_qwen3.engine import checkpoint as checkpoints_read
from llamaindex_qwen3.errors import CheckpointError, Qwen3Error

Factory = Callable[..., Path]


def embed(directory: Path) -> list[float]:
    """Embed a text with a checkpoint."""
    return embedder(directory).get_text_embedding("a text")


def score(directory: Path) -> list[float]:
    """Score a text with a checkpoint."""
    return reranker(directory).score("a query", ["a text"])


@pytest.fixture(params=["embedding", "reranker"])
def checkpoint(
    request: pytest.FixtureRequest, make_embedding: Factory, make_reranker: Factory
) -> tuple[Path, Callable[[Path], list[float]]]:
    """Return a checkpoint that may be broken, and what uses it."""
    if request.param == "embedding":
        return make_embedding(), embed
    return make_reranker(), score


Checkpoint = tuple[Path, Callable[[Path], list[float]]]


def refuse(checkpoint: Checkpoint, *words: str) -> None:
    """Assert that a checkpoint is refused with a message that says where and what."""
    directory, use = checkpoint
    with pytest.raises(CheckpointError) as caught:
        use(directory)
    message = str(caught.value)
    assert str(directory) in message
    for word in words:
        assert word.lower() in message.lower(), f"{word!r} is not in: {message}"


def test_kinds_of_errors() -> None:
    """Let a caller catch everything that the package raises on purpose."""
    assert issubclass(CheckpointError, Qwen3Error)
    assert not issubclass(CheckpointError, ValueError)


def test_missing_directory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Say that there is no such directory."""
    refuse((tmp_path / "nowhere", checkpoint[1]))


def test_missing_config(checkpoint: Checkpoint) -> None:
    """Say that a directory is no checkpoint."""
    (checkpoint[0] / "config.json").unlink()
    refuse(checkpoint, "config.json")


def test_broken_config(checkpoint: Checkpoint) -> None:
    """Say which file cannot be read."""
    (checkpoint[0] / "config.json").write_text('{"model_type": "qwen3"', encoding="utf-8")
    refuse(checkpoint, "config.json")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3_moe", "bert"])
def test_other_architectures(checkpoint: Checkpoint, model_type: str) -> None:
    """Name the type that was found and the one that is needed."""
    edit_json(checkpoint[0] / "config.json", model_type=model_type, architectures=["Other"])
    refuse(checkpoint, model_type, "qwen3")


def test_missing_weights(checkpoint: Checkpoint) -> None:
    """Say that the weights are not there."""
    (checkpoint[0] / "model.safetensors").unlink()
    refuse(checkpoint, "weights")


def test_damaged_weights(checkpoint: Checkpoint) -> None:
    """Refuse a file that was cut off, as by a broken download."""
    path = checkpoint[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refuse(checkpoint)


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_norm.weight", "norm.weight"]
)
def test_missing_tensor(checkpoint: Checkpoint, name: str) -> None:
    """Name a tensor that is missing, which would otherwise be random."""

    def remove(weights: dict[str, torch.Tensor]) -> None:
        weights.pop(name if name in weights else f"model.{name}")

    edit_weights(checkpoint[0], remove)
    refuse(checkpoint, name)


def test_wrong_shape(checkpoint: Checkpoint) -> None:
    """Name a tensor that does not fit the configuration."""

    def cut(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            if name.endswith("layers.0.mlp.up_proj.weight"):
                weights[name] = weights[name][:-1].clone()

    edit_weights(checkpoint[0], cut)
    refuse(checkpoint, "layers.0.mlp.up_proj.weight")


def test_missing_tokenizer(checkpoint: Checkpoint) -> None:
    """Say that the tokenizer is not there."""
    (checkpoint[0] / "tokenizer.json").unlink()
    refuse(checkpoint, "tokenizer")


def test_tokenizer_of_another_model(checkpoint: Checkpoint) -> None:
    """Refuse a tokenizer without the tokens that the model is asked by."""
    other = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.save(str(checkpoint[0] / "tokenizer.json"))
    write_json(
        checkpoint[0] / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    refuse(checkpoint, "token")


@pytest.mark.parametrize("word", ["yes", "no"])
def test_reranker_needs_its_answers(
    make_reranker: Factory, tokenizer: Tokenizer, word: str
) -> None:
    """Name the answer that is not one token."""
    directory = make_reranker()
    data = json.loads(tokenizer.to_str())
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    first = next(i for i, pair in enumerate(merges) if "".join(pair) == word)
    # Without its merge and all later ones; others take the ids, which have to stay.
    for pair in merges[first:]:
        token = "".join(pair)
        if token in vocab:
            vocab[f"unused {token}"] = vocab.pop(token)
    data["model"]["merges"] = merges[:first]
    save_tokenizer(Tokenizer.from_str(json.dumps(data)), directory)
    refuse((directory, score), word)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
def test_other_pooling(make_embedding: Factory, mode: str) -> None:
    """Refuse a checkpoint whose vectors are pooled in another way."""
    directory = make_embedding()
    save_modules(directory, 64, mode)
    refuse((directory, embed), mode.split("_")[0])


@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
def test_pooling_as_newer_versions_save_it(make_embedding: Factory, mode: str) -> None:
    """Read the pooling in the form that sentence-transformers 6 writes."""
    directory = make_embedding()
    pooling = {"embedding_dimension": 64, "pooling_mode": mode, "include_prompt": True}
    write_json(directory / "1_Pooling" / "config.json", pooling)
    if mode == "mean":
        refuse((directory, embed), "mean")
    else:
        expected = ReferenceEmbedder(directory).document("a text")
        assert cosine_distance(embed(directory), expected) < COSINE_TOLERANCE


def test_further_modules(make_embedding: Factory) -> None:
    """Refuse a checkpoint with a layer after pooling, which would be left out silently."""
    directory = make_embedding()
    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    write_json(directory / "modules.json", [*modules, dense])
    refuse((directory, embed), "Dense")


def test_sequence_classifier(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Refuse a conversion of a reranker that has a head of its own."""
    refuse((save_classifier(tmp_path, tokenizer), score), "SequenceClassification")


def test_untied_reranker_needs_its_output(make_reranker: Factory) -> None:
    """Name the output matrix where it is missing and not tied."""
    directory = make_reranker(shape=Shape(tied=False))
    edit_weights(directory, lambda weights: weights.pop("lm_head.weight"))
    refuse((directory, score), "lm_head.weight")


def test_embedding_checkpoint_as_a_reranker(make_embedding: Factory) -> None:
    """Refuse an embedding model, which has no output matrix."""
    refuse((make_embedding(layout="model", shape=Shape(tied=False)), score))


def test_sharded_weights(make_embedding: Factory, make_reranker: Factory) -> None:
    """Read weights in several files, and name what is missing when one is not there."""
    embedding, reranking = make_embedding(), make_reranker()
    for directory, kind in ((embedding, Qwen3Model), (reranking, Qwen3ForCausalLM)):
        model = kind.from_pretrained(directory)
        (directory / "model.safetensors").unlink()
        model.save_pretrained(directory, max_shard_size="100KB")
        assert len(list(directory.glob("model-*.safetensors"))) > 1
    expected = ReferenceEmbedder(embedding).document("a text")
    assert cosine_distance(embed(embedding), expected) < COSINE_TOLERANCE
    expected_score = ReferenceReranker(reranking).score("a query", "a text")
    assert score(reranking) == pytest.approx([expected_score], abs=SCORE_TOLERANCE)
    for directory, use in ((embedding, embed), (reranking, score)):
        copy = directory.with_name(f"{directory.name}-copy")
        shutil.copytree(directory, copy)
        max(copy.glob("model-*.safetensors")).unlink()
        refuse((copy, use))


def test_fewer_rows_than_added_tokens(make_embedding: Factory, tokenizer: Tokenizer) -> None:
    """Take a checkpoint without rows for the last added tokens, as the published 4B one."""
    directory = make_embedding()
    rows = tokenizer.get_vocab_size() - 4

    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["embed_tokens.weight"] = weights["embed_tokens.weight"][:rows].clone()

    edit_weights(directory, cut)
    edit_json(directory / "config.json", vocab_size=rows)
    model, reference = embedder(directory), ReferenceEmbedder(directory)
    texts = [*random_texts(120, 11), "<think></think>"]
    for text, vector in zip(texts, model.get_text_embedding_batch(texts), strict=True):
        assert cosine_distance(vector, reference.document(text)) < COSINE_TOLERANCE


def test_an_embedding_model_as_reranker(embedding_dir: Path) -> None:
    """Refuse it: it would load, and its yes against no means nothing."""
    with pytest.raises(CheckpointError, match="embedding model"):
        reranker(embedding_dir)


@pytest.mark.parametrize(
    ("role", "name"),
    [("embedding", "Qwen/Qwen3-Reranker-0.6B"), ("reranker", "me/my-qwen3-embedding")],
)
def test_a_hub_name_of_the_other_role(role: checkpoints_read.Role, name: str) -> None:
    """Refuse names that differ in a word only."""
    with pytest.raises(CheckpointError, match=f"given as the {role}"):
        checkpoints_read._check_role(checkpoints_read.Checkpoint(role, name))
