"""What the store refuses and what it gets right, on every kind of Milvus there is here.

Milvus Lite by default; `milvus-lite server` and the standalone server with `-m milvus`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from milvus_lite.server_manager import server_manager_instance
from servers import milvus_servers

from llamaindex_qwen3 import milvus_vector_store
from llamaindex_qwen3.errors import InvalidArgumentError, StoreError
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore

DIM = 32


class Vectors(BaseEmbedding):
    """Any embedding model: vectors that depend on the text alone."""

    model_name: str = "vectors"
    dim: int = DIM

    def _get_text_embedding(self, text: str) -> list[float]:
        rng = random.Random(repr(text))
        vector = [rng.gauss(0, 1) for _ in range(self.dim)]
        norm = sum(x * x for x in vector) ** 0.5
        return [x / norm for x in vector]

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


MODEL = Vectors()


@dataclass
class Backend:
    """A Milvus to open collections in, each by a name of its own."""

    kind: str
    uri: str
    token: str = ""
    opened: list[CheckedMilvusVectorStore] = field(default_factory=list)

    @property
    def counts_bytes(self) -> bool:
        return self.kind != "lite"

    def open(self, name: str | None = None, model: Any = MODEL, **options: Any) -> Any:
        """Open a collection, a new one without a name."""
        name = name or f"c{len(self.opened)}"
        store = milvus_vector_store(model, self.uri, name, token=self.token, **options)
        self.opened.append(store)
        return store


SERVERS = [pytest.param(kind, marks=pytest.mark.milvus) for kind in ("lite-server", "standalone")]


@pytest.fixture(scope="module", params=["lite", *SERVERS])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Start each kind of Milvus once."""
    directory = tmp_path_factory.mktemp("milvus")
    if request.param == "lite":
        uri = str(directory / "store.db")
        yield Backend("lite", uri)
        server_manager_instance.release_server(uri)
        return
    if request.param == "standalone" and (reason := milvus_servers.unavailable()):
        pytest.skip(reason)
    start = (
        milvus_servers.lite_server if request.param == "lite-server" else milvus_servers.standalone
    )
    with start(directory / "data") as running:
        yield Backend(request.param, running.uri, running.token)


@pytest.fixture
def backend(server: Backend) -> Iterator[Backend]:
    """Return the Milvus under test, and drop what a test made."""
    server.opened.clear()
    yield server
    for name in {store.collection_name for store in server.opened}:
        server.opened[0].client.drop_collection(name)


def node(text: str, id_: str | None = None, **metadata: Any) -> TextNode:
    """Return a node with its embedding."""
    made = TextNode(text=text, id_=id_ or text, metadata=metadata)
    made.embedding = MODEL.get_text_embedding(text)
    return made


def ids(store: CheckedMilvusVectorStore, filters: MetadataFilters | None = None) -> set[str]:
    """Return the ids that a query finds under filters."""
    query = VectorStoreQuery(
        query_embedding=MODEL.get_text_embedding("q"), similarity_top_k=1000, filters=filters
    )
    return set(store.query(query).ids or [])


def where(key: str, operator: FilterOperator, value: Any = None) -> MetadataFilters:
    """Return a single filter."""
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


# --- opening ----------------------------------------------------------------------------------


def test_reopening_loads(backend: Backend) -> None:
    """Search at once after opening what was released, sync and async."""
    store = backend.open("kept")
    store.add([node("one")])
    store.client.release_collection("kept")
    assert ids(backend.open("kept")) == {"one"}
    store.client.release_collection("kept")
    again = backend.open("kept")
    query = VectorStoreQuery(query_embedding=MODEL.get_text_embedding("one"), similarity_top_k=1)
    for _ in range(2):  # two event loops
        assert asyncio.run(again.aquery(query)).ids == ["one"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cos"}, "metric='cos' is unknown. Use one of IP"),
        ({"metric": "dot"}, "metric='dot' is unknown"),
        ({"index_config": {"index_type": "BEST"}}, "'BEST' is unknown. Use one of FLAT"),
        ({"index_config": {"index_type": "FLAT", "metric_type": "L2"}}, "Give metric alone"),
        ({"consistency_level": "strong"}, "consistency_level='strong' is unknown"),
        ({"partition_key": "a b"}, "partition_key='a b': use letters"),
        ({"analyzer": "english"}, "analyzer='english' is for hybrid=True"),
        ({"name": "a-b"}, "collection_name='a-b': use letters"),
        ({"name": "1a"}, "not beginning with a digit"),
    ],
)
def test_refused_arguments(backend: Backend, options: dict[str, Any], message: str) -> None:
    """Say what is wrong, and create nothing."""
    with pytest.raises(InvalidArgumentError, match=message.replace("(", r"\(")):
        backend.open(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": Vectors(dim=16)},
            "holds vectors of 32 dimensions, and the embedding model gives 16",
        ),
        ({"metric": "COSINE"}, "built with metric IP, and COSINE was asked for"),
        (
            {"index_config": {"index_type": "IVF_FLAT"}},
            "index of type FLAT, and IVF_FLAT was asked",
        ),
        (
            {"model": Vectors(model_name="other")},
            "built with model 'vectors', and now it is 'other'",
        ),
        ({"partition_key": "tenant"}, "built without the partition key 'tenant'"),
    ],
)
def test_a_collection_that_does_not_fit(
    backend: Backend, options: dict[str, Any], message: str
) -> None:
    """Refuse to open it, say how to go on, and leave what it holds."""
    backend.open("kept").add([node("one")])
    with pytest.raises(StoreError, match=message) as error:
        backend.open("kept", **options)
    assert "another collection_name" in str(error.value)
    assert "overwrite=True" in str(error.value)
    assert ids(backend.open("kept")) == {"one"}
    backend.open("kept", **options, overwrite=True)


def test_what_others_filled_is_taken(backend: Backend) -> None:
    """Open a collection that was filled without a record of its model."""
    store = backend.open("kept")
    store.add([node("one")])
    store.client.alter_collection_properties("kept", {"llamaindex_qwen3.built_with": ""})
    assert ids(backend.open("kept", model=Vectors(model_name="any"))) == {"one"}


@pytest.mark.parametrize("kind", ["FLAT", "HNSW", "IVF_FLAT", "AUTOINDEX"])
def test_index_types(backend: Backend, kind: str) -> None:
    """Build each with parameters that a server asks for."""
    store = backend.open(index_config={"index_type": kind})
    store.add([node(f"n{i}") for i in range(20)])
    query = VectorStoreQuery(query_embedding=MODEL.get_text_embedding("n3"), similarity_top_k=1)
    assert store.query(query).ids == ["n3"]


# --- rows ---------------------------------------------------------------------------------------


def bad_nodes() -> dict[str, Callable[[], TextNode]]:
    """Return nodes that must not be stored."""

    def with_vector(vector: list[float] | None) -> Callable[[], TextNode]:
        def make() -> TextNode:
            made = node("bad")
            made.embedding = vector
            return made

        return make

    return {
        "no vector": with_vector(None),
        "short": with_vector([1.0] * (DIM - 1)),
        "nan": with_vector([float("nan")] * DIM),
        "too large": with_vector([1e39] + [0.0] * (DIM - 1)),
        "long text": lambda: node("x" * 65_536, "bad"),
        "long id": lambda: node("text", "bad" + "x" * 65_536),
        "surrogate in text": lambda: node("a\ud800b", "bad"),
        "surrogate in id": lambda: node("a", "bad\ud800"),
        "surrogate in metadata": lambda: node("a", "bad", key="\ud800"),
    }


@pytest.mark.parametrize("make", bad_nodes().values(), ids=bad_nodes())
def test_one_bad_node_writes_nothing(backend: Backend, make: Callable[[], TextNode]) -> None:
    """Name the node, and write none of those it came with, however many batches they make."""
    store = backend.open(batch_size=2)
    with pytest.raises(StoreError, match="bad") as error:
        store.add([*(node(f"n{i}") for i in range(5)), make()])
    assert "Nothing was written" in str(error.value) or "no embedding" in str(error.value)
    assert ids(store) == set()


def test_sizes_in_the_unit_of_the_backend(backend: Backend) -> None:
    """Take characters on Lite and bytes on a server, up to exactly the limit."""
    store = backend.open()
    fits = "é" * (32_767 if backend.counts_bytes else 65_535)
    store.add([node(fits, "fits")])
    assert ids(store) == {"fits"}
    with pytest.raises(StoreError, match="bytes" if backend.counts_bytes else "characters"):
        store.add([node(fits + "é", "more")])


def test_large_metadata(backend: Backend) -> None:
    """Store what fits and name what does not, before a server cuts it off."""
    store = backend.open()
    store.add([node("fits", key="x" * 30_000)])
    large = node("large", key="x" * 40_000)
    if backend.counts_bytes:
        with pytest.raises(StoreError, match=r"metadata of node 'large' takes \d+ bytes"):
            store.add([large])
    else:
        store.add([large])
    assert "fits" in ids(store)


def test_calls_are_cut_by_bytes(backend: Backend) -> None:
    """Add more in one call than a server takes in one."""
    store = backend.open(batch_size=5000)
    nodes = [node("x" * 60_000, f"n{i}") for i in range(1200)]
    store.add(nodes)
    assert len(ids(store)) == 1000
    assert len(list(store.select('id != ""', ["id"]))) == 1200


AWKWARD = ['q"uote', "apo'strophe", "back\\slash", "日本 線", "new\nline", "per%cent_", "a" * 900]


def test_awkward_ids(backend: Backend) -> None:
    """Find and delete nodes and documents by ids that need quoting."""
    store = backend.open()
    for id_ in AWKWARD:
        made = node(f"text of {id_}", id_)
        made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc {id_}")
        store.add([made])
    query = {"query_embedding": MODEL.get_text_embedding("q"), "similarity_top_k": 10}
    for id_ in AWKWARD:
        assert store.query(VectorStoreQuery(**query, node_ids=[id_])).ids == [id_]
        assert store.query(VectorStoreQuery(**query, doc_ids=[f"doc {id_}"])).ids == [id_]
        assert [n.node_id for n in store.get_nodes([id_])] == [id_]
    for i, id_ in enumerate(AWKWARD):
        if i % 2:
            store.delete_nodes([id_])
        else:
            store.delete(f"doc {id_}")
        assert ids(store) == set(AWKWARD[i + 1 :])


def test_adding_again_doubles_nothing(backend: Backend) -> None:
    """Keep one row an id, the newest, within a call and across calls."""
    store = backend.open()
    store.add([node("one"), node("one"), node("two")])
    store.add([node("another text", "one")])
    rows = list(store.select('id != ""', ["id", "text"]))
    assert sorted((row["id"], row["text"]) for row in rows) == [
        ("one", "another text"),
        ("two", "two"),
    ]
    with pytest.raises(StoreError, match="Two different nodes have the id 'x'"):
        store.add([node("a", "x"), node("b", "x")])


def test_nodes_come_back_whole(backend: Backend) -> None:
    """Give back metadata, relations and text as they were, whatever fields are asked for."""
    store = backend.open()
    made = node("text", "n", a="x", n=2, none=None, empty=[], listed=["p"], **{"odd key": 1.5})
    made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="doc")
    store.add([made])
    for output_fields in (None, ["a"]):
        query = VectorStoreQuery(
            query_embedding=made.embedding, similarity_top_k=1, output_fields=output_fields
        )
        found = store.query(query)
        assert found.ids == ["n"]
        assert found.nodes is not None
        back = found.nodes[0]
        assert (back.node_id, back.get_content(), back.metadata) == ("n", "text", made.metadata)
        assert back.ref_doc_id == "doc"
    (back,) = store.get_nodes(["n"])
    assert back.embedding == pytest.approx(made.embedding, abs=1e-6)


def test_writers_from_many_threads(backend: Backend) -> None:
    """Write from threads and event loops at once and lose nothing."""
    store = backend.open("many")
    other = backend.open("many")

    def write(i: int) -> None:
        nodes = [node(f"n{i}-{j}") for j in range(10)]
        target = (store, other)[i % 2]
        if i % 3:
            target.add(nodes)
        else:
            asyncio.run(target.async_add(nodes))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    assert len(ids(store)) == 160


# --- similarities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["IP", "COSINE", "L2"])
def test_similarities_rank(backend: Backend, metric: str) -> None:
    """Give the nearest the highest similarity, whatever the metric."""
    store = backend.open(metric=metric)
    store.add([node(f"n{i}") for i in range(30)])
    query = VectorStoreQuery(query_embedding=MODEL.get_text_embedding("n7"), similarity_top_k=5)
    found = store.query(query)
    assert found.ids is not None
    assert found.ids[0] == "n7"
    assert found.similarities == sorted(found.similarities or [], reverse=True)
    assert found.similarities[0] == pytest.approx(1.0, abs=1e-4)
    assert all(0 < s <= 1 for s in found.similarities) or metric != "L2"


def test_too_many_asked_for(backend: Backend) -> None:
    """Say how many Milvus gives at most."""
    store = backend.open()
    query = VectorStoreQuery(query_embedding=[0.1] * DIM, similarity_top_k=20_000)
    with pytest.raises(InvalidArgumentError, match="similarity_top_k=20000 is more than"):
        store.query(query)


# --- filters ----------------------------------------------------------------------------------------

VALUES = ["x", "y", "", 'a"b', 0, 1, -2, 2.5, "日本\n線", ["x", "y"], ["x"], "not"]
KEYS = ["k", "in", "odd key", 'q"k', "not", "exists"]


def test_a_filter_without_a_value_is_refused(backend: Backend) -> None:
    """Return no row of another tenant because a variable was None."""
    store = backend.open()
    store.add([node("mine", tenant="a"), node("theirs", tenant="b")])
    for operator in (FilterOperator.EQ, FilterOperator.NE, FilterOperator.IN):
        with pytest.raises(InvalidArgumentError, match="'tenant' has the value None"):
            ids(store, where("tenant", operator, None))
        with pytest.raises(InvalidArgumentError, match="'tenant' has the value None"):
            store.delete_nodes(filters=where("tenant", operator, None))
    nested = MetadataFilters(
        filters=[MetadataFilters(filters=[MetadataFilter(key="tenant", value=None)])]
    )
    with pytest.raises(InvalidArgumentError, match="'tenant' has the value None"):
        ids(store, nested)
    with pytest.raises(InvalidArgumentError, match="without node_ids and filters"):
        store.delete_nodes()
    assert ids(store) == {"mine", "theirs"}


@pytest.mark.parametrize(
    ("operator", "value", "message"),
    [
        (FilterOperator.EQ, float("nan"), "finite number"),
        (FilterOperator.EQ, "a\x00b", "control character"),
        (FilterOperator.IN, "x", "give a list"),
        (FilterOperator.TEXT_MATCH, "50%", "without %"),
        (FilterOperator.TEXT_MATCH_INSENSITIVE, "x", "Milvus does not have"),
    ],
)
def test_filters_that_are_refused(
    backend: Backend, operator: FilterOperator, value: Any, message: str
) -> None:
    """Say so instead of searching by something else."""
    store = backend.open()
    with pytest.raises(InvalidArgumentError, match=message):
        ids(store, where("k", operator, value))


def test_own_expression_beside_filters(backend: Backend) -> None:
    """Apply an expression in Milvus's own language together with filters."""
    store = backend.open()
    store.add([node("a", k=1, m=1), node("b", k=1, m=2), node("c", k=2, m=1)])
    query = VectorStoreQuery(
        query_embedding=[0.1] * DIM, similarity_top_k=9, filters=where("k", FilterOperator.EQ, 1)
    )
    assert store.query(query, string_expr="m == 1").ids == ["a"]


def test_lists_and_texts(backend: Backend) -> None:
    """Look into lists and texts."""
    store = backend.open()
    store.add([node("a", k=["x", "y"]), node("b", k=["y"]), node("c", k="xylophone"), node("d")])
    assert ids(store, where("k", FilterOperator.CONTAINS, "x")) == {"a"}
    assert ids(store, where("k", FilterOperator.ANY, ["x", "y"])) == {"a", "b"}
    assert ids(store, where("k", FilterOperator.ALL, ["x", "y"])) == {"a"}
    if backend.kind == "standalone":
        # This old server finds beginnings only, and says so.
        with pytest.raises(StoreError, match="only prefix pattern match"):
            ids(store, where("k", FilterOperator.TEXT_MATCH, "xylo"))
    else:
        assert ids(store, where("k", FilterOperator.TEXT_MATCH, "lopho")) == {"c"}


def filter_trees() -> st.SearchStrategy[MetadataFilters]:
    """Return nested filters of all kinds that compare single values."""
    texts = st.lists(st.sampled_from(["x", "y", ""]), max_size=3)
    numbers = st.lists(st.sampled_from([0, 1, -2]), max_size=3)
    leaf = st.one_of(
        st.builds(
            lambda k, o, v: MetadataFilter(key=k, operator=o, value=v),
            st.sampled_from([*KEYS, "gone"]),
            st.sampled_from([FilterOperator.EQ, FilterOperator.NE]),
            st.sampled_from([v for v in VALUES if not isinstance(v, list)]),
        ),
        st.builds(
            lambda k, o, v: MetadataFilter(key=k, operator=o, value=v),
            st.sampled_from(KEYS),
            st.sampled_from([FilterOperator.IN, FilterOperator.NIN]),
            st.one_of(texts, numbers),
        ),
        st.builds(
            lambda k: MetadataFilter(key=k, operator=FilterOperator.IS_EMPTY, value=None),
            st.sampled_from(KEYS),
        ),
    )

    def groups(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[MetadataFilters]:
        return st.builds(
            lambda f, c: MetadataFilters(filters=f, condition=c),
            st.lists(parts, min_size=1, max_size=3),
            st.sampled_from(list(FilterCondition)),
        )

    return groups(st.one_of(leaf, groups(leaf)))


def meets(filters: Any, metadata: dict[str, Any]) -> bool:
    """Say whether metadata meets filters, by LlamaIndex's own function for each leaf."""
    if isinstance(filters, MetadataFilters):
        each = [meets(part, metadata) for part in filters.filters]
        kinds = {"and": all(each), "or": any(each), "not": not any(each)}
        return kinds[(filters.condition or FilterCondition.AND).value]
    matches = build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[filters]))
    return bool(matches(""))


def test_filters_leak_nothing(backend: Backend) -> None:
    """Find exactly the rows that LlamaIndex's own filters let through."""
    store = backend.open()
    rng = random.Random(0)
    metadata = {
        f"r{i}": {
            **{key: rng.choice(VALUES) for key in KEYS if rng.random() < 0.6},
            **({"none": None, "empty": []} if i % 2 else {}),
        }
        for i in range(60)
    }
    nodes = [node(text, **{}) for text in metadata]
    for made in nodes:
        made.metadata = metadata[made.node_id]
    store.add(nodes)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(filter_trees())
    def check(filters: MetadataFilters) -> None:
        expected = {id_ for id_, values in metadata.items() if meets(filters, values)}
        assert ids(store, filters) == expected

    check()
    assert ids(store, where("empty", FilterOperator.IS_EMPTY)) == set(metadata)


# --- tenants ---------------------------------------------------------------------------------------


def test_tenants(backend: Backend) -> None:
    """Keep tenants apart by a partition key, and find only one's nodes through a query engine."""
    store = backend.open("tenants", partition_key="tenant")
    names = [f"t{i}" for i in range(5)] + ['odd "tenant"']
    store.add([node(f"{name} {i}", tenant=name) for name in names for i in range(4)])
    with pytest.raises(StoreError, match=r"no text as metadata\['tenant'\]"):
        store.add([node("nobody's")])
    again = backend.open("tenants", partition_key="tenant")
    index = VectorStoreIndex.from_vector_store(again, embed_model=MODEL)
    for name in names:
        filters = MetadataFilters(filters=[MetadataFilter(key="tenant", value=name)])
        found = index.as_retriever(similarity_top_k=100, filters=filters).retrieve("anything")
        assert {n.node_id for n in found} == {f"{name} {i}" for i in range(4)}
    store.add([node("t2 0", tenant="t2"), node("t2 0", tenant="t2")])
    store.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="tenant", value="t1")]))
    assert len(ids(store)) == 20


# --- hybrid ------------------------------------------------------------------------------------------


def test_hybrid(backend: Backend) -> None:
    """Fuse words and vectors, with as many candidates of each as asked for; refuse it elsewhere."""
    if backend.kind == "standalone":
        with pytest.raises(StoreError, match=r"hybrid=True"):
            backend.open(hybrid=True)
        return
    store = backend.open(hybrid=True)
    texts = [f"common text number {i}" for i in range(20)] + ["the rare zygote word"]
    store.add([node(text, f"n{i}") for i, text in enumerate(texts)])

    def ask(mode: VectorStoreQueryMode, **options: Any) -> list[str]:
        query = VectorStoreQuery(
            query_str="zygote",
            query_embedding=MODEL.get_text_embedding(texts[3]),
            mode=mode,
            similarity_top_k=options.pop("similarity_top_k", 3),
            **options,
        )
        return store.query(query).ids or []

    hybrid = VectorStoreQueryMode.HYBRID
    assert set(ask(hybrid)[:2]) == {"n20", "n3"}
    assert ask(hybrid, alpha=0.99)[0] == "n3"
    assert ask(hybrid, alpha=0.01)[0] == "n20"
    assert len(ask(hybrid, similarity_top_k=8, sparse_top_k=2, hybrid_top_k=9)) == 9
    assert len(ask(hybrid, similarity_top_k=8, hybrid_top_k=4)) == 4
    assert ask(VectorStoreQueryMode.SPARSE) == ["n20"]
    assert ask(VectorStoreQueryMode.TEXT_SEARCH) == ["n20"]
    assert ask(hybrid, filters=where("none", FilterOperator.EQ, 1)) == []


def test_hybrid_queries_need_a_hybrid_store(backend: Backend) -> None:
    """Say which argument was missing when the store was opened."""
    store = backend.open()
    with pytest.raises(StoreError, match="without hybrid=True"):
        store.query(VectorStoreQuery(query_str="x", query_embedding=[0.1] * DIM, mode="hybrid"))


def test_analyzers(backend: Backend) -> None:
    """Refuse an analyzer that Milvus Lite does not know, in words."""
    if backend.kind != "lite":
        pytest.skip("servers know more analyzers")
    with pytest.raises(StoreError, match="standard analyzer only"):
        backend.open(hybrid=True, analyzer="chinese")


# --- servers ------------------------------------------------------------------------------------------


def test_wrong_token_and_no_server(backend: Backend) -> None:
    """Tell a refused token from a server that is not there."""
    if backend.kind != "standalone":
        pytest.skip("asks for no token")
    with pytest.raises(StoreError, match="refused the token"):
        milvus_vector_store(MODEL, backend.uri, token="root:wrong")
    with pytest.raises(StoreError, match="cannot be reached"):
        milvus_vector_store(MODEL, "http://127.0.0.1:9", token="root:Milvus", timeout=2)
