"""What is computed once, and that leaving work out changes no result."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape
from components import COSINE_TOLERANCE, SCORE_TOLERANCE, cosine_distance, embedder, reranker
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from passes import ForwardPasses
from reference import ReferenceEmbedder, ReferenceReranker
from texts import random_texts
from transformers import Qwen3Model

from llamaindex_qwen3.engine import attention, linear, network, prefixes
from llamaindex_qwen3.engine.attention import Packing
from llamaindex_qwen3.engine.network import PackedNetwork, Prefix, Segment
from llamaindex_qwen3.errors import DeviceMemoryError, NonFiniteError

Factory = Callable[..., Path]
TIMEOUT_S = 15.0
TEXTS = random_texts(400, 30, longest=12)


def check_scores(directory: Path, query: str, texts: Sequence[str], scores: list[float]) -> None:
    """Assert that scores are the reference's."""
    reference = ReferenceReranker(directory)
    expected = [reference.score(query, text) for text in texts]
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)


def check_queries(directory: Path, queries: Sequence[str], vectors: list[list[float]]) -> None:
    """Assert that query vectors are the reference's."""
    reference = ReferenceEmbedder(directory)
    for query, vector in zip(queries, vectors, strict=True):
        assert cosine_distance(vector, reference.query(query)) < COSINE_TOLERANCE


def ids_of(directory: Path, query: str, texts: Sequence[str]) -> list[list[int]]:
    """Return the reference's ids of pairs."""
    reference = ReferenceReranker(directory)
    return [reference.ids(query, text) for text in texts]


# --- what is shared --------------------------------------------------------------------------


def test_candidates_share_their_beginning(make_reranker: Factory, passes: ForwardPasses) -> None:
    """Run template, instruction and query once for all candidates, in however many passes."""
    directory = make_reranker()
    model = reranker(directory, max_batch_tokens=300)
    scores = model.score("what is it?", TEXTS)
    check_scores(directory, "what is it?", TEXTS, scores)
    rows = {tuple(ids) for ids in ids_of(directory, "what is it?", TEXTS)}
    shared = len(beginning(rows))
    assert shared > 40
    assert passes.count > 1
    assert sum(passes.tokens) == shared + sum(len(row) - shared for row in rows)


def beginning(rows: set[tuple[int, ...]]) -> list[int]:
    """Return the ids that all rows begin with."""
    shared = []
    for ids in zip(*rows, strict=False):
        if len(set(ids)) > 1:
            break
        shared.append(ids[0])
    return shared


def test_the_next_query_keeps_the_instruction(
    make_reranker: Factory, passes: ForwardPasses
) -> None:
    """Run only what is new of a second query under the same instruction."""
    directory = make_reranker()
    model = reranker(directory)
    model.score("first query", ["a b c"])
    first = sum(passes.tokens)
    second = model.score("quite another", ["x y z"])
    check_scores(directory, "quite another", ["x y z"], second)
    assert sum(passes.tokens) - first < first / 2


def test_a_query_pays_for_its_own_tokens(make_embedding: Factory, passes: ForwardPasses) -> None:
    """Keep the task's prompt between queries, each task its own."""
    directory = make_embedding()
    model = embedder(directory)
    check_queries(directory, ["one two"], [model.get_query_embedding("one two")])
    prompt_and_query = sum(passes.tokens)
    check_queries(directory, ["three"], [model.get_query_embedding("three")])
    assert sum(passes.tokens) - prompt_and_query < 10 < prompt_and_query
    other = model.with_task("Find the opposite")
    before = sum(passes.tokens)
    expected = ReferenceEmbedder(directory).query("three", "Find the opposite")
    assert cosine_distance(other.get_query_embedding("three"), expected) < COSINE_TOLERANCE
    assert sum(passes.tokens) - before >= 10


def test_what_is_kept_is_bounded(
    make_embedding: Factory, passes: ForwardPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let go of the prompt used longest ago, and stay exact without it."""
    directory = make_embedding()
    per_token = 2 * 2 * 2 * 16 * 4  # key and value, layers, heads, head size, bytes
    monkeypatch.setattr(prefixes.PrefixCache.__init__, "__defaults__", (60 * per_token,))
    model = embedder(directory)
    kept = model.load()._slot.engine._copies[0]
    assert kept.most_tokens == 60
    tasks = [f"Find what stands {place} it" for place in ("over", "under", "before", "after")]
    reference = ReferenceEmbedder(directory)
    for task in [*tasks, *tasks]:
        vector = model.with_task(task).get_query_embedding("three")
        assert cosine_distance(vector, reference.query("three", task)) < COSINE_TOLERANCE
        assert 0 < sum(prefix.length for prefix in kept._kept.values()) <= 60
    before = sum(passes.tokens)
    model.with_task(tasks[-1]).get_query_embedding("four")
    assert sum(passes.tokens) - before < 10
    # A prompt longer than what may be kept is shared as far as it goes.
    task = " ".join(["long"] * 200)
    vector = model.with_task(task).get_query_embedding("three")
    assert cosine_distance(vector, reference.query("three", task)) < COSINE_TOLERANCE


def test_long_query_within_the_budget(
    make_reranker: Factory, passes: ForwardPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count all of a row's tokens that are not kept against the budget."""
    directory = make_reranker()
    monkeypatch.setattr(prefixes.PrefixCache.__init__, "__defaults__", (64 * 512,))
    query = " ".join(["why"] * 150)
    scores = reranker(directory, max_batch_tokens=600).score(query, TEXTS[:8])
    check_scores(directory, query, TEXTS[:8], scores)
    assert max(passes.tokens) <= 600 + 64


def test_a_failed_pass_leaves_nothing_behind(
    make_embedding: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute a prompt anew after the pass that computed it has failed half-way."""
    directory = make_embedding()
    model = embedder(directory).load()
    feed_forward = PackedNetwork._feed_forward

    def fail(*_: Any) -> torch.Tensor:
        raise ArithmeticError("half-way")

    monkeypatch.setattr(PackedNetwork, "_feed_forward", fail)
    with pytest.raises(ArithmeticError):
        model.get_query_embedding("three")
    monkeypatch.setattr(PackedNetwork, "_feed_forward", feed_forward)
    check_queries(directory, ["three"], [model.get_query_embedding("three")])


# --- the ways of computing --------------------------------------------------------------------


def varlen_by_the_book(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """Do what torch documents of varlen_attn with a causal window, row by row."""
    out = torch.empty_like(q)
    share = q.shape[1] // k.shape[1]
    for i in range(len(packing.queries) - 1):
        mine = slice(int(packing.queries[i]), int(packing.queries[i + 1]))
        seen = slice(int(packing.keys[i]), int(packing.keys[i + 1]))
        keys, values = (x[seen].repeat_interleave(share, 1) for x in (k, v))
        assert keys.shape[0] <= packing.longest_key
        scores = torch.einsum("qhd,khd->hqk", q[mine], keys)
        ahead = keys.shape[0] - (mine.stop - mine.start)
        scores += torch.full(scores.shape[1:], float("-inf")).triu(ahead + 1)
        out[mine] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return out


@pytest.mark.parametrize("way", ["plain products", "torch's attention", "packed attention"])
def test_other_devices_ways_agree(
    make_embedding: Factory, make_reranker: Factory, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Agree in what a CPU without oneDNN and GPUs compute with, run here on the CPU."""
    if way == "plain products":
        monkeypatch.setattr(network, "packs", lambda _: False)
    elif way == "torch's attention":
        monkeypatch.setattr(network, "attend_blocks", attention.attend_sdpa)
    else:
        monkeypatch.setattr(network, "packed_attention", lambda *_: varlen_by_the_book)
    embedding, reranking = (
        make_embedding(),
        make_reranker(shape=Shape(layers=3, heads=6, kv_heads=2)),
    )
    model = reranker(reranking, max_batch_tokens=700)
    for query in ("what is it?", "and where?"):
        check_scores(reranking, query, TEXTS, model.score(query, TEXTS))
    vectors = [embedder(embedding).get_query_embedding(text) for text in TEXTS[:5]]
    check_queries(embedding, TEXTS[:5], vectors)


def test_this_cpu_packs(embedding_dir: Path) -> None:
    """Use oneDNN's layout where torch has it: else the tests above test one way twice."""
    if not torch._C._has_mkldnn:
        pytest.skip("this torch has no oneDNN")
    assert linear.packs(torch.randn(16, 32))


def test_packed_kernel_is_checked_first() -> None:
    """Refuse a kernel that fails, or that sees another triangle than ours."""
    like = torch.empty(16)

    def upper_left(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing
    ) -> torch.Tensor:
        keys = Packing(packing.queries, packing.queries, packing.longest_query, 0)
        return varlen_by_the_book(q, k, v, Packing(keys.queries, keys.keys, 70, 110))

    def missing(*_: Any) -> torch.Tensor:
        raise TypeError("unexpected keyword")

    assert attention._is_right(varlen_by_the_book, 4, 2, like)
    assert not attention._is_right(upper_left, 4, 2, like)
    assert not attention._is_right(missing, 4, 2, like)
    # On a CPU it is not even asked.
    assert attention.packed_attention(4, 2, like) is None


def test_prefixes_of_prefixes(make_embedding: Factory) -> None:
    """Give the same states whether tokens run whole or after kept ones, kept in this pass or not."""
    model = Qwen3Model.from_pretrained(make_embedding()).eval()
    ids = [int(i) for i in torch.randint(0, 500, (60,), generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    net = PackedNetwork(model)
    first, second = Prefix(7), Prefix(40)
    chain = [Segment(ids[:7], None, first), Segment(ids[7:40], first, second)]
    for segments in (
        [Segment(ids)],
        [*chain, Segment(ids[40:], second)],
        [Segment(ids[40:], second), Segment(ids[7:], first), Segment(ids[:9]), Segment(ids)],
    ):
        states = net.forward(segments)
        wanted = [s for s in segments if s.keep is None]
        for segment, state in zip(wanted, states, strict=True):
            if segment.start + len(segment.ids) == 60:
                torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_no_worse_than_transformers(make_reranker: Factory) -> None:
    """Err in bfloat16 about as transformers' own forward pass does."""
    directory = make_reranker(shape=Shape(layers=4, hidden_size=128, intermediate_size=256))
    exact = torch.tensor(reranker(directory, score_type="logit").score("why?", TEXTS))
    options = {"dtype": "bfloat16", "score_type": "logit"}
    ours = torch.tensor(reranker(directory, **options).score("why?", TEXTS))
    theirs = torch.tensor(
        reranker(directory, attn_implementation="sdpa", **options).score("why?", TEXTS)
    )
    assert (ours - exact).std() < 1.3 * (theirs - exact).std()


# --- the queue --------------------------------------------------------------------------------


class Held:
    """Hold up the first pass until everything that is to wait together waits."""

    def __init__(self, passes: ForwardPasses) -> None:
        self.running, self.release = threading.Event(), threading.Event()
        first = passes.count + 1

        def before(number: int) -> None:
            if number == first:
                self.running.set()
                assert self.release.wait(TIMEOUT_S)

        passes.before = before

    def __call__(self, model: Any, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Hold up a pass, make the calls in threads, and return their results or errors."""

        def outcome(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(calls) + 1) as pool:
            pool.submit(model.get_text_embedding, "held up")
            assert self.running.wait(TIMEOUT_S)
            futures = [pool.submit(outcome, call) for call in calls]
            queue = model._slot.engine._worker._queue
            while len(queue.jobs) < len(calls) + 1:
                threading.Event().wait(0.01)
            self.release.set()
            return [future.result() for future in futures]


def test_waiting_queries_run_together(make_embedding: Factory, passes: ForwardPasses) -> None:
    """Run 32 queries that wait together in one pass, whatever their tasks."""
    directory = make_embedding()
    model = embedder(directory, max_batch_tokens=8192).load()
    other = model.with_task("Find the opposite")
    queries = random_texts(7, 32, longest=4)
    calls = [
        lambda q=query, m=(other if i % 2 else model): m.get_query_embedding(q)
        for i, query in enumerate(queries)
    ]
    vectors = Held(passes)(model, calls)
    assert passes.rows == [1, 32]
    reference = ReferenceEmbedder(directory)
    for i, (query, vector) in enumerate(zip(queries, vectors, strict=True)):
        expected = reference.query(query, "Find the opposite") if i % 2 else reference.query(query)
        assert cosine_distance(vector, expected) < COSINE_TOLERANCE


def test_together_only_within_the_budget(make_embedding: Factory, passes: ForwardPasses) -> None:
    """Keep to the budget of tokens also when calls run together."""
    directory = make_embedding()
    model = embedder(directory, max_batch_tokens=64).load()
    queries = random_texts(8, 24, longest=4)
    vectors = Held(passes)(model, [lambda q=q: model.get_query_embedding(q) for q in queries])
    check_queries(directory, queries, vectors)
    assert len(passes.rows) > 3
    prompt = passes.tokens[1] - max(passes.tokens[2:])
    assert max(passes.tokens) <= 64 + max(prompt, 0) + 40


def test_an_error_reaches_its_caller_only(
    make_embedding: Factory, passes: ForwardPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve those who ran in the same pass as the one whose text broke it."""
    directory = make_embedding()
    model = embedder(directory).load()
    poisonous = "\u0e01\u0e02"
    poison = ReferenceEmbedder(directory).document_ids(poisonous)[0]
    forward = PackedNetwork.forward

    def break_on_poison(self: PackedNetwork, segments: Sequence[Segment]) -> torch.Tensor:
        if any(poison in segment.ids for segment in segments):
            raise ZeroDivisionError("poison")
        return forward(self, segments)

    monkeypatch.setattr(PackedNetwork, "forward", break_on_poison)
    texts = ["a", "b", poisonous, "c"]
    results = Held(passes)(model, [lambda t=t: model.get_text_embedding(t) for t in texts])
    assert isinstance(results[2], ZeroDivisionError)
    reference = ReferenceEmbedder(directory)
    for i in (0, 1, 3):
        assert cosine_distance(results[i], reference.document(texts[i])) < COSINE_TOLERANCE


def limit_memory(monkeypatch: pytest.MonkeyPatch, tokens: int, error: type[Exception]) -> list[int]:
    """Let passes of more tokens run out of memory; return the sizes of those that did."""
    failed: list[int] = []
    forward = PackedNetwork.forward

    def run(self: PackedNetwork, segments: Sequence[Segment]) -> torch.Tensor:
        # The shared beginning does not count, so that the limit is the texts' alone.
        size = sum(len(segment.ids) for segment in segments if segment.keep is None)
        if size > tokens:
            failed.append(size)
            raise error("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return forward(self, segments)

    monkeypatch.setattr(PackedNetwork, "forward", run)
    return failed


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_budget(
    make_embedding: Factory,
    make_reranker: Factory,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """Go on with smaller batches, give the same results, and remember what was too much."""
    embedding, reranking = make_embedding(), make_reranker()
    failed = limit_memory(monkeypatch, 100, error)
    texts = [text for text in TEXTS if len(ReferenceEmbedder(embedding).document_ids(text)) < 90]
    model = embedder(embedding)
    vectors = model.get_text_embedding_batch(texts)
    reference = ReferenceEmbedder(embedding)
    for text, vector in zip(texts, vectors, strict=True):
        assert cosine_distance(vector, reference.document(text)) < COSINE_TOLERANCE
    times = len(failed)
    assert 1 <= times <= 6
    model.get_text_embedding_batch(texts[::-1])
    assert len(failed) == times
    check_scores(reranking, "why?", texts, reranker(reranking).score("why?", texts))


def test_text_too_large_for_memory(
    make_embedding: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say what to do about a text that does not fit alone, and go on with others."""
    model = embedder(make_embedding())
    limit_memory(monkeypatch, 20, RuntimeError)
    with pytest.raises(DeviceMemoryError, match=r"text of \d+ tokens .*Lower max_length"):
        model.get_text_embedding_batch(["short", "long " * 40])
    assert model.get_text_embedding("short")


def test_several_devices_share_the_work(
    make_embedding: Factory,
    make_reranker: Factory,
    passes: ForwardPasses,
    loads: list[int],
) -> None:
    """Load a copy for each device, feed both from one queue, and give the same results."""
    embedding, reranking = make_embedding(), make_reranker()
    reference = ReferenceEmbedder(embedding)
    loads.clear()
    model = embedder(embedding, device=["cpu", "cpu"], max_batch_tokens=64)
    threads: set[str] = set()
    both = threading.Barrier(2)

    def before(number: int) -> None:
        threads.add(threading.current_thread().name)
        # Passes on two devices at the same time, or this times out.
        if number <= 2:
            both.wait(TIMEOUT_S)

    passes.before = before
    vectors = model.get_text_embedding_batch(TEXTS)
    passes.before = None
    assert len(loads) == 2
    assert len(threads) == 2
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert cosine_distance(vector, reference.document(text)) < COSINE_TOLERANCE
    ranker = reranker(reranking, device=["cpu", "cpu"], max_batch_tokens=200)
    check_scores(reranking, "why?", TEXTS, ranker.score("why?", TEXTS))
    vectors = asyncio.run(model.aget_text_embedding_batch(TEXTS))
    assert len(vectors) == len(TEXTS)


def test_failure_on_two_devices(make_embedding: Factory, passes: ForwardPasses) -> None:
    """Raise once when passes of the same call fail on two devices, and go on."""
    model = embedder(make_embedding(), device=["cpu", "cpu"], max_batch_tokens=64)
    both = threading.Barrier(2)

    def before(number: int) -> None:
        if number <= 2:
            both.wait(TIMEOUT_S)
            raise ArithmeticError("broken")

    passes.before = before
    with pytest.raises(ArithmeticError, match="broken"):
        model.get_text_embedding_batch(TEXTS)
    assert len(model.get_text_embedding_batch(TEXTS)) == len(TEXTS)


def test_close_drains(make_embedding: Factory, passes: ForwardPasses) -> None:
    """Finish what was asked for before the model was closed, then let its weights go."""
    directory = make_embedding()
    model = embedder(directory, max_batch_tokens=64).load()
    weights = weakref.ref(model._slot.engine._copies[0])
    held = Held(passes)
    held.release.set()
    vectors: list[list[float]] = []

    def close(number: int) -> None:
        if number == 2:
            model.close()

    passes.before = close
    vectors = model.get_text_embedding_batch(TEXTS)
    reference = ReferenceEmbedder(directory)
    assert cosine_distance(vectors[0], reference.document(TEXTS[0])) < COSINE_TOLERANCE
    for _ in range(100):
        gc.collect()
        if weights() is None:
            break
        threading.Event().wait(0.01)
    assert weights() is None


# --- LlamaIndex's batches ----------------------------------------------------------------------


def test_llama_index_reaches_large_batches(make_embedding: Factory, passes: ForwardPasses) -> None:
    """Embed hundreds of texts in few passes from everywhere LlamaIndex embeds from."""
    texts = random_texts(9, 300, longest=2)
    model = embedder(make_embedding(), max_batch_tokens=8192).load()
    batches = -(-300 // model.embed_batch_size)
    documents = [Document(text=text) for text in texts]
    for work in (
        lambda: model.get_text_embedding_batch(texts),
        lambda: IngestionPipeline(transformations=[model]).run(documents=documents),
        lambda: VectorStoreIndex.from_documents(documents, embed_model=model, transformations=[]),
    ):
        assert passes.during(work) <= 2 * batches


def test_a_text_that_is_not_finite_is_found(make_embedding: Factory) -> None:
    """Name the text whose vector is not finite, whichever batch it ran in."""
    directory = make_embedding(shape=Shape(gain=1e30))
    with pytest.raises(NonFiniteError):
        embedder(directory, max_batch_tokens=64).get_text_embedding_batch(TEXTS)
