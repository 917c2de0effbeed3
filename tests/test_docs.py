"""Every command and every piece of code in README, docs and examples does what it says."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import command_checks
import commands
import openai_server
import pytest
import typer
from pages import READ, RUN, Block, blocks, pages, text_of
from reader import Reader, at_work, fill_hub
from servers.fake_servers import FakeServer

from llamaindex_qwen3.cli.app import app
from llamaindex_qwen3.models import model_pair

PAGES = pages()
ON_RAY = "docs/how-to/ray.md"
# They show the first page's code themselves.
FIRST = {"README.md", "docs/index.md"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model hub's cache with the demo pair under the names of Qwen's models."""
    cache = tmp_path_factory.mktemp("hub")
    fill_hub(cache)
    return cache


class Questions(Sequence[str]):
    """Answers of a language model, each another question, so that it can be asked to write some."""

    def __init__(self) -> None:
        self.count = itertools.count(1)

    def __iter__(self) -> Iterator[str]:
        yield f"What happens to value {next(self.count)} "
        yield "of a collection [1]?"

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("answers are read from their beginning")

    def __len__(self) -> int:
        return 2


@pytest.fixture(scope="module")
def language_model() -> Iterator[str]:
    """Return the address of a scripted server that speaks OpenAI's protocol."""
    with openai_server.serve(Questions()) as (url, _):
        yield url


@pytest.fixture
def model_servers(serve: Callable[..., FakeServer]) -> dict[str, str]:
    """Return servers of the demo pair, by the addresses that pages give."""
    pair = model_pair("demo")
    name = "Qwen/Qwen3-{}-0.6B"
    embedding = serve("vllm", Path(pair.embedding).resolve(), name=name.format("Embedding"))
    rerankers = [
        serve("vllm", Path(pair.reranker).resolve(), role="reranker", name=name.format("Reranker"))
        for _ in range(2)
    ]
    return {
        "http://gpu-1:8001": embedding.url,
        "http://gpu-1:8002": rerankers[0].url,
        "http://gpu-2:8002": rerankers[1].url,
    }


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.ray) if p == ON_RAY else p for p in PAGES]
)
def test_what_a_page_says_works(
    page: str,
    tmp_path: Path,
    hub: Path,
    language_model: str,
    request: pytest.FixtureRequest,
) -> None:
    """Do everything on a page, in its order, in an empty folder."""
    needs_servers = "http://gpu-" in text_of(page)
    servers = request.getfixturevalue("model_servers") if needs_servers else {}
    reader = Reader(tmp_path, hub, language_model, servers, on_ray=page == ON_RAY)
    with at_work(reader):
        if page not in FIRST and any(b.language in ("python", "diff") for b in blocks(page)):
            reader.begin()
        printed = ""
        for block in blocks(page):
            if page == "README.md":
                reader.turn_to(block.section)
            try:
                printed = reader.read(block, printed)
            except Exception as error:
                raise AssertionError(f"{block.place}: {error}\n{block.text}") from error


# --- what is run, and what is not ---------------------------------------------------------------


def test_every_block_is_known() -> None:
    """Have each block in a language, and each command of a kind, that something is done with."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in RUN | READ, block.place
            if block.language == "sh":
                for command in commands.split(block.text):
                    commands.fate(command)


def test_the_share_that_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Run all code and nearly all commands, and say how many, by what, and why not the others."""
    code = 0
    of = Counter[str | None]()
    names: dict[str, int] = Counter()
    but = Counter[str]()
    missing = 0
    on_ray: dict[str, set[str]] = {ON_RAY: set(), "others": set()}
    for page in PAGES:
        for block in blocks(page):
            code += block.language in ("python", "diff")
            for command in commands.split(block.text) if block.language == "sh" else ():
                fate = commands.fate(command)
                of[fate.marker] += 1
                missing += fate.but.startswith(commands.MISSING)
                if fate.marker == "":
                    names[command.name] += 1
                if fate.marker == "ray":
                    on_ray[page if page == ON_RAY else "others"].add(str(command))
                if fate.but:
                    how = "not run" if fate.marker is None else "run"
                    but[f"{how}: {' '.join(command.words[:3])}: {fate.but}"] += 1
    with capsys.disabled():
        print(f"\n{len(PAGES)} pages: {code} of {code} pieces of code run.", end=" ")
        by = [f"{of[marker]} by -m {marker}" for marker in ("release", "server", "ray")]
        print(f"{of.total()} commands: {of['']} run here, {', '.join(by)}, {of[None]} not run.")
        for reason, count in sorted(but.items()):
            print(f"  {count:3} {reason}")
    assert code > 30
    assert names["qwen3-rag"] > 30
    assert set(of) <= {"", "release", "server", "ray", None}
    assert of[None] - missing < of.total() / 10
    # The same words on other pages are run by this one.
    assert on_ray["others"] <= on_ray[ON_RAY]


def test_commands_in_sentences() -> None:
    """Check the commands that stand in the words: their names, options and targets exist."""
    found = 0
    for page in PAGES:
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_blocks(page)):
            if re.match(r"(qwen3-rag [a-z]|make |pip install|python -m benchmarks)", code):
                if re.search(r"[…]", code):
                    continue
                for command in commands.split(code.replace(r"\|", "|")):
                    found += 1
                    in_sentence(command)
    assert found > 20


def in_sentence(command: commands.Command) -> None:
    """Check a command that may leave out what the words around it say, such as the question."""
    if command.name != "qwen3-rag":
        command_checks.check(command)
        return
    name, *rest = command.arguments
    group = typer.main.get_command(app)
    assert name in group.commands, command  # type: ignore[attr-defined]
    known = {o for p in group.commands[name].params for o in [*p.opts, *p.secondary_opts]}  # type: ignore[attr-defined]
    assert {word for word in rest if word.startswith("-")} <= known | {"--help"}, command


def without_blocks(page: str) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)


@pytest.mark.parametrize(
    "wrong",
    [
        "qwen3-rag ingest docs/ --modles 0.6b --ray local",
        "make dmeo",
        "pip install 'llamaindex-qwen3[inspectre]'",
        "vllm serve Qwen/Qwen3-Embedding-0.6B --max-model-length 8192",
        "docker run --gpu all ghcr.io/huggingface/text-embeddings-inference:1.9 --model-id x",
        "kubectl apply -f examples/serving/k8s/",
        pytest.param(
            "kubectl rollout state deployment/app --timeout 30m",
            marks=pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl"),
        ),
        "curl -s http://localhost/ask -d '{question}'",
        "python -m benchmarks rerank --candidate 10",
        "rm -rf docs",
    ],
)
def test_a_wrong_command_is_noticed(wrong: str) -> None:
    """Show that commands which are only checked can fail."""
    (command,) = commands.split(wrong)
    with pytest.raises((AssertionError, ValueError)):
        known(command)


def known(command: commands.Command) -> None:
    """Check a command as a reader does that does not run it."""
    commands.fate(command)
    command_checks.check(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "qwen3-rag ingest no-such-folder",
        "python examples/no-such-script.py",
        "cd no-such-folder",
        "cp examples/serving/environment.example .env",
        "cd examples/serving && docker compose run --rm app python app.py ingst /docs",
        'kubectl create secret generic name --from-literal=key="$NONE"',
        "kubectl create namespac name",
        "kubectl config set-contxt --current",
    ],
)
def test_a_wrong_command_fails(wrong: str, tmp_path: Path, hub: Path, language_model: str) -> None:
    """Show that commands which are run can fail, each kind of them."""
    *_, command = commands.split(wrong)
    if commands.fate(command).marker != "":
        pytest.skip(commands.fate(command).but)
    reader = Reader(tmp_path, hub, language_model, {})
    with at_work(reader), pytest.raises(AssertionError):
        reader.shell(command)


def test_wrong_code_is_noticed(tmp_path: Path, hub: Path, language_model: str) -> None:
    """Show that code and output can fail."""
    page = "docs/concepts.md"
    reader = Reader(tmp_path, hub, language_model, {})
    with at_work(reader):
        with pytest.raises(NameError):
            reader.read(Block(page, 1, "python", "print(undefined)\n"), "")
        with pytest.raises(AssertionError, match="another output"):
            reader.read(Block(page, 1, "text", "two\n"), "one\n")
