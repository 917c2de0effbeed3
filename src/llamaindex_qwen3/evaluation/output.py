"""A report as files in a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from .plots import write_plots
from .report import Report
from .tables import tables

_COLUMNS = 120


def write_report(report: Report, metric: str, folder: Path, data: Mapping[str, Any]) -> list[Path]:
    """Write the plots, the tables as results.txt and all data as results.json.

    Args:
        report: What to write.
        metric: The figure of `metrics.NAMES` that comparisons show.
        folder: Made if it is not there.
        data: What results.json holds.

    Returns:
        The files written.

    Raises:
        InvalidArgumentError: matplotlib is not installed, or the folder cannot be written to.
    """
    written = write_plots(report, metric, folder)
    text = io.StringIO()
    Console(file=text, width=_COLUMNS, emoji=False).print(tables(report, metric, _COLUMNS))
    for name, content in (
        ("results.json", json.dumps(data, indent=2, ensure_ascii=False)),
        ("results.txt", text.getvalue()),
    ):
        (folder / name).write_text(content.rstrip() + "\n", encoding="utf-8")
        written.append(folder / name)
    return written
