"""What is tried, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Search = Literal["dense", "hybrid"]


@dataclass(frozen=True)
class Setting:
    """One way to retrieve and rerank."""

    models: str
    dimensions: int
    candidates: int
    search: Search
    task: str


@dataclass(frozen=True)
class Seconds:
    """Time that one question took, by stage."""

    embed: float
    search: float
    rerank: float

    @property
    def total(self) -> float:
        """Time from the question to the reranked passages."""
        return self.embed + self.search + self.rerank


@dataclass(frozen=True)
class Asked:
    """What one question found under one setting, as `Question.relevant` names it."""

    before: list[str]
    after: list[str]
    seconds: Seconds


@dataclass(frozen=True)
class Outcome:
    """All questions, in their order, under one setting.

    `on_copy` says that a copy in Milvus Lite was searched, with an exact index, and not the
    collection itself.
    """

    setting: Setting
    asked: list[Asked]
    on_copy: bool = False


@dataclass(frozen=True)
class Grid:
    """What is tried with one pair of models: each with each.

    Without `dimensions` it is the collection's own, or the whole vectors of another model; without
    `tasks` that of the embedding model.
    """

    dimensions: Sequence[int] = ()
    candidates: Sequence[int] = (10,)
    searches: Sequence[Search] = ("dense",)
    tasks: Sequence[str] = ()
