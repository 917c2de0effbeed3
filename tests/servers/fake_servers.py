"""Fake model servers for tests: real HTTP servers in a process of their own, on 127.0.0.1.

They speak the documented shapes of vLLM, TEI, infinity and OpenAI-compatible servers, fail in
the ways they are told to, and record what they were asked.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .fake_faults import EMBEDDING_FAULTS, LIST_FAULTS, SCORE_FAULTS
from .fake_model import hashed_vector

__all__ = [
    "EMBEDDING_FAULTS",
    "LIST_FAULTS",
    "SCORE_FAULTS",
    "FakeServer",
    "FakeServers",
    "hashed_vector",
    "running",
]

# A model has to be loaded in it.
TIMEOUT_S = 120.0
UNTIL_S = 15.0


class FakeServers:
    """The process, and a way to start servers in it."""

    def __init__(self, port: int) -> None:
        self._port = port

    def order(self, timeout_s: float = TIMEOUT_S, **order: Any) -> Any:
        """Have the process do something, and return what it says."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            connection.request("POST", "/", json.dumps(order))
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{order}: {response.status} {text[:300]!r}")
        return json.loads(text)

    def start(self, kind: str, directory: Path, **settings: Any) -> FakeServer:
        """Start a server of a checkpoint; for settings see `fake_model.Settings`."""
        made = self.order(do="create", kind=kind, directory=str(directory), **settings)
        return FakeServer(self, made["fake"], made["port"], settings.get("prefix", ""))


class FakeServer:
    """One server.

    Attributes:
        url: Its address, with its prefix.
    """

    def __init__(self, servers: FakeServers, number: int, port: int, prefix: str) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}{prefix}"
        self._servers, self._number = servers, number

    def _order(self, action: str, timeout_s: float = TIMEOUT_S, **order: Any) -> Any:
        return self._servers.order(timeout_s, do=action, fake=self._number, **order)

    def change(self, **settings: Any) -> None:
        """Change its settings."""
        self._order("change", **settings)

    def stop(self) -> None:
        """Refuse connections and break off those there are."""
        self._order("stop")

    def start(self) -> None:
        """Listen again on the same port."""
        self._order("start")

    def restart(self, pause_s: float) -> None:
        """Stop, and listen again after a pause."""
        self._order("restart", pause_s=pause_s)

    def release(self, count: int | None = None) -> None:
        """Answer the oldest held requests; None answers all and holds no more."""
        self._order("release", count=count)

    def until(self, count: int, key: str = "posts") -> dict[str, int]:
        """Wait until it has had so many POSTs, or so many are "held"; return all counts."""
        counts: dict[str, int] = self._order("until", UNTIL_S, key=key, count=count)
        return counts

    def counts(self) -> dict[str, int]:
        """Return "requests", "posts", "faults", "held", "in_flight" now and its "peak"."""
        return self.until(0)

    def requests(self, method: str = "") -> list[dict[str, Any]]:
        """Return the record of its requests in order: method, path, headers, body, ids, and so on."""
        records: list[dict[str, Any]] = self._order("requests")
        return [record for record in records if record["method"].startswith(method)]

    def end(self) -> None:
        """Stop and forget."""
        self._order("end")


@contextmanager
def running() -> Iterator[FakeServers]:
    """Run the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "servers.fake_process"],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the fake servers does not start; see its output")
        yield FakeServers(int(line))
    finally:
        process.kill()
        process.communicate()
