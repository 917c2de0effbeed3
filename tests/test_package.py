"""The package as it is built and installed: by itself, in an environment that has nothing else."""

from __future__ import annotations

import email
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from shell import PAGES

import llamaindex_qwen3

pytestmark = pytest.mark.release

ROOT = Path(__file__).resolve().parents[1]
VERSION = llamaindex_qwen3.__version__
NAME = f"llamaindex_qwen3-{VERSION}"
# What their reader may have set, for other models or other servers than the tests'.
SETTINGS = ("OPENAI_", "QWEN3_", "PYTHON", "VIRTUAL_ENV", "COV_")
EXTRAS = "cli,files,inspector,plots"


def done(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder that is not the repository."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    plain = {"COLUMNS": "160", "NO_COLOR": "1", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    return subprocess.run(
        command, cwd=folder, env={**kept, **plain, **environment}, capture_output=True, text=True
    )


# --- what is built ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    built = done([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert {file.name for file in folder.iterdir()} == {
        f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl",
    }  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """Return the wheel."""
    return dist / f"{NAME}-py3-none-any.whl"


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    """Hold every file of the package, data included, and no tests, caches or local paths."""
    source = ROOT / "src"
    expected = {
        file.relative_to(source).as_posix()
        for file in (source / "llamaindex_qwen3").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    # Files that only installed code needs, named so that the rule above cannot lose them.
    assert {"llamaindex_qwen3/py.typed", "llamaindex_qwen3/inspector/static/index.html"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        content = {name: archive.read(name) for name in names}
    about = {f"{NAME}.dist-info/{file}" for file in ("METADATA", "WHEEL", "RECORD")}
    about |= {f"{NAME}.dist-info/entry_points.txt", f"{NAME}.dist-info/licenses/LICENSE"}
    assert names == expected | about
    for name, data in content.items():
        for place in (ROOT, Path(sys.prefix), Path.home()):
            assert f"{place}/".encode() not in data, f"{name} has {place}"


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Give version, licence, Python and description as PyPI wants them."""
    checked = done([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], wheel.parent)
    assert checked.returncode == 0, checked.stdout
    with zipfile.ZipFile(wheel) as archive:
        about = email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))
        licence = archive.read(f"{NAME}.dist-info/licenses/LICENSE")
        commands = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert (about["Name"], about["Version"]) == ("llamaindex-qwen3", VERSION)
    assert (about["License-Expression"], about["License-File"]) == ("Apache-2.0", "LICENSE")
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert about["Requires-Python"] == ">=3.10"
    assert about["Description-Content-Type"] == "text/markdown"
    assert "qwen3-rag = llamaindex_qwen3.cli:main" in commands


def test_the_source_can_be_worked_on(dist: Path) -> None:
    """Hold what builds, tests and documents the package, and nothing that a build left behind."""
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "pyproject.toml", "Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE",
        "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml", ".ci/run", ".ci/check_tag.py",
        ".pre-commit-config.yaml", ".github/workflows/ci.yml", "tests/conftest.py",
        "tests/test_release.py", "examples/quickstart.py", "benchmarks/__main__.py",
    }  # fmt: skip
    left = r"(^|/)(__pycache__|\.venv|\.\w+_cache|\.hypothesis|dist|site)/|\.py[co]$|\.db(/|$)"
    assert not [name for name in names if re.search(left, name)]


# --- what is installed ------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it, and a folder to work in.

    Attributes:
        commands: Where its commands are.
        folder: Pages in docs/ and a pair of tiny models in pair/.
        bare: What a program and the command line did before any extra was installed.
    """

    commands: Path
    folder: Path
    bare: list[subprocess.CompletedProcess[str]]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment."""
        return done([str(self.commands / args[0]), *args[1:]], self.folder)


PROGRAM = """
import llamaindex_qwen3 as package, sys
assert "torch" not in sys.modules
vectors = package.Qwen3Embedding("pair/embedding").get_text_embedding_batch(["a", "b"])
scores = package.Qwen3Reranker("pair/reranker").score("a", ["b", "c"])
print(package.__version__, package.__file__, len(vectors), len(vectors[0]), len(scores))
"""


@pytest.fixture(scope="module")
def installed(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, embedding_dir: Path, reranker_dir: Path
) -> Installed:
    """Install the wheel into an empty environment, first alone, then with its extras."""
    folder = tmp_path_factory.mktemp("clean")
    (folder / "work" / "docs").mkdir(parents=True)
    (folder / "work" / "pair").mkdir()
    for name, text in PAGES.items():
        (folder / "work" / "docs" / name).write_text(text)
    (folder / "work" / "pair" / "embedding").symlink_to(embedding_dir)
    (folder / "work" / "pair" / "reranker").symlink_to(reranker_dir)
    environment = Installed(folder / "venv" / "bin", folder / "work", [])
    made = done([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    assert made.returncode == 0, made.stderr

    def install(package: str) -> None:
        pip = environment.run("python", "-m", "pip", "install", "--quiet", package)
        assert pip.returncode == 0, pip.stderr
        check = environment.run("python", "-m", "pip", "check")
        assert check.returncode == 0, check.stdout

    install(str(wheel))
    environment.bare.append(environment.run("python", "-W", "error", "-c", PROGRAM))
    environment.bare.append(environment.run("qwen3-rag", "--version"))
    install(f"{wheel}[{EXTRAS}]")
    return environment


def test_components_need_no_extra(installed: Installed) -> None:
    """Embed and score with the package alone, imported from where it was installed."""
    program, _ = installed.bare
    assert program.returncode == 0, program.stderr
    version, place, *sizes = program.stdout.split()
    assert version == VERSION
    assert Path(place).is_relative_to(installed.commands.parent)
    assert sizes == ["2", "64", "2"]


def test_the_command_without_its_extra(installed: Installed) -> None:
    """Work where another package brought what it needs, and else say what to install."""
    _, command = installed.bare
    assert command.returncode == 0 or "pip install 'llamaindex-qwen3[cli]'" in command.stderr
    assert "Traceback" not in command.stderr


def test_the_command_line(installed: Installed) -> None:
    """Say its version and commands, store a folder, rank, and prove the models right."""
    assert installed.run("qwen3-rag", "--version").stdout.strip() == f"qwen3-rag {VERSION}"
    shown = installed.run("qwen3-rag", "--help").stdout
    assert all(command in shown for command in ("ingest", "ask", "compare", "verify", "serve"))
    pair = ("--models", "pair")
    ingest = installed.run("qwen3-rag", "ingest", "docs", *pair, "--uri", "./pages.db")
    assert ingest.returncode == 0, ingest.stderr
    assert "Stored 4 chunks of 2 files" in ingest.stdout
    compare = installed.run(
        "qwen3-rag", "compare", "where are rows", *pair, "--uri", "./pages.db", "--json"
    )
    assert compare.returncode == 0, compare.stderr
    assert json.loads(compare.stdout)
    verify = installed.run("qwen3-rag", "verify", *pair, "--dtype", "float32", "--json")
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert json.loads(verify.stdout)["passed"] is True


def test_the_demo_pair_is_not_installed(installed: Installed) -> None:
    """Say where the demo models are, in one line."""
    ask = installed.run("qwen3-rag", "compare", "rows", "--models", "demo")
    assert (ask.returncode, len(ask.stderr.splitlines())) == (2, 1)
    assert "source repository" in ask.stderr


@pytest.fixture
def address(installed: Installed) -> Iterator[str]:
    """Return the address of the inspector, running on a database of its own."""
    database = ("--models", "pair", "--uri", "./inspected.db")
    ingest = installed.run("qwen3-rag", "ingest", "docs", *database)
    assert ingest.returncode == 0, ingest.stderr
    process = subprocess.Popen(
        [installed.commands / "qwen3-rag", "serve", "--no-browser", *database],
        cwd=installed.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "OPENAI_API_KEY": ""},
    )  # fmt: skip
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        found = re.match(r"Inspector at (http://\S+)/ ", line)
        assert found, line + process.stderr.read()
        yield found[1]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def test_the_inspector(address: str) -> None:
    """Serve the page with everything that it loads."""
    page = httpx.get(f"{address}/").text
    assert "<title>Inspector" in page
    static = ROOT / "src" / "llamaindex_qwen3" / "inspector" / "static"
    files = [file for file in static.iterdir() if file.name != "index.html"]
    assert files
    for file in files:
        assert httpx.get(f"{address}/static/{file.name}").content == file.read_bytes()
