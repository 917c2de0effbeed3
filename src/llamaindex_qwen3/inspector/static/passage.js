// The passage chosen: its text, where it stood, and whether it answers the question.

import { Problem, post } from "./api.js";
import { byId, element } from "./dom.js";
import * as format from "./format.js";

const section = byId("passage");
const form = section.querySelector(".judge");
const result = form.querySelector(".result");
let current = null;

/** Shows a passage of the rankings of both instructions, which are [label, ranking] pairs. */
export function showPassage(passage, sides) {
  const question = sides[0][1].request.question;
  if (current?.passage.id !== passage.id || current.question !== question) {
    result.textContent = "";
    result.classList.remove("problem");
  }
  if (current?.question !== question) form.language.value = format.language(question);
  current = { passage, question };
  byId("passage-title").textContent = passage.section;
  section.querySelector(".facts").replaceChildren(
    passage.file,
    ...sides.flatMap(([label, ranking]) => [element("br"), where(passage, label, ranking)]),
    ...cuts(passage, sides).flatMap((cut) => [element("br"), element("span", { class: "cut" }, cut)]),
  );
  section.querySelector(".text").textContent = withoutHeader(passage);
}

/** The title above says it already. */
function withoutHeader({ text, section: title }) {
  const [first, ...rest] = text.split("\n");
  return rest.length && first.replace(/^#+\s*/, "").trim() === title ? rest.join("\n").trim() : text;
}

/** Moves the focus to saving the passage as the answer. */
export function focusSave() {
  form.querySelector("button").focus();
}

export function onSaved(call) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { passage, question } = current;
    try {
      const saved = await post("/api/judged", {
        question,
        section: passage.section_id,
        language: form.language.value,
      });
      say(
        saved.added
          ? `Saved to ${saved.file}, which now has ${format.count(saved.questions)}.`
          : `${saved.file} has it already.`,
      );
      call(passage.section_id);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(error.message, true);
    }
  });
}

function say(message, isProblem = false) {
  result.textContent = message;
  result.classList.toggle("problem", isProblem);
}

function where(passage, label, ranking) {
  const [before, after] = [ranking.placeBefore(passage.id), ranking.placeAfter(passage.id)];
  const name = label ? `${label}: ` : "";
  if (!before) return `${name}not among the candidates`;
  const found = ranking.passage(passage.id);
  const search = `${name}${before} by ${ranking.request.mode} search (${format.score(found.score, ranking.request.mode)})`;
  if (!after) return search;
  const score = ranking.reranked.order[after - 1].score;
  return `${search}, ${after} after reranking (${format.score(score, "reranked")})`;
}

function cuts(passage, sides) {
  const said = [];
  if (passage.unembedded_tokens) {
    said.push(`The embedding model did not read its last ${format.tokens(passage.unembedded_tokens)}.`);
  }
  for (const [label, ranking] of sides) {
    const cut = ranking.reranked?.order[ranking.placeAfter(passage.id) - 1]?.truncated_tokens;
    if (cut) said.push(`The reranker${label ? ` under ${label}` : ""} did not read its last ${format.tokens(cut)}.`);
  }
  return said;
}
