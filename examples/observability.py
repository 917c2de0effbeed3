"""Trace retrieval and reranking with OpenTelemetry: standard spans and events, nothing to set up.

Run it from a clone: python examples/observability.py
Needs pip install 'llamaindex-qwen3[examples]'.
"""

import os
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.observability.otel import LlamaIndexOpenTelemetry
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

DOCS = Path(__file__).parent / "data" / "milvus_faq"


def one_line(span: ReadableSpan) -> str:
    milliseconds = (span.end_time - span.start_time) / 1e6
    events = ", ".join(event.name for event in span.events)
    name = span.name.partition("-")[0]  # what follows is the span's own id
    return f"{milliseconds:8.1f} ms  {name:48}  {events}\n"


models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
reranker = Qwen3Reranker(models.reranker, top_n=3).load()
sections = split_sections(read_documents([DOCS]))
index = VectorStoreIndex(sections, embed_model=Qwen3Embedding(models.embedding))
engine = index.as_query_engine(llm=MockLLM(), node_postprocessors=[reranker], similarity_top_k=10)

# To a collector instead: span_exporter=OTLPSpanExporter("http://localhost:4318/v1/traces").
LlamaIndexOpenTelemetry(
    span_exporter=ConsoleSpanExporter(formatter=one_line), span_processor="simple"
).start_registering()

print("Each span as it ends, the inner ones first, and the events within it:")
engine.query("Can I run Milvus without Pulsar or Kafka?")
