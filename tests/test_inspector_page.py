"""The inspector's page in a real headless Chromium, on the demo pair."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai_server
import pytest
from inspecting import running, stages, stored
from passes import ForwardPasses

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.errors import TruncationWarning
from llamaindex_qwen3.inspector import Inspector, Settings
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.models import model_pair

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="needs pip install 'llamaindex-qwen3[browser]'"
)
expect = playwright_api.expect

pytestmark = pytest.mark.browser

FAQ = Path(__file__).parents[1] / "examples" / "data" / "milvus_faq"
QUESTION = "Which index should I choose when memory is short?"
OTHER_TASK = "Given a question, find passages on disks and hardware"
SCRIPT = "<script>window.taken = true</script><img src=x onerror='window.taken = true'>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ROW = "#lists .{side} .row"


class Parts(NamedTuple):
    """What inspectors are made of."""

    embed_model: Qwen3Embedding
    reranker: Qwen3Reranker
    store: CheckedMilvusVectorStore

    def inspector(self, questions: Path, llm: Any = None) -> Inspector:
        return Inspector(*self, llm, Settings(demo=True, questions=questions))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Store the FAQ, and a page that tries to become markup."""
    pair = model_pair("demo")
    embed_model = Qwen3Embedding(pair.embedding, dtype=pair.dtype, device="cpu")
    judge = Qwen3Reranker(pair.reranker, dtype=pair.dtype, device="cpu")
    pages = {path.name: path.read_text(encoding="utf-8") for path in FAQ.glob("*.md")}
    pages["script.md"] = f"# S\n## Scripts {SCRIPT}\nScripts in documents run: {SCRIPT}\n"
    with stored(tmp_path_factory.mktemp("faq"), pages, embed_model) as store:
        yield Parts(embed_model, judge, store)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium."""
    with playwright_api.sync_playwright() as playwright:
        # Chromium's own sandbox cannot be had by root.
        options = [] if os.geteuid() else ["--no-sandbox"]
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        except playwright_api.Error as error:
            pytest.skip(f"no Chromium to be had: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


def ranks_under(request: Any, instruction: str) -> bool:
    """Say whether a request asks for the ranking under an instruction."""
    return (
        request.url.endswith("/api/rank")
        and json.loads(request.post_data)["instruction"] == instruction
    )


class Window:
    """A page of the browser, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"reduced_motion": "reduce", **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        self.problems: list[str] = []
        self.requests: list[Any] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.goto(url)
        expect(self.page.locator("#question")).to_be_focused()

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def ask(self, question: str = QUESTION) -> Window:
        """Ask, and wait for the ranking and the answer."""
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#lists .right .row").first).to_be_visible()
        expect(self.page.locator("#answer .text")).to_have_attribute("aria-busy", "false")
        return self

    def instruct(self, text: str, side: str = "a") -> None:
        """Replace an instruction, and wait for the ranking."""
        with self.page.expect_response(lambda response: ranks_under(response.request, text)):
            self.page.fill(f"#instruction-{side}", text)
        expect(self.page.locator("#lists")).not_to_have_class(re.compile("stale"))

    def rows(self, side: str) -> list[dict[str, str]]:
        """Return what the rows of a list show."""
        return self.page.eval_on_selector_all(
            ROW.format(side=side),
            """rows => rows.map(row => ({
                id: row.dataset.id,
                ...Object.fromEntries(['place', 'title', 'score', 'moved'].map(part => {
                    const copy = row.querySelector('.' + part)?.cloneNode(true);
                    copy?.querySelectorAll('.for-readers, .from').forEach(words => words.remove());
                    return [part, copy?.textContent ?? ''];
                })),
            }))""",
        )

    def rankings(self) -> int:
        """Return how many rankings were asked for."""
        return sum(request.url.endswith("/api/rank") for request in self.requests)


@pytest.fixture
def window(browser: Any, parts: Parts, tmp_path: Path) -> Iterator[Window]:
    """Open a page that has no language model."""
    with running(parts.inspector(tmp_path / "questions.jsonl")) as url:
        window = Window(browser, url, viewport={"width": 1440, "height": 1000})
        yield window
        window.context.close()
    assert window.problems == []
    assert all(request.url.startswith(url) for request in window.requests)


def ranked(url: str, instruction: str) -> tuple[list[str], list[str], list[str]]:
    """Return the ids before and after reranking, and the scores after it, as they are shown."""
    found = stages(url, "rank", question=QUESTION, instruction=instruction)
    before = [passage["id"] for passage in found["found"]["candidates"]]
    order = found["reranked"]["order"]
    return before, [p["id"] for p in order], [f"{p['score']:.5f}" for p in order]


def default_task(window: Window) -> str:
    return window.page.input_value("#instruction-a")


# --- asking -----------------------------------------------------------------------------------


def test_asking_shows_both_orders(window: Window) -> None:
    """Show the candidates beside the reranked list, with how far each moved."""
    window.ask()
    before, after, scores = ranked(window.url, default_task(window))
    left, right = window.rows("left"), window.rows("right")
    assert [row["id"] for row in left] == before
    assert [row["id"] for row in right] == after
    assert [row["score"] for row in right] == scores
    moves = [before.index(name) - after.index(name) for name in after]
    assert any(moves)
    arrows = [f"↑{move}" if move > 0 else f"↓{-move}" if move else "=" for move in moves]
    assert [row["moved"] for row in right] == arrows
    status = window.page.inner_text("#status")
    assert f"{sum(move != 0 for move in moves)} of 10 passages moved" in status
    assert right[0]["title"] in status


def ends_of_lines(window: Window) -> list[tuple[float, float, float, float]]:
    """Return, for each line, how far its ends are from the middles of its rows, and its rows'."""
    return window.page.evaluate(
        """() => [...document.querySelectorAll('#lists path')].map(path => {
            const svg = path.ownerSVGElement.getBoundingClientRect();
            const at = length => {
                const point = path.getPointAtLength(length);
                return [svg.left + point.x, svg.top + point.y];
            };
            const row = side => document.querySelector(
                `#lists .${side} [data-key="${path.dataset.id}"]`).getBoundingClientRect();
            const [left, right] = [row('left'), row('right')];
            const [x0, y0] = at(0), [x1, y1] = at(path.getTotalLength());
            return [x0 - left.right, y0 - (left.top + left.height / 2),
                    x1 - right.left, y1 - (right.top + right.height / 2)];
        })"""
    )


def test_lines_join_the_rows(window: Window) -> None:
    """Draw a line from each row to the same passage's, and again when the window changes."""
    window.ask()
    for width in (1440, 900):
        window.page.set_viewport_size({"width": width, "height": 900})
        window.page.wait_for_timeout(100)
        ends = ends_of_lines(window)
        assert len(ends) == 10
        assert max(abs(distance) for line in ends for distance in line) < 1.5


def test_times_tokens_and_prompts(window: Window) -> None:
    """Show each stage's time, the tokens of each passage, and what the models read."""
    window.ask()
    stage = window.page.inner_text("#stages")
    assert re.search(r"embed [\d.]+ m?s\s+search [\d.]+ m?s\s+rerank [\d.]+ m?s", stage)
    assert re.search(r"10 passages, [\d,]+ tokens", stage)
    found = stages(window.url, "rank", question=QUESTION, instruction=default_task(window))
    best = found["reranked"]["order"][0]
    passage = next(p for p in found["found"]["candidates"] if p["id"] == best["id"])
    row = window.page.locator(ROW.format(side="right")).first
    expect(row.locator(".facts")).to_contain_text(f"{passage['tokens']} tokens")
    prompts = window.page.eval_on_selector_all("#prompts pre", "all => all.map(p => p.textContent)")
    assert prompts[0] == found["embedded"]["prompt"]
    reranked = found["reranked"]
    assert prompts[1] == reranked["before"] + passage["read"] + reranked["after"]
    assert QUESTION in prompts[-1]
    assert passage["text"] in prompts[-1]


def test_truncation(browser: Any, parts: Parts, tmp_path: Path) -> None:
    """Show how much of a passage a model did not read, in its row and beside its text."""
    short = parts.reranker.model_copy(update={"max_length": 200})
    inspector = Inspector(parts.embed_model, short, parts.store)
    with running(inspector) as url, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        window = Window(browser, url).ask()
        found = stages(url, "rank", question=QUESTION, instruction=default_task(window))
        cut = {p["id"]: p["truncated_tokens"] for p in found["reranked"]["order"]}
        name, count = max(cut.items(), key=lambda item: item[1])
        assert count > 0
        row = window.page.locator(f'#lists .right .row[data-id="{name}"]')
        expect(row.locator(".cut")).to_have_text(f"{count} cut")
        assert window.page.locator("#lists .right .cut").count() == sum(map(bool, cut.values()))
        row.click()
        expect(window.page.locator("#passage .cut")).to_contain_text(f"its last {count} token")
        window.context.close()


def test_hybrid_search(browser: Any, parts: Parts, tmp_path: Path) -> None:
    """Offer search by words where the collection has it, and name what was searched."""
    (tmp_path / "pages").mkdir()
    pages = {"search.md": (FAQ / "search.md").read_text(encoding="utf-8")}
    with (
        stored(tmp_path / "pages", pages, parts.embed_model, hybrid=True) as store,
        running(Inspector(parts.embed_model, parts.reranker, store)) as url,
    ):
        window = Window(browser, url).ask()
        expect(window.page.get_by_role("list", name="By embedding")).to_be_visible()
        window.page.get_by_label("hybrid", exact=True).check()
        expect(window.page.get_by_role("list", name="By hybrid search")).to_be_visible()
        request = stages(
            url, "rank", question=QUESTION, instruction=default_task(window), mode="hybrid"
        )
        shown = [row["id"] for row in window.rows("left")]
        assert shown == [passage["id"] for passage in request["found"]["candidates"]]
        window.context.close()


# --- instructions -----------------------------------------------------------------------------


def test_editing_the_instruction(window: Window) -> None:
    """Rank again by itself when typing stops, once for many keys."""
    window.ask()
    before = window.rows("right")
    asked = window.rankings()
    window.page.focus("#instruction-a")
    window.page.keyboard.press("ControlOrMeta+A")
    with window.page.expect_response(lambda response: ranks_under(response.request, OTHER_TASK)):
        window.page.keyboard.type(OTHER_TASK, delay=5)
    expect(window.page.locator("#lists")).not_to_have_class(re.compile("stale"))
    _, after, scores = ranked(window.url, OTHER_TASK)
    expect(window.page.locator("#lists .right .score").first).to_contain_text(scores[0])
    rows = window.rows("right")
    assert [row["id"] for row in rows] == after
    assert [row["score"] for row in rows] == scores
    assert after != [row["id"] for row in before]
    assert window.rankings() - asked < len(OTHER_TASK) / 4


def test_a_newer_request_stops_the_one_before(window: Window) -> None:
    """Abort a ranking that is under way when the instruction is edited again."""
    window.ask()
    go = threading.Event()
    aborted: list[Any] = []
    window.page.on("requestfailed", lambda request: aborted.append(request))
    with ForwardPasses() as passes:
        passes.before = lambda number: go.wait(60)
        for text in ("The first edit", "The second edit"):
            with window.page.expect_request("**/api/rank"):
                window.page.fill("#instruction-a", text)
        # Looked at while both are held: Chromium calls some streams aborted that ended well.
        window.page.wait_for_timeout(200)
        assert [ranks_under(request, "The first edit") for request in aborted] == [True]
        go.set()
        _, _, scores = ranked(window.url, "The second edit")
        expect(window.page.locator("#lists .right .score").first).to_contain_text(scores[0])


def test_two_instructions_side_by_side(window: Window) -> None:
    """Show the order under A beside that under B, joined by lines, or either before and after."""
    window.ask()
    first = default_task(window)
    window.page.click("#compare")
    expect(window.page.locator("#instruction-b")).to_be_focused()
    window.instruct(OTHER_TASK, "b")
    (before, a, _), (_, b, scores) = ranked(window.url, first), ranked(window.url, OTHER_TASK)
    expect(window.page.locator("#lists .right .score").first).to_contain_text(scores[0])
    assert [row["id"] for row in window.rows("left")] == a
    assert [row["id"] for row in window.rows("right")] == b
    assert a != b
    joined = window.page.locator("#lists path")
    assert joined.count() == len(set(a) & set(b))
    window.page.check("[name=view][value=a]")
    assert [row["id"] for row in window.rows("left")] == before
    assert [row["id"] for row in window.rows("right")] == a
    window.page.click("#compare")
    expect(window.page.locator("#instruction-b")).to_be_hidden()
    assert [row["id"] for row in window.rows("right")] == a


# --- what goes wrong --------------------------------------------------------------------------


def test_errors_are_shown_and_go_away(window: Window) -> None:
    """Show the library's words, keep what was there, and recover."""
    window.ask()
    before = window.rows("right")
    window.page.fill("#instruction-a", "Instruct: this is a prompt")
    problem = window.page.get_by_role("alert")
    expect(problem).to_contain_text("give only the task in one sentence")
    assert window.rows("right") == before
    window.instruct(OTHER_TASK)
    expect(problem).to_be_hidden()


def test_a_server_that_has_gone(browser: Any, parts: Parts, tmp_path: Path) -> None:
    """Say that the server does not answer."""
    with running(parts.inspector(tmp_path / "questions.jsonl")) as url:
        window = Window(browser, url)
    window.page.fill("#question", QUESTION)
    window.page.keyboard.press("Enter")
    expect(window.page.get_by_role("alert")).to_contain_text("qwen3-rag serve still running")
    window.context.close()


def test_no_language_model(window: Window) -> None:
    """Say what is missing for an answer, beside everything else."""
    window.ask()
    assert not window.page.locator("#modes").is_visible()
    expect(window.page.locator("#answer")).to_contain_text("Set OPENAI_API_KEY")
    assert len(window.rows("right")) == 10


def test_documents_cannot_become_markup(browser: Any, parts: Parts, tmp_path: Path) -> None:
    """Show script in a stored document, in a question and in an answer as text."""
    with (
        openai_server.serve([SCRIPT, " [1]"]) as (llm_url, _),
        running(
            parts.inspector(tmp_path / "questions.jsonl", chat_model("gpt-4o", llm_url))
        ) as url,
    ):
        window = Window(browser, url)
        window.page.on("dialog", lambda dialog: window.problems.append(dialog.message))
        window.ask(f"Do scripts in documents run? {SCRIPT}")
        row = window.page.locator(ROW.format(side="right"), has_text=SCRIPT)
        row.click()
        expect(window.page.locator("#passage-title")).to_contain_text(SCRIPT)
        expect(window.page.locator("#passage .text")).to_contain_text(SCRIPT)
        expect(window.page.locator("#answer .text")).to_contain_text(SCRIPT)
        for details in window.page.locator("details").all():
            details.locator("summary").click()
        window.page.wait_for_timeout(200)
        assert window.page.evaluate("window.taken") is None
        assert window.page.locator("script").count() == 1
        assert window.page.locator("img").count() == 0
        assert window.problems == []
        window.context.close()


# --- answers ----------------------------------------------------------------------------------


def test_the_answer_streams_with_citations(browser: Any, parts: Parts, tmp_path: Path) -> None:
    """Show what is written while it is written; citations lead to their passages."""
    pieces = ["It is IVF", "_SQ8 [1", "], or another [2, 3]. Not [7]."]
    go = threading.Event()
    with (
        openai_server.serve(pieces, go) as (llm_url, _),
        running(
            parts.inspector(tmp_path / "questions.jsonl", chat_model("gpt-4o", llm_url))
        ) as url,
    ):
        window = Window(browser, url)
        text = window.page.locator("#answer .text")
        window.page.fill("#question", QUESTION)
        window.page.keyboard.press("Enter")
        expect(text).to_have_text("It is IVF")
        expect(text).to_have_attribute("aria-busy", "true")
        go.set()
        expect(text).to_have_attribute("aria-busy", "false")
        expect(text).to_have_text("It is IVF_SQ8 1, or another 23. Not [7].")
        expect(window.page.locator("#status")).to_contain_text("The answer is complete")
        cites = text.get_by_role("button")
        assert cites.count() == 3
        rows = window.rows("right")
        for number in (2, 0):
            cites.nth(number).click()
            expect(window.page.locator("#passage-title")).to_have_text(rows[number]["title"])
        assert window.page.locator("#answer .sources li.used").count() == 3
        # Other passages are kept now: the answer says that it is of those before.
        window.page.fill("#kept", "1")
        expect(window.page.locator("#answer")).to_have_class(re.compile("stale"))
        with window.page.expect_response("**/api/answer") as response:
            window.page.get_by_role("button", name="Answer again").click()
        assert len(json.loads(response.value.request.post_data)["passages"]) == 1
        expect(window.page.locator("#answer")).not_to_have_class(re.compile("stale"))
        assert window.problems == []
        window.context.close()


# --- judging, and the keyboard ----------------------------------------------------------------


def test_saving_a_judged_question(window: Window, tmp_path: Path) -> None:
    """Append the question with the passage's section, and mark the passage."""
    window.ask()
    window.page.locator(ROW.format(side="right")).nth(1).click()
    window.page.get_by_role("button", name="Save as the answer").click()
    result = window.page.locator("#passage .result")
    expect(result).to_have_text("Saved to questions.jsonl, which now has 1.")
    found = stages(window.url, "rank", question=QUESTION, instruction=default_task(window))
    second = found["reranked"]["order"][1]["id"]
    section = next(p["section_id"] for p in found["found"]["candidates"] if p["id"] == second)
    [line] = (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"question": QUESTION, "section": section, "language": "en"}
    marked = window.page.locator("#lists .right .row", has_text="judged right")
    assert marked.count() == 1
    assert marked.get_attribute("data-id") == second
    # Another answer to the same question is refused, in words.
    window.page.locator(ROW.format(side="right")).nth(0).click()
    window.page.get_by_role("button", name="Save as the answer").click()
    expect(result).to_contain_text("has this question already")
    window.problems.clear()  # the browser notes the refusal in its console


def test_the_language_of_a_question(window: Window) -> None:
    """Guess the language by the script, and take what the reader says."""
    window.ask("为什么查询很慢？")
    assert window.page.input_value("[name=language]") == "zh"


def test_keyboard_alone(window: Window, tmp_path: Path) -> None:
    """Ask, edit, compare, choose a passage, save it and read the list of keys without a mouse."""
    keys = window.page.keyboard
    focused = window.page.locator(":focus")
    keys.type(QUESTION)
    keys.press("Enter")
    expect(window.page.locator(ROW.format(side="right")).first).to_be_visible()
    keys.press("Tab")  # Ask
    keys.press("Tab")  # examples
    keys.press("Tab")  # instruction
    expect(focused).to_have_id("instruction-a")
    keys.press("ControlOrMeta+A")
    with window.page.expect_response(lambda response: ranks_under(response.request, OTHER_TASK)):
        keys.type(OTHER_TASK)
        keys.press("Enter")
    expect(window.page.locator("#lists")).not_to_have_class(re.compile("stale"))
    keys.press("Tab")  # candidates
    keys.press("Tab")  # kept
    keys.press("Tab")  # compare
    expect(focused).to_have_id("compare")
    keys.press("j")
    rows = window.rows("right")
    expect(focused).to_have_attribute("data-id", rows[0]["id"])
    keys.press("ArrowDown")
    expect(focused).to_have_attribute("data-id", rows[1]["id"])
    assert window.page.locator("#lists path.on").count() == 1
    keys.press("ArrowLeft")
    expect(focused).to_have_attribute("data-id", rows[1]["id"])
    assert focused.evaluate("row => row.closest('.left') !== null")
    keys.press("Enter")
    expect(window.page.locator("#passage-title")).to_have_text(rows[1]["title"])
    keys.press("s")
    expect(focused).to_have_text("Save as the answer")
    keys.press("Enter")
    expect(window.page.locator("#passage .result")).to_contain_text("Saved")
    assert (tmp_path / "questions.jsonl").exists()
    keys.press("?")
    dialog = window.page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    keys.press("Escape")
    expect(dialog).to_be_hidden()
    keys.press("c")
    expect(window.page.locator("#instruction-b")).to_be_focused()
    keys.type("c")  # a letter, now
    assert window.page.input_value("#instruction-b").endswith("c")
    window.page.evaluate("document.activeElement.blur()")
    keys.press("/")
    expect(window.page.locator("#question")).to_be_focused()


def test_single_keys_can_be_turned_off(window: Window) -> None:
    """Leave single keys to whoever needs them for something else."""
    window.page.click("#open-keys")
    window.page.uncheck("#use-keys")
    window.page.get_by_role("button", name="Close").click()
    window.page.keyboard.press("/")
    expect(window.page.locator("#question")).not_to_be_focused()


def test_focus_can_be_seen_and_goes_down_the_page(window: Window) -> None:
    """Give every tab stop an outline, in the order of the page, and stop once in each list."""
    window.ask()
    window.page.evaluate("document.querySelector('#question').focus()")
    stops = []
    for _ in range(40):
        window.page.keyboard.press("Tab")
        stop = window.page.evaluate(
            """() => {
                const now = document.activeElement;
                if (now === document.body) return null;
                const box = now.getBoundingClientRect();
                return {
                    outline: getComputedStyle(now).outlineStyle, width: box.width,
                    name: now.getAttribute('aria-label') || now.textContent || now.labels?.[0]?.textContent,
                    list: now.closest('#lists ol') !== null,
                    index: [...document.querySelectorAll('*')].indexOf(now),
                };
            }"""
        )
        if stop is None:
            break
        stops.append(stop)
    assert len(stops) > 10
    assert all(stop["outline"] != "none" and stop["width"] > 0 for stop in stops)
    assert all(stop["name"].strip() for stop in stops)
    assert sum(stop["list"] for stop in stops) == 2
    after = list(itertools.takewhile(lambda pair: pair[1]["index"] > 5, itertools.pairwise(stops)))
    assert all(one["index"] < other["index"] for one, other in after[: len(stops) - 2])


def test_names_for_screen_readers(window: Window) -> None:
    """Say a row in one sentence, and each new ranking in a live region."""
    window.ask()
    right = window.rows("right")
    places = {row["id"]: int(row["place"]) for row in window.rows("left")}
    named = window.page.get_by_role("list", name="After reranking").get_by_role("button")
    for index, row in enumerate(right):
        move = places[row["id"]] - int(row["place"])
        words = f"up {move} place" if move > 0 else f"down {-move} place" if move else "same place"
        start = f"{row['place']} {row['title']} {words}"
        name = re.compile(rf"^{re.escape(start)}s? score {row['score']} \S+\.md · \d+ tokens")
        expect(named.nth(index)).to_have_accessible_name(name)
    assert window.page.get_by_role("list", name="By embedding").count() == 1
    assert window.page.get_by_role("list", name="After reranking").count() == 1
    assert window.page.get_attribute("#status", "role") == "status"
    assert window.page.get_attribute("#answer .text", "aria-live") == "polite"


# --- screens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 320])
def test_narrow_screens(browser: Any, parts: Parts, tmp_path: Path, width: int) -> None:
    """Fit without scrolling sideways, and say in words of arrows what lines cannot."""
    with running(parts.inspector(tmp_path / "questions.jsonl")) as url:
        window = Window(browser, url, viewport={"width": width, "height": 800})

        def check() -> None:
            assert window.page.evaluate("document.documentElement.scrollWidth") <= width
            wide = window.page.evaluate(
                """width => [...document.querySelectorAll('main *')].filter(
                    part => part.getBoundingClientRect().right > width + 0.5).map(p => p.outerHTML)""",
                width,
            )
            assert wide == []

        check()
        window.ask()
        check()
        assert not window.page.locator("#lists svg").is_visible()
        places = {row["id"]: row["place"] for row in window.rows("left")}
        first = window.page.locator(ROW.format(side="right")).first
        place = places[first.get_attribute("data-id")]
        expect(first.locator(".moved")).to_contain_text(f"from {place}")
        assert first.locator(".from").is_visible()
        window.page.click("#compare")
        window.instruct(OTHER_TASK, "b")
        for details in window.page.locator("summary").all():
            details.click()
        check()
        window.context.close()


CONTRAST = """selectors => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
    const context = canvas.getContext('2d', {willReadFrequently: true});
    const rgba = colour => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const light = colour => colour.slice(0, 3).map(value => value / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const ground = part => {
        for (; part; part = part.parentElement) {
            const colour = rgba(getComputedStyle(part).backgroundColor);
            if (colour[3] === 255) return colour;
        }
    };
    return selectors.map(selector => {
        const part = document.querySelector(selector);
        const [one, other] = [light(rgba(getComputedStyle(part).color)), light(ground(part))];
        return [selector, (Math.max(one, other) + .05) / (Math.min(one, other) + .05)];
    });
}"""
TEXTS = [
    "h1", "#about", "#demo", "#question", "#ask label", "button.main", "#compare", "#status",
    ".figures span", "#lists h2", ".place", ".title", ".score", ".row .facts", ".moved.up",
    ".moved.down", ".note", "#passage .facts", "#passage .text", "summary", "pre", ".frame",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes(browser: Any, parts: Parts, tmp_path: Path, scheme: str) -> None:
    """Follow the system's scheme, with contrast enough to read small text (WCAG AA)."""
    with running(parts.inspector(tmp_path / "questions.jsonl")) as url:
        window = Window(browser, url, color_scheme=scheme)
        window.ask()
        for details in window.page.locator("summary").all():
            details.click()
        ground = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
        assert brightness < 60 if scheme == "dark" else brightness > 200
        low = [
            (name, ratio) for name, ratio in window.page.evaluate(CONTRAST, TEXTS) if ratio < 4.5
        ]
        assert low == []
        window.context.close()
