"""What the page and the server say to each other, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CANDIDATES = 200
SearchMode = Literal["dense", "hybrid"]
# Typed texts; the models' own limits are counted in tokens.
_LONGEST = 20_000
# A language tag such as "en" or "zh-Hant".
_LANGUAGE = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class RankRequest(_Request):
    """Rank the passages of a question under one instruction."""

    question: str = Field(min_length=1, max_length=_LONGEST)
    instruction: str = Field(max_length=_LONGEST)
    candidates: int = Field(default=10, ge=1, le=MOST_CANDIDATES)
    mode: SearchMode = "dense"


class AnswerRequest(_Request):
    """Answer a question from these passages, by id, best first."""

    question: str = Field(min_length=1, max_length=_LONGEST)
    passages: list[str] = Field(min_length=1, max_length=MOST_CANDIDATES)


class JudgedQuestion(_Request):
    """A question and the section that answers it, for the evaluation file."""

    question: str = Field(min_length=1, max_length=_LONGEST)
    section: str = Field(min_length=1, max_length=_LONGEST)
    language: str = Field(default="en", pattern=_LANGUAGE, max_length=35)


class Passage(BaseModel):
    """A candidate.

    `read` is its text as the models read it, `tokens` the length of that for the reranker, and
    `unembedded_tokens` how much of its end was left out of its vector.
    """

    id: str
    score: float
    section: str
    section_id: str
    file: str
    text: str
    read: str
    tokens: int
    unembedded_tokens: int


class Embedded(BaseModel):
    """The query vector is there. `tokens` counts the prompt with its end token."""

    stage: Literal["embedded"] = "embedded"
    ms: float
    prompt: str
    tokens: int
    truncated_tokens: int


class Found(BaseModel):
    """The candidates, best first; `judged` names the sections saved as answers before."""

    stage: Literal["found"] = "found"
    ms: float
    candidates: list[Passage]
    judged: list[str]


class Place(BaseModel):
    """One place of the new order; `tokens` counts what the reranker read, prompt included."""

    id: str
    score: float
    tokens: int
    truncated_tokens: int


class Reranked(BaseModel):
    """The new order; a passage's prompt is its `read` text between `before` and `after`."""

    stage: Literal["reranked"] = "reranked"
    ms: float
    order: list[Place]
    before: str
    after: str


class PromptMessage(BaseModel):
    """One message of the language model's prompt."""

    role: str
    text: str


class Prompted(BaseModel):
    """What the language model is about to read, one list for each call."""

    stage: Literal["prompted"] = "prompted"
    calls: list[list[PromptMessage]]


class NoLanguageModel(BaseModel):
    """There is none to ask, and how to have one."""

    stage: Literal["no_llm"] = "no_llm"
    message: str


class AnswerPiece(BaseModel):
    """The next piece of the answer."""

    stage: Literal["piece"] = "piece"
    text: str


class Answered(BaseModel):
    """The answer is complete."""

    stage: Literal["answered"] = "answered"
    first_ms: float
    ms: float


class Failed(BaseModel):
    """It could not be done, and why, in words for the reader of the page."""

    stage: Literal["failed"] = "failed"
    message: str


class Saved(BaseModel):
    """A judged question is in the file, now or since before."""

    file: str
    questions: int
    added: bool


class About(BaseModel):
    """What the page shows of its models and its collection; nothing in it is secret."""

    version: str
    embedding: str
    reranker: str
    demo: bool
    collection: str
    hybrid: bool
    llm: str | None
    no_llm: str
    instruction: str
    instructions: dict[str, str]
    candidates: int
    kept: int
    questions_file: str
