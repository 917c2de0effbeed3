"""Folders into a collection: only what changed, of any size, stopped and resumed at any time."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, TextNode, TransformComponent

from .embedding import Qwen3Embedding
from .engine import background
from .milvus import CheckedMilvusVectorStore, rows_in
from .milvus_filters import prefix_pattern
from .readers import SourceFile, find_files, read_document
from .splitting import SectionSplitter, identify

# Batches that are embedded while this thread reads, splits and stores.
_AHEAD = 4
# Documents whose rows are looked up together.
_FILES_AT_ONCE = 256
# Rows that Milvus Lite may hold unflushed: searching them is slow, and each flush costs.
_FLUSH_EVERY = 4096
_BOOKKEEPING = ("digest", "chunks")


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did: files looked at, and chunks.

    `stopped` says that it was asked to stop before the end; the next run goes on from there.
    """

    files: int = 0
    added: int = 0
    unchanged: int = 0
    removed: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class IngestProgress:
    """How far an ingest has come; bytes tell it best, since chunks are not counted before."""

    files: int
    files_in_all: int
    bytes: int
    bytes_in_all: int
    added: int


def ingest(
    paths: Sequence[str | Path],
    embed_model: Qwen3Embedding,
    vector_store: CheckedMilvusVectorStore,
    on_progress: Callable[[IngestProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    transformations: Sequence[TransformComponent] | None = None,
) -> IngestReport:
    """Read, split, embed and store files; what is stored already is not embedded again.

    Files are read one after another, so memory does not grow with their number. Killed at any moment
    and run again, it ends with the rows of an undisturbed run: a file counts as done only when all
    its chunks are there, and new chunks are written before old ones are removed. Chunks are removed
    that are no longer in their file, or whose file is gone from a folder given here.

    Args:
        paths: Files, or folders of them.
        embed_model: Embeds the chunks.
        vector_store: Where the chunks go.
        on_progress: Called after each batch and each file.
        should_stop: Asked after each batch; True ends the run there.
        transformations: Split a document into nodes; None is `SectionSplitter()`. Ids are set here.

    Raises:
        InvalidArgumentError: A path does not exist or a file cannot be read.
        StoreError: The store failed. What was written stays; run again to go on.
    """
    files = find_files(paths)
    run = _Run(embed_model, vector_store, transformations or [SectionSplitter()], files)
    run.on_progress, run.should_stop = on_progress, should_stop or (lambda: False)
    try:
        for start in range(0, len(files), _FILES_AT_ONCE):
            run.files(files[start : start + _FILES_AT_ONCE])
            if run.stopped:
                break
        else:
            run.write_pending()
            if not run.stopped:
                run.remove_gone([Path(path) for path in paths])
    finally:
        run.cancel()
    run.flush()
    return run.report


_Stored = dict[str, tuple[str, int]]


@dataclass
class _FileDone:
    """What is left to do for a file once its new chunks are written."""

    last: str
    stale: list[str]


class _Run:
    """One ingest: what is waiting to be embedded, and what was done."""

    def __init__(
        self,
        embed_model: Qwen3Embedding,
        store: CheckedMilvusVectorStore,
        transformations: Sequence[TransformComponent],
        files: Sequence[SourceFile],
    ) -> None:
        self.on_progress: Callable[[IngestProgress], None] | None = None
        self.should_stop: Callable[[], bool] = lambda: False
        self.stopped = False
        self.report = IngestReport()
        self._model, self._store = embed_model, store
        self._pipeline = IngestionPipeline(
            transformations=list(transformations), disable_cache=True
        )
        settings = json.dumps([t.to_dict() for t in transformations], sort_keys=True, default=str)
        self._settings = settings.encode()
        self._document_ids = {file.document_id for file in files}
        self._progress = IngestProgress(0, len(files), 0, sum(_size(f) for f in files), 0)
        self._pending: list[TextNode] = []
        # A cache of vectors may be of this thread only, and other models know no other way.
        alone = not isinstance(embed_model, Qwen3Embedding) or embed_model.embeddings_cache
        self._ahead = 0 if alone else _AHEAD
        self._embedding: deque[tuple[list[TextNode], Future[Any]]] = deque()
        self._done: list[_FileDone] = []
        self._unflushed = 0

    def files(self, files: Sequence[SourceFile]) -> None:
        """Bring the chunks of these files up to date, but for those left pending."""
        stored = self._stored([file.document_id for file in files])
        for file in files:
            self._file(file, stored.get(file.document_id, {}))
            self._tell(files=self._progress.files + 1, bytes=self._progress.bytes + _size(file))
            if self.stopped:
                return

    def _file(self, file: SourceFile, stored: _Stored) -> None:
        digest = self._digest(file)
        if stored and all(row == (digest, len(stored)) for row in stored.values()):
            self._count(files=1, unchanged=len(stored))
            return
        document = read_document(file)
        nodes = self._pipeline.run(documents=[document], show_progress=False)
        identify([node for node in nodes if isinstance(node, TextNode)], document)
        for node in nodes:
            node.metadata |= {"digest": digest, "chunks": len(nodes)}
            for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
                keys += [key for key in _BOOKKEEPING if key not in keys]
        new = [node for node in nodes if node.node_id not in stored]
        known = [node for node in nodes if node.node_id in stored]
        self._rewrite([n for n in known if stored[n.node_id] != (digest, len(nodes))])
        stale = sorted(set(stored) - {node.node_id for node in nodes})
        self._count(files=1, unchanged=len(known))
        if new:
            self._pending += new  # type: ignore[arg-type]
            self._done.append(_FileDone(new[-1].node_id, stale))
        else:
            self._remove(stale)
        while len(self._pending) >= self._model.embed_batch_size and not self.stopped:
            self._embed()
            if len(self._embedding) > self._ahead:
                self._write()

    def write_pending(self) -> None:
        """Embed and store what is left."""
        while (self._pending or self._embedding) and not self.stopped:
            if self._pending:
                self._embed()
            if not self._pending or len(self._embedding) > self._ahead:
                self._write()

    def cancel(self) -> None:
        """Give up what is being embedded."""
        while self._embedding:
            self._embedding.pop()[1].cancel()

    def _embed(self) -> None:
        """Begin to embed the next batch."""
        count = self._model.embed_batch_size
        batch, self._pending = self._pending[:count], self._pending[count:]
        if self._ahead:
            embedded = background.run(self._model.acall(batch))
        else:
            embedded = Future()
            embedded.set_result(self._model(batch))
        self._embedding.append((batch, embedded))

    def _write(self) -> None:
        """Store the batch that was begun first."""
        batch, embedded = self._embedding.popleft()
        self._store.add(background.wait(embedded), flush=False, upsert=True)
        self._count(added=len(batch))
        written = {node.node_id for node in batch}
        # Removed last: stopped before, a run leaves the old text to be found.
        while self._done and self._done[0].last in written:
            self._remove(self._done.pop(0).stale)
        self._unflushed += len(batch)
        if self._unflushed >= _FLUSH_EVERY:
            self.flush()
        self._tell(added=self.report.added)
        self.stopped = self.stopped or self.should_stop()
        self.report = replace(self.report, stopped=self.stopped)

    def _rewrite(self, nodes: Sequence[BaseNode]) -> None:
        """Write chunks whose text is as before under their file's new digest, with their vectors."""
        for start in range(0, len(nodes), self._store.batch_size):
            batch = list(nodes[start : start + self._store.batch_size])
            condition = rows_in("id", [node.node_id for node in batch])
            field = self._store.embedding_field
            rows = self._store.select(condition, ["id", field])
            vectors = {row["id"]: row[field] for row in rows}
            for node in batch:
                node.embedding = [float(value) for value in vectors[node.node_id]]
            self._store.add(batch, flush=False, upsert=True)

    def _remove(self, ids: Sequence[str]) -> None:
        if ids:
            self._store.delete_nodes(ids)
            self._count(removed=len(ids))

    def remove_gone(self, paths: Sequence[Path]) -> None:
        """Remove the chunks of files that are no longer in the folders."""
        for folder in paths:
            if not folder.is_dir():
                continue
            prefix = f"{folder.resolve()}/"
            field = self._store.doc_id_field
            condition = f"{field} like {prefix_pattern(prefix)}"
            gone: defaultdict[str, list[str]] = defaultdict(list)
            for row in self._store.scan(condition, ["id", field]):
                document = row[field]
                if (
                    document.startswith(prefix)
                    and document not in self._document_ids
                    and not Path(document).exists()
                ):
                    gone[document].append(row["id"])
            self._remove([node_id for ids in gone.values() for node_id in ids])

    def flush(self) -> None:
        """Make what was written fast to search."""
        if self._unflushed or self.report.removed:
            self._store.flush()
            self._unflushed = 0

    def _stored(self, document_ids: Sequence[str]) -> dict[str, _Stored]:
        """Return the rows of documents: id to digest and number of chunks of their file."""
        stored: defaultdict[str, _Stored] = defaultdict(dict)
        field = self._store.doc_id_field
        for row in self._store.select(rows_in(field, document_ids), ["id", field, *_BOOKKEEPING]):
            stored[row[field]][row["id"]] = (row.get("digest", ""), int(row.get("chunks") or 0))
        return stored

    def _digest(self, file: SourceFile) -> str:
        digest = hashlib.sha256(self._settings)
        digest.update(file.name.encode())
        try:
            digest.update(file.path.read_bytes())
        except OSError:
            read_document(file)  # says what is wrong
        return digest.hexdigest()[:32]

    def _count(self, **changes: int) -> None:
        counts = {name: getattr(self.report, name) + n for name, n in changes.items()}
        self.report = replace(self.report, **counts)

    def _tell(self, **changes: int) -> None:
        self._progress = replace(self._progress, **changes)
        if self.on_progress:
            self.on_progress(self._progress)


def _size(file: SourceFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:
        return 0
