"""The command line in a folder with pages, a pair of tiny models and, when ingested, a database."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from milvus_lite.server_manager import server_manager_instance
from typer.testing import CliRunner

from llamaindex_qwen3 import cli

PAGES = {
    "storage.md": "# Storage\n## Where rows live\nRows are kept in a bucket of object storage.\n"
    "## Metadata\nSchemas are kept in etcd [not in the bucket].\n",
    "search.md": "# Search\n## Filters\nA filter keeps the rows that match a condition.\n"
    "## Paging\nAn offset skips the first results of a search.\n",
}
COMMAND = [sys.executable, "-m", "llamaindex_qwen3.cli"]
SETTINGS = {
    "OPENAI_API_KEY": "",
    "OPENAI_BASE_URL": "",
    "QWEN3_RAG_URI": "./milvus_qwen3.db",
    "QWEN3_RAG_DEBUG": "",
    "COLUMNS": "120",
    "NO_COLOR": "1",
    "FORCE_HYPERLINK": "0",
}
OTHER_DATABASE = {"QWEN3_RAG_URI": "./other.db"}
_WAIT_S = 120
# Makes the terminal the one whose Ctrl-C reaches the process.
_ON_TERMINAL = (
    "import fcntl, runpy, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "runpy.run_module('llamaindex_qwen3.cli', run_name='__main__', alter_sys=True)"
)


class Result(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


class Shell(NamedTuple):
    """A folder, and commands that run in it.

    Milvus Lite serves one process at a time, so other processes have a database of their own.
    """

    folder: Path

    def process(self, *args: str, stdin: str = "", **environment: str) -> Result:
        """Run a command in a process of its own, with pipes."""
        done = subprocess.run(
            [*COMMAND, *args],
            cwd=self.folder,
            capture_output=True,
            text=True,
            input=stdin,
            env={**os.environ, **SETTINGS, **OTHER_DATABASE, **environment},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def run(self, *args: str, stdin: str = "", **environment: str) -> Result:
        """Run a command in this process, which saves the start of one."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in {**SETTINGS, **environment}.items():
                patch.setenv(name, value)
            # The consoles looked at the terminal when they were made.
            for console in (cli.app.out, cli.app.err):
                patch.setattr(console, "width", int(environment.get("COLUMNS", "120")))
            done = CliRunner().invoke(cli.app.app, args, input=stdin)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)

    @contextmanager
    def terminal(self, *args: str, **environment: str) -> Iterator[Terminal]:
        """Run a command on a terminal of its own."""
        with Terminal(self.folder, args, environment) as terminal:
            yield terminal


class Terminal:
    """A command that believes it talks to a person."""

    def __init__(self, folder: Path, args: tuple[str, ...], environment: dict[str, str]) -> None:
        settings = {**os.environ, **SETTINGS, **OTHER_DATABASE, **environment}
        settings.setdefault("TERM", "xterm-256color")
        for name in ("FORCE_HYPERLINK", "NO_COLOR"):
            if name not in environment:
                del settings[name]
        self._end, other = pty.openpty()
        # In one of no size some progress bars would not show.
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *args], cwd=folder, env=settings,
            stdin=other, stdout=other, stderr=other, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.raw = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)

    @property
    def text(self) -> str:
        """What was shown so far, without the codes that drive the terminal."""
        links = re.sub(r"\x1b\]8;[^\x1b]*\x1b\\", "", self.raw)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", links).replace("\r\n", "\n")

    def until(self, shown: str, times: int = 1) -> None:
        """Read until a text was shown so often."""
        end = time.monotonic() + _WAIT_S
        while self.text.count(shown) < times:
            assert time.monotonic() < end, f"{shown!r} was not shown: {self.text}"
            assert self._read(), f"it ended before {shown!r}: {self.text}"

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._end, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("\x03")

    def wait(self) -> int:
        """Read to the end, and return the exit code."""
        end = time.monotonic() + _WAIT_S
        while self._read():
            assert time.monotonic() < end, f"it did not end: {self.text}"
        assert "Traceback" not in self.text, self.text
        return self.process.wait(_WAIT_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._end], [], [], 1.0)
        if not ready:
            return self.process.poll() is None
        try:
            data = os.read(self._end, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def filled_shell(folder: Path, embedding: Path, reranker: Path) -> Iterator[Shell]:
    """Make a folder whose pages are stored in its default database."""
    shutil.copytree(embedding, folder / "pair" / "embedding")
    shutil.copytree(reranker, folder / "pair" / "reranker")
    (folder / "docs").mkdir()
    for name, text in PAGES.items():
        (folder / "docs" / name).write_text(text)
    shell = Shell(folder)
    done = shell.process("ingest", "docs", "--models", "pair")
    assert done.code == 0, done.err
    assert "Stored 4 chunks of 2 files" in done.out
    assert done.err == ""
    shutil.copytree(folder / "other.db", folder / "milvus_qwen3.db")
    yield shell
    server_manager_instance.release_all()
