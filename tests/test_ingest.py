"""Ingests that are repeated, changed, stopped and broken off end with the same rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape
from components import embedder
from llama_index.core.node_parser import SentenceSplitter
from milvus_lite.server_manager import server_manager_instance
from passes import ForwardPasses

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.errors import InvalidArgumentError, StoreError
from llamaindex_qwen3.ingestion import IngestReport, SectionSplitter, ingest
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.readers import read_documents

Row = tuple[str, str, str]
OpenStore = Callable[..., CheckedMilvusVectorStore]


@pytest.fixture
def model(embedding_dir: Path) -> Qwen3Embedding:
    return embedder(embedding_dir, embed_batch_size=4).load()


@pytest.fixture
def open_store(model: Qwen3Embedding, tmp_path: Path) -> Iterator[OpenStore]:
    """Return a function that opens collections of one database."""
    uri = str(tmp_path / "store.db")

    def open_(name: str = "docs", **options: Any) -> CheckedMilvusVectorStore:
        return milvus_vector_store(options.pop("model", model), uri, name, **options)

    yield open_
    server_manager_instance.release_server(uri)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Return a folder of six files of three sections."""
    folder = tmp_path / "docs"
    for i in range(6):
        file = folder / f"part{i % 2}" / f"file_{i}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"# Section {j}\ntext {i} {j}\n\n" for j in range(3)))
    return folder


def rows(store: CheckedMilvusVectorStore) -> dict[str, tuple[str, dict[str, Any], list[float]]]:
    """Return all rows: text, node and vector by id."""
    found = store.select('id != ""', ["*"])
    return {
        row["id"]: (row["text"], json.loads(row["_node_content"]), row["embedding"])
        for row in found
    }


def same(left: CheckedMilvusVectorStore, right: CheckedMilvusVectorStore) -> bool:
    """Say whether two collections hold the same, vectors within what rounding allows."""
    a, b = rows(left), rows(right)
    assert a.keys() == b.keys()
    for id_ in a:
        assert a[id_][:2] == b[id_][:2]
        assert a[id_][2] == pytest.approx(b[id_][2], abs=1e-5)
    return True


def texts(store: CheckedMilvusVectorStore) -> list[str]:
    return sorted(text for text, *_ in rows(store).values())


def test_unchanged_files_cost_nothing(
    docs: Path,
    model: Qwen3Embedding,
    open_store: OpenStore,
    passes: ForwardPasses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither split nor embed what is stored, also after reopening."""
    store = open_store()
    assert ingest([docs], model, store) == IngestReport(files=6, added=18)

    def split(*_: Any, **__: Any) -> None:
        raise AssertionError("split again")

    monkeypatch.setattr(SectionSplitter, "__call__", split)
    assert passes.during(lambda: ingest([docs], model, open_store())) == 0
    assert ingest([docs], model, store) == IngestReport(files=6, unchanged=18)


def test_a_changed_file(
    docs: Path, model: Qwen3Embedding, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embed the changed section alone, and end as if it had never been otherwise."""
    store = open_store()
    ingest([docs], model, store)
    file = docs / "part0" / "file_0.md"
    file.write_text(file.read_text().replace("text 0 1", "quite another"))
    embedded: list[str] = []
    embed = Qwen3Embedding._aget_text_embeddings

    async def watch(self: Qwen3Embedding, batch: list[str]) -> list[list[float]]:
        embedded.extend(batch)
        return await embed(self, batch)

    monkeypatch.setattr(Qwen3Embedding, "_aget_text_embeddings", watch)
    assert ingest([docs], model, store) == IngestReport(6, added=1, unchanged=17, removed=1)
    assert embedded == ["# Section 1\nquite another"]
    fresh = open_store("fresh")
    ingest([docs], model, fresh)
    assert same(store, fresh)
    assert ingest([docs], model, store) == IngestReport(6, unchanged=18)


def test_files_that_are_gone(docs: Path, model: Qwen3Embedding, open_store: OpenStore) -> None:
    """Remove what disappeared from the folders given, and nothing from elsewhere."""
    store = open_store()
    ingest([docs], model, store)
    (docs / "part0" / "file_0.md").unlink()
    (docs / "part1" / "file_1.md").unlink()
    # A name that a pattern would confuse with the one that is gone.
    (docs / "part1" / "fileX1.md").write_text("# X\nsimilar name\n")
    assert ingest([docs / "part1"], model, store) == IngestReport(3, 1, 6, 3)
    assert "# Section 0\ntext 0 0" in texts(store)
    assert ingest([docs / "part1" / "file_3.md"], model, store).removed == 0
    assert ingest([docs], model, store).removed == 3
    fresh = open_store("fresh")
    ingest([docs], model, fresh)
    assert same(store, fresh)


def test_a_renamed_folder_beside(docs: Path, model: Qwen3Embedding, open_store: OpenStore) -> None:
    """Leave the chunks of a folder whose name begins alike."""
    store = open_store()
    other = docs.with_name("docs_old")
    shutil.copytree(docs, other)
    ingest([docs, other], model, store)
    shutil.rmtree(other)
    assert ingest([docs], model, store).removed == 0
    assert len(rows(store)) == 36


@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_and_resumed(
    docs: Path, model: Qwen3Embedding, open_store: OpenStore, after: int
) -> None:
    """Stop after the batch under way, report it, and go on from there."""
    store, fresh = open_store(), open_store("fresh")
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == after

    report = ingest([docs], model, store, should_stop=should_stop)
    assert report.stopped
    assert report.added == 4 * after == len(rows(store))
    second = ingest([docs], model, store)
    assert not second.stopped
    assert second.added == 18 - report.added
    ingest([docs], model, fresh)
    assert same(store, fresh)


@pytest.mark.parametrize("broken", ["add", "delete_nodes", "model"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_broken_off_and_resumed(
    docs: Path,
    model: Qwen3Embedding,
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    at: int,
) -> None:
    """End with the right rows when the store or the model fails in the middle of a change."""
    store, fresh = open_store(), open_store("fresh")
    ingest([docs], model, store)
    for i in (0, 2, 5):
        file = docs / f"part{i % 2}" / f"file_{i}.md"
        file.write_text(file.read_text().replace("text", "changed"))
    (docs / "part1" / "file_1.md").unlink()
    calls: list[int] = []
    target = Qwen3Embedding if broken == "model" else CheckedMilvusVectorStore
    name = "_aget_text_embeddings" if broken == "model" else broken
    original = getattr(target, name)

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise StoreError("broken off")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.raises(StoreError, match="broken off"):
            ingest([docs], model, store)
    ingest([docs], model, store)
    ingest([docs], model, fresh)
    assert same(store, fresh)


def test_other_settings_of_splitting(
    docs: Path, model: Qwen3Embedding, open_store: OpenStore
) -> None:
    """Split again when the splitter has changed, and keep what comes out the same."""
    store = open_store()
    long = docs / "long.md"
    long.write_text("# Long\n" + "One sentence with several words in it. " * 60)
    ingest([docs], model, store)
    report = ingest([docs], model, store, transformations=[SectionSplitter(chunk_tokens=100)])
    assert report.unchanged == 18
    assert report.added > 3
    assert report.removed > 0
    again = ingest([docs], model, store, transformations=[SentenceSplitter(chunk_size=200)])
    assert again.added > 0
    assert len(rows(store)) == again.added + again.unchanged


def test_another_model_is_refused(
    docs: Path, model: Qwen3Embedding, open_store: OpenStore, make_embedding: Callable[..., Path]
) -> None:
    """Notice another model, task or dimension by the collection's record."""
    ingest([docs], model, open_store())
    other = embedder(make_embedding(shape=Shape(seed=9)))
    with pytest.raises(StoreError, match=r"built with model .* vectors cannot be compared"):
        open_store(model=other)
    symmetric = embedder(Path(model.model_name), text_instruction="Retrieve similar text")
    with pytest.raises(StoreError, match="built with document task None"):
        open_store(model=symmetric)
    with pytest.raises(StoreError, match="holds vectors of 64 dimensions"):
        open_store(model=embedder(Path(model.model_name), dimensions=40))
    # The same model elsewhere, asked by another task, is the same to documents.
    moved = docs.parent / "moved"
    shutil.copytree(model.model_name, moved)
    open_store(model=embedder(moved, query_instruction="Find it"))
    assert rows(open_store(model=other, overwrite=True)) == {}


def test_html_and_pdf(tmp_path: Path, model: Qwen3Embedding, open_store: OpenStore) -> None:
    """Split pages of the web at their headers and PDF at its pages."""
    pytest.importorskip("markdownify")
    pypdf = pytest.importorskip("pypdf")
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "page.html").write_text(
        "<html><style>x{}</style><nav>menu</nav><h1>One</h1><p>first <b>text</b></p><h2>Two</h2>"
        "<p>second</p><script>alert()</script></html>"
    )
    writer = pypdf.PdfWriter()
    writer.add_blank_page(72, 72)
    writer.write(folder / "empty.pdf")
    documents = {d.metadata["file"]: d.text for d in read_documents([folder])}
    assert documents["page.html"].split() == [
        "#",
        "One",
        "first",
        "**text**",
        "##",
        "Two",
        "second",
    ]
    assert documents["empty.pdf"].startswith("# Page 1")
    ingest([folder], model, open_store())
    sections = {row[1]["metadata"]["section_id"] for row in rows(open_store()).values()}
    assert sections == {"page.html#one", "page.html#two"}
    (folder / "bad.pdf").write_bytes(b"not a pdf")
    with pytest.raises(InvalidArgumentError, match=r"bad\.pdf' as PDF"):
        read_documents([folder])


def test_unknown_files(tmp_path: Path) -> None:
    """Say which kinds are known, and skip others in folders."""
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(InvalidArgumentError, match=r"only \.md, .* are known"):
        read_documents([tmp_path / "a.docx"])
    with pytest.raises(InvalidArgumentError, match="nothing to read"):
        read_documents([tmp_path])


def test_neighbours_and_source(docs: Path, model: Qwen3Embedding, open_store: OpenStore) -> None:
    """Link chunks to their file and to each other by ids that stay."""
    store = open_store()
    ingest([docs], model, store)
    found = rows(store)
    file = str((docs / "part0" / "file_0.md").resolve())
    mine = {i: node for i, (_, node, _) in found.items() if file in json.dumps(node)}
    assert len(mine) == 3
    following = {
        node["relationships"]["3"]["node_id"]
        for node in mine.values()
        if "3" in node["relationships"]
    }
    assert len(following) == 2
    assert following < mine.keys()
