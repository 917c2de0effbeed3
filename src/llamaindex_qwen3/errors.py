"""The exceptions and the warning a caller can catch."""

from __future__ import annotations


class Qwen3Error(Exception):
    """Base of every error this package raises."""


class InvalidArgumentError(Qwen3Error, ValueError):
    """An argument or an input text is outside what is allowed."""


class CheckpointError(Qwen3Error):
    """A model directory or hub id cannot be loaded, or is not the Qwen3 model it should be."""


class InputTooLongError(Qwen3Error, ValueError):
    """The prompt alone fills `max_length`, so that no token of the text would be left."""


class NonFiniteError(Qwen3Error, ArithmeticError):
    """A vector or score is NaN or infinite."""


class DeviceMemoryError(Qwen3Error, MemoryError):
    """One text alone does not fit into the memory of the device."""


class StoreError(Qwen3Error):
    """A Milvus collection cannot be opened as asked, or does not fit the vectors."""


class ClusterError(Qwen3Error):
    """Ray cannot be reached, has no room for the actors, or lost one for good."""


class ServerError(Qwen3Error):
    """A model server cannot be reached, or does not answer as it should.

    Attributes:
        url: Address of the server.
        status: HTTP status of its last answer, where there was one.
    """

    def __init__(self, message: str, url: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.status = status

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str, int | None]]:
        return type(self), (str(self), self.url, self.status)


class ServerAccessError(ServerError):
    """A model server wants another key, or denies this one the access."""


class ModelNotServedError(ServerError):
    """A model server does not have the model."""


class ServerMismatchError(ServerError):
    """A model server would give wrong vectors or scores: another model, template or pooling."""


class GenerationError(Qwen3Error):
    """The language model did not give an answer."""


class TruncationWarning(UserWarning):
    """A text was longer than `max_length` and its end was cut."""


class AlteredTextWarning(UserWarning):
    """A model server cannot take a text as it is, so that its result is not quite the library's."""
