"""What checks and publishes a release: the workflows, the hooks, the pins, the tag."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import llamaindex_qwen3

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
WORKFLOW_FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# YAML 1.1 reads the key "on" as true.
WORKFLOWS = {
    file.stem: yaml.safe_load(file.read_text(encoding="utf-8").replace("\non:", "\n'on':"))
    for file in WORKFLOW_FILES
}
JOBS = {
    (name, job): definition
    for name, workflow in WORKFLOWS.items()
    for job, definition in workflow["jobs"].items()
}
STEPS = [(key, step) for key, job in JOBS.items() for step in job.get("steps", [])]


def normal(package: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


PINS = {
    normal(line.name): line
    for line in map(Requirement, re.findall(r"^[^#\s].*$", CONSTRAINTS, re.M))
}


def pinned(package: str) -> Version:
    """Return the version that constraints.txt holds a package at."""
    [pin] = PINS[normal(package)].specifier
    assert pin.operator == "=="
    return Version(pin.version)


# --- workflows --------------------------------------------------------------------------------


def test_workflows_are_of_githubs_form() -> None:
    """Keep to the schema of workflows, as far as a schema can say."""
    assert {file.stem for file in WORKFLOW_FILES} == {"ci", "docs", "publish"}
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    for schema, files in (
        ("vendor.github-workflows", WORKFLOW_FILES),
        ("vendor.dependabot", [ROOT / ".github" / "dependabot.yml"]),
    ):
        done = subprocess.run([*command, schema, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_python_is_tested() -> None:
    """Test the versions that the package names, and all of .ci/run on the one of the pins."""
    prefix = "Programming Language :: Python :: 3."
    named = {c[len(prefix) - 2 :] for c in PROJECT["project"]["classifiers"] if prefix in c}
    jobs = WORKFLOWS["ci"]["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]["python"]
    [everything] = [
        step["with"]["python-version"]
        for step in jobs["everything"]["steps"]
        if "setup-python" in step.get("uses", "")
    ]
    assert sorted([*matrix, everything]) == sorted(named)
    assert f"on Python {everything}." in CONSTRAINTS
    oldest = min(named, key=Version)
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")


def test_workflows_run_what_is_here() -> None:
    """Run .ci/run, and name only scripts, targets and markers that exist."""
    commands = [step["run"] for _, step in STEPS if "run" in step]
    assert ".ci/run" in commands
    for command in commands:
        for script in re.findall(r"\.ci/[\w.]+", command):
            assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"
    assert set(re.findall(r"make (\w+)", "\n".join(commands))) <= targets()
    assert set(re.findall(r"-m (?!pytest)(\w+)", "\n".join(commands))) <= markers()


def test_workflows_may_do_little() -> None:
    """Read the source and nothing else, but for the two jobs that publish; keep no secrets."""
    more = {
        ("publish", "publish"): {"id-token": "write"},
        ("docs", "deploy"): {"pages": "write", "id-token": "write"},
    }
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] in ({}, {"contents": "read"}), name
    for key, job in JOBS.items():
        assert job.get("permissions", {}) in (more.get(key, {}), {"contents": "read"}), key
        assert "timeout-minutes" in job or "uses" in job, key
    for key in more:
        assert JOBS[key]["environment"]["name"]
        assert not any("checkout" in step.get("uses", "") for step in JOBS[key]["steps"])
    for file in WORKFLOW_FILES:
        assert "secrets." not in file.read_text(encoding="utf-8")
    for key, step in STEPS:
        # What others can choose, such as a branch's name, must not become part of a command.
        assert "${{" not in step.get("run", ""), key
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False, key


def test_actions_have_one_version() -> None:
    """Name a major version of each action, the same everywhere."""
    used = {step["uses"] for _, step in STEPS if "uses" in step}
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", action)
    assert len({action.partition("@")[0] for action in used}) == len(used)
    for job in JOBS.values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()


def test_a_release_is_checked_before_it_is_published() -> None:
    """Publish after the checks of the tag and of the code, from what was built apart."""
    workflow = WORKFLOWS["publish"]
    jobs = workflow["jobs"]
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    assert any(".ci/check_tag.py" in step.get("run", "") for step in jobs["version"]["steps"])
    assert jobs["ci"]["uses"].endswith("/ci.yml")
    assert "workflow_call" in WORKFLOWS["ci"]["on"]
    assert jobs["ci"]["needs"] == jobs["build"]["needs"] == "version"
    assert set(jobs["publish"]["needs"]) == {"ci", "build"}
    assert all("run" not in step for step in jobs["publish"]["steps"])


# --- the tag, the version, the changelog ------------------------------------------------------

SECTION = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n- New.\n\n## [1.2.2] - 2026-01-01\n\n- Old.\n"


def check_tag(
    folder: Path, tag: str, version: str, changelog: str
) -> subprocess.CompletedProcess[str]:
    """Run the check of a tag in a repository of this version and changelog."""
    (folder / ".ci").mkdir()
    (folder / "src" / "llamaindex_qwen3").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "check_tag.py", folder / ".ci")
    (folder / "src" / "llamaindex_qwen3" / "__init__.py").write_text(version)
    (folder / "CHANGELOG.md").write_text(changelog)
    command = [sys.executable, str(folder / ".ci" / "check_tag.py"), tag]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_right_tag(tmp_path: Path) -> None:
    """Print the section of the version and no other."""
    done = check_tag(tmp_path, "v1.2.3", '__version__ = "1.2.3"\n', SECTION)
    assert (done.returncode, done.stdout) == (0, "- New.\n"), done.stderr


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "told"),
    [
        ("v1.2.4", "1.2.3", SECTION, "tag v1.2.3"),
        ("1.2.3", "1.2.3", SECTION, "tag v1.2.3"),
        ("v1.2.4", "1.2.4", SECTION, '"## [1.2.4] - YYYY-MM-DD"'),
        ("v1.2.3", "1.2.3", SECTION.replace(" - 2026-01-31", ""), '"## [1.2.3] - YYYY-MM-DD"'),
        ("v1.2.3", "1.2.3", SECTION.replace("- New.", ""), "says nothing of 1.2.3"),
        ("v1.2.3", '1"\n__version__ = "1.2.3', SECTION, "2 times"),
    ],
)
def test_a_wrong_tag(tmp_path: Path, tag: str, version: str, changelog: str, told: str) -> None:
    """End with 1 and one line that says what to do."""
    done = check_tag(tmp_path, tag, f'__version__ = "{version}"\n', changelog)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_version_is_in_one_place() -> None:
    """Take the version from the package, and describe it, or what follows it, in the changelog."""
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/llamaindex_qwen3/__init__.py"
    headers = re.findall(r"^## \[([^\]]+)\]", CHANGELOG, re.M)
    assert headers[0] == "Unreleased"
    released = [Version(header) for header in headers[1:]]
    assert released == sorted(set(released), reverse=True)
    assert Version(llamaindex_qwen3.__version__) == released[0]


# --- pins, hooks, what CONTRIBUTING says ------------------------------------------------------


def test_what_is_asked_for_is_pinned() -> None:
    """Hold every package that pyproject.toml names at a version that it allows."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    asked = [project["dependencies"], *extras, PROJECT["build-system"]["requires"]]
    for requirement in map(Requirement, [line for lines in asked for line in lines]):
        if requirement.name != project["name"]:
            assert pinned(requirement.name) in requirement.specifier, requirement


def test_hooks_are_the_pinned_versions() -> None:
    """Run before a commit what `make check` runs, at the versions it runs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    needs = [need for hook in hooks for need in hook.get("additional_dependencies", [])]
    assert {normal(Requirement(need).name) for need in needs} >= {"ruff", "pre-commit-hooks"}
    for need in needs:
        assert str(Requirement(need).specifier) == f"=={pinned(Requirement(need).name)}"
    assert Version(config["minimum_pre_commit_version"]) <= pinned("pre-commit")
    checks = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    assert checks
    tools = set(re.findall(r"\$\(BIN\)/(\w+)", checks[1]))
    assert tools == {"ruff", "mypy"} <= {word for h in hooks for word in h["entry"].split()}


def test_contributing_names_what_there_is() -> None:
    """Name targets and markers that exist, and every marker."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make (\w+)", text, re.M))
    assert {"test", "check", "build", "docs"} <= named <= targets()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == markers()
    for path in re.findall(r"`(\.?[\w.-]*/?[\w./-]+\.(?:md|py|toml|txt|yml|yaml))`", text):
        assert (ROOT / path).exists(), path


def targets() -> set[str]:
    """Return what `make` can be asked for."""
    return set(re.findall(r"^(\w+):", MAKEFILE, re.M))


def markers() -> set[str]:
    """Return the markers of tests that need more than Python."""
    return {m.partition(":")[0] for m in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
