"""Kill an ingest at random moments, run it again, and compare with an undisturbed one.

    python tests/kill_ingest.py --runs 20                  Milvus Lite
    python tests/kill_ingest.py --runs 5 --server          a standalone server

Uses the demo embedding model, so that what is embedded costs little.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient
from rich.console import Console
from rich.table import Table
from servers import milvus_servers

FAQ = Path(__file__).parent.parent / "examples" / "data" / "milvus_faq"
SECTIONS = 10
Rows = dict[str, tuple[str, str, list[float]]]


def make_folder(folder: Path, chunks: int) -> None:
    """Write Markdown files with this many sections in all."""
    rng = random.Random(0)
    words = " ".join(page.read_text("utf-8") for page in sorted(FAQ.glob("*.md"))).split()
    folder.mkdir()
    for i in range(chunks // SECTIONS):
        parts = []
        for j in range(SECTIONS):
            start = rng.randrange(len(words) - 60)
            parts.append(f"# Part {j} of {i}\n\n{' '.join(words[start : start + 60])}\n")
        text = "\n".join(part.replace("\n#", "\n") if k else part for k, part in enumerate(parts))
        (folder / f"file_{i:04}.md").write_text(text, encoding="utf-8")


def start(folder: Path, uri: str, token: str, collection: str) -> subprocess.Popen[str]:
    """Start the command line's ingest in a process group of its own."""
    command = [sys.executable, "-m", "llamaindex_qwen3.cli", "ingest", str(folder)]
    command += ["--models", "demo", "--uri", uri, "--collection", collection]
    return subprocess.Popen(
        command,
        env={**os.environ, "MILVUS_TOKEN": token, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for an ingest and return its report."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the ingest failed with {process.returncode}: {out}")
    return out.strip()


def read_rows(uri: str, token: str, collection: str) -> Rows:
    """Read all rows: text, node and vector by id."""
    client = MilvusClient(uri=uri, token=token)
    rows: Rows = {}
    if client.has_collection(collection):
        client.load_collection(collection)
        fields = ["id", "text", "_node_content", "embedding"]
        # In parts: a server does not send everything at once.
        for digit in "0123456789abcdef":
            for row in client.query(collection, filter=f'id like "{digit}%"', output_fields=fields):
                if row["id"] in rows:
                    raise SystemExit(f"two rows have the id {row['id']}")
                rows[row["id"]] = (row["text"], row["_node_content"], row["embedding"])
        # What is stored, not only what these ids show.
        (count,) = client.query(collection, filter="", output_fields=["count(*)"])
        if count["count(*)"] != len(rows):
            raise SystemExit(f"{count['count(*)']} rows, {len(rows)} of them found")
    client.close()
    if "://" not in uri:
        server_manager_instance.release_server(uri)
    return rows


def differences(rows: Rows, expected: Rows) -> str:
    """Say how two sets of rows differ; empty if they do not."""
    missing, extra = len(expected.keys() - rows.keys()), len(rows.keys() - expected.keys())
    both = rows.keys() & expected.keys()
    changed = sum(rows[i][:2] != expected[i][:2] for i in both)
    far = sum(
        max(abs(a - b) for a, b in zip(rows[i][2], expected[i][2], strict=True)) > 1e-5
        for i in both
    )
    found = {"missing": missing, "extra": extra, "changed": changed, "other vectors": far}
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def run(
    runs: Annotated[int, typer.Option(help="Kills.")] = 20,
    chunks: Annotated[int, typer.Option(help="Chunks of the folder.")] = 3000,
    server: Annotated[bool, typer.Option(help="A standalone server in place of Lite.")] = False,
    seed: int = 0,
) -> None:
    """Kill and compare; exit with 1 if any run ends with other rows."""
    if server and (reason := milvus_servers.unavailable()):
        raise SystemExit(reason)
    rng = random.Random(seed)
    table = Table("run", "killed after, s", "rows then", "second run", "rows", "result")
    failed = 0
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder, token = directory / "docs", ""
        make_folder(folder, chunks)
        address = None
        if server:
            running = stack.enter_context(milvus_servers.standalone(directory / "server"))
            address, token = running.uri, running.token

        def place(name: str) -> tuple[str, str]:
            return (address, name) if address else (str(directory / f"{name}.db"), "docs")

        uri, collection = place("undisturbed")
        began = time.monotonic()
        print(finish(start(folder, uri, token, collection)))
        whole = time.monotonic() - began
        expected = read_rows(uri, token, collection)
        for number in range(1, runs + 1):
            uri, collection = place(f"run{number}")
            process = start(folder, uri, token, collection)
            # Half of an ingest this small is the start of Python; most kills should come later.
            moment = rng.uniform(0.25, 1.0) * whole
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            before = read_rows(uri, token, collection) if address or Path(uri).exists() else {}
            report = finish(start(folder, uri, token, collection))
            rows = read_rows(uri, token, collection)
            wrong = differences(rows, expected)
            failed += bool(wrong)
            told = report.partition("(")[2].rstrip(").")
            table.add_row(
                str(number),
                f"{moment:.1f}",
                str(len(before)),
                told,
                str(len(rows)),
                wrong or "equal",
            )
            print(number, f"{moment:.1f} s", len(before), report, wrong or "equal", flush=True)
            if address:
                MilvusClient(uri=uri, token=token).drop_collection(collection)
            else:
                shutil.rmtree(uri, ignore_errors=True)
    Console().print(table)
    print(json.dumps({"runs": runs, "chunks": chunks, "server": server, "failed": failed}))
    raise SystemExit(failed > 0)


def main(argv: Any = None) -> None:
    """Run the command line."""
    typer.run(run)


if __name__ == "__main__":
    main()
