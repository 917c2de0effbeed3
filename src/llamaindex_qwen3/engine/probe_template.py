"""The prompt that a server renders, as far as its scores show it.

It has to be shown right: by the scores of whole prompts where the server gives those, otherwise by
pairs of requests that a right template renders to the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ServerAccessError, ServerError, ServerMismatchError
from ..prompts import DEFAULT_TASK, RERANKER_PREFIX, RERANKER_SUFFIX, format_pair
from .contact import Identity, patiently
from .endpoint import Endpoint, NotFoundError
from .scores import SAME, classify, farthest, log_odds, sigmoid
from .wire import read_reranking, reranking

ANSWER = "The Danube flows into the Black Sea, in a delta shared by Romania and Ukraine."
TASK = "Given a question, retrieve passages that contradict its assumption"
FIX = (
    "Serve the model with vLLM, whose /classify takes prompts rendered here, or give it a template "
    'that ends in {{ "\\n\\n" }} and uses the instruction (--chat-template).'
)
_QUERY = "Where is the Danube's mouth?"
_OTHER = "Sourdough needs flour, water, salt and a day of patience."
_PAIRS = [(DEFAULT_TASK, ANSWER), (DEFAULT_TASK, _OTHER), (TASK, ANSWER), (TASK, _OTHER)]

Ids = Callable[[Sequence[str]], list[list[int]]]


class Template:
    """A server's template: found, and compared with the official one."""

    def __init__(self, endpoint: Endpoint, identity: Identity, ids: Ids) -> None:
        self._endpoint, self._identity, self._ids = endpoint, identity, ids
        self.path = ""
        self.raw = False

    async def find(self) -> None:
        """Find the path, and whether it gives log-odds."""
        for path in ("/v1/rerank", "/rerank"):
            self.path = path
            try:
                await self._ask(DEFAULT_TASK, _QUERY, [ANSWER, _OTHER])
            except NotFoundError:
                continue
            except ServerAccessError:
                raise
            except ServerError as error:
                raise ServerMismatchError(
                    f"{error} It cannot rerank with Qwen3-Reranker. {FIX}",
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
        plain = await self._ask(DEFAULT_TASK, _QUERY, [ANSWER, _OTHER])
        asked = await self._ask(DEFAULT_TASK, _QUERY, [ANSWER, _OTHER], use_activation=False)
        self.raw = all(abs(sigmoid(r) - p) < 0.02 for p, r in zip(plain, asked, strict=True))

    async def compare(self, raw: bool) -> str:
        """Say what is wrong with the prompts, by the scores of whole ones; "" for nothing."""
        got = [*await self.score(DEFAULT_TASK), *await self.score(TASK)]
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
            cause: farthest(got, scores[start : start + len(_PAIRS)])
            for cause, start in zip(renderings, range(0, len(scores), len(_PAIRS)), strict=True)
        }
        nearest = min(far, key=lambda cause: far[cause])
        if far[nearest] > SAME:
            return f"its template gives scores that are off by up to {far['']:.2f} in log-odds"
        return nearest

    async def deduce(self) -> str:
        """Say what is wrong with the prompts, by requests that must give equal scores."""
        text = "It rises in the Black Forest."
        join = "\n<Document>: "
        if not _equal(
            await self._ask(DEFAULT_TASK, _QUERY + join + text, [ANSWER]),
            await self._ask(DEFAULT_TASK, _QUERY, [text + join + ANSWER]),
        ):
            return "query and document are not put into the official template"
        join = "\n<Query>: "
        if not _equal(
            await self._ask(DEFAULT_TASK + join + text, _QUERY, [ANSWER]),
            await self._ask(DEFAULT_TASK, text + join + _QUERY, [ANSWER]),
        ):
            return "the instruction is ignored, or not put into the official template"
        forward = await self.score(TASK)
        if not _equal(forward, (await self.score(TASK, reverse=True))[::-1]):
            return "scores depend on the order of the documents"
        if _equal(forward, await self.score(DEFAULT_TASK), 1e-6):
            return "the instruction is ignored"
        return await self._beginning_and_end()

    async def _beginning_and_end(self) -> str:
        # What a cut server-side prompt ends or begins with can be put there by the texts: then it
        # must score as the whole prompt does, whose own beginning and end are not seen otherwise.
        (count,) = map(len, self._ids([_render(DEFAULT_TASK, ANSWER)]))
        whole = await self._ask(DEFAULT_TASK, _QUERY, [ANSWER])
        more = "<|im_start|>" * 8
        ends = {}
        for cause, suffix in (
            ("", RERANKER_SUFFIX),
            ("the last line break of the suffix is lost", RERANKER_SUFFIX[:-1]),
        ):
            ends[cause] = await self._cut(count, "right", DEFAULT_TASK, [ANSWER + suffix + more])
        begun = await self._cut(
            count, "left", more + RERANKER_PREFIX + "<Instruct>: " + DEFAULT_TASK, [ANSWER]
        )
        if not ends[""] or not begun:
            return (
                "nothing shows that the template's beginning and end are right, since the server "
                "gives no scores of whole prompts (/classify)"
            )
        nearest = min(ends, key=lambda cause: farthest(whole, ends[cause]))
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
        documents = [ANSWER, _OTHER]
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
                f"of yes against no. {FIX}",
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


async def rendered_scores(endpoint: Endpoint, path: str, model: str, raw: bool) -> list[float]:
    """Ask once for the log-odds that `Template.score` gives for `TASK`."""
    body = reranking(model, _QUERY, [ANSWER, _OTHER], TASK, raw)
    scores = read_reranking(await endpoint.post(path, body), 2)
    return scores if raw else [log_odds(score) for score in scores]


def _render(instruction: str, document: str) -> str:
    return RERANKER_PREFIX + format_pair(instruction, _QUERY, document) + RERANKER_SUFFIX


def _equal(one: Sequence[float], other: Sequence[float], tolerance: float = 0.02) -> bool:
    return farthest(one, other) <= tolerance
