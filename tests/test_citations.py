"""Numbered passages and the numbers in an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.schema import (
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)

from llamaindex_qwen3.citations import (
    MarkSplitter,
    PassageNumbers,
    citations,
    cited,
    split_marks,
)

ANSWER = "Rows [1] and [a], [2, 3] or [12;4] but [1] not [] nor [1234], [ 5], arr[0"


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("In buckets [2]. And etcd [1][2].", [2, 1]),
        ("Both [1, 3].", [1, 3]),
        ("None [4], [0], [x] or 1.", []),
        ("", []),
    ],
)
def test_cited(answer: str, numbers: list[int]) -> None:
    """Return the passages that an answer names, each once, and none that there is not."""
    assert cited(answer, 3) == numbers


def test_marks_are_found_and_nothing_is_lost() -> None:
    """Keep every other character, and write lists of numbers as marks of their own."""
    parts = list(split_marks(ANSWER))
    assert [number for _, number in parts if number is not None] == [1, 2, 3, 12, 4, 1]
    again = "".join(text for text, _ in parts)
    assert again == ANSWER.replace("[2, 3]", "[2][3]").replace("[12;4]", "[12][4]")


def test_pieces_give_what_the_whole_gives() -> None:
    """Find the same marks wherever the answer is cut into three pieces."""
    whole = [(text, number) for text, number in split_marks(ANSWER) if number is not None]
    text = "".join(part for part, _ in split_marks(ANSWER))
    for i in range(len(ANSWER)):
        for j in range(i, len(ANSWER)):
            splitter = MarkSplitter()
            pieces = (ANSWER[:i], ANSWER[i:j], ANSWER[j:])
            parts = [part for piece in pieces for part in splitter.feed(piece)]
            parts += splitter.rest()
            assert [part for part in parts if part[1] is not None] == whole
            assert "".join(part for part, _ in parts) == text


def test_only_what_may_become_a_mark_is_held_back() -> None:
    """Show text as it comes, and hold back no more than an open mark."""
    splitter = MarkSplitter()
    assert list(splitter.feed("In buckets [")) == [("In buckets ", None)]
    assert list(splitter.feed("see below]")) == [("[see below]", None)]


def node(file: Path, section: str, **metadata: str) -> NodeWithScore:
    """Return a retrieved node of a file."""
    made = TextNode(
        text=f"## {section}\nText.",
        metadata={"file": file.name, "section": section, **metadata},
        excluded_embed_metadata_keys=["file", "section"],
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=str(file))},
    )
    return NodeWithScore(node=made, score=0.5)


def test_numbers_are_read_by_language_models_alone(tmp_path: Path) -> None:
    """Put the number into the text for answers, not into what is embedded, nor into the caller's."""
    given = [node(tmp_path / "a.md", "One"), node(tmp_path / "a.md", "Two")]
    before = [each.model_dump() for each in given]
    numbered = PassageNumbers().postprocess_nodes(given, query_str="x")
    for number, (old, new) in enumerate(zip(given, numbered, strict=True), 1):
        assert new.node.get_content(MetadataMode.LLM).startswith(f"passage: {number}\n")
        embedded = new.node.get_content(MetadataMode.EMBED)
        assert embedded == old.node.get_content(MetadataMode.EMBED)
        assert new.score == old.score
    assert [each.model_dump() for each in given] == before
    # Numbered again, in another order, they have their new numbers.
    again = PassageNumbers().postprocess_nodes(numbered[::-1], query_str="x")
    assert [each.node.metadata["passage"] for each in again] == [1, 2]


def test_where_a_passage_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name file and line, from the current folder when it is in there."""
    page = tmp_path / "docs" / "a page.md"
    page.parent.mkdir()
    page.write_text("# Top\n\ntext\n\n## Where *rows* live\ntext\n")
    [citation] = citations([node(page, "Where rows live")])
    assert (citation.number, citation.line) == (1, 5)
    assert citation.uri == page.as_uri()
    assert "%20" in citation.uri
    monkeypatch.chdir(tmp_path)
    assert citation.place == "docs/a page.md:5"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert citation.place == f"{page}:5"


def test_a_passage_without_its_file(tmp_path: Path) -> None:
    """Name what is known, and link to nothing, where the file is not here."""
    [gone] = citations([node(tmp_path / "gone.md", "One")])
    assert (gone.place, gone.uri, gone.line) == ("gone.md", None, None)
    [bare] = citations([NodeWithScore(node=TextNode(text="A text\nof two lines."))])
    assert (bare.section, bare.uri) == ("A text of two lines.", None)
    # Another package's reader notes the path elsewhere.
    page = tmp_path / "here.txt"
    page.write_text("text")
    [noted] = citations([node(tmp_path / "gone.md", "One", file_path=str(page))])
    assert noted.path == page
    assert noted.line is None
