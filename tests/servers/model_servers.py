"""Real model servers for tests: vLLM as embedder and as reranker, infinity as embedder.

`python -m servers.model_servers vllm DIRECTORY` in tests/ starts one in the foreground.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .model_environments import Kind, directory, unavailable

Role = Literal["embedding", "reranker"]

MODEL = "model"  # the name that a model is served by, unless a test gives another
START_SECONDS = 240
STOP_SECONDS = 10
LOG_LINES = 200  # the cause of a failed start of vLLM stands far above its last traceback

# What makes vLLM score by the logits of two tokens, as the reranker is meant to be read.
RERANKER_OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}

_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}
_INFINITY_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "OMP_NUM_THREADS": "1",
}

_WATCH = "--watch"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        base_url: Its address on 127.0.0.1, without /v1.
        pid: Leader of the process group to kill for a crash of the server.
        log: What it has printed so far.
    """

    base_url: str
    pid: int
    log: Path

    def crash(self) -> None:
        """Kill the server with all its processes, as a machine that fails would."""
        _kill_group(self.pid)


@contextmanager
def vllm(
    model_dir: Path,
    role: Role,
    data_dir: Path,
    *,
    chat_template: Path | None = None,
    served_model_name: str = MODEL,
    api_key: str | None = None,
    port: int | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Server]:
    """Run vLLM on the CPU in float32.

    Args:
        model_dir: A checkpoint, with heads of 32 dimensions or more.
        role: "reranker" makes it a classifier that scores by the logits of yes and no.
        data_dir: A directory for the log.
        chat_template: File of the template that /v1/rerank puts its texts into.
        served_model_name: What requests call the model.
        api_key: Key that it asks for.
        port: Where to listen; None takes a free one.
        arguments: More of its arguments, which win over those given here.

    Yields:
        The server, on 127.0.0.1, once it has answered a real request.

    Raises:
        RuntimeError: It cannot run here, or does not answer.
    """
    port = port or free_port()
    command = [
        "python", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
        "--model", str(model_dir), "--served-model-name", served_model_name, "--runner", "pooling",
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8",
    ]  # fmt: skip
    if role == "reranker":
        command += ["--hf-overrides", json.dumps(RERANKER_OVERRIDES)]
    if chat_template is not None:
        command += ["--chat-template", str(chat_template)]
    # Not an argument: every user of the machine can read those.
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    with vllm_as_told(
        [*command, *arguments], role, data_dir, port=port, served_model_name=served_model_name,
        api_key=api_key, environment=key,
    ) as server:  # fmt: skip
        yield server


@contextmanager
def vllm_as_told(
    command: Sequence[str],
    role: Role,
    data_dir: Path,
    *,
    port: int,
    served_model_name: str,
    environment: Mapping[str, str],
    api_key: str | None = None,
) -> Iterator[Server]:
    """Run vLLM by a command of one's own.

    Args:
        command: A program of vLLM's virtual environment, and its arguments.
        role: What the command makes of the model.
        data_dir: A directory for the log.
        port: Where the command has it listen.
        served_model_name: What requests call the model.
        environment: More variables, which win over those that a CPU needs.
        api_key: Key to send.

    Yields:
        The server, on 127.0.0.1, once it has answered a real request.

    Raises:
        RuntimeError: It cannot run here, or does not answer.
    """
    path = "/classify" if role == "reranker" else "/v1/embeddings"
    request = {"model": served_model_name, "input": ["ready?"]}
    with _running("vllm", command, {**_VLLM_ENVIRONMENT, **environment}, data_dir, port) as server:
        _wait_until_it_answers(server, path, request, api_key)
        yield server


@contextmanager
def infinity(
    model_dir: Path,
    data_dir: Path,
    *,
    served_model_name: str = MODEL,
    api_key: str | None = None,
    port: int | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Server]:
    """Run infinity on the CPU in float32, as embedder.

    Args:
        model_dir: A checkpoint that transformers 4 reads: with `rope_theta` in its config.json.
        data_dir: A directory for the log.
        served_model_name: What it calls the model; it takes every name.
        api_key: Key that it asks for.
        port: Where to listen; None takes a free one.
        arguments: More of its arguments.

    Yields:
        The server, on 127.0.0.1, once it has answered a real request.

    Raises:
        RuntimeError: It cannot run here, or does not answer.
    """
    port = port or free_port()
    command = [
        "infinity_emb", "v2", "--host", "127.0.0.1", "--port", str(port),
        "--model-id", str(model_dir), "--served-model-name", served_model_name,
        "--engine", "torch", "--device", "cpu", "--dtype", "float32",
        "--no-bettertransformer", "--no-model-warmup",
    ]  # fmt: skip
    environment = _INFINITY_ENVIRONMENT
    if api_key is not None:
        environment = {**environment, "INFINITY_API_KEY": api_key}
    request = {"model": served_model_name, "input": ["ready?"]}
    with _running("infinity", [*command, *arguments], environment, data_dir, port) as server:
        _wait_until_it_answers(server, "/embeddings", request, api_key)
        yield server


@contextmanager
def _running(
    kind: Kind,
    command: Sequence[str],
    environment: Mapping[str, str],
    data_dir: Path,
    port: int,
) -> Iterator[Server]:
    """Run a server, and at the end, or with this process, stop it with all its children."""
    reason = unavailable(kind)
    if reason:
        raise RuntimeError(reason)
    data_dir.mkdir(parents=True, exist_ok=True)
    program, *arguments = command
    # A short path, because that of a Unix socket may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="qwen3-") as temporary:
        with (data_dir / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(directory(kind) / "bin" / program), *arguments],
                cwd=data_dir,
                env={**_inherited(), **environment, "TMPDIR": temporary},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A group of its own: Ctrl-C in a terminal must not end it before its tests.
                start_new_session=True,
            )
        watch = subprocess.Popen(
            [sys.executable, "-m", "servers.model_servers", _WATCH, str(process.pid)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            yield Server(f"http://127.0.0.1:{port}", process.pid, data_dir / "log")
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            watch.communicate()
            process.wait()


def _watch(group: int) -> None:
    """Kill a process group once nobody holds the other end of standard input."""
    sys.stdin.read()
    _kill_group(group)


def _kill_group(group: int) -> None:
    while members := _members(group):
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    """Return a group's processes, but for Python's own that frees their shared memory and ends."""
    members = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            numbers = (process / "stat").read_text().rpartition(")")[2].split()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        state, _, of_group = numbers[:3]
        if int(of_group) == group and state != "Z" and b"resource_tracker" not in command:
            members.append(int(process.name))
    return members


def _inherited() -> dict[str, str]:
    """The environment without what is meant for this Python or for other servers."""
    unwanted = ("PYTHON", "VIRTUAL_ENV", "VLLM_", "INFINITY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


def _wait_until_it_answers(
    server: Server, path: str, request: Mapping[str, Any], api_key: str | None
) -> None:
    """Return once a real request is answered: /health is well before the model is."""
    import httpx

    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    deadline = time.monotonic() + START_SECONDS
    fault = ""
    with httpx.Client(base_url=server.base_url, headers=headers, timeout=30) as client:
        while not _ended(server.pid) and time.monotonic() < deadline:
            try:
                answer = client.post(path, json=request)
                if answer.is_success:
                    return
                fault = f"{answer.status_code} {answer.text[:500]}"
            except httpx.TransportError as error:
                fault = str(error)
            time.sleep(0.2)
    log = "\n".join(server.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise RuntimeError(f"The server does not answer POST {path}: {fault}. Its log:\n{log}")


def _ended(pid: int) -> bool:
    """Whether a child has ended; it stays for its Popen to collect."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def main() -> None:
    """Run one server in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["vllm", "infinity"])
    parser.add_argument("model_dir", type=Path, help="directory of a checkpoint")
    parser.add_argument("--role", choices=["embedding", "reranker"], default="embedding")
    parser.add_argument("--chat-template", type=Path, help="file of vLLM's template for /v1/rerank")
    parser.add_argument("--served-model-name", default=MODEL)
    parser.add_argument("--port", type=int, help="default: a free one")
    given, more = parser.parse_known_args()
    model_dir = given.model_dir.resolve()
    options: dict[str, Any] = {
        "served_model_name": given.served_model_name, "port": given.port, "arguments": more,
    }  # fmt: skip
    # A job in a shell's background ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        if given.kind == "infinity":
            running = infinity(model_dir, Path(folder), **options)
        else:
            template = given.chat_template and given.chat_template.resolve()
            running = vllm(model_dir, given.role, Path(folder), chat_template=template, **options)
        with running as server:
            print(f"base_url={server.base_url} pid={server.pid} log={server.log}", flush=True)
            signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == [_WATCH]:
        _watch(int(sys.argv[2]))
    else:
        main()
