"""Collect training pairs (title, body) from the documentation of installed Python packages."""

from __future__ import annotations

import ast
import gzip
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from importlib import metadata
from pathlib import Path

MIN_BODY, MAX_BODY = 120, 1200  # characters


@dataclass(frozen=True)
class Pair:
    """One passage and the line that introduces it; `source` groups passages of one topic."""

    source: str
    title: str
    body: str


def collect(extra: Path) -> list[Pair]:
    """Return the distinct pairs of this environment and of the packages in `extra`.

    Their order depends on the files only.
    """
    pairs: dict[str, Pair] = {}
    titles: dict[str, int] = {}
    for pair in (*_docstrings(extra), *_readmes(extra), *_service_models(extra)):
        key = re.sub(r"\W+", "", pair.body.lower())[:80]
        seen = titles.get(pair.title.lower(), 0)
        # A title that introduces many bodies ("Returns a dict") tells nothing about any of them.
        if key not in pairs and seen < 2:
            titles[pair.title.lower()] = seen + 1
            pairs[key] = pair
    return list(pairs.values())


def _pair(source: str, title: str, body: str) -> Iterator[Pair]:
    title = " ".join(title.split()).strip(" .:#=-*`")
    body = re.sub(r"\n{2,}", "\n", re.sub(r"[ \t]+", " ", body)).strip()
    letters = sum(c.isalpha() or c == " " for c in body)
    if not 3 <= len(title.split()) <= 30 or len(body) < MIN_BODY or letters < 0.75 * len(body):
        return
    if len(set(body.lower().split())) < 15:
        return
    yield Pair(source, title[:200], body[:MAX_BODY])


def _docstrings(extra: Path) -> Iterator[Pair]:
    paths = sysconfig.get_paths()
    roots = {Path(paths["stdlib"]): "stdlib", Path(paths["purelib"]): "", extra: ""}
    for root, name in roots.items():
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).parts
            if (name and "site-packages" in parts) or {"tests", "test"} & set(parts):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
                continue
            for node in ast.walk(tree):
                if isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    text = ast.get_docstring(node) or ""
                    yield from _split_docstring(name or parts[0], text)


def _split_docstring(source: str, text: str) -> Iterator[Pair]:
    lines = [
        line
        for line in re.sub(r":\w+:`~?([^`]*)`|``", r"\1", text).splitlines()
        if not re.match(r"\s*(>>>|\.\.\.|\.\. |[-=~^*]{3,})", line)
    ]
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    if len(paragraphs) < 2:
        return
    yield from _pair(source, paragraphs[0], "\n".join(paragraphs[1:]))
    # Long docstrings describe several things: later prose paragraphs make pairs of their own.
    for paragraph in paragraphs[2:]:
        sentences = re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))
        if len(sentences) >= 3:
            yield from _pair(source, sentences[0], " ".join(sentences[1:]))


def _readmes(extra: Path) -> Iterator[Pair]:
    """Headed sections of the long descriptions that packages carry."""
    for dist in sorted(
        metadata.distributions(path=[sysconfig.get_paths()["purelib"], str(extra)]),
        key=lambda d: d.metadata["Name"] or "",
    ):
        text = dist.metadata.get_payload()
        if not isinstance(text, str):
            continue
        text = re.sub(r"```.*?```|<[^>]+>|!?\[([^\]]*)\]\([^)]*\)", r"\1", text, flags=re.S)
        for section in re.split(r"\n(?=#+ )", text):
            title, _, body = section.partition("\n")
            yield from _pair(dist.metadata["Name"], title, body)


def _service_models(extra: Path) -> Iterator[Pair]:
    """The prose that botocore carries on storage, database, search and other services."""
    for file in sorted((extra / "botocore" / "data").glob("*/*/service-2.json*")):
        raw = file.read_bytes()
        service = json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)
        shapes = list(service["shapes"].values())
        members = [m for shape in shapes for m in (shape.get("members") or {}).values()]
        for described in (*service["operations"].values(), *shapes, *members):
            text = unescape(re.sub(r"<[^>]+>", " ", described.get("documentation", "")))
            sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
            if len(sentences) >= 3:
                yield from _pair(file.parts[-3], sentences[0], " ".join(sentences[1:]))


if __name__ == "__main__":
    found = collect(Path(sys.argv[1]))
    print(f"{len(found)} pairs, {sum(len(p.body) for p in found) / 1e6:.1f} M characters")
    for pair in found[:: max(1, len(found) // 20)]:
        sys.stdout.write(f"[{pair.source}] {pair.title}\n    {pair.body[:150]!r}\n")
