// Single keys, outside of text fields; they can be turned off.

import { byId } from "./dom.js";

const dialog = byId("keys");
const use = byId("use-keys");
const KEPT = "qwen3-rag.keys";

/** Calls `actions[key]` when that key is pressed where nothing is typed. */
export function listen(actions) {
  use.checked = localStorage.getItem(KEPT) !== "off";
  use.addEventListener("change", () => localStorage.setItem(KEPT, use.checked ? "on" : "off"));
  byId("open-keys").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (!use.checked || dialog.open || isTyping(event)) return;
    const action = event.key === "?" ? () => dialog.showModal() : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function isTyping(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return true;
  return event.target.matches("input:not([type=radio], [type=checkbox]), textarea, select");
}
