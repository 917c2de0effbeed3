"""Give an agent the reranked documentation as a tool that it calls when it needs to.

Run it from a clone: OPENAI_API_KEY=... python examples/agent_tool.py ["your question"]
"""

import asyncio
import os
import sys
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.tools import QueryEngineTool

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

if "OPENAI_API_KEY" not in os.environ:
    sys.exit(
        "An agent needs a language model: set OPENAI_API_KEY, and OPENAI_BASE_URL for another server."
    )

DOCS = Path(__file__).parent / "data" / "milvus_faq"
question = sys.argv[1] if len(sys.argv) > 1 else "Can I run Milvus without Pulsar or Kafka?"

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
llm = chat_model(base_url=os.environ.get("OPENAI_BASE_URL"))
sections = split_sections(read_documents([DOCS]))
index = VectorStoreIndex(sections, embed_model=Qwen3Embedding(models.embedding))
tool = QueryEngineTool.from_defaults(
    index.as_query_engine(
        llm=llm,
        similarity_top_k=10,
        node_postprocessors=[Qwen3Reranker(models.reranker, top_n=3)],
    ),
    name="milvus_documentation",
    description="Answers a question on Milvus from its documentation.",
)


async def main() -> None:
    agent = FunctionAgent(tools=[tool], llm=llm, system_prompt="Look things up before you answer.")
    run = agent.run(question)
    async for event in run.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"The agent called {event.tool_name}({event.tool_kwargs['input']!r}) and read:")
            for node in event.tool_output.raw_output.source_nodes:
                print(f"  {node.score:.3f}  {node.metadata['section']} ({node.metadata['file']})")
    print(f"\n{await run}")


print(f"> {question}\n")
asyncio.run(main())
