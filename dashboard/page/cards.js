// A card for each series of the page: value, unit, age, and a small line.

import { $, el, keyed, setText, svg } from "./dom.js";
import { age, decimalsOf, number } from "./format.js";
import { BOX, path } from "./spark.js";
import { keyOf } from "./store.js";

const DRAWN = 120; // readings of the line

export class Cards {
  #store;
  #select;
  #series = new Map();
  #changed = new Set();
  #alerts = new Map();
  #frame = 0;
  #selected = null;

  // `select(key)`: somebody chose a card.
  constructor(store, select) {
    this.#store = store;
    this.#select = select;
    $("cards").addEventListener("click", (event) => {
      const card = event.target.closest(".card");
      if (card) select(card.dataset.key);
    });
    setInterval(() => this.#tick(), 1000);
  }

  // The series of the page, in their order.
  show(series) {
    this.#series = new Map(series.map((one) => [keyOf(one), one]));
    keyed($("cards"), series, keyOf, (one) => this.#make(one), (card, one) => this.#name(card, one));
    for (const key of this.#series.keys()) this.#changed.add(key);
    this.#draw();
  }

  of(key) {
    return this.#series.get(key);
  }

  keys() {
    return [...this.#series.keys()];
  }

  unitOf(key) {
    const one = this.#series.get(key);
    const told = this.#store.get(key)?.unit;
    return (one?.unit_known ? one.unit : told ?? one?.unit) ?? "";
  }

  // A reading came: drawn with the next frame, however many come until then.
  touch(key) {
    if (!this.#series.has(key)) return;
    this.#changed.add(key);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  choose(key) {
    this.#selected = key;
    for (const card of $("cards").children) card.setAttribute("aria-pressed", String(card.dataset.key === key));
  }

  mark(alerts) {
    this.#alerts = new Map();
    for (const one of alerts) {
      const key = keyOf(one);
      if (one.severity === "critical" || !this.#alerts.has(key)) this.#alerts.set(key, one.severity);
    }
    this.#tick();
  }

  #make(one) {
    const line = svg("svg", { class: "line", viewBox: BOX, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "area" }), svg("path", { class: "stroke" }));
    return el("button", { class: "card", type: "button", "aria-pressed": String(keyOf(one) === this.#selected) },
      el("span", { class: "name" }, el("b"), el("span")),
      el("span", { class: "mark" }),
      el("span", { class: "figure" }, el("span", { class: "value", text: "–" }), el("span", { class: "unit" })),
      line,
      el("span", { class: "foot" }, el("span", { class: "age" }), el("span", { class: "reach" })));
  }

  #name(card, one) {
    const [sensor, device] = card.querySelector(".name").children;
    setText(sensor, one.sensor_type);
    setText(device, one.device_id);
    card.title = `${one.device_id} / ${one.sensor_type}${one.active ? "" : " (switched off)"}`;
  }

  #draw() {
    this.#frame = 0;
    for (const card of $("cards").children) {
      const key = card.dataset.key;
      if (!this.#changed.delete(key)) continue;
      this.#value(card, key);
      this.#age(card, key);
    }
    this.#changed.clear();
  }

  #value(card, key) {
    const points = (this.#store.get(key)?.points ?? []).slice(-DRAWN);
    const newest = points.at(-1);
    if (!newest) return;
    const isText = newest.value === null;
    const decimals = isText ? 0 : Math.max(...points.slice(-20).map((point) => decimalsOf(point.value ?? 0)));
    const value = card.querySelector(".value");
    setText(value, isText ? (newest.text ?? "…") : number(newest.value, decimals));
    value.classList.toggle("text", isText);
    const unit = isText ? "" : this.unitOf(key);
    setText(card.querySelector(".unit"), unit);
    const { line, area, low, high } = path(points);
    card.querySelector(".stroke").setAttribute("d", line);
    card.querySelector(".area").setAttribute("d", area);
    setText(card.querySelector(".reach"), low === null || low === high ? "" : `${number(low, decimals)} – ${number(high, decimals)}`);
  }

  #tick() {
    for (const card of $("cards").children) this.#age(card, card.dataset.key);
  }

  #age(card, key) {
    const known = this.#store.newest(key);
    const stale = known && this.#store.isStale(key);
    const severity = this.#alerts.get(key);
    card.classList.toggle("stale", Boolean(stale));
    card.classList.toggle("warning", severity === "warning");
    card.classList.toggle("critical", severity === "critical");
    setText(card.querySelector(".age"), known ? age(this.#store.ageSec(key)) : "no reading yet");
    const off = this.of(key)?.active === false;
    setText(card.querySelector(".mark"), off ? "off" : severity ?? (stale ? "stale" : ""));
  }
}
