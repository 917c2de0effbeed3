"""Ask every question under every setting, and compute nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama_index.core.schema import NodeWithScore, QueryBundle

from ..embedding import Qwen3Embedding
from ..errors import InvalidArgumentError
from ..milvus import CheckedMilvusVectorStore, milvus_vector_store
from ..pipeline import open_index
from ..reranker import Qwen3Reranker
from .corpus import Collection, Corpus, Vectors, copies, embed_corpus, read_corpus, shorten
from .questions import Question, ranked
from .settings import Asked, Grid, Outcome, Search, Seconds, Setting

_WARM_UP = "warm up"
# The stage, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass
class _Found:
    """The candidates of all questions under one setting: ids of nodes, and seconds to embed and to search."""

    setting: Setting
    on_copy: bool
    ids: list[list[str]] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)


class PairScores:
    """Scores of pairs of a question and a text, each computed when first asked for.

    The time of a pair is its share, by length, of the call that scored it. So what 20 candidates take
    is the call for the first 10 and the call for the rest, where both were asked for.
    """

    def __init__(self, reranker: Qwen3Reranker) -> None:
        # Log-odds, since probabilities meet at 1.
        self._reranker = reranker.model_copy(update={"score_type": "logit"})
        self._known: dict[tuple[str, str, str], tuple[float, float]] = {}

    def rank(
        self, question: str, task: str, nodes: Sequence[NodeWithScore]
    ) -> tuple[list[NodeWithScore], float]:
        """Return nodes as the reranker orders them, and the seconds that takes."""
        texts = [
            node.node.get_content(metadata_mode=self._reranker.metadata_mode) for node in nodes
        ]
        distinct = list(dict.fromkeys(texts))
        new = [text for text in distinct if (question, task, text) not in self._known]
        if new:
            started = time.perf_counter()
            scores = self._reranker.with_task(task).score(question, new)
            seconds = time.perf_counter() - started
            whole = sum(map(len, new)) or 1
            for text, score in zip(new, scores, strict=True):
                self._known[question, task, text] = score, seconds * len(text) / whole
        known = [self._known[question, task, text] for text in texts]
        # sorted() keeps the order of retrieval among equal scores.
        order = sorted(range(len(nodes)), key=lambda i: -known[i][0])
        taken = sum(self._known[question, task, text][1] for text in distinct)
        return [nodes[i] for i in order], taken

    def warm_up(self) -> None:
        """Score something, since what comes first takes longer."""
        self._reranker.score(_WARM_UP, [_WARM_UP])

    def __len__(self) -> int:
        """Return how many pairs were scored."""
        return len(self._known)


def measure(
    questions: Sequence[Question],
    models: str,
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    collection: Collection,
    grid: Grid,
    on_progress: Progress = lambda stage, done, total: None,
    embed_again: bool = False,
) -> list[Outcome]:
    """Ask every question under every setting of a grid.

    The collection itself is searched at its own dimension. For other dimensions, and for hybrid
    search where it has no index of words, its rows are copied into Milvus Lite for the time being
    with their vectors shortened: no passage is embedded, but for dimensions above the collection's.
    Each pair of a question and a passage is scored once.

    Args:
        questions: What to ask.
        models: The name of this pair of models in the outcome.
        embed_model: Embeds the questions.
        reranker: Orders the candidates.
        collection: Holds the passages; it stays as it is.
        grid: The settings.
        on_progress: Called with a stage, how much of it is done and how much there is.
        embed_again: Embed the passages with `embed_model` if the collection holds the vectors of
            another model, instead of refusing it.

    Returns:
        One outcome a setting, in the order of tasks, searches, dimensions, candidates.

    Raises:
        StoreError: The collection holds vectors of another model, and `embed_again` is False.
        InvalidArgumentError: A dimension is more than the model has, or there is no question.
    """
    if not questions:
        raise InvalidArgumentError("There is no question to ask. Give at least one.")
    run = _Run(questions, models, embed_model, reranker, collection, on_progress)
    with ExitStack() as stack:
        found = run.search(grid, run.stores(grid, embed_again, stack))
    return run.rerank(found)


_Stores = dict[tuple[int, Search], tuple[CheckedMilvusVectorStore, bool]]


class _Run:
    """The questions asked with one pair of models."""

    def __init__(
        self,
        questions: Sequence[Question],
        models: str,
        embed_model: Qwen3Embedding,
        reranker: Qwen3Reranker,
        collection: Collection,
        on_progress: Progress,
    ) -> None:
        self._questions, self._models, self._collection = questions, models, collection
        self._model = _with_dimensions(embed_model, None)
        self._scores, self._tell = PairScores(reranker), on_progress
        self._nodes: dict[str, NodeWithScore] = {}

    def stores(self, grid: Grid, embed_again: bool, stack: ExitStack) -> _Stores:
        """Open what each dimension and each way to search need; True marks copies."""
        own, model = self._collection, self._model
        fits = own.fits(model)
        if not fits and not embed_again:
            # Refused here, unless nothing is noted of how it was built.
            self._open(min(own.dimensions, model.dim))
            fits = True
        sizes = grid.dimensions or [own.dimensions if fits else model.dim]
        for size in sizes:
            _with_dimensions(model, size)  # refuses what the model does not allow
        wanted = [(size, search) for search in grid.searches for size in sizes]
        itself = [
            (size, search)
            for size, search in wanted
            if fits and size == own.dimensions and (search == "dense" or own.hybrid)
        ]
        stores: _Stores = {
            (size, search): (self._open(size, search == "hybrid"), False) for size, search in itself
        }
        rest = [key for key in wanted if key not in stores]
        if rest:
            most = max(size for size, _ in rest)
            corpus = self._corpus(embed=not fits or own.dimensions < most)
            copy = stack.enter_context(copies())
            for done, size in enumerate(dict.fromkeys(size for size, _ in rest)):
                self._tell("Copying passages", done, len({size for size, _ in rest}))
                store = copy(corpus, model, size, (size, "hybrid") in rest)
                stores |= {key: (store, True) for key in rest if key[0] == size}
        return {key: stores[key] for key in wanted}

    def _open(self, size: int, hybrid: bool = False) -> CheckedMilvusVectorStore:
        own = self._collection
        return milvus_vector_store(
            _with_dimensions(self._model, size),
            own.uri,
            own.name,
            token=own.token,
            metric=own.metric,
            hybrid=hybrid,
        )

    def _corpus(self, embed: bool) -> Corpus:
        self._tell("Reading passages", 0, 1)
        corpus = read_corpus(self._collection)
        if not embed:
            return corpus
        return embed_corpus(
            corpus, self._model, lambda done, total: self._tell("Embedding passages", done, total)
        )

    def search(self, grid: Grid, stores: _Stores) -> list[_Found]:
        """Find the candidates of every question under every setting."""
        tasks = list(grid.tasks) or [self._model.query_instruction]
        found = [
            _Found(Setting(self._models, size, count, search, task), on_copy)
            for task in tasks
            for (size, search), (_, on_copy) in stores.items()
            for count in grid.candidates
        ]
        vectors = {task: self._embed(task) for task in tasks}
        self._scores.warm_up()
        total, done = len(found) * len(self._questions), 0
        for each in found:
            setting = each.setting
            store, _ = stores[setting.dimensions, setting.search]
            retriever = open_index(self._model, store).as_retriever(**_depth(setting))
            first, (vector, _) = self._questions[0].text, vectors[setting.task][0]
            # The first search of a collection takes longer: asked once more than is timed.
            short = shorten(vector, setting.dimensions).tolist()
            retriever.retrieve(QueryBundle(first, embedding=short))
            for question, (vector, seconds) in zip(
                self._questions, vectors[setting.task], strict=True
            ):
                short = shorten(vector, setting.dimensions).tolist()
                started = time.perf_counter()
                nodes = retriever.retrieve(QueryBundle(question.text, embedding=short))
                each.seconds.append((seconds, time.perf_counter() - started))
                each.ids.append([self._nodes.setdefault(n.node_id, n).node_id for n in nodes])
                done += 1
                self._tell("Searching", done, total)
        return found

    def _embed(self, task: str) -> list[tuple[Vectors, float]]:
        """Return the whole vector of each question, and the seconds it took."""
        model, embedded = self._model.with_task(task), []
        model.get_query_embedding(_WARM_UP)
        for done, question in enumerate(self._questions, 1):
            started = time.perf_counter()
            vector = np.asarray(model.get_query_embedding(question.text), dtype=np.float32)
            embedded.append((vector, time.perf_counter() - started))
            self._tell("Embedding questions", done, len(self._questions))
        return embedded

    def rerank(self, found: Sequence[_Found]) -> list[Outcome]:
        """Order the candidates of every question under every setting."""
        asked: dict[int, list[Asked]] = {id(each): [] for each in found}
        total = len(
            {
                (each.setting.task, i, node_id)
                for each in found
                for i, ids in enumerate(each.ids)
                for node_id in ids
            }
        )
        # Fewer candidates first, so that their time is that of a call of their own.
        rising = sorted(found, key=lambda each: each.setting.candidates)
        for i, question in enumerate(self._questions):
            for each in rising:
                before = [self._nodes[node_id] for node_id in each.ids[i]]
                after, rerank = self._scores.rank(question.text, each.setting.task, before)
                seconds = Seconds(*each.seconds[i], rerank)
                asked[id(each)].append(
                    Asked(ranked(question, before), ranked(question, after), seconds)
                )
                self._tell("Reranking pairs", len(self._scores), total)
        return [Outcome(each.setting, asked[id(each)], each.on_copy) for each in found]


def _with_dimensions(model: Qwen3Embedding, dimensions: int | None) -> Qwen3Embedding:
    copy = model.model_copy()
    # Assigned, since that is checked.
    copy.dimensions = dimensions
    return copy


def _depth(setting: Setting) -> dict[str, Any]:
    """Return what makes a retriever find this many candidates."""
    count = setting.candidates
    if setting.search == "dense":
        return {"similarity_top_k": count}
    # As many by vector as by words, fused to as many again.
    return {
        "vector_store_query_mode": "hybrid",
        "similarity_top_k": count,
        "sparse_top_k": count,
        "hybrid_top_k": count,
    }
