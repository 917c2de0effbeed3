// The two lists of passages: rows that move to their new places, and one that is chosen.

import { byId, element } from "./dom.js";
import * as format from "./format.js";
import { draw } from "./lines.js";

const lists = byId("lists");
const left = lists.querySelector(".left ol");
const right = lists.querySelector(".right ol");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let pairs = [];
let choose = () => {};

/** Says what to call with the id of a passage that is chosen. */
export function onChoose(call) {
  choose = call;
}

/** Shows two lists of rows, joined by lines; `right.rows` null is still being computed. */
export function show(leftSide, rightSide, joined) {
  fill(left, leftSide);
  fill(right, rightSide);
  pairs = joined;
  draw(lists, pairs);
}

export function mark(id) {
  for (const row of rows()) {
    const chosen = row.dataset.id === id;
    row.setAttribute("aria-pressed", String(chosen));
    row.classList.toggle("chosen", chosen);
  }
  draw(lists, pairs);
}

/** Lights a passage up in both lists, with its line; null puts all back. */
export function light(id) {
  lists.classList.toggle("lit", id !== null);
  for (const part of lists.querySelectorAll("[data-id]")) {
    part.classList.toggle("on", part.dataset.id === id);
  }
}

/** Moves the focus by so many rows, or into the lists when it is elsewhere. */
export function step(by) {
  const current = focused();
  if (!current) return focus(right.querySelector(".row") ?? left.querySelector(".row"));
  const all = [...current.closest("ol").querySelectorAll(".row")];
  return focus(all[all.indexOf(current) + by]);
}

/** Moves the focus to the same passage in the other list. */
export function across(toRight) {
  const current = focused();
  if (!current) return step(0);
  const list = toRight ? right : left;
  return focus([...list.querySelectorAll(".row")].find((row) => row.dataset.id === current.dataset.id));
}

export const focused = () => document.activeElement?.closest?.("#lists .row");

const rows = () => lists.querySelectorAll(".row");

function focus(row) {
  if (!row) return;
  tabStop(row);
  row.focus();
}

/** Tab stops once in each list; the arrow keys do the rest. */
function tabStop(row) {
  for (const other of row.closest("ol").querySelectorAll(".row")) {
    other.tabIndex = other === row ? 0 : -1;
  }
}

function fill(list, { title, rows: shown, waiting }) {
  list.previousElementSibling.textContent = title;
  list.setAttribute("aria-busy", String(shown === null));
  if (shown === null) {
    list.replaceChildren(element("li", { class: "waiting" }, waiting));
    return;
  }
  if (!shown.length) {
    list.replaceChildren(element("li", { class: "waiting" }, "Nothing was found."));
    return;
  }
  const had = focused()?.closest("ol") === list ? focused().dataset.id : null;
  const old = new Map([...list.querySelectorAll("li[data-key]")].map((item) => [item.dataset.key, item]));
  const tops = new Map([...old].map(([key, item]) => [key, item.offsetTop]));
  const most = Math.max(...shown.map((row) => row.score), Number.EPSILON);
  list.replaceChildren(...shown.map((row) => update(old.get(row.id) ?? make(row.id), row, most)));
  list.querySelector(".row").tabIndex = 0;
  if (had) focus([...list.querySelectorAll(".row")].find((row) => row.dataset.id === had));
  if (!calm.matches) slide(list, tops);
}

function make(id) {
  const row = element("button", { type: "button", class: "row", "data-id": id });
  return element("li", { "data-key": id }, row);
}

function update(item, row, most) {
  item.className = [row.kept && "kept", row.lastKept && "last-kept"].filter(Boolean).join(" ");
  const button = item.firstElementChild;
  button.tabIndex = -1;
  const bar = element("span", { class: "bar" });
  // Set by script: the policy of the page allows no style attributes.
  bar.style.setProperty("--share", Math.max(0, row.score / most));
  const parts = [
    element("span", { class: "place" }, String(row.place)),
    element("span", { class: "title", title: row.title }, row.title),
    movement(row),
    element("span", { class: "score" }, heard("score "), format.score(row.score, row.kind)),
    element("span", { class: "facts" }, ...facts(row)),
    bar,
  ];
  button.replaceChildren(...parts.filter(Boolean));
  return item;
}

/** Words that only a screen reader gives. */
const heard = (words) => element("span", { class: "for-readers" }, words);

function movement(row) {
  if (row.move === undefined) return null;
  const from = row.move ? element("span", { class: "from" }, ` from ${row.from}`) : null;
  const arrow = element("span", { "aria-hidden": "true" }, format.moved(row.move), from);
  const words = heard(format.movedInWords(row.move));
  return element("span", { class: `moved ${format.direction(row.move)}` }, arrow, words);
}

function facts(row) {
  return [
    [row.file, format.tokens(row.tokens)].filter(Boolean).join(" · "),
    row.cut ? element("span", { class: "cut" }, `${format.count(row.cut)} cut`) : null,
    row.judged ? element("span", { class: "judged" }, "✓ judged right") : null,
    row.kept ? heard("kept for the answer") : null,
  ];
}

function slide(list, tops) {
  for (const item of list.children) {
    const top = tops.get(item.dataset.key);
    if (top === undefined || top === item.offsetTop) continue;
    item.animate(
      [{ transform: `translateY(${top - item.offsetTop}px)` }, { transform: "none" }],
      { duration: 280, easing: "cubic-bezier(.2, .7, .2, 1)" },
    );
  }
}

lists.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  tabStop(row);
  choose(row.dataset.id);
});
lists.addEventListener("pointerover", (event) => {
  light(event.target.closest(".row")?.dataset.id ?? null);
});
lists.addEventListener("pointerleave", () => light(null));
lists.addEventListener("focusin", (event) => {
  if (event.target.matches(":focus-visible")) light(event.target.closest(".row")?.dataset.id ?? null);
});
lists.addEventListener("focusout", () => light(null));
lists.addEventListener("keydown", (event) => {
  const moves = {
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    ArrowRight: () => across(true),
    ArrowLeft: () => across(false),
  };
  const move = moves[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  move();
});
new ResizeObserver(() => draw(lists, pairs)).observe(lists);
