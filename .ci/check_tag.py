#!/usr/bin/env python3
"""Refuse a release whose tag is not the package's version or that the changelog says nothing of.

`.ci/check_tag.py v1.2.3` prints the changelog's section of that version; exit code 1 says what is
wrong. It needs nothing but Python.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = "src/llamaindex_qwen3/__init__.py"


def package_version(root: Path = ROOT) -> str:
    """Return the version that the package gives itself."""
    source = (root / VERSION_FILE).read_text(encoding="utf-8")
    found = re.findall(r'^__version__ = "([^"]+)"$', source, re.M)
    if len(found) != 1:
        raise SystemExit(f"{VERSION_FILE} sets __version__ {len(found)} times; set it once.")
    return str(found[0])


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the changelog's section of a tag such as `v1.2.3`.

    Raises:
        SystemExit: The tag is not "v" and the version, or the section is missing, has no date or is
            empty.
    """
    version = package_version(root)
    if tag != f"v{version}":
        raise SystemExit(
            f"The tag is {tag!r} and {VERSION_FILE} says {version!r}: tag v{version}, or change the "
            "version first."
        )
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    header = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    found = re.search(rf"{header}\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if found is None:
        raise SystemExit(
            f'CHANGELOG.md has no header "## [{version}] - YYYY-MM-DD": move what is new there from '
            "Unreleased."
        )
    notes = found[1].strip()
    if not notes:
        raise SystemExit(f"CHANGELOG.md says nothing of {version}: say what changed.")
    return notes


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("Give the tag: .ci/check_tag.py v1.2.3")
    print(release_notes(sys.argv[1]))
