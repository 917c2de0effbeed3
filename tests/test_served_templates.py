"""A real vLLM with a wrong template: found out, and no obstacle where whole prompts are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from components import reranker
from real_servers import (
    CUSTOM_TASK,
    SCORE_TOLERANCE,
    SHAPE,
    TEMPLATE,
    texts,
    vllm,
    without_whole_prompts,
)
from servers.model_servers import Server

from llamaindex_qwen3.errors import ServerMismatchError
from llamaindex_qwen3.prompts import DEFAULT_TASK

pytestmark = pytest.mark.server

Factory = Callable[..., Path]

RIGHT = TEMPLATE.read_text(encoding="utf-8")
LAST = '{{ "\\n\\n" }}'
INSTRUCTION = RIGHT[RIGHT.index("{{ instruction") : RIGHT.index("\n<Query>")]
# As found in the wild: vLLM never sends a message of the role "system" with texts to score.
OF_SYSTEM = (
    '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    f'| default("{DEFAULT_TASK}") }}}}'
)
# By name: the template, and what an error must say is wrong. Jinja drops one newline at the end.
WRONG: dict[str, tuple[str | None, str]] = {
    "missing template": (None, "no template"),
    "lost newline": (RIGHT[: RIGHT.index(LAST)] + "\n\n", "line break"),
    "ignored instruction": (RIGHT.replace(INSTRUCTION, OF_SYSTEM), "instruction"),
    "another model's template": (
        "query: {{ messages[0].content }}\npassage: {{ messages[1].content }}", "template",
    ),
}  # fmt: skip
DOCUMENTS = texts(12, seed=3, longest=14)


class Served(NamedTuple):
    """A server, and what is wrong with it."""

    server: Server
    directory: Path
    cause: str


@pytest.fixture(scope="module", params=WRONG.values(), ids=WRONG)
def served(
    request: pytest.FixtureRequest,
    make_reranker: Factory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """Yield a reranker with each wrong template."""
    folder, directory = tmp_path_factory.mktemp("vllm"), make_reranker(shape=SHAPE)
    text, cause = request.param
    template = None
    if text is not None:
        assert text != RIGHT
        template = folder / "template.jinja"
        template.write_text(text, encoding="utf-8")
    with vllm(directory, "reranker", folder, chat_template=template) as server:
        yield Served(server, directory, cause)


@pytest.mark.parametrize("task", [DEFAULT_TASK, CUSTOM_TASK], ids=["default task", "custom task"])
def test_prompts_rendered_here_need_no_template(served: Served, task: str) -> None:
    """Give the local scores where the server takes whole prompts, whatever its template."""
    expected = reranker(served.directory, instruction=task).score("where?", DOCUMENTS)
    model = reranker(served.directory, base_url=served.server.base_url, instruction=task)
    assert model.score("where?", DOCUMENTS) == pytest.approx(expected, abs=SCORE_TOLERANCE)


def test_a_server_that_renders_wrong_prompts_is_refused(served: Served) -> None:
    """Name the cause where the server is to render the prompts."""
    url = served.server.base_url
    model = reranker(served.directory, base_url=url, server="openai")
    with pytest.raises(ServerMismatchError, match=served.cause) as caught:
        model.score("where?", DOCUMENTS)
    assert caught.value.url == url
    assert "--chat-template" in str(caught.value)


def test_wrong_prompts_are_found_out_behind_a_gateway(served: Served) -> None:
    """Refuse it, too, where the scores of whole prompts cannot be had for comparison."""
    with without_whole_prompts(served.server) as url:
        model = reranker(served.directory, base_url=url)
        with pytest.raises(ServerMismatchError, match=r"template|instruction|line break"):
            model.score("where?", DOCUMENTS)
        model.close()
