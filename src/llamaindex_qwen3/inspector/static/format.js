// How figures are written.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

export function tokens(number) {
  return `${count(number)} ${number === 1 ? "token" : "tokens"}`;
}

export function time(ms) {
  if (ms >= 9950) return `${Math.round(ms / 1000)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return ms >= 10 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
}

/** Reranked scores crowd near 0 and 1: five decimals tell them apart. */
export function score(value, kind) {
  return value.toFixed(kind === "dense" ? 4 : 5);
}

export function moved(places) {
  if (places === null) return "new";
  if (places === 0) return "=";
  return places > 0 ? `↑${places}` : `↓${-places}`;
}

/** The same for a screen reader. */
export function movedInWords(places) {
  if (places === null) return "not in the other list";
  if (places === 0) return "same place";
  const many = Math.abs(places);
  return `${places > 0 ? "up" : "down"} ${many} ${many === 1 ? "place" : "places"}`;
}

export function direction(places) {
  if (places === null) return "new";
  return places === 0 ? "same" : places > 0 ? "up" : "down";
}

/** A first guess by the script of a question; the reader may correct it. */
export function language(text) {
  if (/[\u3040-\u30ff]/u.test(text)) return "ja";
  if (/\p{Script=Hangul}/u.test(text)) return "ko";
  if (/\p{Script=Han}/u.test(text)) return "zh";
  if (/\p{Script=Cyrillic}/u.test(text)) return "ru";
  if (/\p{Script=Arabic}/u.test(text)) return "ar";
  return "en";
}
