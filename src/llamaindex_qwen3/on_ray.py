"""The embedding model on Ray: a copy of it in each of several actors, on one machine or on many."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode, MetadataMode

from . import __version__
from .cache import VectorCache
from .embedding import Qwen3Embedding, Vectors
from .errors import ClusterError, InvalidArgumentError, Qwen3Error

if TYPE_CHECKING:
    from typing_extensions import Self

# What cannot go to another process, or must not: Ray keeps what actors are made from.
_STAYS_HERE = {"api_key", "callback_manager", "embeddings_cache", "rate_limiter"}
_CONNECT_SECONDS = 10
# A cluster may start machines for the actors, and each actor imports torch.
_START_SECONDS = 300
_RESTARTS = 3


class RayEmbedder:
    """Embeds nodes on Ray; `ingest` takes it in place of the embedding model.

    Each actor makes the embedding from the same fields and loads its weights once. Only texts go
    out and only vectors come back: what to embed and what to write is decided where `ingest` runs,
    so the rows are those of the model itself.

    These are actors of our own, since llama-index-ingestion-ray makes new ones, which load the
    weights again, in each run of its pipeline, and `ingest` embeds batch by batch. Within such a
    pipeline, `Qwen3Embedding` works as a `transform_class`.

    Args:
        embed_model: Which model, and how; its own weights are not used. A directory must be there
            under the same path on every machine.
        address: `host:port`, `ray://host:port` or `auto` for a cluster that runs, "local" for one on
            this machine alone, for as long as this object. None takes the Ray that this process is
            connected to, or "local".
        actors: How many copies of the model work side by side, each on a GPU of its own if there
            are GPUs and the model's `device`, which counts those an actor has, is not "cpu".
        batch: Nodes for each actor in one call; None is the model's `embed_batch_size`.
        cpus: CPUs of each actor; None shares all there are, or takes one beside a GPU.

    Raises:
        InvalidArgumentError: A value that cannot be used, or Ray is not installed.
        CheckpointError: The model is not to be had where an actor is.
        ClusterError: Ray cannot be reached, or the actors find no place.

    Example:
        >>> with RayEmbedder(embed_model, "ray-head:6379", actors=8) as embedder:
        ...     ingest(["docs"], embedder, vector_store)
    """

    def __init__(
        self,
        embed_model: Qwen3Embedding,
        address: str | None = None,
        actors: int = 2,
        batch: int | None = None,
        cpus: int | None = None,
    ) -> None:
        for name, value in (("actors", actors), ("batch", batch), ("cpus", cpus)):
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{name}={value} must be at least 1.")
        self.embed_batch_size = actors * (batch or embed_model.embed_batch_size)
        self._embedding = embed_model
        self._ray = _import_ray()
        self._connected = _connect(self._ray, address)
        self._local = self._connected and address in (None, "local")
        self._actors: list[Any] = []
        try:
            self._start(actors, cpus)
        except BaseException:
            self.close()
            raise

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Give nodes their vectors, as the embedding model does."""
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        cache = self._embedding.embeddings_cache
        if isinstance(cache, VectorCache):
            scope = self._embedding.fingerprint(self._embedding.text_instruction)
            vectors = cache.embed(scope, texts, self._embed)
        else:
            vectors = self._embed(texts)
        for node, vector in zip(nodes, vectors, strict=True):
            node.embedding = vector
        return nodes

    def close(self) -> None:
        """End the actors, and leave or stop the Ray that was entered or started for them."""
        actors, self._actors = self._actors, []
        if self._connected:
            self._connected = False
            self._ray.shutdown()  # which ends them, too
            return
        for actor in actors:
            self._ray.kill(actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, count: int, cpus: int | None) -> None:
        """Start the actors, and check that each has the weights that this process knows."""
        fields = {
            name: getattr(self._embedding, name)
            for name in type(self._embedding).model_fields
            if name not in _STAYS_HERE
        }
        directory = Path(self._embedding.model_name).expanduser()
        if directory.is_dir():
            # Actors may start in another directory.
            fields["model_name"] = str(directory.resolve())
        actor_class = self._ray.remote(_Worker).options(
            **self._resources(count, cpus),
            scheduling_strategy="SPREAD",
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        with self._plain_errors():
            self._actors = [actor_class.remote(type(self._embedding), fields) for _ in range(count)]
            told = [actor.describe.remote() for actor in self._actors]
            _, late = self._ray.wait(told, num_returns=count, timeout=_START_SECONDS)
            if late:
                raise ClusterError(
                    f"{len(late)} of {count} actors did not start within {_START_SECONDS} seconds. "
                    f"The cluster has {self._ray.cluster_resources()}, and "
                    f"{self._ray.available_resources()} is free. Ask for fewer actors."
                )
            mine = _describe(self._embedding)
            for other in self._ray.get(told):
                if other != mine:
                    raise InvalidArgumentError(
                        f"An actor has another model or another version of this package ({other}) "
                        f"than this process ({mine}). Give every machine the same."
                    )
        self._pool = self._ray.util.ActorPool(self._actors)

    def _resources(self, count: int, cpus: int | None) -> dict[str, int]:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        each = share(nodes, self._embedding.device, count, cpus)
        for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            there = int(sum(node.get(name, 0) for node in nodes))
            # A cluster may start more machines when asked; this machine will never have more.
            if self._local and count * each[key] > there:
                raise InvalidArgumentError(
                    f"actors={count} is too many for this machine: each takes {each[key]} {name}s of "
                    f"{there}."
                )
        return each

    def _embed(self, texts: Sequence[str]) -> Vectors:
        if not self._actors:
            raise InvalidArgumentError("This RayEmbedder is closed. Make another.")
        # Two tasks for each actor, so that one which is done early takes over from the others.
        size = math.ceil(len(texts) / (2 * len(self._actors))) or 1
        tasks = [(start, texts[start : start + size]) for start in range(0, len(texts), size)]
        vectors: Vectors = [[]] * len(texts)
        with self._plain_errors():
            for start, found, warned in self._pool.map_unordered(
                lambda actor, task: actor.embed.remote(*task), tasks
            ):
                vectors[start : start + len(found)] = found
                for warning in warned:
                    warnings.warn(warning, stacklevel=3)
        return vectors

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Raise the errors of an actor as if they were of this process."""
        errors = self._ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            if isinstance(error.cause, Qwen3Error):
                raise error.cause from None
            raise
        except errors.RayError as error:
            raise ClusterError(f"An actor on Ray ended: {error}") from error


class _Worker:
    """What runs in an actor: an embedding of its own, with weights from the first texts on."""

    def __init__(self, kind: type[Qwen3Embedding], fields: dict[str, Any]) -> None:
        self._kind, self._fields = kind, fields

    # Not made in the constructor, whose errors reach the caller as nothing but text.
    @functools.cached_property
    def _embedding(self) -> Qwen3Embedding:
        return self._kind(**self._fields)

    def describe(self) -> dict[str, Any]:
        return _describe(self._embedding)

    def embed(self, start: int, texts: list[str]) -> tuple[int, Vectors, list[Warning | str]]:
        with warnings.catch_warnings(record=True) as caught:
            vectors = self._embedding.get_text_embedding_batch(texts)
        return start, vectors, [warning.message for warning in caught]


def share(
    nodes: Sequence[Mapping[str, float]],
    device: str | list[str] | None,
    actors: int,
    cpus: int | None,
) -> dict[str, int]:
    """Say what each actor asks Ray for: it gets as many threads, and no other GPUs.

    Args:
        nodes: What each machine has.
        device: That of the embedding.
        actors: How many there will be.
        cpus: What each one takes; None for as many as fit.
    """
    devices = device if isinstance(device, list) else [device]
    gpus = sum(name != "cpu" for name in devices) if any(node.get("GPU") for node in nodes) else 0
    if cpus is None:
        have = [int(node.get("CPU", 0)) for node in nodes]
        most = 1 if gpus else max(have, default=1)
        fitting = (n for n in range(most, 0, -1) if sum(cpu // n for cpu in have) >= actors)
        cpus = next(fitting, 1)
    return {"num_cpus": cpus, "num_gpus": gpus}


def _describe(embedding: Qwen3Embedding) -> dict[str, Any]:
    """Name what the vectors depend on, and must be the same everywhere.

    Raises:
        CheckpointError: There is no such model here.
    """
    model = embedding.built_with().get("model")
    return {"version": __version__, "dim": embedding.dim, "model": model}


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InvalidArgumentError(
            "Ray is not installed: pip install 'llamaindex-qwen3[ray]'."
        ) from error


def _connect(ray: Any, address: str | None) -> bool:
    """Connect this process to Ray; return whether it was not before."""
    if ray.is_initialized():
        if address is not None:
            raise InvalidArgumentError(
                f"This process is connected to a Ray already and cannot go to {address!r} as well. "
                "Leave the address out to use that one, or call ray.shutdown() before."
            )
        return False
    address = address or "local"
    if address not in ("local", "auto"):
        _check_reachable(address)
    try:
        with _on_loopback(address == "local"):
            ray.init(
                address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    # Ray raises whatever it meets, of no common kind.
    except Exception as error:
        ray.shutdown()
        raise ClusterError(
            f"Cannot connect to Ray at {address!r}: {error}. If that cluster wants a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        ) from error
    return True


def _check_reachable(address: str) -> None:
    """Raise at once what Ray would find out after minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise InvalidArgumentError(
            f"{address!r} is no address of a Ray cluster. Give host:port, ray://host:port, 'auto' or "
            "'local'."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"Nothing answers at {address!r}: {error}.") from error


@contextmanager
def _on_loopback(active: bool) -> Iterator[None]:
    """Keep a Ray that is started here to 127.0.0.1, where Linux would get it on all interfaces.

    Ray offers this for machines that cannot be part of a cluster. It is protected by its token too.
    """
    constants = importlib.import_module("ray._private.ray_constants")
    before = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    if active:
        constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before  # type: ignore[attr-defined]
