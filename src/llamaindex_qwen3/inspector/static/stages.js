// Where the time went: a bar and its figures for each instruction.

import { byId, element } from "./dom.js";
import * as format from "./format.js";

const NAMES = ["embed", "search", "rerank"];

/** Shows the stages of these [label, ranking] pairs. */
export function showStages(sides) {
  byId("stages").replaceChildren(...sides.map(([label, ranking]) => stages(label, ranking)));
}

function stages(label, ranking) {
  const { times } = ranking;
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  const figures = element("span", { class: "figures" });
  NAMES.forEach((name, index) => {
    const ms = times[index];
    const part = element("i", { class: name });
    part.style.flexGrow = ms ?? 0;
    bar.append(part);
    figures.append(
      element("span", { class: name }, `${name} `, element("b", {}, ms === null ? "…" : format.time(ms))),
      " ",
    );
  });
  if (ranking.reranked) figures.append(element("span", { class: "read" }, readByReranker(ranking)));
  return element(
    "p",
    { class: "stage", "aria-label": `Time per stage${label ? `, instruction ${label}` : ""}` },
    label ? element("b", { class: "side" }, label) : null,
    bar,
    figures,
  );
}

function readByReranker(ranking) {
  const pairs = ranking.reranked.order.length;
  const read = format.tokens(ranking.tokensRead);
  return `${format.count(pairs)} ${pairs === 1 ? "passage" : "passages"}, ${read} with their prompts`;
}
