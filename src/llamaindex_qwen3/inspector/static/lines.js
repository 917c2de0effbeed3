// Lines between the two lists: who moved where.

import { svg } from "./dom.js";

const STUB = 14;

/** Draws a line for each pair of rows, in the gutter between the lists. */
export function draw(lists, pairs) {
  const canvas = lists.querySelector("svg");
  const { width, height } = canvas.getBoundingClientRect();
  // On narrow screens there is no gutter: the rows say how far they moved.
  if (!width || !pairs.length) {
    canvas.replaceChildren();
    return;
  }
  canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const top = canvas.getBoundingClientRect().top - lists.getBoundingClientRect().top;
  const middles = [".left", ".right"].map((side) => middlesOf(lists.querySelector(`${side} ol`), top));
  const lit = new Set([...lists.querySelectorAll(".row.on")].map((row) => row.dataset.id));
  // Those that stayed lie at the bottom, those kept for the answer on top.
  const order = [...pairs].sort((one, other) => weight(one) - weight(other));
  canvas.replaceChildren(...order.map((pair) => line(pair, middles, width, lit)));
}

/** The middle of each row, in the coordinates of the drawing; transforms under way do not count. */
function middlesOf(list, top) {
  const items = [...list.querySelectorAll("li[data-key]")];
  return new Map(
    items.map((item) => [item.dataset.key, item.offsetTop + item.offsetHeight / 2 - top]),
  );
}

const weight = (pair) => (pair.kept ? 2 : 0) + (pair.direction === "same" ? 0 : 1);

function line({ id, direction, kept }, [left, right], width, lit) {
  const [from, to] = [left.get(id), right.get(id)];
  const bend = (width - 2 * STUB) / 2;
  const d = `M0 ${from}h${STUB}c${bend} 0 ${bend} ${to - from} ${2 * bend} ${to - from}h${STUB}`;
  const classes = [direction, kept && "kept", lit.has(id) && "on"].filter(Boolean).join(" ");
  return svg("path", { d, class: classes, "data-id": id });
}
