"""What every engine does with texts before and after it runs them."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import TypeVar

from ..errors import InvalidArgumentError, TruncationWarning

H = TypeVar("H", bound=Hashable)


def distinct(items: Sequence[H]) -> tuple[list[H], list[int]]:
    """Return the items without repetition, and the place of each given one among them.

    Equal texts run once: it saves work, and their results are equal to the last bit.
    """
    places: dict[H, int] = {}
    index = [places.setdefault(item, len(places)) for item in items]
    return list(places), index


def check_unicode(texts: Sequence[str], what: str, start: int = 0) -> None:
    """Raise InvalidArgumentError for text that cannot be encoded.

    The tokenizer itself would fail on it with a TypeError that names nothing.
    """
    for index, text in enumerate(texts, start):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"{what} {index} is not valid Unicode: it has a lone surrogate {text[error.start]!r} "
                f"at character {error.start}. Repair it before, for instance with "
                "text.encode('utf-8', 'replace').decode()."
            ) from None


class TruncationReport:
    """Warns, once per model, that texts were cut."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._done = False

    def warn(self, truncated: Sequence[int], max_length: int) -> None:
        """Warn of texts whose end was cut.

        Args:
            truncated: Tokens cut from each text.
            max_length: Most tokens of one text.
        """
        cut = sum(count > 0 for count in truncated)
        if cut and not self._done:
            self._done = True
            warnings.warn(
                f"{cut} of {len(truncated)} texts are longer than max_length={max_length} tokens and "
                f"were cut at their end (by up to {max(truncated)} tokens). Split them smaller or "
                f"raise max_length. {self._model!r} warns of this once.",
                TruncationWarning,
                stacklevel=3,
            )
