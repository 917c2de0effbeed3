"""Shell commands of the pages: which are run, which are only checked and why, and the checks."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer
from packaging.requirements import Requirement
from pages import ROOT

from llamaindex_qwen3.cli.app import app

_SEPARATORS = {"&&", "||", ";", "|"}
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=", re.A)

# Options as the programs document them; one that is not here is a mistake until it was looked up.
VLLM_OPTIONS = {
    "--model", "--port", "--runner", "--max-model-len", "--hf-overrides", "--chat-template",
    "--max-num-seqs", "--dtype", "--enforce-eager",
}  # fmt: skip
TEI_OPTIONS = {"--model-id", "--dtype", "--max-client-batch-size", "--pooling"}
DOCKER_OPTIONS = {"--gpus", "--shm-size", "-p", "-e", "-v", "--entrypoint", "--rm"}
COMPOSE_OPTIONS = {"up": {"--build", "--wait"}, "run": {"--rm"}, "down": {"--volumes"}}
KUBECTL = {
    "create": {"--from-literal"}, "config": {"--current", "--namespace"}, "apply": {"-f"},
    "rollout": {"--timeout"}, "cp": set(), "exec": set(), "port-forward": set(),
}  # fmt: skip
CURL_OPTIONS = {"-s", "-N", "-H", "-d"}


@dataclass(frozen=True)
class Command:
    """One command: its words, the variables set for it, the folder a page has gone to."""

    words: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT

    @property
    def name(self) -> str:
        """What is started: a program, or a module of Python as "python -m NAME"."""
        if self.words[:2] == ("python", "-m"):
            return " ".join(self.words[:3])
        return self.words[0]

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.words[3 if self.name.startswith("python -m") else 1 :]

    def __str__(self) -> str:
        return shlex.join(self.words)


def split(script: str) -> Iterator[Command]:
    """Yield the commands of a script in order.

    Raises:
        ValueError: A line that these tests do not understand.
    """
    folder = ROOT
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _SEPARATORS:
                words.append(word)
                continue
            if words:
                command = _command(words, folder)
                if command.name == "cd":
                    folder = (folder / command.words[1]).resolve()
                yield command
            words = []


def _command(words: list[str], folder: Path) -> Command:
    variables = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    if not words:
        raise ValueError(f"only variables are set, which no later command sees: {variables}")
    return Command(tuple(words), variables, folder)


# --- what is only checked ---------------------------------------------------------------------


def why_not_run(command: Command) -> str | None:
    """Say why a command is checked and not run; None for one that is run.

    Raises:
        ValueError: A command that these tests do not know.
    """
    if command.name == "qwen3-rag":
        if "--ray" in command.words:
            return "needs a cluster; the page on Ray runs it on this machine, by -m ray"
        return None
    if command.name == "python" and command.words[1].endswith(".py"):
        return None
    if command.name in CHECKS:
        return CHECKS[command.name][0]
    raise ValueError(f"{command.name} is not known to tests/commands.py")


def check(command: Command) -> None:
    """Assert that a command that is not run could be."""
    if command.name == "qwen3-rag":
        check_qwen3_rag(command.arguments)
    else:
        CHECKS[command.name][1](command)


def check_qwen3_rag(arguments: tuple[str, ...]) -> None:
    """Have the command line read its arguments, and start nothing."""
    _parse(app, arguments)


def _parse(application: typer.Typer, arguments: tuple[str, ...]) -> None:
    group = typer.main.get_command(application)
    name, *rest = arguments
    if name.startswith("-"):
        assert name in ("--help", "--version")
        return
    found = group.commands.get(name)  # type: ignore[attr-defined]
    assert found, f"there is no command {name}"
    try:
        found.make_context(name, list(rest))
    except Exception as error:  # of the typer there is: their place has changed between versions
        raise AssertionError(f"{name}: {error}") from error


def _make(command: Command) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *command.arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _pip(command: Command) -> None:
    action, *rest = command.arguments
    assert action in ("install", "uninstall"), action
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.M))
    while rest:
        word = rest.pop(0)
        if word == "-c":
            assert (command.folder / rest.pop(0)).is_file()
        elif word not in ("-e", "-y", "--upgrade"):
            requirement = Requirement(re.sub(r"^\.", "llamaindex-qwen3", word))
            if requirement.name == "llamaindex-qwen3":
                assert requirement.extras <= extras, f"{word}: the extras are {extras}"


def _options(words: tuple[str, ...] | list[str], allowed: set[str]) -> None:
    given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    assert given <= allowed, f"{given - allowed} are not options that are known"


def _vllm(command: Command) -> None:
    if command.name == "vllm":
        assert command.words[1] == "serve"
    _served(list(command.arguments))


def _served(words: list[str]) -> None:
    _options(words, VLLM_OPTIONS)
    options = dict(itertools.pairwise(words))
    if "--hf-overrides" in options:
        overrides = json.loads(options["--hf-overrides"])
        assert overrides["classifier_from_token"] == ["no", "yes"]
    if "--chat-template" in options:
        assert (ROOT / "examples" / "serving" / Path(options["--chat-template"]).name).is_file()


def _docker(command: Command) -> None:
    action, *rest = command.arguments
    if action == "compose":
        assert (command.folder / "compose.yaml").is_file()
        own = rest[1:] if rest[0] == "up" else rest[1 : rest.index("app")]
        _options(own, COMPOSE_OPTIONS[rest[0]])
        return
    assert action == "run", action
    (at,) = (i for i, word in enumerate(rest) if re.search(r"/[\w-]+:v?\d+(\.\d+)+$", word))
    _options(rest[:at], DOCKER_OPTIONS)
    if "vllm" in rest[at]:
        assert rest[at + 1] == "serve"
        _served(rest[at + 1 :])
    else:
        _options(rest[at + 1 :], TEI_OPTIONS)


def _kubectl(command: Command) -> None:
    action, *rest = command.arguments
    own = rest[: rest.index("--")] if "--" in rest else rest
    _options(own, KUBECTL[action])
    if action == "apply":
        assert any((command.folder / rest[rest.index("-f") + 1]).glob("*.yaml"))


def _curl(command: Command) -> None:
    _options(command.arguments, CURL_OPTIONS)
    words = list(command.arguments)
    assert any(word.startswith("http") for word in words)
    if "-d" in words:
        json.loads(words[words.index("-d") + 1])


def _benchmarks(command: Command) -> None:
    from benchmarks.__main__ import app as benchmarks

    _parse(benchmarks, command.arguments)


def _module(command: Command) -> None:
    assert (ROOT / (command.words[2].replace(".", "/") + ".py")).is_file()
    assert not command.arguments


def _export(command: Command) -> None:
    assert all(_ASSIGNMENT.match(word) for word in command.arguments)


def _cd(command: Command) -> None:
    assert (command.folder / command.words[1]).is_dir()


def _cp(command: Command) -> None:
    assert (command.folder / command.words[1]).is_file()


#: By what is started: why it is not run, and how it is checked instead.
CHECKS: dict[str, tuple[str, Callable[[Command], None]]] = {
    "make": ("makes a virtual environment from the network; CI runs it", _make),
    "pip": ("takes packages from the network; its extras and files are checked", _pip),
    "python -m benchmarks": ("takes minutes to hours; CI runs each at a small size", _benchmarks),
    "python -m benchmarks.migration": ("needs the extra bench", _module),
    "vllm": ("needs vLLM and a GPU; tests of real servers run its options by -m server", _vllm),
    "python -m vllm.entrypoints.openai.api_server": ("needs vLLM; run by -m server", _vllm),
    "docker": ("needs a container engine", _docker),
    "kubectl": ("needs a cluster", _kubectl),
    "curl": ("asks a service that no test starts under this address", _curl),
    "export": ("sets a variable for a server that is not started", _export),
    "cd": ("leads to commands that are only checked", _cd),
    "cp": ("prepares a file for docker", _cp),
}
