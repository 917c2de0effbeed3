"""The evaluation file that judged questions are added to."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from ..errors import InvalidArgumentError
from ..evaluate import Question, read_questions
from .messages import JudgedQuestion, Saved


class JudgedQuestions:
    """A file of JSON lines, as `qwen3-rag eval` reads it; it is only ever added to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def sections(self, question: str) -> list[str]:
        """Return the sections that are noted as answers to a question.

        A file that cannot be read notes none; `add` says what is wrong with it.
        """
        try:
            questions = self._read()
        except InvalidArgumentError:
            return []
        same = (q.sections for q in questions if _same(q.text, question))
        return [section for sections in same for section in sections]

    def add(self, judged: JudgedQuestion) -> Saved:
        """Add a question, unless the file has it with the same section already.

        Raises:
            InvalidArgumentError: The file has another answer to this question, cannot be read,
                or cannot be written.
        """
        with self._lock:
            questions = self._read()
            known = [q for q in questions if _same(q.text, judged.question)]
            if any(judged.section in q.sections for q in known):
                return Saved(file=self.path.name, questions=len(questions), added=False)
            if known:
                named = ", ".join(map(repr, (*known[0].sections, *known[0].texts)))
                raise InvalidArgumentError(
                    f"{self.path.name} has this question already, with another answer: {named}. "
                    f"Change that line of the file to have {judged.section!r}."
                )
            self._append(judged)
            return Saved(file=self.path.name, questions=len(questions) + 1, added=True)

    def _read(self) -> list[Question]:
        # Looked at each time: its owner may edit it meanwhile.
        if not self.path.exists() or not self.path.read_bytes().strip():
            return []
        return read_questions(self.path)

    def _append(self, judged: JudgedQuestion) -> None:
        row = {
            "question": judged.question,
            "section": judged.section,
            "language": judged.language,
        }
        try:
            before = self.path.read_bytes() if self.path.exists() else b""
            open_line = bool(before) and not before.endswith(b"\n")
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * open_line + json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InvalidArgumentError(
                f"Cannot write {str(self.path)!r}: {error.strerror or error}. Start qwen3-rag serve "
                "with --questions and a file that can be written."
            ) from error


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
