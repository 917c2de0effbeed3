"""Embedding on Ray: two actors on this machine do what the model in this process does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from components import embedder
from counted import Counted
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from milvus_lite.server_manager import server_manager_instance

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.errors import ClusterError, InvalidArgumentError, TruncationWarning
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.on_ray import RayEmbedder, share
from llamaindex_qwen3.pipeline import IngestReport, ingest

pytestmark = pytest.mark.ray

TOLERANCE = 1e-6
SECTIONS, BATCH = 21, 4

# In a process of its own, since there can be one Ray in a process at a time.
OWN_RAY = """
import os, shutil, sys
import ray
from llamaindex_qwen3 import Qwen3Embedding
from llamaindex_qwen3.on_ray import RayEmbedder

def attempt(*arguments, **options):
    try:
        with RayEmbedder(*arguments, **options):
            print("works")
    except Exception as error:
        print(type(error).__name__, error)

model = Qwen3Embedding(sys.argv[1], dtype="float32", device="cpu")
attempt(model, actors=1000)
print(ray.is_initialized())
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
os.chdir(os.path.dirname(sys.argv[1]))
attempt(Qwen3Embedding("model", dtype="float32", device="cpu"))
print(ray.is_initialized())
attempt(model, "127.0.0.1:1")
Qwen3Embedding.built_with = lambda self: {"model": "another"}
attempt(model)
shutil.rmtree(sys.argv[1])
attempt(model)
"""


class OnRay:
    """Two actors, the model that they copy, and the processes that loaded it."""

    def __init__(self, model: Counted) -> None:
        self.embedder = RayEmbedder(model, actors=2, batch=BATCH)
        self.model = model

    def loaded_by(self) -> list[int]:
        return [int(line) for line in Path(self.model.log).read_text().split()]

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        nodes = [TextNode(text=text) for text in texts]
        assert list(self.embedder(nodes)) == nodes
        return [cast("list[float]", node.embedding) for node in nodes]


@pytest.fixture(scope="module")
def no_settings() -> Iterator[None]:
    """Keep Ray from finding settings, and from leaving any behind."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "")
        patch.delenv("RAY_AUTH_MODE")
        yield


@pytest.fixture(scope="module")
def on_ray(
    embedding_dir: Path, tmp_path_factory: pytest.TempPathFactory, no_settings: None
) -> Iterator[OnRay]:
    """Start Ray and two actors, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        log = tmp_path_factory.mktemp("ray") / "loads"
        log.touch()
        model = Counted(
            model_name=str(embedding_dir),
            dtype="float32",
            device="cpu",
            max_length=64,
            log=str(log),
        )
        started = OnRay(model)
        with started.embedder:
            yield started


@pytest.fixture
def plain(embedding_dir: Path) -> Qwen3Embedding:
    return embedder(embedding_dir, max_length=64)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for file in range(3):
        sections = [f"## Part {i}\ntext {i} of {file}, " + "and so on " * (i % 5) for i in range(7)]
        (folder / f"{file}.md").write_text("\n".join(sections))
    return folder


Open = Callable[[str], CheckedMilvusVectorStore]


@pytest.fixture
def open_store(plain: Qwen3Embedding, tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens a database of its own under a name."""
    uris: list[str] = []

    def open_(name: str) -> CheckedMilvusVectorStore:
        uris.append(str(tmp_path / f"{name}.db"))
        return milvus_vector_store(plain, uris[-1])

    yield open_
    for uri in uris:
        server_manager_instance.release_server(uri)


def run(docs: Path, model: Any, store: CheckedMilvusVectorStore, **options: Any) -> IngestReport:
    return ingest([docs], model, store, **options)


def rows(store: CheckedMilvusVectorStore) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Return everything that is stored, and the vectors apart."""
    found = store.client.query(store.collection_name, filter="", limit=1000, output_fields=["*"])
    found = sorted((dict(row) for row in found), key=lambda row: row["id"])
    return found, [row.pop(store.embedding_field) for row in found]


def assert_same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert list(left) == pytest.approx(list(right), abs=TOLERANCE)


def test_rows_are_those_of_the_plain_ingest(
    docs: Path, on_ray: OnRay, plain: Qwen3Embedding, open_store: Open
) -> None:
    """Store the same ids, texts, metadata and vectors; then embed nothing again."""
    here, there = open_store("here"), open_store("there")
    run(docs, plain, here)
    report = run(docs, on_ray.embedder, there)
    assert (report.files, report.added) == (3, SECTIONS)
    (expected, vectors), (found, found_vectors) = rows(here), rows(there)
    assert found == expected
    assert len(found) == SECTIONS
    assert_same(found_vectors, vectors)
    for model in (on_ray.embedder, plain):
        report = run(docs, model, there)
        assert (report.added, report.unchanged, report.removed) == (0, SECTIONS, 0)


def test_each_actor_loads_once(on_ray: OnRay, plain: Qwen3Embedding) -> None:
    """Keep the weights from call to call, in two processes that are not this one."""
    for _ in range(3):
        on_ray([f"text {i}" for i in range(40)])
    loaded_by = on_ray.loaded_by()
    assert len(loaded_by) == len(set(loaded_by)) == 2
    assert os.getpid() not in loaded_by


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 37])
def test_order(on_ray: OnRay, plain: Qwen3Embedding, count: int) -> None:
    """Give each node its own vector, however many there are."""
    texts = [f"text {i} " + "long " * (i * 7 % 11) for i in range(count)]
    assert_same(on_ray(texts), plain.get_text_embedding_batch(texts) if texts else [])


def test_stop_and_go_on(docs: Path, on_ray: OnRay, open_store: Open) -> None:
    """Stop after the batch under way, of all actors, and end with all rows when run again."""
    store = open_store("stopped")
    report = run(docs, on_ray.embedder, store, should_stop=lambda: True)
    assert report.stopped
    assert report.added == on_ray.embedder.embed_batch_size == 2 * BATCH
    report = run(docs, on_ray.embedder, store)
    assert not report.stopped
    assert report.added == SECTIONS - 2 * BATCH


def test_errors_are_those_of_the_model(on_ray: OnRay) -> None:
    """Raise what the model raised, without Ray around it, and work on."""
    with pytest.raises(InvalidArgumentError, match="lone surrogate") as caught:
        on_ray(["a", "\ud800"])
    assert type(caught.value) is InvalidArgumentError
    assert len(on_ray(["a", "b", "c"])) == 3


def test_warnings_are_those_of_the_model(on_ray: OnRay) -> None:
    """Warn here of texts that are cut there."""
    with pytest.warns(TruncationWarning, match="max_length=64"):
        on_ray(["word " * 200])


def test_cache(on_ray: OnRay, plain: Qwen3Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send only texts whose vectors are not in the model's cache, and put them there."""
    sent: list[str] = []
    embed = on_ray.embedder._embed

    def record(texts: Sequence[str]) -> list[list[float]]:
        sent.extend(texts)
        return embed(texts)

    monkeypatch.setattr(on_ray.embedder, "_embed", record)
    on_ray.model.embeddings_cache = SimpleKVStore()
    on_ray(["a", "b"])
    assert_same(on_ray(["b", "c", "a"]), plain.get_text_embedding_batch(["b", "c", "a"]))
    assert sent == ["a", "b", "c"]
    on_ray.model.embeddings_cache = None


def test_a_lost_actor_comes_back(on_ray: OnRay, plain: Qwen3Embedding) -> None:
    """Do the work again that was lost with the process of an actor."""
    texts = [f"text {i}" for i in range(8)]
    on_ray(texts)
    before = on_ray.loaded_by()
    os.kill(before[0], signal.SIGKILL)
    assert_same(on_ray(texts), plain.get_text_embedding_batch(texts))
    assert len(on_ray.loaded_by()) == len(before) + 1


def test_only_this_machine_can_reach_it(on_ray: OnRay) -> None:
    """Listen on 127.0.0.1: Ray lets who reaches it run code."""
    import ray

    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}


def test_a_ray_of_the_callers_own(embedding_dir: Path, no_settings: None, tmp_path: Path) -> None:
    """Use it and leave it; refuse what cannot work, and start again after that."""
    model = shutil.copytree(embedding_dir, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY, str(model)], capture_output=True, text=True
    )
    expected = [
        r"InvalidArgumentError actors=1000 is too many for this machine.*",
        r"False",
        r"works",
        r"True",
        r"InvalidArgumentError This process is connected to a Ray already.*",
        r"InvalidArgumentError An actor has another model or another version .*",
        r"CheckpointError There is no directory .*",
    ]
    told = done.stdout.splitlines()
    assert len(told) == len(expected), done.stderr
    for line, pattern in zip(told, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_command_line(
    docs: Path, embedding_dir: Path, no_settings: None, tmp_path: Path, open_store: Open
) -> None:
    """Start Ray for one command, which prints no more than without."""
    (tmp_path / "pair").mkdir()
    for role in ("embedding", "reranker"):
        (tmp_path / "pair" / role).symlink_to(embedding_dir)
    command = [sys.executable, "-m", "llamaindex_qwen3.cli", "ingest", str(docs)]
    command += ["--models", str(tmp_path / "pair"), "--uri", str(tmp_path / "cli.db")]
    command += ["--collection", "qwen3"]
    for option, added in (["--ray", "local"], SECTIONS), ([], 0):
        done = subprocess.run([*command, *option], capture_output=True, text=True)
        assert f"Stored {added} chunks of 3 files" in done.stdout, done.stderr
        assert not done.stderr.strip()


def test_unreachable(plain: Qwen3Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say at once that nothing answers, or that this is no address."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379"):
        with pytest.raises(ClusterError, match=address):
            RayEmbedder(plain, address)
    with pytest.raises(InvalidArgumentError, match="host:port"):
        RayEmbedder(plain, "nonsense")


def test_not_installed(plain: Qwen3Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say how to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'llamaindex-qwen3\[ray\]'"):
        RayEmbedder(plain)


@pytest.mark.parametrize("options", [{"actors": 0}, {"batch": 0}, {"cpus": 0}])
def test_values_refused(plain: Qwen3Embedding, options: dict[str, int]) -> None:
    """Refuse what makes no sense before Ray is started for it."""
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        RayEmbedder(plain, **options)


@pytest.mark.parametrize(
    ("nodes", "device", "actors", "expected"),
    [
        ([{"CPU": 8}], None, 2, (4, 0)),
        ([{"CPU": 16}, {"CPU": 8}], None, 2, (8, 0)),
        ([{"CPU": 5}, {"CPU": 5}], None, 3, (2, 0)),
        ([{"CPU": 2}], None, 3, (1, 0)),
        ([{}], None, 1, (1, 0)),
        ([{"CPU": 64, "GPU": 4}, {"CPU": 8}], None, 4, (1, 1)),
        ([{"CPU": 64, "GPU": 4}], ["cuda:0", "cuda:1"], 2, (1, 2)),
        ([{"CPU": 64, "GPU": 4}], "cpu", 2, (32, 0)),
    ],
)
def test_what_an_actor_asks_for(
    nodes: list[dict[str, float]], device: Any, actors: int, expected: tuple[int, int]
) -> None:
    """Share CPUs so that all actors fit, and give each a GPU of its own."""
    assert tuple(share(nodes, device, actors, None).values()) == expected
