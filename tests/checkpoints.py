"""Tiny random checkpoints of the Qwen3 architecture, in the layouts that are published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from texts import corpus
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel, TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Added tokens that Qwen3 does not mark special, so that "skip special tokens" leaves them.
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
ADDED_TOKENS = (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)

TEMPLATE = (
    (
        "Judge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".'
    ),
    "system\nuser\nassistant\n<Instruct>: a\n<Query>: b\n<Document>: c Instruct: d\nQuery:e",
)

# transformers' name of the class that published checkpoints give in tokenizer_config.json.
TokenizerClass = Literal["PreTrainedTokenizerFast", "Qwen2Tokenizer"]
Layout = Literal["card", "model", "causal", "bare"]


def build_tokenizer() -> Tokenizer:
    """Train a byte-level BPE tokenizer with Qwen3's split, normal form and added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=1600,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*corpus(), *TEMPLATE * 8], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in PLAIN_ADDED_TOKENS]
    )
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer,
    directory: Path,
    appends: str | None = None,
    tokenizer_class: TokenizerClass = "Qwen2Tokenizer",
) -> None:
    """Save the tokenizer; with `appends`, one that puts that token after every text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    if appends is not None:
        end = (appends, copy.token_to_id(appends))
        copy.post_processor = TemplateProcessing(
            single=f"$A {appends}", pair=f"$A $B {appends}", special_tokens=[end]
        )
    directory.mkdir(parents=True, exist_ok=True)
    copy.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": tokenizer_class,
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "padding_side": "left",
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    write_json(directory / "tokenizer_config.json", settings)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The geometry of a tiny model, and what makes its weights."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 96
    tied: bool = True
    max_position_embeddings: int = 40960
    seed: int = 0
    dtype: torch.dtype = torch.float32
    # Scales of the weights: vectors and scores must differ clearly between texts, while
    # rounding stays far below the tolerances.
    gain: float = 1.0
    focus: float = 1.0
    spread: float = 0.16

    def config(self, vocab_size: int) -> Qwen3Config:
        """Return the model's configuration."""
        return Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        )


def randomise(model: torch.nn.Module, shape: Shape) -> None:
    """Fill the weights so that what the model says depends strongly on the text."""
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                weight.fill_(shape.focus)
            elif weight.ndim == 1:
                weight.uniform_(0.8, 1.2, generator=generator)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.normal_(0.0, shape.spread, generator=generator)
            else:
                scale = shape.gain * weight.shape[1] ** -0.5
                weight.normal_(0.0, scale, generator=generator)


def save_embedding(
    directory: Path,
    tokenizer: Tokenizer,
    shape: Shape | None = None,
    layout: Layout = "card",
    appends: str | None = "<|endoftext|>",
    tokenizer_class: TokenizerClass = "Qwen2Tokenizer",
) -> Path:
    """Save a random embedding checkpoint.

    Layouts: `card` like the published ones (weights of the bare model, the architecture named
    Qwen3ForCausalLM, sentence-transformers' files), `model` and `causal` as transformers saves
    either class, with those files, and `bare`, which is `model` without them.
    """
    shape = shape or Shape()
    config = shape.config(tokenizer.get_vocab_size())
    model = Qwen3ForCausalLM(config) if layout == "causal" else Qwen3Model(config)
    randomise(model, shape)
    model.to(shape.dtype).save_pretrained(directory)
    if layout == "card":
        edit_json(directory / "config.json", architectures=["Qwen3ForCausalLM"])
    if layout != "bare":
        save_modules(directory, shape.hidden_size)
    save_tokenizer(tokenizer, directory, appends, tokenizer_class)
    return directory


def save_modules(directory: Path, hidden_size: int, mode: str = "lasttoken") -> None:
    """Write the files that sentence-transformers reads."""
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    (directory / "2_Normalize").mkdir(exist_ok=True)
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {
        "word_embedding_dimension": hidden_size,
        **{f"pooling_mode_{name}": name == mode for name in modes},
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": mode == "lasttoken",
        "include_prompt": True,
    }
    write_json(directory / "1_Pooling" / "config.json", pooling)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    settings = {
        "prompts": {"query": f"Instruct: {task}\nQuery:", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(directory / "config_sentence_transformers.json", settings)


def save_reranker(
    directory: Path,
    tokenizer: Tokenizer,
    shape: Shape | None = None,
    vocab_size: int | None = None,
    tokenizer_class: TokenizerClass = "Qwen2Tokenizer",
) -> Path:
    """Save a random reranker checkpoint: a causal language model."""
    shape = shape or Shape()
    config = shape.config(vocab_size or tokenizer.get_vocab_size())
    model = Qwen3ForCausalLM(config)
    randomise(model, shape)
    model.to(shape.dtype).save_pretrained(directory)
    save_tokenizer(tokenizer, directory, None, tokenizer_class)
    return directory


def save_classifier(directory: Path, tokenizer: Tokenizer) -> Path:
    """Save a sequence classifier: a conversion of a reranker that cannot say yes or no."""
    config = Shape().config(tokenizer.get_vocab_size())
    config.num_labels = 1
    Qwen3ForSequenceClassification(config).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def write_json(path: Path, data: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change a checkpoint's weights in place."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
