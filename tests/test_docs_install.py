"""Commands of the pages that install the package, and what they install for, in an empty clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import commands
import pytest
from test_package import NAME, done

pytestmark = pytest.mark.release

#: What makes a benchmark one of seconds.
SMALL = {
    "rerank": ("--size", "tiny", "--rounds", "1"),
    "query": ("--size", "tiny", "--rounds", "1", "--chunks", "60", "--during", "5"),
}


@dataclass(frozen=True)
class Clone:
    """The source as a reader has it, and a folder that has the wheel where PyPI would."""

    folder: Path
    dist: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the virtual environment that the README makes and activates."""
        environment = self.folder / ".venv"
        return done(
            list(words),
            self.folder,
            VIRTUAL_ENV=str(environment),
            PATH=f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
        )

    def told(self, *words: str) -> str:
        """Run a command that must succeed, which must leave nothing out."""
        ended = self.run(*words)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        # Of an extra that does not exist pip warns, and goes on.
        assert not re.search("llamaindex-qwen3 .* not provide the extra", ended.stderr), (
            ended.stderr
        )
        return ended.stdout

    def do(self, command: commands.Command) -> None:
        """Do what a page says."""
        words = list(command.words)
        if words[:2] == ["make", "test"]:
            assert "-m pytest" in self.told("make", "--dry-run", *words[1:])
            self.told("make", ".venv/test.stamp")
            self.told("python", "-m", "pytest", "--collect-only", "tests/test_prompts.py")
        elif words[0] == "make":
            assert "After reranking" in self.told(*words)
        elif words[0] == "pip":
            self._pip(words)
        else:
            small = SMALL[words[3]] if words[3:] else ()
            assert self.told(*words, *small).strip()

    def _pip(self, words: list[str]) -> None:
        published = any(word.startswith("llamaindex-qwen3") for word in words)
        if published:
            # Else pip finds that the clone is installed already.
            self.told("pip", "uninstall", "--quiet", "--yes", "llamaindex-qwen3")
            # Beside the places that this machine's pip knows, which may be all that has torch for CPUs.
            words += ["--find-links", str(self.dist)]
        self.told(*words)
        self.told("pip", "check")
        if published:
            place = "import llamaindex_qwen3 as package; print(package.__file__)"
            assert "site-packages" in self.told("python", "-c", place)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return the source distribution, unpacked, with a virtual environment that has torch."""
    folder, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    root = str(commands.ROOT)
    built = done([sys.executable, "-m", "build", "--outdir", str(dist), root], dist)
    assert built.returncode == 0, built.stdout + built.stderr
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    made = Clone(folder / NAME, dist)
    made.told("make", ".venv/bin/python", f"PYTHON={sys.executable}")
    yield made
    # Gigabytes, of which pytest would keep those of three runs.
    shutil.rmtree(made.folder / ".venv")


@pytest.mark.parametrize("command", commands.of_pages("release"), ids=str)
def test_a_command_does_what_its_page_says(clone: Clone, command: commands.Command) -> None:
    """Install into the clone's environment, and run there what was installed for it."""
    clone.do(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "make dmeo",
        "pip install 'llamaindex-qwen3[inspectre]'",
        "pip install -c constraint.txt torch",
        "python -m benchmarks rerank --candidate 10",
    ],
)
def test_a_wrong_command_fails(clone: Clone, wrong: str) -> None:
    """Show that each kind can fail."""
    (command,) = commands.split(wrong)
    with pytest.raises(AssertionError):
        clone.do(command)
