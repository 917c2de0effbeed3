"""What the site takes from elsewhere: parts of the README, the examples, the command line's help.

A page asks for a part by a line of its own:

    <!-- section README.md "Tasks" -->      what stands under that header, to the next one
    <!-- measured rerank-0.6b-float32-cpu-10 -->   a table of benchmarks/results, with its command
    <!-- commands -->                       every command with its arguments and options
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]

#: Files that are pages of the site: where they are in the repository, and on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples/index.md",
    "examples/serving": "how-to/model-servers.md",
    "examples/serving/README.md": "how-to/model-servers.md",
    "examples/million_chunks.md": "how-to/million-chunks.md",
    "examples/tutorial.ipynb": "examples/tutorial.md",
    **{
        f"examples/{path.name}": f"examples/{path.stem}.md"
        for path in (ROOT / "examples").glob("*.py")
    },
}
WRITTEN_HERE = {"index.md"}

_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
_PART = re.compile(r'^<!-- section (\S+) "(.+)" -->$', re.M)
_MEASURED = re.compile(r"^<!-- measured (\S+) -->$", re.M)
_COMMANDS = "<!-- commands -->"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are written elsewhere in the repository."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        if page not in WRITTEN_HERE and (ROOT / source).is_file():
            files.append(File.generated(config, page, content=_page(source, page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in the parts that a page asks for."""
    return with_parts(markdown, page.file.src_uri)


def with_parts(markdown: str, page: str) -> str:
    """Return a page with the parts it asks for."""
    markdown = _PART.sub(lambda found: relink(section(*found.groups()), found[1], page), markdown)
    markdown = _MEASURED.sub(lambda found: measured(found[1]), markdown)
    return markdown.replace(_COMMANDS, commands()) if _COMMANDS in markdown else markdown


def section(source: str, title: str) -> str:
    """Return what stands under a header, up to the next header of any level."""
    kept: list[str] | None = None
    fenced = False
    for line in (ROOT / source).read_text(encoding="utf-8").splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("#") and not fenced:
            if kept is not None:
                break
            kept = [] if line.lstrip("#").strip() == title else None
        elif kept is not None:
            kept.append(line)
    if kept is None:
        raise LookupError(f"{source} has no section {title!r}; a page of the site includes it")
    return "\n".join(kept).strip()


def measured(name: str) -> str:
    """Return a table of what a benchmark wrote, under the command that wrote it."""
    result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    rows = result["rows"]
    # What is the same in every row tells nothing in a table.
    columns = [key for key in rows[0] if len({str(row[key]) for row in rows}) > 1]
    sides = ["---" if isinstance(rows[0][key], str) else "--:" for key in columns]
    lines = [f"`{result['command']}`", "", f"| {' | '.join(columns)} |", f"|{'|'.join(sides)}|"]
    lines += [f"| {' | '.join(_figure(row[key]) for key in columns)} |" for row in rows]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def relink(text: str, source: str, page: str) -> str:
    """Turn links between files of the repository into links between pages of the site.

    What the site does not show keeps its name and loses its link.
    """

    def target(found: re.Match[str]) -> str:
        mark, name, path, anchor = found.groups()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        here = there.removeprefix("docs/") if there.startswith("docs/") else PAGES.get(there)
        if here is None:
            return name
        link = posixpath.relpath(here, posixpath.dirname(page) or ".")
        return f"{mark}[{name}]({link}{anchor or ''})"

    return _LINK.sub(target, text)


def _page(source: str, page: str) -> str:
    text = (ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".md"):
        return relink(text, source, page)
    if source.endswith(".ipynb"):
        return "\n\n".join(_cells(json.loads(text)))
    title = Path(source).name
    return f'# {title}\n\n```python title="{source}"\n{text.rstrip()}\n```\n'


def _cells(notebook: dict[str, Any]) -> Iterator[str]:
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            yield relink(text, "examples/tutorial.ipynb", "examples/tutorial.md")
            continue
        yield f"```python\n{text}\n```"
        printed = "".join(line for out in cell["outputs"] for line in out.get("text", []))
        if printed.strip():
            yield f"```text\n{printed.rstrip()}\n```"


# --- the command line -------------------------------------------------------------------------


def commands() -> str:
    """Describe every command as its --help does."""
    import typer

    from llamaindex_qwen3.cli.app import app

    group: Any = typer.main.get_command(app)
    parts: list[str] = []
    for name in group.list_commands(None):
        parts += _command(name, group.commands[name])
    return "\n\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    told = [_plain(part) for part in command.help.split("\n\n")]
    yield f"## {name}"
    for part in told:
        lead, found, example = part.partition("qwen3-rag ")
        yield f"{lead.strip()}\n\n```sh\n{found}{example.strip()}\n```" if found else part
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if arguments:
        yield _table("argument", [(f"`{_metavar(p)}`", p) for p in arguments])
    panels: dict[str, list[Any]] = {}
    for option in command.params:
        if option not in arguments and not option.hidden:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "option", []).append(
                option
            )
    for title, options in panels.items():
        yield _table(
            title, [(", ".join(f"`{o}`" for o in [*p.opts, *p.secondary_opts]), p) for p in options]
        )


def _metavar(argument: Any) -> str:
    name = argument.name.upper() + (" …" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {title} | |", "|---|---|"]
    for name, parameter in rows:
        told = _plain(getattr(parameter, "help", None) or "")
        if variable := getattr(parameter, "envvar", None):
            told += f" Or set `{variable}`."
        if default := _default(parameter):
            told += f" Default: {default}."
        lines.append(f"| {name} | {told.strip()} |")
    return "\n".join(lines)


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required or value is None or value is False or value == () or value == "":
        return ""
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return f"`{value}`"


def _plain(text: str) -> str:
    """Return a paragraph on one line, as a cell of a table can hold it."""
    return " ".join(text.split()).replace("|", "\\|")
