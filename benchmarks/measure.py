"""Time contenders in turn, print a table, keep the figures."""

from __future__ import annotations

import gc
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
OURS = "llamaindex-qwen3"
console = Console()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a call takes, the device's queue included."""
    gc.collect()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each contender once per round, one after another; return seconds by contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, work in contenders.items():
            times[name].append(seconds(work))
            console.print(f"  round {number + 1}/{rounds}  {name}: {times[name][-1]:.3g} s")
    return times


def ratio(times: dict[str, list[float]], name: str, to: str = OURS) -> float:
    """Return how many times longer a contender takes: the median over rounds."""
    return statistics.median(
        theirs / ours for theirs, ours in zip(times[name], times[to], strict=True)
    )


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Return the machine's rate in FLOP/s: the best median over large products, both ways.

    On a CPU, torch's own product and oneDNN's with packed weights, which the engine uses.
    """
    from llamaindex_qwen3.engine.linear import PackedLinear, packs

    size = 4096 if device == "cpu" else 8192
    x, w = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: x @ w]
    with torch.inference_mode():
        if packs(w):
            packed = PackedLinear(w)
            part = x[:1024]
            ways += [lambda: [packed(part) for _ in range(4)]]
        rates = []
        for way in ways:
            way()
            rates.append(2 * size**3 / statistics.median(seconds(way) for _ in range(5)))
    return max(rates)


def report(name: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Print rows as a table and write them to results/ with what they were measured on."""
    table = Table(title=f"{name}: " + ", ".join(f"{k} {v}" for k, v in settings.items()))
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    file = "-".join(
        [name, *(str(settings[k]) for k in ("size", "dtype", "device", "count") if k in settings)]
    )
    data = {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "machine": machine(str(settings.get("device", "cpu"))),
        **settings,
        "rows": rows,
    }
    (RESULTS / f"{file}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else "benchmarks"


def machine(device: str) -> dict[str, Any]:
    """Name what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
