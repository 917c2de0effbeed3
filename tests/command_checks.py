"""What is checked of the pages' commands without running them: their names, options and files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import typer
from commands import ASSIGNMENT, Command, of_vllm
from packaging.requirements import Requirement
from pages import ROOT
from servers.model_environments import PACKAGES

from llamaindex_qwen3.cli.app import app

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
# Where no service is.
NOWHERE = "127.0.0.1:1"


def check(command: Command) -> None:
    """Assert that a command that is not run could be."""
    if command.name == "qwen3-rag":
        check_qwen3_rag(command.arguments)
    elif command.name in CHECKS:
        CHECKS[command.name](command)


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
    if of_vllm(command):
        # What the tests of real servers install by, so that this is run whenever those are.
        packages = PACKAGES["vllm"]
        made = {"install": packages.steps[-1], "uninstall": ("-y", *packages.unwanted)}
        assert tuple(rest) == made[action], f"the tests of real servers are made by {made}"
        return
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
    _read(command, ["--host", f"tcp://{NOWHERE}"], "Cannot connect to the Docker daemon")


def _kubectl(command: Command) -> None:
    action, *rest = command.arguments
    own = rest[: rest.index("--")] if "--" in rest else rest
    _options(own, KUBECTL[action])
    if action == "apply":
        assert any((command.folder / rest[rest.index("-f") + 1]).glob("*.yaml"))
    if action not in ("config", "create"):
        _read(
            command, ["--server", f"http://{NOWHERE}"], f"{NOWHERE}: connect|{NOWHERE} was refused"
        )


def _read(command: Command, at: list[str], told: str) -> None:
    """Have the program, where there is one, read its words until it finds no service."""
    program, *rest = command.words
    if shutil.which(program) is None:
        return
    rest = [re.sub(r"\$\(.*\)", "name", word) for word in rest]
    done = subprocess.run(
        [program, *at, *rest],
        cwd=command.folder,
        env={**os.environ, "KUBECONFIG": os.devnull, "DOCKER_CONFIG": os.devnull},
        capture_output=True,
        text=True,
    )
    assert re.search(told, done.stderr), done.stderr


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
    assert all(ASSIGNMENT.match(word) for word in command.arguments)


#: By what is started: how it is checked without being run.
CHECKS: dict[str, Callable[[Command], None]] = {
    "make": _make,
    "pip": _pip,
    "python -m benchmarks": _benchmarks,
    "python -m benchmarks.migration": _module,
    "vllm": _vllm,
    "python -m vllm.entrypoints.openai.api_server": _vllm,
    "docker": _docker,
    "kubectl": _kubectl,
    "curl": _curl,
    "export": _export,
}
