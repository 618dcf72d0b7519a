// The large chart: a range of one series, its spread, and the limits that rules set.

import { $, el, setText } from "./dom.js";
import { clock, moment, number } from "./format.js";

const LIVE_MS = 900000;
let library = null; // a megabyte: fetched when the first chart is shown

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

export class Chart {
  #chart = null;
  #key = null;
  #unit = () => "";
  #range = "live";
  #data = null;
  #asked = 0;
  #due = 0;
  #timer = 0;

  constructor() {
    $("ranges").addEventListener("click", (event) => {
      const range = event.target.closest("button")?.dataset.range;
      if (range) this.#choose(range);
    });
    document.addEventListener("theme", () => this.#draw());
    addEventListener("resize", () => {
      this.#chart?.resize();
      this.#draw();
    });
    this.#press();
  }

  // Show this series; `unit()` is asked whenever it is drawn.
  show(key, unit) {
    this.#unit = unit;
    if (key === this.#key) return;
    this.#key = key;
    this.#data = null;
    $("limits").replaceChildren();
    this.#chart?.clear();
    this.#load();
  }

  hide() {
    this.#key = null;
    this.#data = null;
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  // A reading of some series came. Buckets are asked for again when one more may be full.
  add(key, point) {
    if (key !== this.#key || !this.#data) return;
    if (this.#data.bucket_sec) this.#later(Math.max(this.#data.bucket_sec * 1000, 15000));
    else if (point && point.value !== null && point.ms > (this.#data.points.at(-1)?.[0] ?? 0)) {
      this.#data.points.push([point.ms, point.value, point.value, point.value]);
      this.#later(1000, false);
    }
  }

  // Something was missed: ask again.
  again() {
    if (this.#key) this.#load();
  }

  #later(pause, ask = true) {
    this.#timer ||= setTimeout(() => {
      this.#timer = 0;
      if (ask) this.#load();
      else this.#draw();
    }, pause);
  }

  #choose(range) {
    this.#range = range;
    this.#press();
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#load();
  }

  #press() {
    for (const button of $("ranges").children) button.setAttribute("aria-pressed", String(button.dataset.range === this.#range));
  }

  async #load() {
    const asked = (this.#asked += 1);
    const key = this.#key;
    try {
      library ??= import("/assets/index.js").then((module) => module.echarts);
      const [echarts, answer] = await Promise.all([
        library,
        fetch(`/api/readings?series=${key}&range=${this.#range}`),
      ]);
      const found = await answer.json();
      if (asked !== this.#asked || key !== this.#key) return;
      if (!answer.ok) throw new Error(found.error);
      this.#chart ??= echarts.init($("chart"), null, { renderer: "canvas" });
      this.#data = found;
      this.#draw();
    } catch (error) {
      if (asked !== this.#asked) return;
      if (library) await library.catch(() => (library = null));
      this.#note(`The chart could not be had: ${error.message}.`);
    }
  }

  #note(text) {
    $("chart-note").hidden = !text;
    setText($("chart-note"), text);
  }

  #draw() {
    if (!this.#chart || !this.#data) return;
    const { points } = this.#data;
    const any = points.some((point) => point[1] !== null);
    this.#note(any ? "" : "No number was measured in this range.");
    if (this.#data.bucket_sec === 0) this.#slide();
    $("limits").replaceChildren(...this.#data.lines.map((line) =>
      el("li", { class: line.severity, text: `${line.kind} ${number(line.value)}` })));
    this.#chart.setOption(option(this.#data, this.#unit()), { notMerge: true });
    const numbers = points.filter((point) => point[1] !== null);
    const low = Math.min(...numbers.map((point) => point[2]));
    const high = Math.max(...numbers.map((point) => point[3]));
    $("chart").setAttribute("aria-label", any
      ? `Chart of ${this.#range}: from ${number(low)} to ${number(high)} ${this.#unit()}, last ${number(numbers.at(-1)[1])}`
      : "Chart without a number");
  }

  // The live range moves on with the time of its newest reading.
  #slide() {
    const end = Math.max(this.#data.end_ms, this.#data.points.at(-1)?.[0] ?? 0);
    this.#data.end_ms = end;
    this.#data.start_ms = end - LIVE_MS;
    const { points } = this.#data;
    const first = points.findIndex((point) => point[0] >= end - LIVE_MS);
    if (first > 0) points.splice(0, first);
    if (points.length) this.#data.start_ms = Math.max(this.#data.start_ms, Math.min(points[0][0], end - 60000));
  }
}

function option(data, unit) {
  const size = rem();
  const small = { color: colour("--soft"), fontSize: 0.75 * size, fontFamily: getComputedStyle(document.body).fontFamily };
  const accent = colour("--accent");
  const spread = data.bucket_sec > 0;
  const ends = { min: data.start_ms, max: data.end_ms };
  const band = (name, values, extra) => ({
    name, type: "line", stack: "spread", symbol: "none", silent: true, connectNulls: false, data: values,
    lineStyle: { width: 0 }, tooltip: { show: false }, emphasis: { disabled: true }, animation: false, ...extra,
  });
  const bands = spread ? [
    band("low", data.points.map((p) => [p[0], p[2]]), { stackStrategy: "all" }),
    band("height", data.points.map((p) => [p[0], p[1] === null ? null : p[3] - p[2]]), { stackStrategy: "all", areaStyle: { color: accent, opacity: 0.16 } }),
  ] : [];
  return {
    animation: false,
    textStyle: { fontFamily: small.fontFamily },
    grid: { left: 0.75 * size, right: 1 * size, top: 1.1 * size, bottom: 0.5 * size, containLabel: true },
    xAxis: {
      type: "time", ...ends, axisLine: { lineStyle: { color: colour("--line") } }, axisTick: { show: false },
      axisLabel: { ...small, hideOverlap: true, formatter: { day: "{d} {MMM}", month: "{d} {MMM}", hour: "{HH}:{mm}", minute: "{HH}:{mm}", second: "{HH}:{mm}:{ss}" } },
      splitLine: { show: false }, splitNumber: innerWidth < 700 ? 3 : 8,
    },
    yAxis: {
      type: "value", scale: true, splitNumber: 4, axisLabel: { ...small, formatter: (value) => number(value) },
      splitLine: { lineStyle: { color: colour("--line") } },
    },
    tooltip: {
      trigger: "axis", confine: true, backgroundColor: colour("--raised"), borderColor: colour("--line"), borderWidth: 1,
      padding: [0.4 * size, 0.6 * size], textStyle: { ...small, color: colour("--ink"), fontSize: 0.8125 * size },
      axisPointer: { lineStyle: { color: colour("--faint"), type: "solid" } }, renderMode: "richText",
      formatter: (shown) => tip(shown, data, unit),
    },
    series: [
      ...bands,
      {
        name: "value", type: "line", symbol: "none", connectNulls: false, data: data.points.map((p) => [p[0], p[1]]),
        showSymbol: data.points.length < 2, lineStyle: { color: accent, width: 0.11 * size, join: "round" }, itemStyle: { color: accent },
        areaStyle: spread ? undefined : { color: accent, opacity: 0.09, origin: "start" }, emphasis: { disabled: true },
        markLine: {
          symbol: "none", silent: true, data: data.lines.map((line) => limit(line, small)),
        },
      },
    ],
  };
}

function limit(line, small) {
  const shade = colour(line.severity === "critical" ? "--critical" : "--warning");
  return {
    yAxis: line.value, lineStyle: { color: shade, type: [5, 4], width: 1.25 },
    label: {
      ...small, color: shade, backgroundColor: colour("--surface"), padding: [1, 4], borderRadius: 3, position: "insideStartTop",
      formatter: `${line.kind} ${number(line.value)}`,
    },
  };
}

function tip(shown, data, unit) {
  const point = data.points[shown.find((one) => one.seriesName === "value")?.dataIndex ?? -1];
  if (!point || point[1] === null) return "";
  const value = `${number(point[1])}${unit ? ` ${unit}` : ""}`;
  if (!data.bucket_sec) return `${value}\n${clock(point[0])}`;
  return `${value}\n${number(point[2])} – ${number(point[3])}\n${moment(point[0])}`;
}
