"""Qwen3-Reranker as a LlamaIndex node postprocessor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core import instrumentation as instrument
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from .component import Qwen3Component, check_task
from .engine.checkpoint import Checkpoint, Role
from .engine.endpoint import ServedModel
from .engine.protocol import Scorer, ScoreRequest, ScoreResult
from .errors import InvalidArgumentError
from .prompts import DEFAULT_TASK

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_MODEL = "Qwen/Qwen3-Reranker-0.6B"
dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]


class Qwen3Reranker(Qwen3Component, BaseNodePostprocessor):
    """Reorder retrieved nodes by the probability that Qwen3-Reranker answers "yes".

    Each candidate is read in the official template with the query and the instruction; its score
    is the model's yes against no at the last position. Given nodes are not changed: copies are
    returned, best first, equal scores in retrieval order.

    Args:
        model: Hub id or directory of a Qwen3-Reranker checkpoint or a fine-tune of one.
        revision: Branch, tag or commit on the hub.
        top_n: Most nodes to return.
        instruction: The task in one English sentence.
        max_length: Most tokens of template, query and document; the end of a longer document is
            cut, with a warning and ``metadata["truncated_tokens"]`` on its node.
        score_threshold: Drop nodes that score lower, in the unit of `score_type`.
        score_type: "probability" (0 to 1), or "logit" for the log-odds yes - no.
        keep_retrieval_score: Keep the earlier score in ``metadata["retrieval_score"]``, which
            neither the embedded nor the prompted text shows.
        metadata_mode: Which metadata the model reads with a node's text.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: torch device, or a list of several that share the work; None takes a GPU where there
            is one.
        attn_implementation: Run transformers' own forward pass with this attention; None is the
            engine's, which is faster.
        max_batch_tokens: Most tokens of one forward pass, or of one request to a server.
        base_url: Address of a server that runs the model, or of several that share the work; dtype,
            device and attn_implementation are then its own affair.
        server: "auto", "vllm", "tei", "infinity" or "openai" for another that speaks its protocol.
        served_model_name: The model's name there, where it is not this one.
        api_key: Key of the server, instead of the environment variable QWEN3_API_KEY.
        timeout_s: Seconds to wait for one answer.
        retry_s: Seconds to repeat a request that fails for reasons that may pass.
        max_in_flight: Requests of an ingest at once, to each server.

    Raises:
        InvalidArgumentError: A value outside what is allowed.
        CheckpointError: A directory that is not such a checkpoint; for a hub id, at first use.

    Example:
        >>> engine = index.as_query_engine(
        ...     similarity_top_k=10, node_postprocessors=[Qwen3Reranker(top_n=3)]
        ... )  # doctest: +SKIP

    Source: https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
    """

    model: str = Field(default=DEFAULT_MODEL, description="Hub id or directory.")
    top_n: int = Field(default=3, description="Most nodes to return.")
    instruction: str = Field(default=DEFAULT_TASK, description="Task in one sentence.")
    score_threshold: float | None = Field(default=None, description="Least score to keep.")
    score_type: Literal["probability", "logit"] = Field(default="probability")
    keep_retrieval_score: bool = Field(default=False)
    metadata_mode: MetadataMode = Field(default=MetadataMode.EMBED)

    def __init__(self, model: str = DEFAULT_MODEL, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "Qwen3Reranker"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Score texts against a query.

        Returns:
            One score per text, in input order, in the unit of `score_type`.

        Raises:
            InputTooLongError: Instruction and query leave the texts no room in `max_length`.
            NonFiniteError: The model gave NaN or infinity.
        """
        if not (request := self._request(query, texts)).documents:
            return []
        scorer: Scorer = self._loaded()
        return self._scores(scorer.score(request))

    async def ascore(self, query: str, texts: Sequence[str]) -> list[float]:
        """Do as `score` does, without blocking the event loop."""
        if not (request := self._request(query, texts)).documents:
            return []
        scorer: Scorer = await self._aloaded()
        return self._scores(await scorer.ascore(request))

    def with_task(self, instruction: str) -> Self:
        """Return a reranker for another task that shares the loaded model."""
        return self._with(instruction=instruction)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if not nodes:
            return []
        request = self._node_request(nodes, query_bundle)
        with self._observed(nodes, query_bundle) as ranked:
            scorer: Scorer = self._loaded()
            ranked += self._rank(nodes, scorer.score(request))
        return ranked

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if not nodes:
            return []
        request = self._node_request(nodes, query_bundle)
        with self._observed(nodes, query_bundle) as ranked:
            scorer: Scorer = await self._aloaded()
            ranked += self._rank(nodes, await scorer.ascore(request))
        return ranked

    @contextmanager
    def _observed(
        self, nodes: list[NodeWithScore], query: QueryBundle | None
    ) -> Iterator[list[NodeWithScore]]:
        """Emit the start and the end of a reranking, also of one that fails."""
        ranked: list[NodeWithScore] = []
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query.query_str if query else "",
            EventPayload.TOP_K: self.top_n,
        }
        dispatcher.event(
            ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n, model_name=self.model)
        )
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield ranked
                event.on_end(payload={EventPayload.NODES: ranked})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=ranked))

    def _rank(self, nodes: list[NodeWithScore], result: ScoreResult) -> list[NodeWithScore]:
        """Return scored copies of the best nodes."""
        scores, least = self._scores(result), self.score_threshold
        kept = [i for i, score in enumerate(scores) if least is None or score >= least]
        # By log-odds, since probabilities meet at 1; sorted() keeps the order of equal ones.
        best = sorted(kept, key=lambda i: -result.log_odds[i])[: self.top_n]
        return [self._copy(nodes[i], scores[i], result.truncated[i]) for i in best]

    def _copy(self, scored: NodeWithScore, score: float, truncated: int) -> NodeWithScore:
        node, notes = scored.node, {}
        if self.keep_retrieval_score:
            notes["retrieval_score"] = scored.score
        if truncated:
            notes["truncated_tokens"] = truncated
        # Notes for people and programs: no model should read them.
        hidden = {
            name: list(dict.fromkeys([*getattr(node, name), *notes]))
            for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
        }
        kept = {key: value for key, value in node.metadata.items() if key != "truncated_tokens"}
        copy = node.model_copy(
            update={
                "metadata": {**kept, **notes},
                "relationships": dict(node.relationships),
                **hidden,
            }
        )
        return NodeWithScore(node=copy, score=score)

    def _scores(self, result: ScoreResult) -> list[float]:
        if self.score_type == "logit":
            return result.log_odds
        return [_sigmoid(odds) for odds in result.log_odds]

    def _node_request(
        self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None
    ) -> ScoreRequest:
        if query_bundle is None:
            raise InvalidArgumentError(
                "Reranking needs the query: pass query_bundle=QueryBundle(...) or query_str='...' "
                "to postprocess_nodes()."
            )
        texts = [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]
        return self._request(query_bundle.query_str, texts)

    def _request(self, query: str, texts: Sequence[str]) -> ScoreRequest:
        if isinstance(texts, str):
            raise InvalidArgumentError("texts is one string; give a list of texts: [text].")
        return ScoreRequest(
            query=query,
            documents=list(texts),
            instruction=self.instruction,
            max_length=self.max_length,
            max_batch_tokens=self.max_batch_tokens,
        )

    def _check_fields(self) -> None:
        super()._check_fields()
        check_task("instruction", self.instruction)
        if self.top_n < 1:
            raise InvalidArgumentError(f"top_n={self.top_n} must be at least 1.")
        threshold = self.score_threshold
        if threshold is not None and self.score_type == "probability" and not 0 <= threshold <= 1:
            raise InvalidArgumentError(
                f"score_threshold={threshold} is no probability. Give a number from 0 to 1, or set "
                "score_type='logit' for a threshold on the log-odds."
            )

    def _model_id(self) -> tuple[Role, str]:
        return "reranker", self.model

    def _open_engine(self, checkpoint: Checkpoint) -> Scorer:
        from .engine.local import LocalScorer

        return LocalScorer.shared(checkpoint)

    def _open_client(self, model: ServedModel) -> Scorer:
        from .engine.server import ServedScorer

        return ServedScorer.shared(model)


def _sigmoid(log_odds: float) -> float:
    # In double precision, so that good documents keep their order close to 1.
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))
