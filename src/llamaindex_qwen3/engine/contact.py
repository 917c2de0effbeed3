"""The first contact with a model server: what it is, and which of its models is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random

from ..errors import ModelNotServedError, ServerAccessError, ServerError, ServerMismatchError
from .endpoint import Endpoint, NotFoundError, ServedModel, TransientError
from .wire import Kind, WrongAnswerError

_TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Identity:
    """What a server says of itself.

    Attributes:
        kind: Which program it is, or "openai" for any that speaks OpenAI's protocol.
        model: The name to ask for.
        max_tokens: Most tokens of one text, where it says so.
        max_texts: Most texts of one request.
        info: What text-embeddings-inference tells of its model.
    """

    kind: Kind
    model: str
    max_tokens: int | None = None
    max_texts: int = _TEXTS_AT_ONCE
    info: Any = None


async def patiently(send: Any, *args: Any) -> Any:
    """Send a request of the first contact; a fault that is gone at once should not end it.

    Raises:
        WrongAnswerError: An answer that shows another kind of model.
        TransientError: A fault that stays.
    """
    attempts = AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random(0.02, 0.1),
        stop=stop_after_attempt(5),
        reraise=True,
    )
    try:
        return await attempts(send, *args)
    except WrongAnswerError as error:
        if len(error.args) > 1:
            raise
        raise TransientError(str(error.args[0]), 200, is_outage=False) from None


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, WrongAnswerError):
        return len(error.args) == 1
    return isinstance(error, TransientError) and not error.is_timeout


async def recognise(endpoint: Endpoint) -> None:
    """See that a server that was away is the one that the first contact was with.

    Raises:
        ServerMismatchError: It is another.
        ServerAccessError: It wants another key.
        NotFoundError: It does not have the model any more.
        TransientError: It is not back, or away again.
    """
    try:
        try:
            await endpoint.profile.prove(endpoint)
        except ServerMismatchError:
            # Once more: a broken answer may look like another model's.
            await endpoint.profile.prove(endpoint)
    except (ServerAccessError, NotFoundError, ServerMismatchError):
        raise
    except ServerError as error:
        raise another(endpoint, f"{error} Before, it took such a request", error.status) from None


def another(endpoint: Endpoint, difference: str, status: int | None = None) -> ServerMismatchError:
    """Return the error about a server that came back as another, and how it shows."""
    return ServerMismatchError(
        f"{endpoint.url} is no longer what it was: {difference}. It serves another model or "
        "template now, and none of its results was used since. Have it serve what it did; if the "
        "change is meant, start this program anew, and embed anew what is stored.",
        endpoint.url,
        status,
    )


async def identify(endpoint: Endpoint, model: ServedModel) -> Identity:
    """Ask a server what it is.

    Raises:
        ServerAccessError: It wants another key.
        ModelNotServedError: It has other models.
        TransientError: It is not there.
    """
    if model.server == "tei":
        info = await _optional(endpoint, "/info")
        if not isinstance(info, dict) or "max_client_batch_size" not in info:
            raise ServerMismatchError(
                f"{endpoint.url} is not text-embeddings-inference: its /info says nothing of a model. "
                "Leave server out, to find out what it is.",
                endpoint.url,
            )
        return _tei(info)
    listed = await _models(endpoint)
    if listed:
        owner = listed[0].get("owned_by")
        found = owner if owner in ("vllm", "infinity") else "openai"
        kind = cast("Kind", found if model.server == "auto" else model.server)
        entry = _choose(endpoint, model, listed)
        tokens = entry.get("max_model_len")
        return Identity(kind, str(entry["id"]), tokens if isinstance(tokens, int) else None)
    if model.server == "auto":
        info = await _optional(endpoint, "/info")
        if isinstance(info, dict) and "max_client_batch_size" in info:
            return _tei(info)
    kind = cast("Kind", "openai" if model.server == "auto" else model.server)
    return Identity(kind, model.served_model_name or model.checkpoint.model)


def _tei(info: dict[str, Any]) -> Identity:
    return Identity(
        "tei",
        str(info.get("model_id", "")),
        info.get("max_input_length"),
        min(_TEXTS_AT_ONCE, info.get("max_client_batch_size") or _TEXTS_AT_ONCE),
        info,
    )


async def _models(endpoint: Endpoint) -> list[dict[str, Any]]:
    for path in ("/v1/models", "/models"):
        answer = await _optional(endpoint, path)
        rows = answer.get("data") if isinstance(answer, dict) else None
        if isinstance(rows, list):
            return [row for row in rows if isinstance(row, dict) and row.get("id")]
    return []


async def _optional(endpoint: Endpoint, path: str) -> Any:
    try:
        return await patiently(endpoint.get, path)
    except NotFoundError:
        return None


def _choose(endpoint: Endpoint, model: ServedModel, listed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the listed model that is meant."""
    asked = model.served_model_name or model.checkpoint.model

    def last(name: object) -> str:
        return PurePosixPath(str(name).replace("\\", "/")).name

    for same in (
        lambda row: row["id"] == asked,
        lambda row: row.get("root") == asked,
        # Under another folder or owner, as when a copy is served from a volume.
        lambda row: (
            model.served_model_name is None
            and last(asked) in (last(row["id"]), last(row.get("root")))
        ),
    ):
        for row in listed:
            if same(row):
                return row
    if model.served_model_name is None and model.checkpoint.is_local and len(listed) == 1:
        return listed[0]
    names = ", ".join(repr(row["id"]) for row in listed[:10])
    raise ModelNotServedError(
        f"{endpoint.url} does not serve {asked!r}; it serves {names}. Give the model it serves, or, "
        "if it is the same under another name, that name as served_model_name.",
        endpoint.url,
        404,
    )
