"""LlamaIndex's metadata filters in Milvus's filter language, or a clear refusal."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from .errors import InvalidArgumentError

_COMPARISONS = {
    FilterOperator.EQ: "==",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
}
_RESERVED = {"and", "or", "not", "in", "like", "exists", "is", "null", "true", "false"}
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def filter_expression(filters: MetadataFilters | None, fields: Collection[str] = ()) -> str:
    """Translate filters; what a row without the key gives is what LlamaIndex says.

    A missing key meets NE, NIN, IS_EMPTY and NOT, and nothing else.

    Args:
        filters: Filters, nested or not.
        fields: Names of the collection's declared fields; other keys are dynamic ones.

    Returns:
        The expression, empty when there is nothing to filter by.

    Raises:
        InvalidArgumentError: A filter has no value, or one that Milvus cannot compare with. To
            leave it out would return rows that were to be kept back.
    """
    if filters is None or not filters.filters:
        return ""
    return _group(filters, fields, negate=False)


def string_literal(text: str) -> str:
    """Quote a text for Milvus's filter language.

    Raises:
        InvalidArgumentError: The text is not valid Unicode, or has a control character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{text!r} is not valid Unicode: {error.reason}.") from None
    if any(ord(char) < 32 and char not in _ESCAPES for char in text):
        raise InvalidArgumentError(f"{text!r} has a control character, which no filter can hold.")
    return '"' + "".join(_ESCAPES.get(char, char) for char in text) + '"'


def prefix_pattern(prefix: str) -> str:
    """Return a pattern for `like` that every text with this prefix meets, and maybe some others."""
    special = set("%_\\\"'")
    plain = "".join("_" if char in special or ord(char) < 32 else char for char in prefix)
    return f'"{plain}%"'


def _group(filters: MetadataFilters, fields: Collection[str], negate: bool) -> str:
    if not filters.filters:
        raise InvalidArgumentError("A nested MetadataFilters is empty. Leave it out.")
    condition = filters.condition or FilterCondition.AND
    # None of them: each is negated, as all are when the group itself is.
    inside = negate != (condition == FilterCondition.NOT)
    parts = [
        _group(part, fields, inside)
        if isinstance(part, MetadataFilters)
        else _leaf(part, fields, inside)
        for part in filters.filters
    ]
    any_will_do = (condition == FilterCondition.OR) != negate
    if condition == FilterCondition.NOT:
        any_will_do = negate
    return (" or " if any_will_do else " and ").join(f"({part})" for part in parts)


def _leaf(leaf: MetadataFilter, fields: Collection[str], negate: bool) -> str:
    key, operator = _key(leaf.key, fields), leaf.operator
    declared = leaf.key in fields
    if leaf.value is None and operator != FilterOperator.IS_EMPTY:
        raise InvalidArgumentError(
            f"The filter on {leaf.key!r} has the value None, and MilvusVectorStore would return all "
            "rows. Give a value, or use FilterOperator.IS_EMPTY."
        )
    # What is true of a key that is missing is said first: the rest is then not asked.
    missing = operator in (FilterOperator.NE, FilterOperator.NIN, FilterOperator.IS_EMPTY)
    present = _present(leaf, key)
    if negate:
        present, missing = f"not ({present})", not missing
    if declared:
        return present
    return f"(not (exists {key})) or ({present})" if missing else f"(exists {key}) and ({present})"


def _present(leaf: MetadataFilter, key: str) -> str:
    """Say what the value must be where there is one."""
    operator, value = leaf.operator, leaf.value
    if operator == FilterOperator.IS_EMPTY:
        # The store keeps None and empty lists out of what rows can be filtered by.
        return f'{key} == ""'
    if operator in _COMPARISONS:
        return f"{key} {_COMPARISONS[operator]} {_scalar(leaf, value)}"
    if operator in (FilterOperator.IN, FilterOperator.NIN):
        # One by one: Milvus Lite fails on `in` where any row has a list under this key.
        equal = " or ".join(f"{key} == {one}" for one in _values(leaf)) or 'id == ""'
        return equal if operator == FilterOperator.IN else f"not ({equal})"
    if leaf.key.isidentifier() and leaf.key.isascii() and leaf.key.lower() not in _RESERVED:
        # Milvus Lite looks into lists by a bare name only.
        key = leaf.key
    if operator == FilterOperator.CONTAINS:
        return f"json_contains({key}, {_scalar(leaf, value)})"
    if operator in (FilterOperator.ANY, FilterOperator.ALL):
        return f"json_contains_{operator.value}({key}, [{', '.join(_values(leaf))}])"
    if operator == FilterOperator.TEXT_MATCH:
        if not isinstance(value, str) or any(char in value for char in "%_\\"):
            raise InvalidArgumentError(
                f"The filter on {leaf.key!r} matches the text {value!r}: give a text without %, _ and "
                "\\, which Milvus reads as a pattern."
            )
        return f'{key} like "%{string_literal(value)[1:-1]}%"'
    raise InvalidArgumentError(
        f"The filter on {leaf.key!r} uses {operator.name}, which Milvus does not have."
    )


def _values(leaf: MetadataFilter) -> list[str]:
    if not isinstance(leaf.value, (list, tuple, set)):
        raise InvalidArgumentError(
            f"The filter {leaf.operator.name} on {leaf.key!r} has the value {leaf.value!r}; give a list."
        )
    return [_scalar(leaf, value) for value in leaf.value]


def _scalar(leaf: MetadataFilter, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return string_literal(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise InvalidArgumentError(
        f"The filter {leaf.operator.name} on {leaf.key!r} has the value {value!r}; give a text or a "
        "finite number."
    )


def _key(key: str, fields: Collection[str]) -> str:
    if not key:
        raise InvalidArgumentError("A filter has an empty key.")
    return key if key in fields else f"$meta[{string_literal(key)}]"
