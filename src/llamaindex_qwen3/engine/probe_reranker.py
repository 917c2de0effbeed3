"""Check at the first contact that a server gives the scores that the library would.

Where the server takes whole prompts, the client renders them and nothing can go wrong. Where only
the server renders them, its template has to be shown right: by the scores of whole prompts if it
gives those, otherwise by pairs of requests that a right template renders to the same prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ServerAccessError, ServerError, ServerMismatchError
from ..prompts import DEFAULT_TASK, RERANKER_PREFIX, RERANKER_SUFFIX, format_pair
from .contact import Identity, another, patiently
from .endpoint import Endpoint, TransientError
from .probe_template import ANSWER, FIX, TASK, Ids, Template, rendered_scores
from .scores import SAME, classify, farthest, log_odds, sigmoid
from .wire import Kind, WrongAnswerError, classification, read_classification

__all__ = ["RerankerProfile", "check_alike", "classify", "log_odds", "probe"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RerankerProfile:
    """How a server is asked for scores.

    Attributes:
        renders: Whether it makes the prompts itself, from query, document and instruction.
        raw: Whether it gives log-odds when asked to, not only probabilities.
        scores: Log-odds of fixed prompts.
        prompts: The ids of these, where it takes whole ones.
    """

    kind: Kind
    model: str
    path: str
    renders: bool
    raw: bool
    max_tokens: int | None
    max_texts: int
    scores: tuple[float, ...]
    prompts: Sequence[Sequence[int]] = ()

    async def prove(self, endpoint: Endpoint) -> None:
        """Raise ServerMismatchError unless a server gives the scores that it gave before."""
        try:
            if self.renders:
                scores = await rendered_scores(endpoint, self.path, self.model, self.raw)
            else:
                scores = await classify(endpoint, self.model, self.prompts, self.raw)
        except WrongAnswerError as error:
            if len(error.args) == 1:
                raise
            raise another(endpoint, f"its {self.path} gives {error.args[0]}") from None
        apart = farthest(self.scores, scores)
        if apart > 2 * SAME:
            raise another(
                endpoint, f"it scores the same prompts {apart:.2f} apart in log-odds from before"
            )


async def probe(endpoint: Endpoint, identity: Identity, ids: Ids, renders: bool) -> RerankerProfile:
    """Find out how a server judges, and that its scores can be right.

    Args:
        endpoint: The server.
        identity: What it says it is.
        ids: Gives the ids of rendered prompts, control tokens and all.
        renders: Whether the server is to make the prompts, even if it takes whole ones.

    Raises:
        ServerMismatchError: Its scores are not those of Qwen3-Reranker's prompt.
    """
    if identity.kind == "tei":
        raise ServerMismatchError(
            f"{endpoint.url} is text-embeddings-inference, which cannot run Qwen3-Reranker. "
            "Serve the reranker with vLLM, or run it here without base_url.",
            endpoint.url,
        )
    whole = None if identity.kind == "infinity" else await _whole_prompts(endpoint, identity, ids)
    if whole is not None and not renders:
        return whole
    if whole is None:
        await _refuse_embedding_server(endpoint, identity, ids)
    template = Template(endpoint, identity, ids)
    await template.find()
    wrong = await (template.compare(whole.raw) if whole else template.deduce())
    if wrong:
        raise ServerMismatchError(
            f"{endpoint.url} scores by a wrong prompt: {wrong}. {FIX}", endpoint.url
        )
    return RerankerProfile(
        identity.kind, identity.model, template.path, True, template.raw,
        identity.max_tokens, identity.max_texts, tuple(await template.score(TASK)),
    )  # fmt: skip


def check_alike(one: Endpoint, other: Endpoint) -> None:
    """Raise ServerMismatchError unless two servers give the same prompts the same scores."""
    # Those that render prompts themselves are asked others.
    if one.profile.renders != other.profile.renders:
        return
    apart = farthest(one.profile.scores, other.profile.scores)
    if apart > 2 * SAME:
        raise ServerMismatchError(
            f"{one.url} and {other.url} score the same prompts {apart:.2f} apart in log-odds: they "
            "serve different models. Give the addresses of one model.",
            other.url,
        )


async def _whole_prompts(
    endpoint: Endpoint, identity: Identity, ids: Ids
) -> RerankerProfile | None:
    """Return how the server takes whole prompts, or None if it does not."""
    # Short ones, that any server has room for.
    bodies = [format_pair(DEFAULT_TASK, "2+2?", document) for document in ("2+2=4", "bread")]
    prompts = ids([RERANKER_PREFIX + body + RERANKER_SUFFIX for body in bodies])

    async def ask(rows: Sequence[Sequence[int]], raw: bool) -> list[float]:
        answer = await endpoint.post("/classify", classification(identity.model, rows, raw))
        return read_classification(answer, len(rows))

    try:
        plain = await patiently(ask, prompts, False)
        reverse = list(reversed(await patiently(ask, prompts[::-1], True)))
    except ServerAccessError:
        raise
    except ServerError:
        # There is no such path, or it takes something else.
        return None
    except WrongAnswerError as error:
        raise ServerMismatchError(
            f"{endpoint.url} is not set up as Qwen3-Reranker: its /classify gives {error.args[0]}. "
            "Start vLLM with --hf-overrides that name Qwen3ForSequenceClassification and "
            '"classifier_from_token": ["no", "yes"].',
            endpoint.url,
        ) from None
    raw = all(abs(sigmoid(r) - p) < 0.02 for p, r in zip(plain, reverse, strict=True))
    if not raw and any(abs(r - p) > 0.02 for p, r in zip(plain, reverse, strict=True)):
        raise ServerMismatchError(
            f"{endpoint.url} gives the same prompts other scores in another order: {plain} and "
            f"{reverse}.",
            endpoint.url,
        )
    if plain[0] < plain[1]:
        _logger.warning(
            "%s finds that bread answers 2+2? better than 2+2=4 does. Check that "
            'it was started with "classifier_from_token": ["no", "yes"], in this order.',
            endpoint.url,
        )
    scores = reverse if raw else [log_odds(value) for value in plain]
    return RerankerProfile(
        identity.kind, identity.model, "/classify", False, raw,
        identity.max_tokens, identity.max_texts, tuple(scores), prompts,
    )  # fmt: skip


async def _refuse_embedding_server(endpoint: Endpoint, identity: Identity, ids: Ids) -> None:
    body = {"model": identity.model, "input": [ANSWER]}
    for path in ("/v1/embeddings", "/embeddings"):
        try:
            await patiently(endpoint.post, path, body)
        except (ServerError, TransientError):
            continue
        raise ServerMismatchError(
            f"{endpoint.url} serves an embedding model: it has {path} and no /classify, and its "
            "rerankings would be cosines. Its address belongs to Qwen3Embedding(base_url=...); start "
            "the reranker on another.",
            endpoint.url,
        )
