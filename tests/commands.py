"""Shell commands of the pages, and under which marker each is run, or why it is not."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pages import ROOT, blocks, pages
from servers.model_environments import PACKAGES

#: Why a command is not run on this machine that is on others.
MISSING = "there is no"
_SEPARATORS = {"&&", "||", ";", "|"}
ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=", re.A)


@dataclass(frozen=True)
class Command:
    """One command: its words, the variables set for it, the folder a page has gone to.

    Its line is what a shell is given; it has the quotes of the page unless there are others in it.
    """

    words: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    line: str = ""

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
        found = list(lexer)
        alone = line if _SEPARATORS.isdisjoint(found) else ""
        for word in [*found, ";"]:
            if word not in _SEPARATORS:
                words.append(word)
                continue
            if words:
                command = _command(words, folder, alone or shlex.join(words))
                if command.name == "cd":
                    folder = (folder / command.words[1]).resolve()
                yield command
            words = []


def _command(words: list[str], folder: Path, line: str) -> Command:
    variables = {}
    while words and ASSIGNMENT.match(words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    if not words:
        raise ValueError(f"only variables are set, which no later command sees: {variables}")
    return Command(tuple(words), variables, folder, line)


def of_pages(marker: str) -> list[Command]:
    """Return the commands of all pages that are run under a marker, equal ones once."""
    found = {
        (command.words, *command.variables.items()): command
        for page in pages()
        for block in blocks(page)
        if block.language == "sh"
        for command in split(block.text)
        if fate(command).marker == marker
    }
    return list(found.values())


# --- what is done with each -------------------------------------------------------------------


class Fate(NamedTuple):
    """What the tests do with a command.

    Attributes:
        marker: Under which marker it is run: "" in every run of the tests, None in none.
        but: Why it is not run, or how not just as it is written.
    """

    marker: str | None
    but: str = ""


def fate(command: Command) -> Fate:
    """Say what the tests do with a command.

    Raises:
        ValueError: A command that these tests do not know.
    """
    found = _fate(command)
    if found.marker == "":
        line = " ".join(in_container(command)) or command.line
        needed = [name for name in ("curl", "kubectl", "openssl") if name in line]
        if missing := [name for name in needed if shutil.which(name) is None]:
            return Fate(None, f"{MISSING} {missing[0]}")
    return found


def _fate(command: Command) -> Fate:
    if command.name == "qwen3-rag":
        return Fate("ray" if "--ray" in command.words else "")
    if command.name == "python" and command.words[1].endswith(".py"):
        return Fate("")
    if command.name == "pip":
        return Fate("server" if of_vllm(command) else "release")
    if command.name == "make" and command.arguments == ("test",):
        return Fate("release", "only its installation: tests do not run themselves")
    if command.name == "docker":
        return _fate_of_docker(command)
    if command.name == "kubectl":
        return _fate_of_kubectl(command)
    if command.name in FATES:
        return FATES[command.name]
    raise ValueError(f"{command.name} is not known to tests/commands.py")


def _fate_of_docker(command: Command) -> Fate:
    if command.arguments[:2] == ("compose", "run"):
        return Fate("", "only what it starts in the container")
    if "vllm" in command.words:
        return Fate("server", "only what it starts in the container")
    return Fate(None, "needs a container engine")


def _fate_of_kubectl(command: Command) -> Fate:
    if command.words[1] == "config":
        return Fate("")
    if command.words[1] == "create":
        return Fate("", "as a dry run, without a cluster")
    if command.words[1] == "exec":
        return Fate("", "only what it starts in the container")
    return Fate(None, "needs a cluster")


def in_container(command: Command) -> list[str]:
    """Return the words that a command starts in a container, where it does; else none."""
    words = list(command.words)
    if words[:3] == ["docker", "compose", "run"]:
        return words[words.index("app") + 1 :]
    if words[:2] == ["kubectl", "exec"]:
        return words[words.index("--") + 1 :]
    return []


def of_vllm(command: Command) -> bool:
    """Whether a command of pip makes the virtual environment of vLLM."""
    packages = PACKAGES["vllm"]
    return bool({packages.main.partition("==")[0], *packages.unwanted} & _named(command))


def _named(command: Command) -> set[str]:
    return {word.partition("==")[0] for word in command.arguments}


#: By what is started, where its first word is enough to say.
FATES = {
    "make": Fate("release"),
    "python -m benchmarks": Fate("release", "at a small size"),
    "python -m benchmarks.migration": Fate("release"),
    "vllm": Fate("server", "on a CPU, with tiny models"),
    "python -m vllm.entrypoints.openai.api_server": Fate("server", "with tiny models"),
    "export": Fate("server"),
    "curl": Fate(""),
    "cd": Fate(""),
    "cp": Fate(""),
}
