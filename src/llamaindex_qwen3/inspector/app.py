"""The inspector's routes: a page, and streams of JSON lines."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.requests import Request

from ..errors import Qwen3Error
from .guard import Guard
from .messages import About, AnswerRequest, Failed, JudgedQuestion, RankRequest, Saved
from .service import Inspector

_STATIC = Path(__file__).parent / "static"
_logger = logging.getLogger(__name__)


def create_app(
    inspector: Inspector, hosts: Iterable[str] = (), any_address: bool = False
) -> FastAPI:
    """Return the application for one inspector.

    Args:
        inspector: Does the work.
        hosts: Names the page may be opened by, besides localhost and the loopback addresses.
        any_address: Whether it may be opened by any IP address.
    """
    # No documentation pages: they load scripts from elsewhere.
    app = FastAPI(title="qwen3-rag inspector", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, any_address=any_address)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    @app.get("/api/about")
    def about() -> About:
        return inspector.about()

    @app.post("/api/rank")
    async def rank(request: RankRequest) -> StreamingResponse:
        return _stream(inspector.rank(request))

    @app.post("/api/answer")
    async def answer(request: AnswerRequest) -> StreamingResponse:
        return _stream(inspector.answer(request))

    @app.post("/api/judged")
    def judged(question: JudgedQuestion) -> Saved:
        return inspector.save(question)

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Qwen3Error, _failed)
    return app


def _stream(stages: AsyncIterator[BaseModel]) -> StreamingResponse:
    # The response is cancelled when the browser has gone, and the work with it.
    return StreamingResponse(_lines(stages), media_type="application/x-ndjson")


async def _lines(stages: AsyncIterator[BaseModel]) -> AsyncIterator[str]:
    try:
        async for stage in stages:
            yield stage.model_dump_json() + "\n"
    except Exception as error:
        yield Failed(message=_in_words(error)).model_dump_json() + "\n"


def _in_words(error: Exception) -> str:
    if isinstance(error, Qwen3Error):
        return str(error)
    _logger.error("the inspector failed", exc_info=error)
    return (
        f"Something unexpected failed ({type(error).__name__}). The terminal in which qwen3-rag serve "
        "runs shows what."
    )


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"message": _in_words(error)}, 400)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        f"{'.'.join(str(part) for part in problem['loc'][1:]) or 'request'}: {problem['msg']}"
        for problem in error.errors()
    ]
    return JSONResponse({"message": ". ".join(problems) + "."}, 422)
