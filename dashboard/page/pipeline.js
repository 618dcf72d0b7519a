// The strip at the top: how the pipeline itself is doing.

import { $, el, setText, svg } from "./dom.js";
import { number, short } from "./format.js";
import { BOX, path } from "./spark.js";

const KEPT = 120;

const FIGURES = [
  ["rate", "Entries/s", "entries settled a second"],
  ["lag", "Lag", "entries that no worker has read yet"],
  ["pending", "Pending", "entries read and not settled yet"],
  ["dead_letters", "Dead letters", "entries in the dead-letter stream"],
  ["stored", "Stored", "entries stored since the group began"],
  ["workers", "Workers", "workers whose lease holds"],
];

export class Pipeline {
  #rates = [];
  #before = null;

  show(data) {
    const strip = $("pipeline");
    if (!data.reachable) {
      strip.replaceChildren(el("div", { class: "gone", text: "Redis does not answer: the pipeline is not shown. Readings are." }));
      this.#rates = [];
      return;
    }
    if (!strip.querySelector("[data-figure]")) strip.replaceChildren(...FIGURES.map(make));
    const cells = Object.fromEntries([...strip.children].map((node) => [node.dataset.figure, node]));
    const say = (name, text, mood = "") => {
      setText(cells[name].querySelector("b"), text);
      cells[name].className = mood;
    };
    say("rate", data.rate === null ? "–" : number(data.rate, data.rate < 100 ? 1 : 0));
    say("lag", short(data.lag), data.lag > Math.max(1000, 10 * (data.rate ?? 0)) ? "wary" : "");
    say("pending", short(data.pending));
    say("dead_letters", short(data.dead_letters), this.#before !== null && data.dead_letters > this.#before ? "wary" : "");
    say("stored", short(data.stored));
    say("workers", String(data.workers.length), data.workers.length ? "" : "bad");
    cells.workers.title = data.workers.map((one) => `${one.name} (process ${one.pid} on ${one.host})`).join("\n") || "no worker runs";
    this.#before = data.dead_letters;
    this.#line(cells.rate, data.rate);
  }

  #line(cell, rate) {
    const now = Date.now();
    if (rate === null || now - (this.#rates.at(-1)?.ms ?? 0) < 1000) return;
    this.#rates.push({ ms: now, value: rate });
    if (this.#rates.length > KEPT) this.#rates.shift();
    const { line, area } = path(this.#rates);
    cell.querySelector(".stroke").setAttribute("d", line);
    cell.querySelector(".area").setAttribute("d", area);
  }
}

function make([name, label, title]) {
  const cell = el("div", { title }, el("p", { class: "name", text: label }), el("b", { text: "–" }));
  cell.dataset.figure = name;
  if (name === "rate") {
    cell.append(svg("svg", { viewBox: BOX, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "area" }), svg("path", { class: "stroke" })));
  }
  return cell;
}
