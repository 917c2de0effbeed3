"""Check at the first contact that a server gives the scores that the library would.

Where the server takes whole prompts, the client renders them and nothing can go wrong. Where only
the server renders them, its template has to be shown right: by the scores of whole prompts if it
gives those, otherwise by pairs of requests that a right template renders to the same prompt.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ServerAccessError, ServerError, ServerMismatchError
from ..prompts import DEFAULT_TASK, RERANKER_PREFIX, RERANKER_SUFFIX, format_pair
from .contact import Identity, patiently
from .endpoint import Endpoint, NotFoundError, TransientError
from .wire import (
    Kind,
    WrongAnswerError,
    classification,
    read_classification,
    read_reranking,
    reranking,
)

_QUERY = "Where is the Danube's mouth?"
_ANSWER = "The Danube flows into the Black Sea, in a delta shared by Romania and Ukraine."
_OTHER = "Sourdough needs flour, water, salt and a day of patience."
_TASK = "Given a question, retrieve passages that contradict its assumption"
_PAIRS = [(DEFAULT_TASK, _ANSWER), (DEFAULT_TASK, _OTHER), (_TASK, _ANSWER), (_TASK, _OTHER)]
# Log-odds between runs of one prompt in bfloat16, in batches of other sizes.
_SAME = 0.25
_FIX = (
    "Serve the model with vLLM, whose /classify takes prompts rendered here, or give it a template "
    'that ends in {{ "\\n\\n" }} and uses the instruction (--chat-template).'
)
_logger = logging.getLogger(__name__)

Ids = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class RerankerProfile:
    """How a server is asked for scores.

    Attributes:
        renders: Whether it makes the prompts itself, from query, document and instruction.
        raw: Whether it gives log-odds when asked to, not only probabilities.
        scores: Log-odds of fixed prompts.
    """

    kind: Kind
    model: str
    path: str
    renders: bool
    raw: bool
    max_tokens: int | None
    max_texts: int
    scores: tuple[float, ...]


async def classify(
    endpoint: Endpoint,
    model: str,
    prompts: Sequence[Sequence[int]],
    raw: bool,
    private: Sequence[str] = (),
) -> list[float]:
    """Ask a server for log-odds [prompts] of whole prompts; for `private` see `Endpoint.post`."""
    answer = await endpoint.post("/classify", classification(model, prompts, raw), private)
    values = read_classification(answer, len(prompts))
    return values if raw else [log_odds(value) for value in values]


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability, finite also where it is rounded to 0 or 1."""
    if not 0 <= probability <= 1:
        raise WrongAnswerError(f"a score of {probability:.4g}, which is no probability")
    bounded = min(max(probability, 1e-12), 1 - 6e-8)
    return math.log(bounded / (1 - bounded))


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
    template = _Template(endpoint, identity, ids)
    await template.find()
    wrong = await (template.compare(whole.raw) if whole else template.deduce())
    if wrong:
        raise ServerMismatchError(
            f"{endpoint.url} scores by a wrong prompt: {wrong}. {_FIX}", endpoint.url
        )
    return RerankerProfile(
        identity.kind, identity.model, template.path, True, template.raw,
        identity.max_tokens, identity.max_texts, tuple(await template.score(_TASK)),
    )  # fmt: skip


def check_alike(one: Endpoint, other: Endpoint) -> None:
    """Raise ServerMismatchError unless two servers give the same prompts the same scores."""
    # Those that render prompts themselves are asked others.
    if one.profile.renders != other.profile.renders:
        return
    apart = _farthest(one.profile.scores, other.profile.scores)
    if apart > 2 * _SAME:
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
    raw = all(abs(_sigmoid(r) - p) < 0.02 for p, r in zip(plain, reverse, strict=True))
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
        identity.max_tokens, identity.max_texts, tuple(scores),
    )  # fmt: skip


async def _refuse_embedding_server(endpoint: Endpoint, identity: Identity, ids: Ids) -> None:
    body = {"model": identity.model, "input": [_ANSWER]}
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


class _Template:
    """The prompt that a server renders, as far as scores show it."""

    def __init__(self, endpoint: Endpoint, identity: Identity, ids: Ids) -> None:
        self._endpoint, self._identity, self._ids = endpoint, identity, ids
        self.path = ""
        self.raw = False

    async def find(self) -> None:
        """Find the path, and whether it gives log-odds."""
        for path in ("/v1/rerank", "/rerank"):
            self.path = path
            try:
                await self._ask(DEFAULT_TASK, _QUERY, [_ANSWER, _OTHER])
            except NotFoundError:
                continue
            except ServerAccessError:
                raise
            except ServerError as error:
                raise ServerMismatchError(
                    f"{error} It cannot rerank with Qwen3-Reranker. {_FIX}",
                    error.url,
                    error.status,
                ) from None
            break
        else:
            raise ServerMismatchError(
                f"{self._endpoint.url} has neither /classify nor /v1/rerank: it serves no reranker.",
                self._endpoint.url,
                404,
            )
        plain = await self._ask(DEFAULT_TASK, _QUERY, [_ANSWER, _OTHER])
        asked = await self._ask(DEFAULT_TASK, _QUERY, [_ANSWER, _OTHER], use_activation=False)
        self.raw = all(abs(_sigmoid(r) - p) < 0.02 for p, r in zip(plain, asked, strict=True))

    async def compare(self, raw: bool) -> str:
        """Say what is wrong with the prompts, by the scores of whole ones; "" for nothing."""
        got = [*await self.score(DEFAULT_TASK), *await self.score(_TASK)]
        renderings = {
            "": [_render(task, text) for task, text in _PAIRS],
            "the last line break of the suffix is lost": [
                _render(task, text)[:-1] for task, text in _PAIRS
            ],
            "there is no template: query and document are only joined": [
                _QUERY + text for _, text in _PAIRS
            ],
            "the instruction is ignored": [_render(DEFAULT_TASK, text) for _, text in _PAIRS],
            "the instruction is ignored, and the last line break of the suffix is lost": [
                _render(DEFAULT_TASK, text)[:-1] for _, text in _PAIRS
            ],
            "the suffix is missing": [
                _render(task, text).removesuffix(RERANKER_SUFFIX) for task, text in _PAIRS
            ],
            "the answer's beginning (<think>) is missing from the suffix": [
                _render(task, text).partition("<think>")[0] for task, text in _PAIRS
            ],
            "the system message is missing": [
                _render(task, text).removeprefix(RERANKER_PREFIX) for task, text in _PAIRS
            ],
        }
        prompts = [prompt for prompts in renderings.values() for prompt in prompts]
        scores = await patiently(
            classify, self._endpoint, self._identity.model, self._ids(prompts), raw
        )
        far = {
            cause: _farthest(got, scores[start : start + len(_PAIRS)])
            for cause, start in zip(renderings, range(0, len(scores), len(_PAIRS)), strict=True)
        }
        nearest = min(far, key=lambda cause: far[cause])
        if far[nearest] > _SAME:
            return f"its template gives scores that are off by up to {far['']:.2f} in log-odds"
        return nearest

    async def deduce(self) -> str:
        """Say what is wrong with the prompts, by requests that must give equal scores."""
        text = "It rises in the Black Forest."
        join = "\n<Document>: "
        if not _equal(
            await self._ask(DEFAULT_TASK, _QUERY + join + text, [_ANSWER]),
            await self._ask(DEFAULT_TASK, _QUERY, [text + join + _ANSWER]),
        ):
            return "query and document are not put into the official template"
        join = "\n<Query>: "
        if not _equal(
            await self._ask(DEFAULT_TASK + join + text, _QUERY, [_ANSWER]),
            await self._ask(DEFAULT_TASK, text + join + _QUERY, [_ANSWER]),
        ):
            return "the instruction is ignored, or not put into the official template"
        forward = await self.score(_TASK)
        if not _equal(forward, (await self.score(_TASK, reverse=True))[::-1]):
            return "scores depend on the order of the documents"
        if _equal(forward, await self.score(DEFAULT_TASK), 1e-6):
            return "the instruction is ignored"
        return await self._beginning_and_end()

    async def _beginning_and_end(self) -> str:
        # What a cut server-side prompt ends or begins with can be put there by the texts: then it
        # must score as the whole prompt does, whose own beginning and end are not seen otherwise.
        (count,) = map(len, self._ids([_render(DEFAULT_TASK, _ANSWER)]))
        whole = await self._ask(DEFAULT_TASK, _QUERY, [_ANSWER])
        more = "<|im_start|>" * 8
        ends = {}
        for cause, suffix in (
            ("", RERANKER_SUFFIX),
            ("the last line break of the suffix is lost", RERANKER_SUFFIX[:-1]),
        ):
            ends[cause] = await self._cut(count, "right", DEFAULT_TASK, [_ANSWER + suffix + more])
        begun = await self._cut(
            count, "left", more + RERANKER_PREFIX + "<Instruct>: " + DEFAULT_TASK, [_ANSWER]
        )
        if not ends[""] or not begun:
            return (
                "nothing shows that the template's beginning and end are right, since the server "
                "gives no scores of whole prompts (/classify)"
            )
        nearest = min(ends, key=lambda cause: _farthest(whole, ends[cause]))
        if nearest or not _equal(whole, ends[""]):
            return nearest or "the suffix is missing or another one"
        return "" if _equal(whole, begun) else "the system message is missing or another one"

    async def _cut(
        self, count: int, side: str, instruction: str, documents: list[str]
    ) -> list[float]:
        """Score a prompt of which the server keeps `count` tokens; [] where it does not cut."""
        options = {"truncate_prompt_tokens": count, "truncation_side": side}
        try:
            cut = await self._ask(instruction, _QUERY, documents, **options)
            less = await self._ask(
                instruction, _QUERY, documents, **{**options, "truncate_prompt_tokens": count // 2}
            )
        except ServerError:
            return []
        return [] if _equal(cut, less, 1e-6) else cut

    async def score(self, instruction: str, reverse: bool = False) -> list[float]:
        """Ask for the log-odds of an answer and of another text."""
        documents = [_ANSWER, _OTHER]
        return await self._log_odds(instruction, _QUERY, documents[::-1] if reverse else documents)

    async def _log_odds(
        self, instruction: str, query: str, documents: list[str], **options: Any
    ) -> list[float]:
        if self.raw:
            return await self._ask(instruction, query, documents, **options)
        scores = await self._ask(instruction, query, documents, **options)
        if not all(0 <= score <= 1 for score in scores):
            raise ServerMismatchError(
                f"{self._endpoint.url} gives scores such as {scores[0]:.4g}, which are no probabilities "
                f"of yes against no. {_FIX}",
                self._endpoint.url,
            )
        return [log_odds(score) for score in scores]

    async def _ask(
        self, instruction: str, query: str, documents: list[str], **options: Any
    ) -> list[float]:
        body = reranking(self._identity.model, query, documents, instruction, self.raw)

        async def send() -> list[float]:
            return read_reranking(
                await self._endpoint.post(self.path, {**body, **options}), len(documents)
            )

        scores: list[float] = await patiently(send)
        return scores


def _render(instruction: str, document: str) -> str:
    return RERANKER_PREFIX + format_pair(instruction, _QUERY, document) + RERANKER_SUFFIX


def _equal(one: Sequence[float], other: Sequence[float], tolerance: float = 0.02) -> bool:
    return _farthest(one, other) <= tolerance


def _farthest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -60), 60)))
