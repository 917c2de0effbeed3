"""Does what a page tells its reader to do, in a folder of its own.

The demo pair stands in for Qwen's models: it lies in a model hub's cache under their names, so that
code and commands run as they are written. Addresses that no test can have are replaced by those of
fake model servers and of Milvus Lite.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import command_checks
import commands
import httpx
import pytest
import yaml
from milvus_lite.server_manager import server_manager_instance
from pages import ROOT, Block, blocks
from shell import Shell
from test_serving_app import running_app

from llamaindex_qwen3.component import Qwen3Component

FAQ = ROOT / "examples" / "data" / "milvus_faq"
SIZES = ("0.6B", "4B", "8B")
FILES = ("index_types.md", "performance.md", "search.md", "storage.md")
QUESTIONS = 4
#: What pages use without saying where it comes from: what an app of the reader's has.
GIVEN = """
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
embed_model, uri, API_KEY = Settings.embed_model, "./tenants.db", "db_admin:secret"
"""
# Of a cluster that does not answer.
KUBECONFIG = """
{apiVersion: v1, kind: Config, current-context: none,
 clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}],
 contexts: [{name: none, context: {cluster: none, user: none}}], users: [{name: none, user: {}}]}
"""
# The address of the app in examples/serving.
APP = "http://127.0.0.1:8080"
SERVING = Path("examples", "serving")
MILVUS = {
    "http://localhost:19530": "./server.db",
    "http://milvus:19530": "./server.db",
    "https://….zillizcloud.com": "./cloud.db",
}


def fill_hub(cache: Path) -> None:
    """Put the demo pair into a hub's cache under the names of Qwen's models."""
    for role in ("embedding", "reranker"):
        for size in SIZES:
            model = cache / f"models--Qwen--Qwen3-{role.capitalize()}-{size}"
            (model / "refs").mkdir(parents=True)
            (model / "refs" / "main").write_text("0" * 40)
            (model / "snapshots").mkdir()
            (model / "snapshots" / ("0" * 40)).symlink_to(ROOT / "examples" / "demo_models" / role)


class Reader:
    """Reads pages, and does what they say.

    Args:
        folder: Where it is done.
        cache: A filled cache of a model hub.
        openai: Address of a server that answers as OpenAI does.
        servers: Model servers in place of those that pages name.
        on_ray: Whether actors may be started on this machine.
    """

    def __init__(
        self, folder: Path, cache: Path, openai: str, servers: dict[str, str], on_ray: bool = False
    ) -> None:
        self.folder, self.on_ray = folder, on_ray
        self.replaced = {**MILVUS, **servers}
        if on_ray:
            # Two cores are what any machine has.
            self.replaced |= {
                "ray-head:6379": "local", "actors=8": "actors=2", "--actors\0008": "--actors\0002",
            }  # fmt: skip
        self.environment = {
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": openai,
            "OPENAI_API_BASE": openai,
            "LLM_URL": openai,
            "KUBECONFIG": str(folder / "kubeconfig"),
        }
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.section = ""
        self.first: dict[str, Any] = {}
        self.done: list[str] = []
        (folder / "docs").mkdir()
        for name in FILES:
            shutil.copy(FAQ / name, folder / "docs")
        (folder / "manuals").mkdir()
        (folder / "manuals" / "pump.md").write_text("# Pump\n## Start\nPress the green button.\n")
        (folder / "examples").mkdir()
        for each in (ROOT / "examples").iterdir():
            (folder / "examples" / each.name).symlink_to(each)
        # A page copies a file in there.
        (folder / "examples" / "serving").unlink()
        shutil.copytree(ROOT / "examples" / "serving", folder / "examples" / "serving")
        (folder / "kubeconfig").write_text(KUBECONFIG)
        questions = (FAQ / "questions.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / "questions.jsonl").write_text("\n".join(questions[:QUESTIONS]) + "\n")

    def begin(self) -> None:
        """Do what the first page shows, whose names the others use."""
        self.python(next(block for block in blocks("README.md") if block.language == "python"))

    def turn_to(self, section: str) -> None:
        """Begin another section of the README, each of which builds on the first one alone."""
        if section != self.section:
            self.section, self.names = section, dict(self.first or self.names)

    def read(self, block: Block, before: str) -> str:
        """Do what a block says, and return what it prints.

        Args:
            block: The block.
            before: What the block before it printed, which a block of text must show.
        """
        if block.language == "python":
            return self.python(block)
        if block.language == "diff":
            new = [line[1:] for line in block.text.splitlines() if not line.startswith("-")]
            self.python(Block(block.page, block.line, "python", "\n".join(new)))
        elif block.language == "sh":
            for command in commands.split(block.text):
                self.shell(command)
        elif block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)
        elif before:
            assert block.text == before, "the page shows another output"
        return ""

    def python(self, block: Block) -> str:
        """Run code, and return what it prints."""
        code = self._replace(block.text)
        printed = io.StringIO()
        # Lines are counted as the page does, for the traceback.
        source = compile("\n" * block.line + code, str(ROOT / block.page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(source, self.names)
        self._contact_servers()
        if not self.first:
            exec(GIVEN, self.names)
            self.first = dict(self.names)
        self.done.append(code)
        return printed.getvalue()

    def _contact_servers(self) -> None:
        """Use what code has only made: a component whose model a server runs."""
        from llama_index.core import Settings

        for value in [Settings._embed_model, *self.names.values()]:
            if isinstance(value, Qwen3Component) and value.base_url is not None:
                value.load()

    def shell(self, command: commands.Command) -> None:
        """Run a command, or check what another test runs, or none."""
        marker = commands.fate(command).marker
        if marker != "" and not (self.on_ray and marker == "ray"):
            command_checks.check(command)
            return
        words = self._replace("\0".join(command.words)).split("\0")
        if command.name == "python":
            self._process([sys.executable, *words[1:]], command.variables)
        elif command.name != "qwen3-rag":
            self._line(command)
        elif words[1] == "serve":
            self._serve(words[1:])
        else:
            self._qwen3_rag(words[1:])
        self.done.append(str(command))

    def _line(self, command: commands.Command) -> None:
        """Run a line in a shell, as far as no container and no cluster is needed."""
        folder = self.folder / command.folder.relative_to(ROOT)
        started = commands.in_container(command)
        if started:
            command_checks.check(command)
            # A folder of one page, which takes a second to embed.
            given = [
                re.sub("^(/tmp)?/docs$", str(self.folder / "manuals"), each) for each in started
            ]
            self._process([sys.executable, *given[1:]], {}, self.folder / SERVING)
        elif command.name == "curl":
            with running_app({**os.environ, **self.environment}, self.folder / SERVING) as url:
                told = self._bash(command.line.replace(APP, url), folder)
            assert json.loads(told.splitlines()[-1]) == {"done": True}, told
        elif command.words[:2] == ("kubectl", "create"):
            made = yaml.safe_load(self._bash(f"{command.line} --dry-run=client -o yaml", folder))
            assert made["metadata"]["name"] in command.words
            assert all(made.get("data", {"none": "given"}).values()), made
        else:
            self._bash(command.line, folder)

    def _bash(self, line: str, folder: Path) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=folder,
            env={**os.environ, **self.environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _replace(self, text: str) -> str:
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def _qwen3_rag(self, words: list[str]) -> None:
        if words[0] == "verify":
            # Nothing is published for the demo pair.
            words = ["demo" if word in ("0.6b", "4b", "8b") else word for word in words]
        done = Shell(self.folder).run(
            *words, stdin="Where are rows kept?\n", QWEN3_RAG_URI="./milvus_qwen3.db",
            **self.environment,
        )  # fmt: skip
        assert done.code == 0, done.out + done.err
        assert done.out.strip()

    def _process(
        self, words: list[str], variables: dict[str, str], folder: Path | None = None
    ) -> None:
        server_manager_instance.release_all()
        done = subprocess.run(
            words,
            cwd=folder or self.folder,
            env={**os.environ, **self.environment, **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()

    def _serve(self, words: list[str]) -> None:
        """Open the page, as a browser would, and end it."""
        # Milvus Lite serves one process at a time.
        server_manager_instance.release_all()
        service = subprocess.Popen(
            [sys.executable, "-m", "llamaindex_qwen3.cli", *words, "--no-browser"],
            cwd=self.folder,
            env={**os.environ, **self.environment, "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert service.stdout
            line = next((each for each in service.stdout if "Inspector at" in each), "")
            address = re.search(r"http://\S+", line)
            assert address, service.communicate()
            assert "<html" in httpx.get(address[0], follow_redirects=True, timeout=60).text
            service.send_signal(signal.SIGINT)
            _, errors = service.communicate(timeout=60)
        finally:
            service.kill()
            service.communicate()
        assert "Traceback" not in errors


@contextmanager
def at_work(reader: Reader) -> Iterator[Reader]:
    """Put this process into the reader's folder, with the reader's settings."""
    from huggingface_hub import constants
    from llama_index.core import Settings

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reader.folder)
        for name, value in reader.environment.items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_CACHE", reader.environment["HF_HUB_CACHE"])
        for name in ("_llm", "_embed_model", "_node_parser", "_transformations"):
            patch.setattr(Settings, name, None)
        try:
            yield reader
        finally:
            server_manager_instance.release_all()
