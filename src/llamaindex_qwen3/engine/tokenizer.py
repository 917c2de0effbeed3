"""Read a checkpoint's tokenizer, without torch: a client of a model server needs no more."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from ..errors import CheckpointError
from .checkpoint import Checkpoint, find_file


def load_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, Tokenizer]:
    """Return the checkpoint's tokenizer, and a copy that knows no control tokens.

    The copy gives the same ids for all other text, so that no input can produce a control token.
    """
    path = find_file(checkpoint, "tokenizer.json")
    if path is None:
        raise CheckpointError(
            f"{checkpoint.model!r} has no tokenizer.json. Save it with "
            "AutoTokenizer.from_pretrained(base).save_pretrained(directory)."
        )
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        # A fine-tune may have saved its own; here cutting and padding are done by the caller.
        spec["truncation"] = spec["padding"] = None
        control = Tokenizer.from_str(json.dumps(spec))
        added = [token["content"] for token in spec["added_tokens"]]
        spec["added_tokens"], spec["post_processor"] = [], None
        plain = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"Cannot read {path}: {error}. Fetch the checkpoint again."
        ) from error
    for token in added:
        if control.token_to_id(token) in plain.encode(token, add_special_tokens=False).ids:
            raise CheckpointError(
                f"The tokenizer of {checkpoint.model!r} reads {token!r} in plain text as a control "
                "token: a document could steer its own score. Use the tokenizer of the original model."
            )
    return control, plain


def token_id(tokenizer: Tokenizer, token: str, checkpoint: Checkpoint) -> int:
    """Return the id of a token that Qwen3's tokenizer must have."""
    index = tokenizer.token_to_id(token)
    if index is None:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.model!r} has no token {token!r}: it is not Qwen3's. "
            "Use the tokenizer of the original model."
        )
    return int(index)
