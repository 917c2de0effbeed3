"""Every mistake that the command line itself tells of is explained where people look it up."""

from __future__ import annotations

import ast
import re

import pytest
from pages import ROOT, text_of

QUOTED = re.findall(r"^`(.+)`\n:   \S", text_of("docs/troubleshooting.md"), re.M)


def raised() -> list[str]:
    """Return what cli/ raises in words of its own, with … for what is put into them."""
    found = []
    for file in sorted((ROOT / "src/llamaindex_qwen3/cli").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            called = node.exc.func
            if isinstance(called, ast.Name) and called.id in ("InvalidArgumentError", "StoreError"):
                found.append(_text(node.exc.args[0]))
    return found


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
    return str(ast.literal_eval(node))


def test_there_are_messages() -> None:
    """Find what the next test goes through."""
    assert len(raised()) >= 6


@pytest.mark.parametrize("message", raised())
def test_each_is_explained(message: str) -> None:
    """Quote each in docs/troubleshooting.md, word for word."""
    patterns = (".*?".join(map(re.escape, re.split(r"…+", quoted))) for quoted in QUOTED)
    assert any(re.search(pattern, message, re.S) for pattern in patterns)
