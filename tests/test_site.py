"""What the site says agrees with the source, and it builds by itself."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import DOCS, ROOT, hooks, text_of

from llamaindex_qwen3.cli.app import app

SHARED = Path(os.environ.get("LLAMAINDEX_QWEN3_SHARED", ROOT.parent / "shared"))


def messages() -> list[str]:
    """Return the texts in the source, with … for what is put into them."""
    found: list[str] = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


QUOTED = re.findall(r"^`(.+)`\n:   \S", text_of("docs/troubleshooting.md"), re.M)
NOT_OURS = {"Extra inputs are not permitted"}


@pytest.fixture(scope="module")
def source_messages() -> list[str]:
    return messages()


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_messages_exist(quoted: str, source_messages: list[str]) -> None:
    """Quote no message that is not in the source, word for word."""
    if quoted in NOT_OURS:
        from llamaindex_qwen3 import Qwen3Reranker

        with pytest.raises(ValueError, match=quoted):
            Qwen3Reranker(topn=3)
        return
    pieces = [re.escape(piece) for piece in re.split(r"…+", quoted)]
    assert len(max(pieces, key=len)) > 9, "too little is quoted to be found"
    pattern = re.compile(".*?".join(pieces), re.S)
    assert any(pattern.search(message) for message in source_messages)


def test_every_message_is_explained() -> None:
    """Give each quoted message, of which there are many, its cause or remedy."""
    text = text_of("docs/troubleshooting.md")
    assert len(QUOTED) == len(set(QUOTED)) == len(re.findall(r"^`", text, re.M)) > 50


def test_the_command_line_is_whole() -> None:
    """Describe every option of every command, as --help does."""
    page = text_of("docs/reference/command-line.md")
    group: Any = typer.main.get_command(app)
    parts = {part.split("\n")[0]: part for part in page.split("\n## ")[1:]}
    assert list(parts) == group.list_commands(None)
    for name, part in parts.items():
        for parameter in group.commands[name].params:
            wanted = parameter.opts if parameter.param_type_name == "option" else []
            assert all(f"`{option}`" in part for option in wanted if option != "--help"), name


def test_included_parts_are_not_repeated() -> None:
    """Take from the README what it says: no paragraph of it stands in a page of its own."""
    readme = {p.strip() for p in (ROOT / "README.md").read_text().split("\n\n") if len(p) > 120}
    for file in DOCS.rglob("*.md"):
        assert not readme & {p.strip() for p in file.read_text().split("\n\n")}, file


def test_a_missing_part_is_an_error() -> None:
    """Fail where a page includes a section that is gone."""
    with pytest.raises(LookupError, match="has no section 'Gone'"):
        hooks().with_parts('<!-- section README.md "Gone" -->', "index.md")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published geometry")
def test_model_sizes_are_right() -> None:
    """Derive every figure on memory from the published geometry."""
    geometry = json.loads((SHARED / "golden.json").read_text())["geometry"]
    page = text_of("docs/model-size.md")
    rows = re.findall(r"^\| (\S+-\S+B) \| ([\d,]+) \| ([\d.]+) GB \| ([\d.]+) GB \|$", page, re.M)
    assert {f"Qwen3-{row[0]}" for row in rows} == set(geometry)
    for name, parameters, half, whole in rows:
        count = geometry[f"Qwen3-{name}"]["parameters"]
        assert int(parameters.replace(",", "")) == count
        assert float(half) == round(count * 2 / 1e9, 2)
        assert float(whole) == round(count * 4 / 1e9, 2)
    for size, figure in re.findall(r"^    (\d\S*B) .* = ([\d.]+)e9", page, re.M):
        model = geometry[f"Qwen3-Reranker-{size}"]
        tables = 1 if model["tie_word_embeddings"] else 2
        weights = model["parameters"] - tables * model["vocab_size"] * model["hidden_size"]
        assert float(figure) == round(weights / 1e9, 2)
    for size, values, gigabytes in re.findall(
        r"^\| (\d\S*B) \| ([\d,]+) \| ([\d.]+) GB", page, re.M
    ):
        width = geometry[f"Qwen3-Embedding-{size}"]["hidden_size"]
        assert int(values.replace(",", "")) == width
        assert float(gigabytes) == round(width * 4 / 1e3, 1)
    for figure, layers in re.findall(r"([\d.]+) GB for [^(]*\((\d+) layers\)", page):
        assert float(figure) == round(2 * int(layers) * 8 * 128 * 2 * 32768 / 1e9, 2)


def test_the_site_builds(tmp_path: Path) -> None:
    """Build the site without a warning, and with nothing in it that comes from elsewhere."""
    pytest.importorskip("mkdocs", reason="needs pip install 'llamaindex-qwen3[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    site = tmp_path / "site"
    loaded = r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(https?:[^\" >]+)"
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not [url for url in re.findall(loaded, text) if "canonical" not in url], page
        assert "<!-- section" not in text
    reference = (site / "reference" / "components.html").read_text(encoding="utf-8")
    for name in ("Qwen3Embedding", "Qwen3Reranker", "milvus_vector_store", "with_task"):
        assert name in reference
