"""Documents into chunks at their headers, with ids that depend on the text alone."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.node_parser import MarkdownNodeParser, SentenceSplitter
from llama_index.core.schema import (
    BaseNode,
    Document,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)

CHUNK_TOKENS = 512

_NAMESPACE = uuid.UUID("6f1c35a4-9d0b-5f0e-8a53-0c64d1f4e6b7")


class SectionSplitter(TransformComponent):
    """Split documents at Markdown headers, and long sections into chunks.

    Node ids depend on the document's id and the text only, so that a second run over the same files
    gives the same ids.
    """

    chunk_tokens: int = CHUNK_TOKENS
    overlap_tokens: int = 64

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "SectionSplitter"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Return the chunks of documents."""
        chunks: list[BaseNode] = []
        splitter = SentenceSplitter(chunk_size=self.chunk_tokens, chunk_overlap=self.overlap_tokens)
        for document in nodes:
            mine: list[TextNode] = []
            for section in MarkdownNodeParser()([document]):
                mine += _section_chunks(section, splitter)
            identify(mine, document)
            chunks += mine
        return chunks


def split_sections(documents: Sequence[Document]) -> list[TextNode]:
    """Split documents as `ingest` does."""
    return [node for node in SectionSplitter()(documents) if isinstance(node, TextNode)]


def slug(title: str) -> str:
    """Return a header as it stands in links: lower case, with hyphens between words."""
    return re.sub(r"[\W_]+", "-", title.lower()).strip("-")


def _section_chunks(section: BaseNode, splitter: SentenceSplitter) -> Iterator[TextNode]:
    text = section.get_content()
    header = re.match(r"#+[^\S\n]+(.*)", text)
    # A header with nothing under it answers no question.
    if header and header.end() == len(text.rstrip()):
        return
    title = header.group(1).strip() if header else ""
    for chunk in splitter([section]):
        assert isinstance(chunk, TextNode)
        file = section.metadata.get("file", "")
        chunk.metadata = {
            **section.metadata,
            "section": title,
            "section_id": f"{file}#{slug(title)}",
        }
        # The text starts with its header; the rest is for people and filters.
        chunk.excluded_embed_metadata_keys = list(chunk.metadata)
        chunk.excluded_llm_metadata_keys = ["section_id", "header_path"]
        yield chunk


def identify(nodes: Sequence[TextNode], document: BaseNode) -> None:
    """Give nodes ids that depend on the document's id and their text, and link them."""
    seen: dict[str, int] = {}
    for node in nodes:
        key = "\n".join([document.node_id, str(node.metadata.get("section", "")), node.text])
        seen[key] = seen.get(key, 0) + 1
        node.id_ = str(uuid.uuid5(_NAMESPACE, f"{key}\n{seen[key]}"))
    source = RelatedNodeInfo(node_id=document.node_id)
    for i, node in enumerate(nodes):
        # Ids alone: what else stands there would be stored with every chunk.
        node.relationships = {NodeRelationship.SOURCE: source}
        if i:
            node.relationships[NodeRelationship.PREVIOUS] = RelatedNodeInfo(
                node_id=nodes[i - 1].id_
            )
        if i + 1 < len(nodes):
            node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id=nodes[i + 1].id_)
