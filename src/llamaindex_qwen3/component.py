"""What both adapters share: which checkpoint to load and how, secrets, pickling, life cycle."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.bridge.pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
)

from .engine.checkpoint import Checkpoint, Geometry, Role, read_geometry
from .engine.endpoint import ServedModel, check_key, check_url
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_MAX_LENGTH = 8192

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Server = Literal["auto", "vllm", "tei", "infinity", "openai"]
KEY_VARIABLE = "QWEN3_API_KEY"

_logger = logging.getLogger(__name__)

# What another copy of the weights, or another connection, is needed for.
_CHECKPOINT_FIELDS = {
    "model_name", "model", "revision", "dtype", "device", "attn_implementation", "base_url",
    "server", "served_model_name", "api_key", "timeout_s", "retry_s", "max_in_flight",
}  # fmt: skip


class EngineSlot:
    """Holds the engine that an instance and its copies for other tasks share."""

    def __init__(self) -> None:
        self.engine: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineSlot:
        return self


class Qwen3Component(BaseModel):
    """Fields and life cycle common to `Qwen3Embedding` and `Qwen3Reranker`."""

    # Assignments are validated too, so that a cache set later is keyed as safely as one given.
    # Inputs stay out of errors: a misspelt keyword may hold a secret.
    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        validate_assignment=True,
        arbitrary_types_allowed=True,
        protected_namespaces=("pydantic_model_",),
    )

    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub.")
    max_length: int = Field(
        default=DEFAULT_MAX_LENGTH,
        description="Most tokens the model reads of one text, prompt and end token included.",
    )
    dtype: Dtype = Field(
        default="auto",
        description="'auto' is the checkpoint's bfloat16 where products of it are native, else float32.",
    )
    attn_implementation: str | None = Field(
        default=None,
        description="Run transformers' own pass, by 'sdpa', 'eager', 'flash_attention_2'.",
    )
    device: str | list[str] | None = Field(
        default=None,
        exclude=True,
        description="torch device, or several that share the work; None takes a GPU where there is one.",
    )
    max_batch_tokens: int | None = Field(
        default=None, exclude=True, description="Most padded tokens of one forward pass."
    )
    base_url: str | list[str] | None = Field(
        default=None, description="Address of a model server, or of several that share the work."
    )
    server: Server | None = Field(default=None, description="Kind of that server; None finds out.")
    served_model_name: str | None = Field(
        default=None, description="The model's name on the server, where it has another there."
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="Key of that server; kept nowhere."
    )
    timeout_s: float = Field(
        default=60.0, exclude=True, description="Seconds to wait for one answer of a server."
    )
    retry_s: float = Field(
        default=120.0, exclude=True, description="Seconds to repeat a request that a server fails."
    )
    max_in_flight: int = Field(
        default=8, exclude=True, description="Bulk requests at once to each server."
    )

    _slot: EngineSlot = PrivateAttr(default_factory=EngineSlot)
    _geometry: Geometry | None = PrivateAttr(default=None)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._check_fields()
        # A directory can be checked now; a hub id is not asked for before it is needed.
        if self._checkpoint().is_local:
            self._read_geometry()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _CHECKPOINT_FIELDS:
            self._slot, self._geometry = EngineSlot(), None
        if name in type(self).model_fields and name != "callback_manager":
            self._check_fields()
            if self._geometry is not None:
                self._check_geometry(self._geometry)

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Self:
        """Copy as pydantic does; a copy for another model or server does not share the engine."""
        copy = super().model_copy(update=update, deep=deep)
        if update and _CHECKPOINT_FIELDS.intersection(update):
            copy._slot, copy._geometry = EngineSlot(), None
        return copy

    def load(self) -> Self:
        """Load the weights, or contact the server, now instead of at the first use.

        Raises:
            CheckpointError: There is no such checkpoint, or it is not the Qwen3 model it should be.
            InvalidArgumentError: An argument does not fit the checkpoint or this machine.
            ServerError: The server cannot be reached, or would give other vectors or scores.
        """
        engine = self._loaded()
        if self.base_url is not None:
            engine.contact()
        return self

    def close(self) -> None:
        """Let go of the weights; they are freed when no other instance holds them.

        The component stays usable and loads them again when needed.
        """
        self._slot = EngineSlot()

    def __getstate__(self) -> dict[Any, Any]:
        # LlamaIndex's own version deletes what cannot be pickled from the live object as well.
        state = BaseModel.__getstate__(self)
        fields = {key: value for key, value in state["__dict__"].items() if key != "api_key"}
        for key in ("callback_manager", "rate_limiter", "embeddings_cache"):
            try:
                pickle.dumps(fields.get(key))
            except Exception:
                _logger.warning(
                    "%s of %s cannot be pickled and stays behind", key, type(self).__name__
                )
                del fields[key]
        return {**state, "__dict__": fields, "__pydantic_private__": None}

    def _check_fields(self) -> None:
        """Raise InvalidArgumentError for values that no checkpoint could make right."""
        # One token of text and the end token.
        for name, least in (("max_length", 2), ("max_batch_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidArgumentError(f"{name}={value} must be at least {least} tokens.")
        if self.device == []:
            raise InvalidArgumentError("device=[] names no device. Name at least one, or None.")
        self._check_server()

    def _check_server(self) -> None:
        if self.base_url is None:
            if self.server is not None or self.served_model_name is not None:
                raise InvalidArgumentError(
                    "server and served_model_name say what is at base_url, which is not given. Give "
                    "the server's address as base_url, or leave them out."
                )
            return
        if not self._urls():
            raise InvalidArgumentError("base_url=[] names no server. Name at least one, or None.")
        for name in ("timeout_s", "retry_s", "max_in_flight"):
            value = getattr(self, name)
            if not value > 0 and not (name == "retry_s" and value == 0):
                raise InvalidArgumentError(f"{name}={value} must be more than 0.")

    def _urls(self) -> tuple[str, ...]:
        urls = self.base_url if isinstance(self.base_url, list) else [self.base_url or ""]
        return tuple(dict.fromkeys(map(check_url, urls)))

    def _read_geometry(self) -> Geometry:
        if self._geometry is None:
            geometry = read_geometry(self._checkpoint())
            self._check_geometry(geometry)
            self._geometry = geometry
        return self._geometry

    def _check_geometry(self, geometry: Geometry) -> None:
        """Raise InvalidArgumentError for values this checkpoint does not allow."""
        limit = geometry.max_position_embeddings
        # The default is capped silently, so that it suits models of a shorter context as well.
        if self.max_length > limit and self.max_length != DEFAULT_MAX_LENGTH:
            raise InvalidArgumentError(
                f"max_length={self.max_length} is more than the {limit} tokens of context that "
                f"{self._checkpoint().model!r} has. Give at most {limit}."
            )

    def _checkpoint(self) -> Checkpoint:
        role, model = self._model_id()
        device = tuple(self.device) if isinstance(self.device, list) else self.device
        return Checkpoint(role, model, self.revision, self.dtype, device, self.attn_implementation)

    def _served(self) -> ServedModel:
        checkpoint = self._checkpoint()
        key = self.api_key.get_secret_value() if self.api_key else os.environ.get(KEY_VARIABLE)
        return ServedModel(
            # The rest of it is for those who load the weights.
            Checkpoint(checkpoint.role, checkpoint.model, checkpoint.revision),
            self._urls(),
            self.server or "auto",
            self.served_model_name,
            self.timeout_s,
            self.retry_s,
            self.max_in_flight,
            check_key(key),
        )

    def _loaded(self) -> Any:
        """Return the engine, loading the weights at the first call."""
        slot = self._slot
        if slot.engine is None:
            self._read_geometry()
            slot.engine = (
                self._open_engine(self._checkpoint())
                if self.base_url is None
                else self._open_client(self._served())
            )
        return slot.engine

    async def _aloaded(self) -> Any:
        """Do as `_loaded` does; loading happens in a thread."""
        engine = self._slot.engine
        return engine if engine is not None else await asyncio.to_thread(self._loaded)

    def _with(self, **changes: Any) -> Self:
        """Return a validated copy with other values that shares the loaded model."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        other = type(self)(**{**fields, **changes})
        other._slot = self._slot
        return other

    def _model_id(self) -> tuple[Role, str]:
        raise NotImplementedError

    def _open_engine(self, checkpoint: Checkpoint) -> Any:
        raise NotImplementedError

    def _open_client(self, model: ServedModel) -> Any:
        raise NotImplementedError


def check_task(name: str, task: str | None) -> None:
    """Raise InvalidArgumentError unless a task is one that the templates can hold."""
    if task is None:
        return
    if not task.strip():
        raise InvalidArgumentError(
            f"{name}={task!r} is empty. Give the task in one sentence, or leave it out."
        )
    if task.lstrip().startswith(("Instruct:", "<Instruct>")):
        raise InvalidArgumentError(
            f"{name}={task!r} is a prompt; give only the task in one sentence. "
            "The prompt around it is added here."
        )
