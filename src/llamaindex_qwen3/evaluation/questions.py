"""Questions with what answers them, and how a ranking of passages is judged by them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index.core.schema import MetadataMode, NodeWithScore

from ..errors import InvalidArgumentError

_FORM = (
    "Each line is a JSON object with 'question' and either 'section' (FILE#header-in-lower-case, or "
    "a list of them) or 'text' (a sentence of the passage that answers, or a list)."
)
_KEYS = ("question", "section", "sections", "text", "texts", "language")


@dataclass(frozen=True)
class Question:
    """A question and what is relevant to it; one of `sections` and `texts` has something.

    Args:
        text: The question.
        sections: Relevant sections as FILE#header-in-lower-case, or ids of nodes.
        language: Its language, if stated.
        texts: Relevant texts. A passage is relevant that contains one, or lies within it; white
            space and case do not count.
        metadata: What else the file says of it.
    """

    text: str
    sections: tuple[str, ...] = ()
    language: str | None = None
    texts: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        # One is as good as a tuple of one.
        for name in ("sections", "texts"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @property
    def relevant(self) -> tuple[str, ...]:
        """What a perfect ranking begins with, in any order."""
        return (*self.sections, *(f"text:{_plain(text)}" for text in self.texts))

    def value(self, key: str) -> str:
        """Return the group this question belongs to by "language", "file" or a key of its metadata."""
        if key == "language":
            return self.language or "not stated"
        if key in self.metadata:
            return str(self.metadata[key])
        if key == "file" and self.sections:
            return self.sections[0].partition("#")[0]
        return "not stated"


def read_questions(path: Path, language: str | None = None) -> list[Question]:
    """Read a file of JSON objects, one a line.

    Args:
        path: Each line has `question`, `section` or `text` (one or a list) and, optionally,
            `language` and anything else.
        language: Keep only questions in this language.

    Raises:
        InvalidArgumentError: The file is missing or malformed, or has no question in `language`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"Cannot read the questions {str(path)!r}: {reason}.") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{str(path)!r} is not text in UTF-8. {_FORM}") from error
    questions = [
        _question(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()
    ]
    chosen = [q for q in questions if language in (None, q.language)]
    if not chosen:
        known = sorted({q.language or "not stated" for q in questions})
        raise InvalidArgumentError(
            f"{path} has no question in language {language!r}; it has {', '.join(known) or 'none'}."
        )
    return chosen


def _question(line: str, place: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidArgumentError(f"{place} is not JSON. {_FORM}") from error
    if not isinstance(row, dict):
        raise InvalidArgumentError(f"{place} is no JSON object. {_FORM}")
    if "question" not in row:
        raise InvalidArgumentError(f"{place} has no 'question'. {_FORM}")
    try:
        sections = _texts(row.get("sections", row.get("section", [])))
        texts = _texts(row.get("texts", row.get("text", [])))
        [text] = _texts(row["question"])
        language = row.get("language")
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{place}: {error}. {_FORM}") from error
    if not (sections or texts):
        raise InvalidArgumentError(f"{place}: nothing is named that answers {text!r}. {_FORM}")
    metadata = {key: value for key, value in row.items() if key not in _KEYS}
    return Question(text, sections, language, texts, metadata)


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else list(value)
    for each in values:
        if not isinstance(each, str) or not each.strip():
            raise ValueError(f"{each!r} is no text")
    return tuple(dict.fromkeys(values))


def ranked(question: Question, nodes: Iterable[NodeWithScore]) -> list[str]:
    """Return what ranked nodes stand for in the terms of `Question.relevant`, each once.

    A long section may be stored as several chunks: it stands where its best chunk does. A node that
    contains relevant texts stands for these, any other for its section, or itself.
    """
    places: list[str] = []
    for scored in nodes:
        node = scored.node
        content = _plain(node.get_content(MetadataMode.NONE)) if question.texts else ""
        hits = [f"text:{text}" for text in map(_plain, question.texts) if _same(text, content)]
        places += hits or [_name(scored, question.sections)]
    return list(dict.fromkeys(places))


def _name(node: NodeWithScore, sections: Sequence[str]) -> str:
    if node.node_id in sections:
        return node.node_id
    return str(node.node.metadata.get("section_id", node.node_id))


def _same(text: str, content: str) -> bool:
    return bool(content) and (text in content or content in text)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
