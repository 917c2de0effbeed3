"""Read a checkpoint's weights, and refuse what would be silently wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from ..errors import CheckpointError, InvalidArgumentError
from .checkpoint import Checkpoint, read_geometry


def resolve(checkpoint: Checkpoint) -> Checkpoint:
    """Make equal what loads the same weights: absolute path, actual devices and dtype."""
    model, revision = checkpoint.model, checkpoint.revision
    if checkpoint.is_local:
        model, revision = str(Path(model).expanduser().resolve()), None
    else:
        revision = revision or "main"
    devices = tuple(_device(device) for device in checkpoint.devices)
    dtype = checkpoint.dtype
    if dtype == "auto":
        half = read_geometry(replace(checkpoint, model=model)).dtype in ("bfloat16", "float16")
        fast = all(_multiplies_bfloat16(device.partition(":")[0]) for device in devices)
        dtype = "bfloat16" if half and fast else "float32"
    return replace(checkpoint, model=model, revision=revision, device=devices, dtype=dtype)


def _device(device: str | None) -> str:
    """Return the name of a device that is there, with its index."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            device = "mps"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(
            f"device={device!r} is not a torch device. Use None, 'cpu', 'cuda', 'cuda:1' or 'mps', or "
            "a list of several."
        ) from error
    if parsed.type == "cuda":
        count = torch.cuda.device_count()
        index = (
            parsed.index if parsed.index is not None or not count else torch.cuda.current_device()
        )
        if index is None or index >= count:
            raise InvalidArgumentError(
                f"device={device!r}, but torch sees {count} CUDA GPUs here. Use device='cpu' or None, "
                "a GPU that is there, or a CUDA build of torch."
            )
        device = f"cuda:{index}"
    return device


def _multiplies_bfloat16(device: str) -> bool:
    """Whether products of bfloat16 matrices are native there, so that they are faster."""
    if device == "cpu":
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def load_weights(kind: Any, checkpoint: Checkpoint, device: str) -> Any:
    """Load weights onto a device, refusing a checkpoint that lacks any."""
    dtype_name = "dtype" if _major_minor(transformers.__version__) >= (4, 56) else "torch_dtype"
    options: dict[str, Any] = {dtype_name: getattr(torch, checkpoint.dtype)}
    if checkpoint.attn_implementation is not None:
        options["attn_implementation"] = checkpoint.attn_implementation
    try:
        model, report = kind.from_pretrained(
            checkpoint.model,
            revision=checkpoint.revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each reader of weights has errors of its own
        raise CheckpointError(
            f"Cannot load the weights of {checkpoint.model!r}: {error}"
        ) from error
    # transformers fills what is missing or misshapen with random numbers and only logs it.
    if wrong := sorted(report["mismatched_keys"]):
        # Older versions of transformers give the name alone.
        name, *shapes = [wrong[0]] if isinstance(wrong[0], str) else wrong[0]
        told = f" is {tuple(shapes[0])} and should be {tuple(shapes[1])}" if shapes else ""
        raise CheckpointError(
            f"{checkpoint.model!r} has {len(wrong)} weights of another shape than its config.json says: "
            f"{name}{told}. Fetch the checkpoint again."
        )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{checkpoint.model!r} lacks {len(missing)} of its weights ({missing[0]}, …), and random "
            "numbers would stand in for them. Fetch the checkpoint again."
        )
    return model.to(device).eval().requires_grad_(False)


def _major_minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
