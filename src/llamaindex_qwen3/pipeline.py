"""The short path from a folder of text to a ranked, answered question."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import LLM
from llama_index.core.node_parser import MarkdownNodeParser, SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TextNode

from .answer import ANSWER_PROMPT
from .embedding import Qwen3Embedding
from .errors import InvalidArgumentError
from .milvus import CheckedMilvusVectorStore
from .reranker import Qwen3Reranker

TEXT_SUFFIXES = (".md", ".markdown", ".txt")
CHUNK_TOKENS = 512
CANDIDATES = 10
BATCH_NODES = 32

_NAMESPACE = uuid.UUID("6f1c35a4-9d0b-5f0e-8a53-0c64d1f4e6b7")


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did, in chunks."""

    files: int
    added: int
    unchanged: int
    removed: int


@dataclass(frozen=True)
class Ranking:
    """The candidates of one question, by dense score and by the reranker."""

    question: str
    candidates: list[NodeWithScore]
    reranked: list[NodeWithScore]


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read Markdown and text files, and those in folders, as one document each.

    Raises:
        InvalidArgumentError: A path does not exist, or there is nothing to read.
    """
    documents: dict[str, Document] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise InvalidArgumentError(f"There is no file or folder {str(path)!r}.")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and file.suffix.lower() in TEXT_SUFFIXES:
                name = file.relative_to(path).as_posix() if path.is_dir() else file.name
                # A file name need not be valid Unicode, and ids must be.
                key, name = (_valid(str(part)) for part in (file.resolve(), name))
                documents[key] = Document(id_=key, text=_read(file), metadata={"file": name})
    if not documents:
        raise InvalidArgumentError(
            f"There is nothing to read in {', '.join(map(str, paths))}: no file that ends in "
            f"{', '.join(TEXT_SUFFIXES)}."
        )
    return list(documents.values())


def split_sections(documents: Sequence[Document], fingerprint: str = "") -> list[TextNode]:
    """Split documents at Markdown headers, and long sections into chunks.

    Node ids depend on the document, the text and `fingerprint` only, so that a second run over the
    same files gives the same ids.
    """
    nodes: list[TextNode] = []
    splitter = SentenceSplitter(chunk_size=CHUNK_TOKENS, chunk_overlap=64)
    seen: dict[str, int] = {}
    for node in MarkdownNodeParser().get_nodes_from_documents(list(documents)):
        header = re.match(r"#+[^\S\n]+(.*)", node.get_content())
        # A header with nothing under it answers no question.
        if header and header.end() == len(node.get_content().rstrip()):
            continue
        title = header.group(1).strip() if header else ""
        for chunk in splitter([node]):
            assert isinstance(chunk, TextNode)
            chunk.relationships = dict(node.relationships)
            chunk.metadata = {
                **node.metadata,
                "section": title,
                "section_id": f"{node.metadata['file']}#{slug(title)}",
            }
            # The text starts with its header; the rest is for people and filters.
            chunk.excluded_embed_metadata_keys = list(chunk.metadata)
            chunk.excluded_llm_metadata_keys = ["section_id", "header_path"]
            key = "\n".join([fingerprint, node.ref_doc_id or "", title, chunk.text])
            seen[key] = seen.get(key, 0) + 1
            chunk.id_ = str(uuid.uuid5(_NAMESPACE, f"{key}\n{seen[key]}"))
            nodes.append(chunk)
    return nodes


def slug(title: str) -> str:
    """Return a header as it stands in links: lower case, with hyphens between words."""
    return re.sub(r"[\W_]+", "-", title.lower()).strip("-")


def ingest(
    paths: Sequence[str | Path],
    embed_model: Qwen3Embedding,
    vector_store: CheckedMilvusVectorStore,
    on_progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Read, split, embed and store files; what is stored already is left as it is.

    Chunks of these files that are no longer in them are removed.

    Args:
        paths: Markdown or text files, or folders of them.
        embed_model: What its vectors depend on is part of the ids: after a change of the model or
            the dimensions, say, everything is embedded anew.
        vector_store: Where the chunks go.
        on_progress: Called with the chunks done and the chunks in all.
    """
    documents = read_documents(paths)
    fingerprint = embed_model.fingerprint(embed_model.text_instruction)
    nodes = split_sections(documents, fingerprint)
    stored = _stored_ids(vector_store, [document.id_ for document in documents])
    new = [node for node in nodes if node.node_id not in stored]
    stale = stored - {node.node_id for node in nodes}
    done = 0
    for batch in _batches(new, BATCH_NODES):
        vector_store.add(embed_model(batch))
        done += len(batch)
        if on_progress:
            on_progress(done, len(new))
    # Removed last: stopped before, a run leaves the old text to be found and the next one finishes.
    if stale:
        vector_store.delete_nodes(sorted(stale))
    return IngestReport(len(documents), len(new), len(nodes) - len(new), len(stale))


def rank(
    question: str,
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    candidates: int = CANDIDATES,
) -> Ranking:
    """Retrieve candidates by dense score and order all of them by the reranker."""
    retriever = open_index(embed_model, vector_store).as_retriever(similarity_top_k=candidates)
    found = retriever.retrieve(question)
    everything = reranker.model_copy(update={"top_n": max(1, len(found)), "score_threshold": None})
    return Ranking(
        question, found, everything.postprocess_nodes(found, query_bundle=QueryBundle(question))
    )


def query_engine(
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    llm: LLM | None = None,
    candidates: int = CANDIDATES,
    streaming: bool = False,
) -> RetrieverQueryEngine:
    """Return a standard LlamaIndex query engine: dense retrieval, reranking, an answer.

    `llm` None takes ``Settings.llm``.
    """
    index = open_index(embed_model, vector_store)
    return RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=candidates),
        node_postprocessors=[reranker],
        text_qa_template=ANSWER_PROMPT,
        streaming=streaming,
        llm=llm,
    )


def open_index(
    embed_model: Qwen3Embedding, vector_store: CheckedMilvusVectorStore
) -> VectorStoreIndex:
    """Return the LlamaIndex index over a collection that exists."""
    return VectorStoreIndex.from_vector_store(vector_store, embed_model=embed_model)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InvalidArgumentError(f"Cannot read {str(file)!r}: {error.strerror}.") from error


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _stored_ids(store: CheckedMilvusVectorStore, document_ids: Sequence[str]) -> set[str]:
    """Return the ids of all chunks in the store that come from these documents."""
    ids: set[str] = set()
    for batch in _batches(document_ids, 100):
        rows = store.select(
            f"{store.doc_id_field} in {json.dumps(list(batch), ensure_ascii=False)}", ["id"]
        )
        ids.update(row["id"] for row in rows)
    return ids


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
