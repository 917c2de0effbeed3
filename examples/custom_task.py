"""Say in one sentence what you search for: the same question finds other things.

Run it from a clone: python examples/custom_task.py
"""

import os

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.prompts import TASKS

QUERY = "Searches fail after the server was restarted."
TASKS_HERE = {
    "the default": TASKS["web_search"],
    "duplicates": TASKS["duplicate_questions"],
    "your own": "Given an error report, retrieve the instruction that repairs it",
}
TEXTS = [
    "Call load_collection before the first search: a restart releases collections.",
    "Why does my query fail since the server came up again?",
    "Release 2.6 moves the write-ahead log into a service of its own.",
    "After a restart, search raises an error. What can I do?",
    "Restart the query node, then check that its collections are loaded again.",
]

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
embed_model, reranker = Qwen3Embedding(models.embedding), Qwen3Reranker(models.reranker, top_n=5)

# Documents are embedded without a task, so one index serves all of them.
index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embed_model)

print(QUERY)
if models.is_demo:
    print("(The demo pair was trained on the default task and hardly reads another: see 0.6b.)")
for name, task in TASKS_HERE.items():
    retriever = index.as_retriever(similarity_top_k=5, embed_model=embed_model.with_task(task))
    found = retriever.retrieve(QUERY)
    print(f"\n{name}: {task}\n  embedding  reranker")
    similarity = {node.node_id: node.score for node in found}
    for node in reranker.with_task(task).postprocess_nodes(found, query_str=QUERY):
        print(f"  {similarity[node.node_id]:9.3f}  {node.score:8.3f}  {node.node.get_content()}")
