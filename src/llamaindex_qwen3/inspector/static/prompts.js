// What each model reads, to the letter.

import { byId, element } from "./dom.js";
import * as format from "./format.js";

/** Shows the prompts of these [label, ranking] pairs for one passage. */
export function showPrompts(sides, id) {
  fill("prompt-embedding", sides.map(([label, ranking]) => embedding(label, ranking.embedded)));
  fill("prompt-reranker", sides.map(([label, ranking]) => reranker(label, ranking, id)));
}

/** Shows the messages of each call to the language model. */
export function showMessages(calls) {
  const many = calls.length > 1;
  fill("prompt-llm", calls.flatMap((call, index) => call.map((message) =>
    block(null, message.text, many ? `call ${index + 1}, ${message.role}` : message.role))));
}

function embedding(label, { prompt, tokens, truncated_tokens: cut }) {
  const facts = `${format.tokens(tokens)} with the end token${cut ? `, ${format.count(cut)} cut` : ""}`;
  return block(label, prompt, facts);
}

function reranker(label, ranking, id) {
  const place = ranking.reranked?.order[ranking.placeAfter(id) - 1];
  if (!place) return null;
  const { before, after } = ranking.reranked;
  const cut = place.truncated_tokens;
  const facts = `${format.tokens(place.tokens)}${cut ? `; the last ${format.count(cut)} of the document were cut` : ""}`;
  return block(label, [frame(before), ranking.passage(id).read, frame(after)], facts);
}

const frame = (text) => element("span", { class: "frame" }, text);

function block(label, content, facts) {
  const heading = [label && element("b", { class: "side" }, label), facts].filter(Boolean);
  return element(
    "figure",
    {},
    heading.length ? element("figcaption", {}, ...heading.flatMap((part) => [part, " "])) : null,
    element("pre", {}, ...[content].flat()),
  );
}

function fill(id, blocks) {
  const box = byId(id).querySelector("div");
  const shown = blocks.filter(Boolean);
  box.replaceChildren(...(shown.length ? shown : [element("p", {}, "Nothing yet.")]));
}
