"""Which paths each kind of model server has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import fake_open_ai, fake_tei
from .fake_model import Answer, Model, RefusedError


def answer(model: Model, method: str, path: str, body: Any) -> Answer:
    """Return what a server of this kind answers.

    Raises:
        RefusedError: It answers with an error.
    """
    settings = model.settings
    if not path.startswith(settings.prefix):
        raise RefusedError(404, {"detail": "Not Found"})
    route = (method, path.removeprefix(settings.prefix))
    handle = _ROUTES[settings.kind].get(route)
    if handle is None:
        raise RefusedError(404, {"detail": "Not Found"})
    return handle(model, body)


def texts_in(body: Any) -> int:
    """Return how many texts a request brings."""
    if not isinstance(body, dict):
        return 0
    for name in ("input", "inputs", "documents", "texts", "text_2"):
        if name in body:
            found = body[name]
            single = isinstance(found, str) or (found and isinstance(found[0], int))
            return 1 if single else len(found)
    return 0


def _plain(document: Any) -> Callable[[Model, Any], Answer]:
    return lambda _model, _body: Answer(lambda _rows: document)


_ROUTES: dict[str, dict[tuple[str, str], Callable[[Model, Any], Answer]]] = {
    "vllm": {
        ("GET", "/health"): _plain(None),
        ("GET", "/version"): _plain({"version": "0.32.0"}),
        ("GET", "/v1/models"): fake_open_ai.models,
        ("POST", "/v1/embeddings"): fake_open_ai.embeddings,
        ("POST", "/classify"): fake_open_ai.classify,
        ("POST", "/rerank"): fake_open_ai.rerank,
        ("POST", "/v1/rerank"): fake_open_ai.rerank,
    },
    "openai": {
        ("GET", "/v1/models"): fake_open_ai.models,
        ("POST", "/v1/embeddings"): fake_open_ai.embeddings,
    },
    "infinity": {
        ("GET", "/health"): _plain({"unix": 1.0}),
        ("GET", "/models"): fake_open_ai.models,
        ("POST", "/embeddings"): fake_open_ai.infinity_embeddings,
    },
    "tei": {
        ("GET", "/health"): _plain(None),
        ("GET", "/info"): fake_tei.info,
        ("POST", "/embed"): fake_tei.embed,
        ("POST", "/rerank"): fake_tei.rerank,
        ("POST", "/v1/embeddings"): fake_tei.embeddings,
    },
}
