"""What must hold when things go wrong around the engine: forks, threads, memory, odd checkpoints."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, edit_weights
from components import COSINE_TOLERANCE, cosine_distance, embedder, reranker
from passes import ForwardPasses
from reference import ReferenceEmbedder
from test_engine import Held, limit_memory
from transformers import Qwen3Model

from llamaindex_qwen3.engine import local, schedule
from llamaindex_qwen3.engine.network import PackedNetwork, Segment
from llamaindex_qwen3.errors import CheckpointError, InvalidArgumentError

Factory = Callable[..., Path]
TIMEOUT_S = 15.0


# --- checkpoints ------------------------------------------------------------------------------


def test_an_adapter_is_refused(make_embedding: Factory) -> None:
    """Give no vectors of the base model in place of the adapted one's."""
    directory = make_embedding()
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Merge it first"):
        embedder(directory)


def test_layers_that_are_not_plain(make_embedding: Factory) -> None:
    """Leave to transformers what computes something else than a product with its weight."""
    model = Qwen3Model.from_pretrained(make_embedding()).eval()
    assert PackedNetwork.supports(model)

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    old = model.layers[1].mlp.up_proj
    model.layers[1].mlp.up_proj = Doubled(old.in_features, old.out_features, bias=False)
    assert not PackedNetwork.supports(model)


def test_a_table_smaller_than_the_tokenizer(make_embedding: Factory) -> None:
    """Say that model and tokenizer do not belong together, before any text does."""
    directory = make_embedding()
    edit_json(directory / "config.json", vocab_size=100)

    def cut(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if "embed_tokens" in name)
        weights[name] = weights[name][:100].clone()

    edit_weights(directory, cut)
    with pytest.raises(CheckpointError, match="not of the same model"):
        embedder(directory).load()


def test_rope_that_depends_on_the_longest(make_embedding: Factory) -> None:
    """Run texts one by one where transformers turns positions by the longest of a batch."""
    directory = make_embedding()
    half = 8
    edit_json(
        directory / "config.json",
        max_position_embeddings=400,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1_000_000.0,
            "short_factor": [1.0] * half,
            "long_factor": [4.0] * half,
            "original_max_position_embeddings": 60,
        },
    )
    long = "many words " * 50
    model = embedder(directory)
    together = model.get_text_embedding_batch(["short", long])
    reference = ReferenceEmbedder(directory)
    assert cosine_distance(together[0], reference.document("short")) < COSINE_TOLERANCE
    assert cosine_distance(together[1], reference.document(long)) < COSINE_TOLERANCE


# --- the queue --------------------------------------------------------------------------------


def test_a_thread_that_does_not_start(
    make_embedding: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise, and try again at the next call."""
    model = embedder(make_embedding()).load()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            model.get_text_embedding("a")
    assert model.get_text_embedding("a")


def test_no_memory_for_results(make_embedding: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the call whose results found no place, and serve the next."""
    model = embedder(make_embedding()).load()
    forward = PackedNetwork.forward

    class Full:
        shape = (1, 64)

        def new_empty(self, *_: Any) -> None:
            raise MemoryError("no room for results")

    monkeypatch.setattr(PackedNetwork, "forward", lambda *_: Full())
    with ThreadPoolExecutor(1) as pool, pytest.raises(MemoryError, match="no room"):
        pool.submit(model.get_text_embedding, "a").result(TIMEOUT_S)
    monkeypatch.setattr(PackedNetwork, "forward", forward)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(model.get_text_embedding, "a").result(TIMEOUT_S)


def test_beginnings_count(make_reranker: Factory, passes: ForwardPasses) -> None:
    """Keep a pass to its budget also when each of its calls has a long beginning of its own."""
    model = reranker(make_reranker(), max_batch_tokens=1000).load()
    running, release = threading.Event(), threading.Event()

    def before(number: int) -> None:
        if number == 1:
            running.set()
            assert release.wait(TIMEOUT_S)

    passes.before = before
    queries = [" ".join([f"word{i}"] * 12) for i in range(12)]
    with ThreadPoolExecutor(14) as pool:
        pool.submit(model.score, "held up", ["a"])
        assert running.wait(TIMEOUT_S)
        futures = [pool.submit(model.score, query, ["a", "b"]) for query in queries]
        while len(model._slot.engine._worker._queue.jobs) < 13:
            threading.Event().wait(0.01)
        release.set()
        for future in futures:
            assert len(future.result(TIMEOUT_S)) == 2
    assert max(passes.rows) > 2
    assert max(passes.tokens) <= 1000


def test_cancelled_after_a_failed_pass(
    make_embedding: Factory, passes: ForwardPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a call again after the failure of another in the same pass, unless it was cancelled."""
    directory = make_embedding()
    model = embedder(directory).load()
    engine = model._slot.engine
    poisonous = "\u0e01\u0e02"
    poison = ReferenceEmbedder(directory).document_ids(poisonous)[0]
    forward = PackedNetwork.forward
    futures: list[Any] = []

    def run(self: PackedNetwork, segments: Sequence[Segment]) -> torch.Tensor:
        if any(poison in segment.ids for segment in segments):
            futures[0].cancel()
            raise ZeroDivisionError("poison")
        return forward(self, segments)

    monkeypatch.setattr(PackedNetwork, "forward", run)
    held = Held(passes)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(model.get_text_embedding, "held up")
        assert held.running.wait(TIMEOUT_S)
        for text in ("a", poisonous, "b"):
            steps = engine._steps(model._request([text], None, bulk=False))
            futures.append(engine._submit(steps, None, False))
        held.release.set()
        assert futures[2].result(TIMEOUT_S).vectors
        assert isinstance(futures[1].exception(TIMEOUT_S), ZeroDivisionError)
    assert futures[0].cancelled()
    assert passes.rows == [1, 1]


def test_the_limit_of_memory_is_lifted(
    make_embedding: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Try larger passes again after many that fitted: the memory may have been another's."""
    monkeypatch.setattr(schedule, "_PASSES_BEFORE_MORE", 3)
    model = embedder(make_embedding()).load()
    with monkeypatch.context() as patch:
        limit_memory(patch, 40, RuntimeError)
        model.get_text_embedding_batch([f"a{i}" for i in range(30)])
    queue = model._slot.engine._worker._queue
    low = queue.limit
    assert low is not None
    for i in range(10):
        model.get_text_embedding(f"x{i}")
    assert queue.limit is not None
    assert queue.limit >= 2 * low


@pytest.mark.parametrize("what", ["an error in a pass", "an error before it"])
def test_errors_do_not_keep_the_weights(
    make_embedding: Factory, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Free the weights at close, without the garbage collector, after a call that failed."""
    model = embedder(make_embedding()).load()
    weights = weakref.ref(model._slot.engine._copies[0])
    gc.collect()
    gc.disable()
    try:
        if what == "an error before it":
            with pytest.raises(InvalidArgumentError):
                model.get_text_embedding("\ud800")
        else:

            def fail(*_: Any) -> None:
                raise ArithmeticError("broken")

            with monkeypatch.context() as patch:
                patch.setattr(PackedNetwork, "forward", fail)
                with pytest.raises(ArithmeticError):
                    model.get_text_embedding("a")
        model.close()
        for _ in range(200):
            if weights() is None:
                break
            threading.Event().wait(0.01)
        assert weights() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_while_loading_and_running(make_embedding: Factory) -> None:
    """Work in a child that was forked while another thread of the parent held every lock."""
    model = embedder(make_embedding()).load()
    model.get_text_embedding("a")
    queue = model._slot.engine._worker._queue
    with local._loading, schedule._starting, queue.ready_to_go:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # Torch's own threads do not survive a fork: only our locks are looked at.
                with local._loading, schedule._starting:
                    schedule._stop(queue, [], os.getppid())
                    code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
    deadline = threading.Event()
    for _ in range(int(TIMEOUT_S * 100)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        deadline.wait(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
