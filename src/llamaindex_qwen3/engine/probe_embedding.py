"""Check at the first contact that a server gives the vectors that the library would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ModelNotServedError, ServerAccessError, ServerError, ServerMismatchError
from .contact import Identity, another, patiently
from .endpoint import Endpoint, NotFoundError, TooLargeError, TransientError
from .wire import (
    Input,
    Kind,
    Vectors,
    openai_embeddings,
    read_openai_embeddings,
    read_tei_embeddings,
    tei_embeddings,
)

# Short ones, that any server has room for.
_TEXT = "The city"
_CONTROL = "a<|im_end|>"
# Between vectors of the same tokens in bfloat16, from batches of other sizes.
_SAME = 0.01
_IDENTICAL = 1e-6


@dataclass(frozen=True)
class EmbeddingProfile:
    """How a server is asked for vectors.

    Attributes:
        takes_ids: Whether it runs token ids as they are.
        strips: Whether it drops white space at both ends of a text.
        vector: What it gave for a fixed text.
        sample: A fixed input of the kind that it is sent, ids or text.
        sample_vector: What it gave for that.
    """

    kind: Kind
    model: str
    path: str
    takes_ids: bool
    strips: bool
    max_tokens: int | None
    max_texts: int
    vector: Vectors
    sample: Input
    sample_vector: Vectors

    async def prove(self, endpoint: Endpoint) -> None:
        """Raise ServerMismatchError unless a server gives the vector that it gave before."""
        (vector,) = await vectors(endpoint, self.kind, self.model, self.path, self.sample)
        if len(vector) != len(self.sample_vector):
            raise another(
                endpoint,
                f"it gives vectors of {len(vector)} values, and gave {len(self.sample_vector)}",
            )
        apart = _distance(vector, self.sample_vector)
        if apart > _SAME:
            raise another(
                endpoint,
                f"it gives a text a vector at a cosine distance of {apart:.3f} from its former one",
            )


async def vectors(
    endpoint: Endpoint,
    kind: Kind,
    model: str,
    path: str,
    inputs: Input,
    normalize: bool = True,
    private: Sequence[str] = (),
) -> Vectors:
    """Ask a server for vectors [inputs, width]; for `private` see `Endpoint.post`."""
    if kind == "tei":
        answer = await endpoint.post(path, tei_embeddings(inputs, normalize), private)
        return read_tei_embeddings(answer, len(inputs))
    answer = await endpoint.post(path, openai_embeddings(model, inputs, kind, normalize), private)
    return read_openai_embeddings(answer, len(inputs))


async def probe(
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
        if len(inputs) <= identity.max_texts:
            try:
                return np.asarray(await patiently(vectors, endpoint, kind, model, path, inputs))
            except TooLargeError:
                if len(inputs) == 1:
                    raise
        half = len(inputs) // 2
        return np.concatenate([await ask(inputs[:half]), await ask(inputs[half:])])

    texts = await ask([_TEXT, _CONTROL, _TEXT + " \n"])
    if texts.shape[1] != width:
        raise ServerMismatchError(
            f"{endpoint.url} gives vectors of {texts.shape[1]} values, and the model given here has "
            f"{width}. It serves another model, or was told to shorten: give the model it serves, "
            "and shorten with dimensions=.",
            endpoint.url,
        )
    # The second shows best what ids are to a server: tokens, or a text to read again.
    fixed = ids([_TEXT, _CONTROL])
    # text-embeddings-inference decodes ids and encodes the text again, control tokens and all.
    of_ids = None if kind == "tei" else await _run_as_ids(endpoint, kind, ask, fixed, texts)
    strips = _distance(texts[0], texts[2]) < _IDENTICAL
    sample, vector = ([_TEXT], texts[0]) if of_ids is None else (fixed[1:], of_ids)
    return EmbeddingProfile(
        kind, model, path, of_ids is not None, strips, identity.max_tokens, identity.max_texts,
        texts[0], sample, vector,
    )  # fmt: skip


async def _run_as_ids(
    endpoint: Endpoint,
    kind: Kind,
    ask: Callable[[Input], Awaitable[Vectors]],
    ids: Sequence[list[int]],
    texts: Vectors,
) -> Vectors | None:
    """Return the vector of the second ids, or None if ids are not run as they are.

    It shows by the vectors of a text and of one with a control token.

    Raises:
        ServerMismatchError: It adds the end token to ids as well as to texts, or to neither; or it
            is vLLM, which does run ids, and has another tokenizer.
    """
    text, control = ids
    try:
        rows = await ask([text, text[:-1], control, control[:-1]])
    except (ServerAccessError, TooLargeError):
        raise
    except ServerError:
        return None
    except TransientError as error:
        if error.status != 500:
            raise
        return None
    whole, bare = (_distance(row, texts[0]) for row in rows[:2])
    noise = max(2 * min(whole, bare), _IDENTICAL)
    if min(whole, bare) > _SAME or min(_distance(row, texts[1]) for row in rows[2:]) <= noise:
        if kind != "vllm":
            return None
        raise ServerMismatchError(
            f"{endpoint.url} does not give a text and its token ids the same vector: its tokenizer is "
            "not that of the model given here. Give the model it serves, or start it with this "
            "model's tokenizer files.",
            endpoint.url,
        )
    if bare < whole:
        raise ServerMismatchError(
            f"{endpoint.url} ends ids as it ends texts: it adds <|endoftext|> to both, or to neither, "
            "and Qwen3-Embedding's vector is that of exactly one. Start it with the tokenizer files "
            "of the original model, or use vLLM.",
            endpoint.url,
        )
    vector: Vectors = rows[2]
    return vector


def check_alike(one: Endpoint, other: Endpoint) -> None:
    """Raise ServerMismatchError unless two servers give a text the same vector."""
    apart = _distance(one.profile.vector, other.profile.vector)
    if apart > _SAME:
        raise ServerMismatchError(
            f"{one.url} and {other.url} give the same text vectors at a cosine distance of "
            f"{apart:.3f}: they serve different models. Give the addresses of one model.",
            other.url,
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
