// What one instruction gives for a question, and the rows that the lists show of it.

import { direction } from "./format.js";

/** The stages of one request as they came; `reranked` is null until the last one is there. */
export class Ranking {
  constructor(request) {
    this.request = request;
    this.embedded = this.found = this.reranked = null;
  }

  take(stage) {
    this[stage.stage] = stage;
  }

  passage(id) {
    return this.found.candidates.find((passage) => passage.id === id);
  }

  get times() {
    return [this.embedded, this.found, this.reranked].map((stage) => stage?.ms ?? null);
  }

  get tokensRead() {
    return this.reranked.order.reduce((sum, place) => sum + place.tokens, 0);
  }

  placeBefore(id) {
    return 1 + this.found.candidates.findIndex((passage) => passage.id === id);
  }

  placeAfter(id) {
    return 1 + (this.reranked?.order.findIndex((place) => place.id === id) ?? -1);
  }

  best(kept) {
    return this.reranked.order.slice(0, kept).map((place) => this.passage(place.id));
  }

  /** Candidates in the order of the search. */
  before() {
    return this.found.candidates.map((passage, index) =>
      this.#row(passage, index, passage.score, this.request.mode, passage.unembedded_tokens),
    );
  }

  /** Candidates in the order of the reranker; null while it is at work. */
  after(kept) {
    if (!this.reranked) return null;
    return this.reranked.order.map((place, index) => ({
      ...this.#row(this.passage(place.id), index, place.score, "reranked", place.truncated_tokens),
      kept: index < kept,
      lastKept: index + 1 === kept,
    }));
  }

  #row(passage, index, score, kind, cut) {
    return {
      id: passage.id,
      place: index + 1,
      title: passage.section,
      file: passage.file,
      tokens: passage.tokens,
      judged: this.found.judged.includes(passage.section_id),
      score,
      kind,
      cut,
      move: undefined,
      kept: false,
      lastKept: false,
    };
  }
}

/** Notes in the right-hand rows how far each moved, and returns the pairs to join by lines. */
export function join(left, right) {
  const places = new Map(left.map((row) => [row.id, row.place]));
  for (const row of right) {
    row.from = places.get(row.id) ?? null;
    row.move = row.from === null ? null : row.from - row.place;
  }
  return right
    .filter((row) => row.from !== null)
    .map((row) => ({ id: row.id, direction: direction(row.move), kept: row.kept }));
}
