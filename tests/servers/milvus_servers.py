"""Real Milvus servers for tests: a standalone server and Milvus Lite's server.

`python tests/servers/milvus_servers.py standalone` starts one in the foreground.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# At module level only the standard library: the standalone server's environment runs this file too.

REQUIREMENT = "milvus==2.3.5"
CACHE = (
    Path(os.environ.get("LLAMAINDEX_QWEN3_MILVUS", "~/.cache/llamaindex-qwen3/milvus-2.3.5"))
    .expanduser()
    .resolve()
)
START_SECONDS = 180
STOP_SECONDS = 10
_RELAY, _LITE = "--serve-and-relay", "--serve-lite"

# The server binds all its ports on every interface and writes a pid file below /run: it gets a
# network and a /run of its own, which are gone with its last process.
_ISOLATED = [
    "unshare", "--net", "--mount", *(["--map-root-user"] if os.geteuid() else []),
    "sh", "-c", 'ip link set lo up && mount -t tmpfs tmpfs /run && exec "$@"', "sh",
]  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        uri: Its address, on 127.0.0.1.
        token: What it wants as token; empty for a server that asks for none.
        pid: The process to kill for a crash of the server.
    """

    uri: str
    token: str
    pid: int


@functools.cache
def unavailable() -> str | None:
    """Say why the standalone server cannot run here; install it where it can.

    Returns:
        The reason, or None if `standalone` can be used.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"{REQUIREMENT} exists for Linux on x86-64 only"
    missing = [name for name in ("unshare", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"no command {', '.join(missing)}"
    probe = subprocess.run([*_ISOLATED, "true"], capture_output=True, text=True)
    if probe.returncode:
        return f"no network namespace of its own (it needs root or user namespaces): {probe.stderr.strip()}"
    return _install()


@contextmanager
def standalone(data_dir: Path) -> Iterator[Server]:
    """Run a standalone server with authorization in a network namespace of its own.

    Args:
        data_dir: A path where nothing is yet, for its data and log; removed at the end.

    Yields:
        The server, reachable through a relay on a free port of 127.0.0.1.

    Raises:
        RuntimeError: It cannot run here, or does not answer.
    """
    reason = unavailable()
    if reason:
        raise RuntimeError(reason)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [*_ISOLATED, str(CACHE / "bin" / "python"), __file__, _RELAY]
        # A socket stays in the namespace where it was made: the relay takes connections here on
        # the one it inherits, and makes its own to the server in there.
        command += [str(listener.fileno()), str(data_dir)]
        with _running(command, data_dir, listener.fileno()) as process:
            # Once the relay has ended, connections must be refused, not left waiting.
            listener.close()
            _wait_until_it_answers(uri, "root:Milvus", process, data_dir)
            yield Server(uri, "root:Milvus", int((data_dir / "pid").read_text()))


@contextmanager
def lite_server(data_dir: Path) -> Iterator[Server]:
    """Run Milvus Lite as a server for several processes; it knows no tokens.

    Args:
        data_dir: A path where nothing is yet, for its data and log; removed at the end.

    Yields:
        The server, on a free port of 127.0.0.1.

    Raises:
        RuntimeError: It does not answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, __file__, _LITE, "--data-dir", str(data_dir / "data")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with _running(command, data_dir) as process:
        uri = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(uri, "", process, data_dir)
        yield Server(uri, "", process.pid)


def _install() -> str | None:
    """Install the standalone server unless it is there; return why it cannot be."""
    if (CACHE / "bin" / "milvus-server").exists():
        return None
    commands: list[list[str]] = [
        [sys.executable, "-m", "venv", str(CACHE)],
        [str(CACHE / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{REQUIREMENT} cannot be installed: {(done.stderr or done.stdout).strip()}"
    return None


@contextmanager
def _running(
    command: Sequence[str], data_dir: Path, *descriptors: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, and at the end stop it with all its children and remove its data."""
    data_dir.mkdir(parents=True)
    with (data_dir / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=descriptors,
            # A group of its own: Ctrl-C in a terminal must not end it before its tests.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(data_dir)


def _wait_until_it_answers(
    uri: str, token: str, process: subprocess.Popen[bytes], data_dir: Path
) -> None:
    """Return once a real request is answered."""
    from grpc import RpcError
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client = MilvusClient(uri, token=token, timeout=5)
            try:
                client.list_collections(timeout=5)
            finally:
                client.close()
            return
        except (MilvusException, RpcError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (data_dir / "log").read_text(errors="replace")
                raise RuntimeError(
                    f"The server does not answer. Its log:\n{log[-4000:]}"
                ) from error
            time.sleep(0.2)


def _serve_and_relay(listener: socket.socket, data_dir: Path) -> None:
    """Run the standalone server, and relay connections to it, until told or it ends."""
    from milvus import MilvusServer

    # The server unpacks its programs, most of its files, into "bin": once for all runs.
    (CACHE / "unpacked").mkdir(exist_ok=True)
    (data_dir / "bin").symlink_to(CACHE / "unpacked")
    server = MilvusServer(wait_for_started=False)
    server.set_base_dir(str(data_dir))
    server.config.set("authorization_enabled", True)
    server.start()
    pid = server.server_proc.pid
    (data_dir / "pid").write_text(str(pid))
    try:
        asyncio.run(_relay(listener, server.listen_port, server.server_proc))
    finally:
        server.stop()
        # The one file that it writes elsewhere, at a fixed place.
        leftover = Path(f"/tmp/milvus/server_id_{pid}")
        leftover.unlink(missing_ok=True)
        with suppress(OSError):
            leftover.parent.rmdir()


async def _relay(
    listener: socket.socket, port: int, server_process: subprocess.Popen[bytes]
) -> None:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))

    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, told.set)
    # Nothing is ever written to this pipe: it is readable when the process at its other end is gone.
    loop.add_reader(sys.stdin, told.set)
    await asyncio.start_server(handle, sock=listener)
    while server_process.poll() is None and not told.is_set():
        await asyncio.sleep(0.1)


def _serve_lite(arguments: list[str]) -> None:
    """Run Milvus Lite's server, until told or our parent ends."""
    from milvus_lite.cmdline import main as milvus_lite

    def end_with_parent() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGINT)

    # A job in a shell's background ignores SIGINT, and so do the processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=end_with_parent, daemon=True).start()
    milvus_lite(["server", *arguments])


def main() -> None:
    """Run one server in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["standalone", "lite-server"])
    run = standalone if parser.parse_args().kind == "standalone" else lite_server
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory() as folder,
        run(Path(folder) / "milvus") as server,
    ):
        print(f"uri={server.uri} token={server.token!r} pid={server.pid}", flush=True)
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == [_RELAY]:
        _serve_and_relay(socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[3]))
    elif sys.argv[1:2] == [_LITE]:
        _serve_lite(sys.argv[2:])
    else:
        main()
