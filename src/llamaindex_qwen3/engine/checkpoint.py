"""What a checkpoint says of itself, read and checked before any weight is loaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, InvalidArgumentError

Role = Literal["embedding", "reranker"]

MIN_DIMENSIONS = 32
_SAMPLES = 64
# The 8B embedding model overflows to NaN in float16 on some ordinary texts.
_FLOAT16_MAX_HIDDEN = 4095
_ARCHITECTURES: dict[Role, set[str]] = {
    "embedding": {"Qwen3ForCausalLM", "Qwen3Model"},
    "reranker": {"Qwen3ForCausalLM"},
}
_EXPECTED = "a directory with config.json, tokenizer.json and *.safetensors, or a hub id such as "


@dataclass(frozen=True)
class Checkpoint:
    """Which weights to load, and how: what one loaded copy is shared by."""

    role: Role
    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | tuple[str, ...] | None = None
    attn_implementation: str | None = None

    @property
    def devices(self) -> tuple[str | None, ...]:
        """The devices that get a copy of the weights each; None is the best there is."""
        return self.device if isinstance(self.device, tuple) else (self.device,)

    @property
    def is_local(self) -> bool:
        """Whether the model is an existing directory, so that reading it needs no network."""
        return Path(self.model).expanduser().is_dir()


@dataclass(frozen=True)
class Geometry:
    """The numbers of a checkpoint that callers need before the weights are loaded."""

    hidden_size: int
    max_position_embeddings: int
    dtype: str | None


def read_geometry(checkpoint: Checkpoint) -> Geometry:
    """Read and check config.json (and modules.json, where the embedding model has one).

    Raises:
        CheckpointError: There is no such model, or it is not a Qwen3 model of this role.
        InvalidArgumentError: The dtype cannot hold this model's activations.
    """
    config = _read_json(checkpoint, "config.json")
    if config is None:
        raise CheckpointError(
            f"{_not_a_model(checkpoint)}: it has no config.json. {_wanted(checkpoint)}"
        )
    kind, named = config.get("model_type"), config.get("architectures") or []
    allowed = _ARCHITECTURES[checkpoint.role]
    if kind != "qwen3":
        raise CheckpointError(
            f"{checkpoint.model!r} is not a Qwen3 model: its model_type is {kind!r}. "
            f"{_wanted(checkpoint)}"
        )
    if named and not allowed.intersection(named):
        raise CheckpointError(
            f"{checkpoint.model!r} cannot be used as a Qwen3 {checkpoint.role}: its architecture is "
            f"{named[0]}, and {' or '.join(sorted(allowed))} is needed. {_wanted(checkpoint)}"
        )
    _check_role(checkpoint)
    if checkpoint.role == "embedding":
        _check_modules(checkpoint)
    if checkpoint.is_local and find_file(checkpoint, "adapter_config.json"):
        raise CheckpointError(
            f"{checkpoint.model!r} holds an adapter beside its weights. Merge it first: "
            "model.merge_and_unload().save_pretrained(directory) with peft, and give that directory."
        )
    if "rope_parameters" in config and _transformers_major() < 5:
        raise CheckpointError(
            f"{checkpoint.model!r} was saved by transformers 5, whose rotary settings older versions "
            "ignore: its results would be wrong. Install transformers>=5."
        )
    hidden = int(config["hidden_size"])
    if checkpoint.dtype == "float16" and hidden > _FLOAT16_MAX_HIDDEN:
        raise InvalidArgumentError(
            f"dtype='float16' overflows to NaN in a model of hidden size {hidden} ({checkpoint.model!r}). "
            "Use dtype='bfloat16', 'float32' or 'auto'."
        )
    dtype = config.get("dtype") or config.get("torch_dtype")
    return Geometry(hidden, int(config.get("max_position_embeddings") or 32768), dtype)


def identify(checkpoint: Checkpoint) -> str | None:
    """Name the weights themselves: a hub id, or what a directory holds wherever it stands.

    Returns:
        None for a directory without weights, as the client of a model server may have.
    """
    directory = Path(checkpoint.model).expanduser()
    if not checkpoint.is_local:
        return f"{checkpoint.model}@{checkpoint.revision or 'main'}"
    digest = hashlib.sha256()
    weights = list(directory.glob("*.safetensors"))
    if not weights:
        return None
    for file in sorted([directory / "config.json", *weights]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            # A sample of the weights: a fine-tune of the same shape differs everywhere.
            for step in range(_SAMPLES):
                data.seek(size * step // _SAMPLES)
                digest.update(data.read(4096))
    return f"sha256:{digest.hexdigest()[:32]}"


def find_file(checkpoint: Checkpoint, name: str, *, optional: bool = False) -> Path | None:
    """Return the path of one file of the checkpoint, fetched from the hub if need be.

    Returns:
        None when the checkpoint has no such file.

    Raises:
        CheckpointError: There is no such checkpoint, or the hub cannot be reached.
    """
    directory = Path(checkpoint.model).expanduser()
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    if _looks_like_path(checkpoint.model):
        raise CheckpointError(f"There is no directory {checkpoint.model!r}. {_wanted(checkpoint)}")
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint.model, name, revision=checkpoint.revision))
    except errors.EntryNotFoundError as error:
        # Offline, a file that was never fetched cannot be told from one that does not exist.
        if optional or not isinstance(error, errors.LocalEntryNotFoundError):
            return None
        reason: Exception = error
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        reason = error
    told = (str(reason).strip().splitlines() or [type(reason).__name__])[0].rstrip(". ")
    raise CheckpointError(
        f"Cannot load {checkpoint.model!r}: there is no such directory here, and the model hub gave: "
        f"{told}. Check the spelling, the revision ({checkpoint.revision or 'main'}) and the network, "
        "or give a local directory."
    ) from reason


def _read_json(checkpoint: Checkpoint, name: str, *, optional: bool = False) -> Any:
    path = find_file(checkpoint, name, optional=optional)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {error}. Fetch the checkpoint again."
        ) from error


def _check_role(checkpoint: Checkpoint) -> None:
    """Refuse a model of the other role: both load as either, and the results mean nothing."""
    other = "Reranker" if checkpoint.role == "embedding" else "Embedding"
    if checkpoint.is_local:
        modules = _read_json(checkpoint, "modules.json", optional=True) or []
        pools = any(str(module.get("type", "")).endswith("Pooling") for module in modules)
        is_other = checkpoint.role == "reranker" and pools
    else:
        name = checkpoint.model.lower()
        is_other = other.lower() in name and checkpoint.role not in name
    if is_other:
        raise CheckpointError(
            f"{checkpoint.model!r} is an {other.lower()} model and was given as the {checkpoint.role}. "
            f"{_wanted(checkpoint)}".replace("an reranker", "a reranker")
        )


def _check_modules(checkpoint: Checkpoint) -> None:
    """Refuse a sentence-transformers checkpoint that does more than pool the last token."""
    for module in _read_json(checkpoint, "modules.json", optional=True) or []:
        name = str(module.get("type", "")).rpartition(".")[2]
        if name == "Pooling":
            pooling = _read_json(checkpoint, f"{module['path']}/config.json") or {}
            mode = pooling.get("pooling_mode") or [
                key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
                for key, on in pooling.items()
                if key.startswith("pooling_mode_") and on is True
            ]
            if mode not in (["last"], ["lasttoken"], "lasttoken"):
                raise CheckpointError(
                    f"{checkpoint.model!r} pools by {mode} in {module['path']}/config.json; "
                    "Qwen3-Embedding pools the last token. It is another kind of model."
                )
        elif name not in ("Transformer", "Normalize"):
            raise CheckpointError(
                f"{checkpoint.model!r} has a {name} module in modules.json, which Qwen3-Embedding has "
                "not: its vectors would be wrong without it. Use sentence-transformers for this model."
            )


def _transformers_major() -> int:
    return int(importlib.metadata.version("transformers").partition(".")[0])


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith((".", "~", "/", os.sep)) or model.count("/") != 1 or os.path.isabs(model)
    )


def _not_a_model(checkpoint: Checkpoint) -> str:
    directory = Path(checkpoint.model).expanduser()
    empty = directory.is_dir() and not any(directory.iterdir())
    return f"{checkpoint.model!r} is {'an empty directory' if empty else 'not a model directory'}"


def _wanted(checkpoint: Checkpoint) -> str:
    return f"Give {_EXPECTED}Qwen/Qwen3-{checkpoint.role.capitalize()}-0.6B."
