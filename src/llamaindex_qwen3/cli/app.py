"""The Typer application, and what every command has in common."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__, show
from ..errors import Qwen3Error
from .console import (
    WrongArgumentError,
    arguments,
    err,
    out,
    print_json,
    shows_links,
    working,
)
from .options import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    AsJson,
    BaseUrl,
    Candidates,
    Collection,
    Debug,
    Dense,
    EmbeddingUrl,
    Llm,
    LlmBaseUrl,
    Models,
    Question,
    RerankerUrl,
    Task,
    Token,
    TopN,
    Uri,
)
from .session import Session, loading

__all__ = [
    "DEFAULT_COLLECTION",
    "DEFAULT_MODELS",
    "DEFAULT_URI",
    "AsJson",
    "BaseUrl",
    "Candidates",
    "Collection",
    "Dense",
    "EmbeddingUrl",
    "Llm",
    "LlmBaseUrl",
    "Models",
    "Question",
    "RerankerUrl",
    "Session",
    "Task",
    "Token",
    "TopN",
    "Uri",
    "app",
    "arguments",
    "err",
    "loading",
    "out",
    "plain_errors",
    "print_json",
    "shows_links",
    "working",
]

_ORDER = ("ingest", "ask", "chat", "compare", "serve", "info", "eval", "verify")
_EXIT_CODES = (
    "Exit codes: 0 done; 1 the command failed, or a check of verify did; 2 it was called wrongly; "
    "130 it was interrupted."
)


_Run = TypeVar("_Run", bound=Callable[..., Any])


class _Help:
    """Help that shows no type for flags, which take no value, and none for arguments."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for option in ctx.command.get_params(ctx):
            if getattr(option, "is_flag", False) or option.param_type_name == "argument":
                option.display_type_rich = lambda ctx: None
        super().format_help(ctx, formatter)  # type: ignore[misc]


class _Command(_Help, TyperCommand):
    pass


class _Commands(_Help, TyperGroup):
    """Commands in the order they are needed, whatever the order of the imports."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))


class _Application(typer.Typer):
    def command(self, *args: Any, **options: Any) -> Callable[[_Run], _Run]:
        return super().command(*args, **{"cls": _Command, **options})


app = _Application(
    name="qwen3-rag",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=_EXIT_CODES,
)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"qwen3-rag {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Store a folder, ask it questions, see what reranking changes."""


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show what went wrong in one line instead of a traceback, and give the command --debug.

    A failure ends with exit code 1, a wrong argument with 2, an interruption with 130.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("Interrupted.")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            if debug:
                raise
            err.print(f"[bold red]Error:[/] {show.escape(_in_words(error))}", soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, WrongArgumentError) else 1) from None

    # Not get_type_hints: on Python 3.10 it puts what may be None into an Optional of its own, inside of
    # which Typer does not look for options.
    signature = inspect.signature(command, eval_str=True)
    asked = list(signature.parameters.values())
    option = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*asked, option], return_annotation=None
    )
    run.__annotations__ = {**{p.name: p.annotation for p in asked}, "debug": Debug}
    return run


def _in_words(error: Exception) -> str:
    if isinstance(error, Qwen3Error):
        return str(error)
    # What nobody expected: the kind of the error may be all that helps.
    again = " ".join(["qwen3-rag", *sys.argv[1:2]])
    return f"{type(error).__name__}: {error}. Run {again} … --debug to see where."
