"""The two consoles: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from ..errors import InvalidArgumentError, Qwen3Error

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

# Terminals that would show the escape sequence of a link instead of reading it.
_WITHOUT_LINKS = ("dumb", "linux", "unknown", "vt100", "vt220")


class WrongArgumentError(InvalidArgumentError):
    """An argument that could not be right whatever is stored; the command ends with exit code 2."""


@contextmanager
def arguments() -> Iterator[None]:
    """Take what is wrong for a mistake in the call; nothing is loaded yet."""
    try:
        yield
    except Qwen3Error as error:
        raise WrongArgumentError(str(error)) from error


def print_json(data: Any) -> None:
    """Print a value as JSON for another program."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_json_line(data: Any) -> None:
    """Print a value as one line of JSON, at once."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal what is being waited for, until it is there."""
    if not err.is_terminal or err.is_dumb_terminal:
        yield
        return
    with err.status(f"[dim]{what}[/]"):
        yield


def shows_links() -> bool:
    """Whether the terminal of standard output can make text a link (OSC 8)."""
    forced = os.environ.get("FORCE_HYPERLINK")
    if forced is not None:
        return forced not in ("", "0")
    return out.is_terminal and os.environ.get("TERM", "dumb") not in _WITHOUT_LINKS
