"""qwen3-rag chat."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from .. import show
from ..errors import Qwen3Error
from ..prompts import DEFAULT_TASK
from .answers import AnswerPrinter, passages_as_data, with_cited
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    AsJson,
    BaseUrl,
    Candidates,
    Collection,
    Dense,
    EmbeddingUrl,
    Llm,
    LlmBaseUrl,
    Models,
    RerankerUrl,
    Session,
    Task,
    Token,
    TopN,
    Uri,
    app,
    err,
    out,
    plain_errors,
    working,
)
from .console import print_json_line
from .session import need_language_model

if TYPE_CHECKING:
    from llama_index.core.chat_engine import CondensePlusContextChatEngine
    from llama_index.core.llms import ChatMessage
    from llama_index.core.schema import NodeWithScore

_HELP = "/quit or Ctrl-D ends, /clear forgets the conversation, Ctrl-C stops an answer."


@app.command()
@plain_errors
def chat(
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    candidates: Candidates = 10,
    top_n: TopN = 3,
    task: Task = DEFAULT_TASK,
    dense: Dense = False,
    as_json: AsJson = False,
    llm: Llm = "gpt-4o",
    llm_base_url: LlmBaseUrl = None,
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
    reranker_url: RerankerUrl = None,
) -> None:
    """Hold a conversation: follow-up questions are understood from what was said before.

    Questions are read from the terminal, or from a pipe one a line. /quit or Ctrl-D ends, /clear
    forgets the conversation, Ctrl-C stops an answer. --json prints each turn as a line of JSON.

    Example: qwen3-rag chat --models 0.6b
    """
    need_language_model(
        llm_base_url, "A conversation", " Without one there is: qwen3-rag ask QUESTION"
    )
    from ..answer import chat_model
    from ..pipeline import chat_engine

    session = Session(
        models, uri, collection, token, task, base_url, embedding_url, reranker_url, dense
    )
    session.open()
    reranker = session.reranker.model_copy(update={"top_n": top_n})
    engine = chat_engine(
        session.embed_model,
        reranker,
        session.filled_store,
        chat_model(llm, llm_base_url),
        candidates,
    )
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        failures = _Conversation(engine, loop, llm if as_json else None).run()
    # On a terminal they were seen; for a script they must show.
    if failures and not sys.stdin.isatty():
        raise typer.Exit(1)


class _Conversation:
    """Reads questions and prints answers until there are no more.

    Turns run on an event loop, where an answer under way can be stopped.

    Args:
        engine: Answers.
        loop: Runs the turns.
        as_json: Name of the language model, for turns as lines of JSON; None shows them.
    """

    def __init__(
        self,
        engine: CondensePlusContextChatEngine,
        loop: asyncio.AbstractEventLoop,
        as_json: str | None = None,
    ) -> None:
        self._engine, self._loop, self._as_json = engine, loop, as_json
        self._history: list[ChatMessage] = []
        self._printer = self._answer_to([])
        self._interactive = sys.stdin.isatty()

    def run(self) -> int:
        """Hold the conversation, and return how many questions failed."""
        failures = 0
        if self._interactive:
            err.print(f"[dim]{_HELP}[/]", soft_wrap=True)
        for line in self._lines():
            question = line.strip()
            if question in ("/quit", "/exit"):
                break
            if question == "/clear":
                self._history = []
                err.print("[dim]Forgotten.[/]")
            elif question.startswith("/"):
                err.print(_HELP, soft_wrap=True)
            elif question:
                failures += not self._turn(question)
        return failures

    def _lines(self) -> Iterator[str]:
        while True:
            line = self._prompt() if self._interactive else sys.stdin.readline()
            if not line:
                return
            if not self._interactive and self._as_json is None and line.strip():
                out.print(f"[bold]> {show.escape(show.clean(line.strip()))}[/]", soft_wrap=True)
            yield line

    def _prompt(self) -> str:
        """Ask for a line on the terminal; nothing at its end."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits and remembers lines

        # input() writes its prompt to standard output, where only answers belong.
        if not sys.stdout.isatty():
            err.print("[bold]>[/] ", end="")
        try:
            return input("> " if sys.stdout.isatty() else "") + "\n"
        except EOFError:
            err.print()
            return ""

    def _turn(self, question: str) -> bool:
        """Answer one question; what fails is told, and the conversation goes on without it."""
        self._printer, failure, succeeded = self._answer_to([]), None, True
        try:
            with _cancelled_by_interrupt(self._loop, self._answer(question)) as task:
                self._loop.run_until_complete(task)
        except asyncio.CancelledError:
            if self._printer.text:
                # The next question may refer to what was read of the answer.
                self._history += _exchange(question, self._printer.text)
            failure = "Stopped."
            err.print(f"[dim]{failure}[/]")
        except Qwen3Error as error:
            failure, succeeded = str(error), False
            err.print(f"[bold red]Error:[/] {show.escape(failure)}", soft_wrap=True)
        else:
            self._history += _exchange(question, self._printer.text)
        if self._as_json is not None:
            print_json_line(self._as_data(question, failure))
        return succeeded

    def _answer_to(self, nodes: Sequence[NodeWithScore]) -> AnswerPrinter:
        return AnswerPrinter(nodes, silent=self._as_json is not None)

    def _as_data(self, question: str, failure: str | None) -> dict[str, Any]:
        answer = self._printer.text
        return {
            "question": question,
            "answer": answer or None,
            "llm": self._as_json,
            "passages": with_cited(passages_as_data(self._printer.nodes), answer),
            "error": failure,
        }

    async def _answer(self, question: str) -> None:
        from ..answer import check_answer, generation_errors

        with generation_errors():
            with working("Searching, reranking and waiting for the answer"):
                response = await self._engine.astream_chat(question, list(self._history))
                stream = response.async_response_gen()
                first = await anext(stream, "")
            self._printer = self._answer_to(response.source_nodes)
            async with contextlib.aclosing(stream) as pieces:
                try:
                    self._printer.add(first)
                    async for piece in pieces:
                        self._printer.add(piece)
                finally:
                    self._printer.end()
            check_answer(bool(self._printer.text.strip()))
        self._printer.print_sources()
        if self._as_json is None:
            out.print()


def _exchange(question: str, answer: str) -> list[ChatMessage]:
    from llama_index.core.llms import ChatMessage, MessageRole

    return [
        ChatMessage(question, role=MessageRole.USER),
        ChatMessage(answer, role=MessageRole.ASSISTANT),
    ]


@contextmanager
def _cancelled_by_interrupt(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
) -> Iterator[asyncio.Task[None]]:
    """Run work as a task that Ctrl-C cancels."""
    task = loop.create_task(work)

    def cancel(*_: object) -> None:
        # The answer is written to the history by a task of its own.
        loop.call_soon_threadsafe(lambda: [each.cancel() for each in asyncio.all_tasks(loop)])

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield task
    finally:
        signal.signal(signal.SIGINT, before)
