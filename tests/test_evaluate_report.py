"""Reports, their tables and their plots."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from llamaindex_qwen3.errors import InvalidArgumentError
from llamaindex_qwen3.evaluation.plots import write_plots
from llamaindex_qwen3.evaluation.questions import Question
from llamaindex_qwen3.evaluation.rank_plot import cell_name, cell_of
from llamaindex_qwen3.evaluation.report import Report, reference_of, report
from llamaindex_qwen3.evaluation.settings import Asked, Outcome, Search, Seconds, Setting
from llamaindex_qwen3.evaluation.tables import tables

QUESTIONS = [
    Question("one", "a.md#a", "en", metadata={"level": "easy"}),
    Question("two", "a.md#a", "ko", metadata={"level": "easy"}),
    Question("three", "b.md#a", "en"),
]


def outcome(
    places: list[tuple[int | None, int | None]],
    models: str = "tiny",
    dimensions: int = 64,
    candidates: int = 10,
    search: Search = "dense",
    task: str = "t",
    on_copy: bool = False,
) -> Outcome:
    """Return an outcome whose questions find their section at these places."""

    def ranking(place: int | None, relevant: str) -> list[str]:
        names = [f"x{i}" for i in range(candidates)]
        return names if place is None else [*names[: place - 1], relevant, *names[place:]]

    asked = [
        Asked(
            ranking(before, question.sections[0]),
            ranking(after, question.sections[0]),
            Seconds(0.001 * (i + 1), 0.002, 0.01 * candidates),
        )
        for i, (question, (before, after)) in enumerate(zip(QUESTIONS, places, strict=True))
    ]
    return Outcome(Setting(models, dimensions, candidates, search, task), asked, on_copy)


GOOD = outcome([(1, 1), (2, 1), (None, None)])
POOR = outcome([(4, 2), (2, 4), (None, None)], dimensions=32, on_copy=True)


def show(made: Report, width: int) -> str:
    printed = io.StringIO()
    Console(width=width, file=printed).print(tables(made, "mrr@10", width))
    return printed.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_figures_and_differences_by_hand() -> None:
    """Give means before and after, their difference, and that to the reference."""
    made = report(QUESTIONS, [POOR, GOOD])
    assert made.reference == 1
    poor, good = made.results
    assert good.before["mrr@10"].mean == pytest.approx((1 + 1 / 2) / 3)
    assert good.after["mrr@10"].mean == pytest.approx(2 / 3)
    assert good.change["mrr@10"].mean == pytest.approx(1 / 6)
    assert good.against == {}
    assert good.before["found"].mean == good.after["found"].mean == pytest.approx(2 / 3)
    assert poor.against["mrr@10"].mean == pytest.approx((1 / 2 + 1 / 4 - 2) / 3)
    assert poor.ranks == [(4, 2), (2, 4), (None, None)]
    low, high = good.change["mrr@10"].interval or (1, 0)
    assert 0 == low <= 1 / 6 <= high <= 1 / 2


def test_times_by_stage() -> None:
    """Give the median and the 95th percentile of each stage in milliseconds."""
    [result] = report(QUESTIONS, [GOOD]).results
    assert result.latency_ms["embed"] == {"p50": 2.0, "p95": pytest.approx(2.9)}
    assert result.latency_ms["search"] == {"p50": 2.0, "p95": 2.0}
    assert result.latency_ms["rerank"] == {"p50": 100.0, "p95": 100.0}
    assert result.latency_ms["total"]["p50"] == 104.0


def test_groups() -> None:
    """Give the same figures for the questions of a language, or of a value of their metadata."""
    [result] = report(QUESTIONS, [GOOD], ["language", "level", "file"]).results
    assert {key: list(groups) for key, groups in result.by.items()} == {
        "language": ["en", "ko"],
        "level": ["easy", "not stated"],
        "file": ["a.md", "b.md"],
    }
    assert result.by["language"]["ko"].questions == 1
    assert result.by["language"]["ko"].before["mrr@10"].mean == 0.5
    # One question says nothing of others.
    assert result.by["language"]["ko"].before["mrr@10"].interval is None
    assert result.by["file"]["a.md"].change["mrr@10"].mean == 0.25


def test_the_reference() -> None:
    """Hold fixed the first models, task and search, most dimensions, and ten candidates."""

    def setting(models: str, dimensions: int, candidates: int, search: Search) -> Setting:
        return Setting(models, dimensions, candidates, search, "t")

    settings = [
        setting("a", 32, 10, "dense"), setting("a", 64, 20, "dense"), setting("a", 64, 5, "dense"),
        setting("a", 128, 10, "hybrid"), setting("b", 256, 10, "dense"),
    ]  # fmt: skip
    assert reference_of(settings) == 1
    assert reference_of([*settings, setting("a", 64, 10, "dense")]) == 5


def test_as_json() -> None:
    """Write figures, intervals, ranks and times in types that JSON knows, and no NaN."""
    made = report(QUESTIONS, [POOR, GOOD], ["language"]).to_dict()
    read = json.loads(json.dumps(made, allow_nan=False))
    poor, good = read["settings"]
    assert (poor["dimensions"], poor["searched"], good["searched"]) == (32, "copy", "collection")
    assert good["after"]["mrr@10"]["mean"] == pytest.approx(2 / 3)
    assert len(good["after"]["mrr@10"]["interval"]) == 2
    assert good["ranks"] == [[1, 1], [2, 1], [None, None]]
    assert good["by"]["language"]["ko"]["questions"] == 1
    assert "bootstrap" in read["method"]["interval"]


def test_one_setting_is_shown_in_full() -> None:
    """Show every figure with its interval, and the time of each stage."""
    text = show(report(QUESTIONS, [GOOD], ["language"]), 100)
    for part in ("recall@1", "MRR@10", "nDCG@10", "0.500 [0.00, 1.00]", "+0.167", "rerank", "ko"):
        assert part in text
    assert "95% bootstrap intervals" in text
    assert "tiny, 64 dimensions, 10 candidates, dense search" in text


def test_many_settings_are_rows() -> None:
    """Show what differs between settings, and name tasks below."""
    other = outcome([(1, 1), (1, 2), (3, 1)], task="[another] task", search="hybrid")
    text = show(report(QUESTIONS, [GOOD, POOR, other]), 120)
    head = next(line for line in text.splitlines() if "dim." in line)
    assert [name for name in ("models", "task", "search", "cand.") if name in head] == [
        "task", "search",
    ]  # fmt: skip
    assert "task 2: [another] task" in text
    assert "exact copies in Milvus Lite" in " ".join(text.split())
    assert "reference" in text


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_gets_the_figures(width: int) -> None:
    """Leave the intervals of comparisons out where they have no room, and say so."""
    text = show(report(QUESTIONS, [GOOD, POOR]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.667" in text
    assert "0.667 [" not in text
    assert "--json" in text


def sweep(**options: str) -> list[Outcome]:
    return [
        outcome([(1, 1), (2, 1), (n % 5 + 1, 1)], dimensions=d, candidates=n, **options)  # type: ignore[arg-type]
        for d in (32, 64, 128)
        for n in (5, 10, 60)
    ]


def test_three_plots(tmp_path: Path) -> None:
    """Write quality by dimension, quality by candidates and time, and ranks, as PNG and as SVG."""
    written = write_plots(report(QUESTIONS, sweep()), "ndcg@10", tmp_path / "new" / "plots")
    names = ("dimensions", "candidates", "ranks")
    assert [path.name for path in written] == [
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    ]
    for path in written:
        if path.suffix == ".png":
            pixels = imread(path)
            assert pixels.shape[0] > 600
            assert pixels.shape[1] > 900
            # Something is drawn on it, and no edge cuts it off.
            assert pixels.std() > 0.05
            edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
            assert all(np.all(edge == 1) for edge in edges), path
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_same_figures_give_the_same_plots(tmp_path: Path) -> None:
    """Write the same bytes again, so that plots can be kept under version control."""
    made = report(QUESTIONS, sweep())
    for name in ("a", "b"):
        write_plots(made, "ndcg@10", tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_plots_of_several_models_and_of_one_setting(tmp_path: Path) -> None:
    """Draw a line for each models, search and task; and of one setting, the ranks alone."""
    wide = [outcome([(1, 1), (2, 2), (3, 1)], models="wide", dimensions=d) for d in (64, 2048)]
    several = [*sweep(), *sweep(search="hybrid"), *wide]
    assert len(write_plots(report(QUESTIONS, several), "recall@3", tmp_path / "several")) == 6
    alone = write_plots(report(QUESTIONS, [GOOD]), "ndcg@10", tmp_path / "alone")
    assert [path.name for path in alone] == ["ranks.png", "ranks.svg"]
    lost = outcome([(None, None)] * 3)
    assert write_plots(report(QUESTIONS, [lost]), "ndcg@10", tmp_path / "lost")


def test_far_places_share_cells() -> None:
    """Keep places to the tenth apart, and put later ones together, each into one cell."""
    cells = [cell_of(place) for place in range(1, 300)]
    assert cells[:10] == list(range(1, 11))
    assert sorted(set(cells)) == list(range(1, 15))
    assert cells == sorted(cells)
    assert [cell_name(n) for n in (1, 10, 11, 13, 14)] == ["1", "10", "11-20", "51-100", "101+"]


def test_plots_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say what to install, and which folder cannot be written to."""
    made = report(QUESTIONS, [GOOD])
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="Cannot write plots"):
        write_plots(made, "ndcg@10", tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidArgumentError, match="pip install 'llamaindex-qwen3\\[plots\\]'"):
        write_plots(made, "ndcg@10", tmp_path)
