// The page: asks on submit, ranks again when an instruction is edited, and shows what came.

import { answer, compareWith } from "./answer.js";
import { Problem, get, stages } from "./api.js";
import { byId, debounced, element } from "./dom.js";
import * as format from "./format.js";
import * as keys from "./keys.js";
import * as lists from "./lists.js";
import { focusSave, onSaved, showPassage } from "./passage.js";
import { showMessages, showPrompts } from "./prompts.js";
import { Ranking, join } from "./ranking.js";
import { showStages } from "./stages.js";

const EDIT_PAUSE_MS = 300;
const form = byId("ask");
const fields = { a: byId("instruction-a"), b: byId("instruction-b") };
const requests = { a: null, b: null };
const rankings = { a: null, b: null };
let about;
let asked = null;
let chosen = null;
let isPicked = false;
let answered = "a";

const comparing = () => byId("compare").getAttribute("aria-pressed") === "true";
const sides = () => (comparing() ? ["a", "b"] : ["a"]);
const kept = () => byId("kept").valueAsNumber || 1;
const view = () => (comparing() ? form.ownerDocument.querySelector("[name=view]:checked").value : "a");
const label = (side) => (comparing() ? side.toUpperCase() : "");
const ranked = () => sides().filter((side) => rankings[side]?.found).map((side) => [label(side), rankings[side]]);

// --- asking ---------------------------------------------------------------------------------

async function ask() {
  if (!form.reportValidity()) return;
  sides().forEach((side) => again[side].cancel());
  asked = byId("question").value.trim();
  if (!asked) return;
  isPicked = false;
  await rankAll(sides());
  if (rankings.a?.reranked && rankings.a.request.question === asked) writeAnswer("a");
}

const again = { a: edited("a"), b: edited("b") };

function edited(side) {
  return debounced(() => asked && form.checkValidity() && rankAll([side]), EDIT_PAUSE_MS);
}

async function rankAll(which) {
  say("Ranking…");
  await Promise.all(which.map(rank));
}

/** Ranks under one instruction; an earlier request for it is stopped. */
async function rank(side) {
  requests[side]?.abort();
  const request = (requests[side] = new AbortController());
  const ranking = new Ranking({
    question: asked,
    instruction: fields[side].value.trim(),
    candidates: byId("candidates").valueAsNumber,
    mode: form.mode.value,
  });
  busy();
  try {
    for await (const stage of stages("/api/rank", ranking.request, request.signal)) {
      if (request !== requests[side]) return;
      ranking.take(stage);
      // An edit keeps the old lists until the new ones are whole; a new question does not.
      const isNew = rankings[side]?.request.question !== asked;
      if (ranking.reranked || (ranking.found && isNew)) rankings[side] = ranking;
      render();
    }
    complain(side, "");
  } catch (error) {
    if (request.signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    complain(side, error.message);
  } finally {
    if (request === requests[side]) requests[side] = null;
    busy();
  }
}

function busy() {
  byId("lists").classList.toggle("stale", Boolean(requests.a || requests.b));
}

// --- showing --------------------------------------------------------------------------------

function render() {
  const shown = ranked();
  if (!shown.length) return;
  byId("work").hidden = false;
  showStages(shown);
  const [left, right] = columns();
  const pairs = left.rows && right.rows ? join(left.rows, right.rows) : [];
  lists.show(left, right, pairs);
  const rows = right.rows ?? left.rows ?? [];
  const ids = new Set([...(left.rows ?? []), ...rows].map((row) => row.id));
  // What the reader picked stays; otherwise it is the best passage.
  isPicked &&= ids.has(chosen);
  display(isPicked ? chosen : (rows[0]?.id ?? null));
  if (right.rows) {
    say(summary(right));
    tellAnswer();
  }
}

/** The two lists that the view asks for. */
function columns() {
  if (view() === "ab") return ["a", "b"].map((side) => after(side, `Under ${label(side)}`));
  const side = view();
  if (!rankings[side]) return [waiting("Before reranking"), waiting("After reranking")];
  const before = { title: `By ${rankings[side].request.mode === "dense" ? "embedding" : "hybrid search"}` };
  return [{ ...before, rows: rankings[side].before() }, after(side, "After reranking")];
}

function after(side, title) {
  const ranking = rankings[side];
  if (!ranking) return waiting(title);
  const many = ranking.found.candidates.length;
  return { ...waiting(title, `Reranking ${format.count(many)} passages…`), rows: ranking.after(kept()) };
}

const waiting = (title, words = "Ranking…") => ({ title, rows: null, waiting: words });

function pick(id) {
  isPicked = true;
  display(id);
}

function display(id) {
  chosen = id;
  lists.mark(id);
  const shown = ranked();
  byId("passage").hidden = id === null;
  showPrompts(shown, id);
  if (id === null) return;
  const holder = shown.map(([, ranking]) => ranking).find((ranking) => ranking.passage(id));
  if (holder) showPassage(holder.passage(id), shown);
}

function summary({ rows }) {
  if (!rows.length) return "Nothing was found.";
  const [first] = rows;
  const many = rows.filter((row) => row.move !== 0).length;
  const moved = `${many} of ${rows.length} passages moved`;
  const where = view() === "ab" ? `${moved} from A to B` : moved;
  return `${where}. First: ${first.title}, ${format.movedInWords(first.move)}.`;
}

function say(words) {
  byId("status").textContent = words;
}

const problems = { a: "", b: "" };

function complain(side, words) {
  problems[side] = words;
  const said = sides()
    .filter((each) => problems[each])
    .map((each) => [label(each), problems[each]].filter(Boolean).join(": "));
  byId("problem").textContent = [...new Set(said)].join(" ");
  byId("problem").hidden = !said.length;
  if (said.length) say("");
}

// --- answering ------------------------------------------------------------------------------

function writeAnswer(side) {
  answered = side;
  const ranking = rankings[side];
  if (!ranking?.reranked?.order.length) return;
  answer(ranking.request.question, ranking.best(kept()), {
    onCite: reveal,
    onPrompt: showMessages,
    onEnd: () => say(`${byId("status").textContent} The answer is complete.`),
  });
}

function tellAnswer() {
  const ranking = rankings[answered];
  if (!ranking?.reranked) return;
  compareWith(ranking.request.question, ranking.best(kept()).map((passage) => passage.id));
}

function reveal(id) {
  pick(id);
  byId("passage").scrollIntoView({ block: "nearest" });
}

// --- wiring ---------------------------------------------------------------------------------

function compare() {
  const now = !comparing();
  byId("compare").setAttribute("aria-pressed", String(now));
  document.querySelector(".instruction[data-side=b]").hidden = !now;
  document.querySelector(".instruction[data-side=a] .side").hidden = !now;
  byId("views").hidden = !now;
  document.querySelector("[data-answer=a]").textContent = now ? "Answer from A" : "Answer again";
  document.querySelector("[data-answer=b]").hidden = !now;
  if (now && !fields.b.value) fields.b.value = fields.a.value;
  if (!now) {
    requests.b?.abort();
    requests.b = null;
    complain("b", "");
    busy();
  }
  render();
  if (now) {
    fields.b.focus();
    if (asked) rankAll(["b"]);
  }
}

function offer(select, field) {
  const names = Object.keys(about.instructions);
  select.append(
    element("option", { value: "" }, "Examples"),
    ...names.map((name) => element("option", { value: name }, name.replaceAll("_", " "))),
  );
  select.addEventListener("change", () => {
    if (!select.value) return;
    field.value = about.instructions[select.value];
    select.value = "";
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

async function begin() {
  about = await get("/api/about");
  byId("about").textContent = `${about.embedding} · ${about.reranker} · ${about.collection}`;
  byId("demo").hidden = !about.demo;
  byId("modes").hidden = !about.hybrid;
  byId("candidates").value = about.candidates;
  byId("kept").value = about.kept;
  fields.a.value = about.instruction;
  document.querySelectorAll(".instruction").forEach((box) => {
    offer(box.querySelector("select"), fields[box.dataset.side]);
  });
  byId("question").focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
const rankAllAgain = () => sides().forEach((side) => again[side]());
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  ask();
});
for (const side of ["a", "b"]) {
  fields[side].addEventListener("input", again[side]);
  // An instruction is one line: Enter applies it without waiting.
  fields[side].addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    again[side].cancel();
    if (asked) rankAll([side]);
  });
  document.querySelector(`[data-answer=${side}]`).addEventListener("click", () => writeAnswer(side));
}
byId("candidates").addEventListener("input", rankAllAgain);
byId("modes").addEventListener("change", rankAllAgain);
byId("kept").addEventListener("input", () => render());
byId("views").addEventListener("change", () => render());
byId("compare").addEventListener("click", compare);
lists.onChoose((id) => {
  reveal(id);
  lists.light(id);
});
onSaved((section) => {
  for (const [, ranking] of ranked()) ranking.found.judged.push(section);
  render();
});
keys.listen({
  "/": () => byId("question").select(),
  i: () => fields.a.focus(),
  c: compare,
  j: () => lists.step(1),
  k: () => lists.step(-1),
  h: () => lists.across(false),
  l: () => lists.across(true),
  s: () => chosen && focusSave(),
  a: () => writeAnswer("a"),
  p: () => {
    byId("prompts").querySelectorAll("details").forEach((details) => (details.open = true));
    byId("prompts").querySelector("summary").focus();
  },
});
begin().catch((error) => complain("a", error.message));
