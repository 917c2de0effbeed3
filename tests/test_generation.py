"""Generation against a real model server, `transformers serve`, with a tiny random chat model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from components import embedder, reranker
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import QueryBundle, TextNode
from milvus_lite.server_manager import server_manager_instance
from tokenizers import Tokenizer

from llamaindex_qwen3 import milvus_vector_store
from llamaindex_qwen3.answer import chat_model, stream_answer
from llamaindex_qwen3.errors import GenerationError
from llamaindex_qwen3.pipeline import query_engine

pytestmark = pytest.mark.server

MODEL = "gpt-4o-mini"  # the directory's name, so that the class for OpenAI's models knows it
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[str]:
    """Start the server, and yield its base URL once it has answered a real request."""
    pytest.importorskip("fastapi", reason='needs pip install "transformers[serving]"')
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("serve")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / MODEL)
    config = Qwen3Config(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder / MODEL)
    (folder / "hf" / "hub").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "transformers"), "serve", MODEL, "--device", "cpu",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait_until_it_answers(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = {
        "model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}],
    }  # fmt: skip
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.post(f"{url}/chat/completions", json=request, timeout=60).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail(f"the server did not answer: {log.read_text()}")


def test_streams_from_a_query_engine(
    server: str, embedding_dir: Path, reranker_dir: Path, tmp_path: Path
) -> None:
    """Retrieve, rerank and generate, with every part a real one."""
    model = embedder(embedding_dir)
    uri = str(tmp_path / "g.db")
    store = milvus_vector_store(model, uri)
    nodes = [TextNode(text=text) for text in ("rows live in buckets", "etcd", "a filter")]
    VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=model,
    )
    llm = chat_model(MODEL, server, max_tokens=8)
    engine = query_engine(model, reranker(reranker_dir, top_n=2), store, llm, streaming=True)
    found = engine.retrieve(QueryBundle("where are rows"))
    assert len(found) == 2
    pieces = list(stream_answer(engine, "where are rows", found))
    assert "".join(pieces).strip()
    assert len(pieces) > 1
    server_manager_instance.release_server(uri)


def test_an_unknown_model_is_a_generation_error(
    server: str, embedding_dir: Path, reranker_dir: Path, tmp_path: Path
) -> None:
    """Turn the server's refusal into one clear error."""
    model = embedder(embedding_dir)
    uri = str(tmp_path / "g.db")
    store = milvus_vector_store(model, uri)
    store.add(list(model([TextNode(text="rows live in buckets")])))
    llm = chat_model("no-such/model", server, max_retries=0)
    engine = query_engine(model, reranker(reranker_dir), store, llm, streaming=True)
    with pytest.raises(GenerationError):
        list(stream_answer(engine, "where", engine.retrieve(QueryBundle("where"))))
    server_manager_instance.release_server(uri)
