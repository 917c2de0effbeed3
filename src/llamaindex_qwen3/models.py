"""Which pair of checkpoints a short name stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import InvalidArgumentError

SIZES = {"0.6b": "0.6B", "4b": "4B", "8b": "8B"}


@dataclass(frozen=True)
class ModelPair:
    """An embedding model and the reranker that goes with it."""

    name: str
    embedding: str
    reranker: str
    is_demo: bool = False

    @property
    def dtype(self) -> str:
        """Precision to run them in: the demo pair gives the same scores on every machine."""
        return "float32" if self.is_demo else "auto"


def model_pair(name: str) -> ModelPair:
    """Return the pair for "demo", "0.6b", "4b", "8b" or a directory with embedding/ and reranker/.

    Raises:
        InvalidArgumentError: The name is none of these.
    """
    if size := SIZES.get(name.lower()):
        return ModelPair(
            name.lower(), f"Qwen/Qwen3-Embedding-{size}", f"Qwen/Qwen3-Reranker-{size}"
        )
    directory = _demo_directory() if name == "demo" else Path(name).expanduser()
    pair = [directory / role for role in ("embedding", "reranker")]
    if not all(path.is_dir() for path in pair):
        if name == "demo":
            raise InvalidArgumentError(
                "The demo models are part of the source repository and are not installed with the "
                "package. Run from a clone, or give its examples/demo_models as the models."
            )
        raise InvalidArgumentError(
            f"Unknown models {name!r}: use demo, {', '.join(SIZES)}, or a directory that holds the "
            "folders embedding and reranker."
        )
    return ModelPair(name, str(pair[0]), str(pair[1]), is_demo=directory.name == "demo_models")


def _demo_directory() -> Path:
    """Return examples/demo_models of the current folder, or else of the clone this runs from."""
    here = Path("examples/demo_models")
    return here if here.is_dir() else Path(__file__).parents[2] / "examples" / "demo_models"
