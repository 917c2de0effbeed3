"""Files of a folder as LlamaIndex documents, in Markdown where they have headers."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.schema import Document

from .errors import InvalidArgumentError

# Suffixes, and the packages that read them: extra "files" installs them.
_SUFFIXES: dict[str, tuple[str, ...]] = {
    ".md": (),
    ".markdown": (),
    ".txt": (),
    ".html": ("markdownify",),
    ".htm": ("markdownify",),
    ".pdf": ("pypdf",),
}

INSTALL_FILES = "pip install 'llamaindex-qwen3[files]'"


@dataclass(frozen=True)
class SourceFile:
    """A file to read, and the folder it was found in."""

    path: Path
    root: Path

    @property
    def document_id(self) -> str:
        """The absolute path: what its chunks' ids begin with."""
        return _valid(str(self.path.resolve()))

    @property
    def name(self) -> str:
        """The path inside the folder, for people."""
        return _valid(self.path.relative_to(self.root).as_posix())


def find_files(paths: Sequence[str | Path]) -> list[SourceFile]:
    """Find the files that can be read here, each once, in order of their paths.

    Raises:
        InvalidArgumentError: A path does not exist, a file is of an unknown kind or needs a package
            that is not installed, or there is nothing to read.
    """
    found: dict[Path, SourceFile] = {}
    for path in map(Path, paths):
        if not path.exists():
            place = "" if path.is_absolute() else f" in {str(Path.cwd())!r}"
            raise InvalidArgumentError(
                f"There is no file or folder {str(path)!r}{place}. Check its spelling, or give the "
                "whole path."
            )
        if path.is_file():
            if problem := _unreadable(path):
                raise InvalidArgumentError(f"Cannot read {str(path)!r}: {problem}.")
            found.setdefault(path.resolve(), SourceFile(path, path.parent))
            continue
        for file in sorted(path.rglob("*")):
            if file.is_file() and not _unreadable(file):
                found.setdefault(file.resolve(), SourceFile(file, path))
    if not found:
        raise InvalidArgumentError(
            f"There is nothing to read in {', '.join(map(str, paths))}: no file that ends in "
            f"{', '.join(readable_suffixes())}.{_hint(skipped_files(paths))}"
        )
    return list(found.values())


def skipped_files(paths: Sequence[str | Path]) -> dict[str, int]:
    """Count, by suffix, the files in folders that a package which is not installed would read."""
    skipped = {
        file.resolve(): file.suffix.lower()
        for path in map(Path, paths)
        if path.is_dir()
        for file in path.rglob("*")
        if file.suffix.lower() in _SUFFIXES and _missing(file.suffix.lower()) and file.is_file()
    }
    return dict(sorted(Counter(skipped.values()).items()))


def readable_suffixes() -> list[str]:
    """Return the suffixes that can be read with what is installed."""
    return [suffix for suffix in _SUFFIXES if not _missing(suffix)]


def read_document(file: SourceFile) -> Document:
    """Read one file.

    Raises:
        InvalidArgumentError: It cannot be read.
    """
    try:
        text = "\n\n".join(_read(file.path))
    except OSError as error:
        raise InvalidArgumentError(
            f"Cannot read {str(file.path)!r}: {error.strerror or error}."
        ) from error
    return Document(id_=file.document_id, text=_valid(text), metadata={"file": file.name})


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read files and the files in folders, as one document each."""
    return [read_document(file) for file in find_files(paths)]


def _read(path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        yield from _read_pdf(path)
        return
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if suffix in (".html", ".htm"):
        from bs4 import BeautifulSoup
        from markdownify import MarkdownConverter

        page = BeautifulSoup(text, "html.parser")
        for tag in page(["head", "nav", "script", "style", "template"]):
            tag.decompose()
        text = MarkdownConverter(heading_style="ATX").convert_soup(page)
    yield text


def _read_pdf(path: Path) -> Iterator[str]:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        for number, page in enumerate(PdfReader(path).pages, 1):
            # A header of its own, so that an answer can name the page.
            yield f"# Page {number}\n\n{page.extract_text()}"
    except (PyPdfError, ValueError) as error:
        raise InvalidArgumentError(f"Cannot read {str(path)!r} as PDF: {error}.") from error


def _unreadable(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        return f"only {', '.join(_SUFFIXES)} are known; convert it to one of them"
    if missing := _missing(suffix):
        return f"{INSTALL_FILES} ({', '.join(missing)} is missing)"
    return None


def _hint(skipped: dict[str, int]) -> str:
    if not skipped:
        return ""
    return f" It needs more packages to read {' and '.join(skipped)}: {INSTALL_FILES}"


def _missing(suffix: str) -> list[str]:
    return [name for name in _SUFFIXES[suffix] if importlib.util.find_spec(name) is None]


def _valid(text: str) -> str:
    # A file name need not be valid Unicode, and ids must be.
    return text.encode("utf-8", "replace").decode()
