"""Check at the first contact that a server gives the vectors that the library would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ModelNotServedError, ServerError, ServerMismatchError
from .contact import Identity, patiently
from .endpoint import Endpoint, NotFoundError, TransientError
from .wire import (
    Input,
    Kind,
    Vectors,
    openai_embeddings,
    read_openai_embeddings,
    read_tei_embeddings,
    tei_embeddings,
)

_TEXT = "The capital of China is Beijing."
_CONTROL = "The capital<|im_end|> of China"
# Between vectors of the same tokens in bfloat16, from batches of other sizes.
_SAME = 0.01
_IDENTICAL = 1e-6


@dataclass(frozen=True)
class EmbeddingProfile:
    """How a server is asked for vectors.

    Attributes:
        takes_ids: Whether it runs token ids as they are.
        strips: Whether it drops white space at both ends of a text.
    """

    kind: Kind
    model: str
    path: str
    takes_ids: bool
    strips: bool
    max_tokens: int | None
    max_texts: int


async def vectors(
    endpoint: Endpoint, kind: Kind, model: str, path: str, inputs: Input, normalize: bool = True
) -> Vectors:
    """Ask a server for vectors [inputs, width]."""
    if kind == "tei":
        answer = await endpoint.post(path, tei_embeddings(inputs, normalize))
        return read_tei_embeddings(answer, len(inputs))
    answer = await endpoint.post(path, openai_embeddings(model, inputs, kind, normalize))
    return read_openai_embeddings(answer, len(inputs))


async def probe_embedding(
    endpoint: Endpoint,
    identity: Identity,
    ids: Callable[[Sequence[str]], list[list[int]]],
    width: int,
) -> EmbeddingProfile:
    """Find out how a server takes texts, and that its vectors can be right.

    Args:
        endpoint: The server.
        identity: What it says it is.
        ids: Gives the ids of texts, each with the end token.
        width: Values of a vector.

    Raises:
        ServerMismatchError: It serves another kind of model, or pools otherwise.
        ModelNotServedError: It does not know the model.
    """
    kind, model = identity.kind, identity.model
    if kind == "tei":
        _check_tei(endpoint, identity)
    path = await _path(endpoint, identity)

    async def ask(inputs: Input) -> Vectors:
        return np.asarray(await patiently(vectors, endpoint, kind, model, path, inputs))

    texts = await ask([_TEXT, _CONTROL, _TEXT + " \n"])
    if texts.shape[1] != width:
        raise ServerMismatchError(
            f"{endpoint.url} gives vectors of {texts.shape[1]} values, and the model given here has "
            f"{width}. It serves another model, or was told to shorten: give the model it serves, "
            "and shorten with dimensions=.",
            endpoint.url,
        )
    text, control = ids([_TEXT, _CONTROL])
    takes_ids = False
    # It decodes them and encodes the text again, control tokens and all.
    if kind != "tei":
        try:
            rows = await ask([text, text[:-1], control])
        except ServerError:
            pass
        except TransientError as error:
            if error.status != 500:
                raise
        else:
            # A server that forgets the end token of texts is right by ids all the same.
            noise = min(_distance(rows[0], texts[0]), _distance(rows[1], texts[0]))
            takes_ids = noise < _SAME and _distance(rows[2], texts[1]) > max(2 * noise, _IDENTICAL)
    strips = _distance(texts[0], texts[2]) < _IDENTICAL
    return EmbeddingProfile(
        kind, model, path, takes_ids, strips, identity.max_tokens, identity.max_texts
    )


def _check_tei(endpoint: Endpoint, identity: Identity) -> None:
    kinds = identity.info.get("model_type") or {}
    if not isinstance(kinds, dict) or "embedding" not in kinds:
        raise ServerMismatchError(
            f"{endpoint.url} serves {identity.model!r} as {kinds!r}, not as an embedding model.",
            endpoint.url,
        )
    pooling = (kinds["embedding"] or {}).get("pooling")
    if pooling != "last_token":
        raise ServerMismatchError(
            f"{endpoint.url} pools by {pooling!r}, and Qwen3-Embedding pools the last token. Start it "
            "with --pooling last-token.",
            endpoint.url,
        )


async def _path(endpoint: Endpoint, identity: Identity) -> str:
    """Return the path that gives vectors."""
    refusal: NotFoundError | None = None
    paths = ("/embed",) if identity.kind == "tei" else ("/v1/embeddings", "/embeddings")
    for path in paths:
        try:
            await patiently(vectors, endpoint, identity.kind, identity.model, path, [_TEXT])
        except NotFoundError as error:
            refusal = refusal or error
        else:
            return path
    assert refusal is not None
    if "model" in str(refusal).partition(" refused ")[2].lower():
        raise ModelNotServedError(
            f"{refusal} Give the model it serves, or its name there as served_model_name.",
            endpoint.url,
            404,
        )
    raise ServerMismatchError(
        f"{endpoint.url} has no {' or '.join(paths)}: it serves no embedding model. A reranker's "
        "address belongs to Qwen3Reranker(base_url=...).",
        endpoint.url,
        404,
    )


def _distance(one: Vectors, other: Vectors) -> float:
    """Return the cosine distance, 0 to 2."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(1 - one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
