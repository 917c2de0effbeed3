// The answer as it is written, with its citations as buttons.

import { Problem, stages } from "./api.js";
import { byId, element } from "./dom.js";
import * as format from "./format.js";
import { light } from "./lists.js";

const section = byId("answer");
const text = section.querySelector(".text");
const sources = section.querySelector(".sources");
const time = section.querySelector(".time");
let running = null;
let shown = null;

/** Writes an answer from passages, best first; an earlier one that is being written is stopped. */
export async function answer(question, passages, { onCite, onPrompt, onEnd }) {
  running?.abort();
  const run = (running = new AbortController());
  start(passages, onCite);
  shown = { question, ids: passages.map((passage) => passage.id) };
  let written = "";
  try {
    const request = { question, passages: shown.ids };
    for await (const stage of stages("/api/answer", request, run.signal)) {
      if (run !== running) return;
      if (stage.stage === "prompted") onPrompt(stage.calls);
      if (stage.stage === "no_llm") note(stage.message);
      if (stage.stage === "piece") write((written += stage.text), passages, onCite);
      if (stage.stage === "answered") finish(stage, written, passages, onEnd);
    }
  } catch (error) {
    if (run.signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    text.append(element("p", { class: "problem", role: "alert" }, error.message));
  } finally {
    if (run === running) {
      text.setAttribute("aria-busy", "false");
      section.classList.remove("writing");
    }
  }
}

/** Says when the answer shown is from other passages than those that would be kept now. */
export function compareWith(question, ids) {
  const stale = shown && (shown.question !== question || shown.ids.join() !== ids.join());
  section.classList.toggle("stale", Boolean(stale));
}

function start(passages, onCite) {
  section.classList.remove("stale");
  section.classList.add("writing");
  // Read out once it is whole, not piece by piece.
  text.setAttribute("aria-busy", "true");
  text.replaceChildren();
  time.textContent = "";
  sources.hidden = true;
  sources.replaceChildren(...passages.map((passage) => source(passage, onCite)));
}

function write(written, passages, onCite) {
  text.replaceChildren(...cited(written, passages, onCite));
}

function finish(stage, written, passages, onEnd) {
  const used = new Set(citations(written));
  [...sources.children].forEach((item, index) => item.classList.toggle("used", used.has(index + 1)));
  sources.hidden = false;
  time.textContent = `first words after ${format.time(stage.first_ms)}, all after ${format.time(stage.ms)}`;
  onEnd();
}

function note(message) {
  text.replaceChildren(element("p", { class: "note" }, message));
}

function source(passage, onCite) {
  const button = element("button", { type: "button", class: "link" }, passage.section);
  button.addEventListener("click", () => onCite(passage.id));
  hovers(button, passage.id);
  return element("li", {}, button, " ", element("span", { class: "file" }, passage.file));
}

const CITATION = /\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]/g;

function citations(written) {
  return [...written.matchAll(CITATION)].flatMap((found) => numbers(found[1]));
}

const numbers = (list) => list.split(/[,;]/).map(Number);

/** Splits an answer into text and buttons; numbers that name no passage stay text. */
function cited(written, passages, onCite) {
  const parts = [];
  let end = 0;
  for (const found of written.matchAll(CITATION)) {
    const known = numbers(found[1]).every((number) => passages[number - 1]);
    if (!known) continue;
    parts.push(written.slice(end, found.index));
    parts.push(...numbers(found[1]).map((number) => citation(number, passages[number - 1], onCite)));
    end = found.index + found[0].length;
  }
  return [...parts, written.slice(end)];
}

function citation(number, passage, onCite) {
  const label = `Passage ${number}: ${passage.section}`;
  const button = element(
    "button",
    { type: "button", class: "cite", "aria-label": label, title: passage.section },
    String(number),
  );
  button.addEventListener("click", () => onCite(passage.id));
  hovers(button, passage.id);
  return button;
}

function hovers(button, id) {
  button.addEventListener("pointerenter", () => light(id));
  button.addEventListener("pointerleave", () => light(null));
}
