// The page: what is shown, what is pressed, and what the server says to it.

import { Alerts } from "./alerts.js";
import { Cards } from "./cards.js";
import { Chart } from "./chart.js";
import { Connection } from "./connection.js";
import { Devices } from "./devices.js";
import { $, setText } from "./dom.js";
import { clock, number, decimalsOf, whole } from "./format.js";
import { pager } from "./pager.js";
import { Pipeline } from "./pipeline.js";
import { Store, keyOf } from "./store.js";

const TYPING_MS = 250;
const WIDE = matchMedia("(min-width: 1100px)");

// What is shown, as it stands in the page's own address: to be kept, sent and put on a wall.
const given = new URLSearchParams(location.search);
const view = {
  q: given.get("q") ?? "",
  page: given.get("page") ?? "1",
  devices: given.get("devices") ?? "1",
  named: location.search.slice(1).split("&").filter((part) => part.startsWith("series=")),
};

const store = new Store();
const chart = new Chart();
const pipeline = new Pipeline();
const cards = new Cards(store, (key) => (key === focus ? closeFocus() : openFocus(key)));
const alerts = new Alerts(store, (alert) => show(alert), (active) => cards.mark(active));
const devices = new Devices(store, (device) => search(device), (page) => turn({ devices: page }));
const turned = pager($("cards-pager"), (page) => turn({ page }));

let focus = null; // the series of the chart
let closed = false; // somebody has closed the chart
let sought = null; // a series to open once it is on the page
let heard = 0; // when the server last said something
let reopened = false; // the history that comes is one after a gap

function query(after) {
  const parts = [...view.named];
  if (view.q) parts.push(`q=${encodeURIComponent(view.q)}`);
  if (view.page !== "1") parts.push(`page=${encodeURIComponent(view.page)}`);
  if (view.devices !== "1") parts.push(`devices=${encodeURIComponent(view.devices)}`);
  if (after) parts.push(`after=${encodeURIComponent(after)}`);
  return parts.length ? `?${parts.join("&")}` : "";
}

const connection = new Connection(
  () => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws${query(store.reached())}`,
  {
    open() {
      document.body.classList.remove("cut");
      link("live", "Live");
      banner("");
    },
    message(kind, data) {
      heard = Date.now();
      handlers[kind]?.(data);
    },
    cut(said) {
      document.body.classList.add("cut");
      link("cut", "Disconnected");
      const since = heard ? ` What is shown is of ${clock(heard)}.` : "";
      banner(said ? `${said[0].toUpperCase()}${said.slice(1)}.` : `The dashboard does not answer.${since} It is tried again all the time.`);
      reopened = true;
    },
  },
);

const handlers = {
  history(rows) {
    const touched = new Set(rows.map((row) => store.add(row)));
    for (const key of touched) cards.touch(key);
    if (touched.has(focus)) figure();
    if (reopened) chart.again();
    reopened = false;
  },
  reading(row) {
    const key = store.add(row);
    cards.touch(key);
    if (key === focus) {
      chart.add(key, { ms: Date.parse(row.timestamp), value: row.value });
      figure();
    }
  },
  page({ page, pages, total, series }) {
    store.keep(series.map(keyOf));
    cards.show(series);
    turned(page, pages);
    view.page = String(page);
    setText($("cards-count"), total ? `${whole(total)} series` : "");
    $("cards-empty").hidden = total > 0;
    setText($("cards-empty"), view.q ? `No series is called like “${view.q}”.` : "Nothing was measured yet. The first reading will appear here by itself.");
    refocus();
  },
  alerts: (data) => alerts.show(data),
  devices: (data) => devices.show(data),
  pipeline: (data) => pipeline.show(data),
  state({ time, database, login }) {
    store.setClock(time);
    $("logout").hidden = !login;
    const away = !database;
    document.body.classList.toggle("cut", away);
    link(away ? "cut" : "live", away ? "No database" : "Live");
    banner(away ? "The database does not answer. What is shown may be old; it goes on by itself when the database is back." : "");
  },
};

function link(state, text) {
  $("link").dataset.state = state;
  setText($("link").querySelector("span"), text);
}

function banner(text) {
  $("banner").hidden = !text;
  setText($("banner"), text);
}

// The chart shows what was chosen; on a wide screen, the first series until something is.
function refocus() {
  if (sought && cards.of(sought)) {
    openFocus(sought);
    sought = null;
  } else if (focus && cards.of(focus)) openFocus(focus);
  else if (WIDE.matches && !closed && cards.keys().length) openFocus(cards.keys()[0]);
  else closeFocus(false);
}

function openFocus(key) {
  const one = cards.of(key);
  const byHand = focus !== null && focus !== key;
  focus = key;
  closed = false;
  $("focus").hidden = false;
  cards.choose(key);
  setText($("focus-sensor"), one.sensor_type);
  setText($("focus-device"), one.device_id);
  figure();
  chart.show(key, () => cards.unitOf(key));
  if (!WIDE.matches && (byHand || !sought)) $("focus").scrollIntoView({ block: "nearest" });
}

function closeFocus(byHand = true) {
  focus = null;
  closed ||= byHand;
  $("focus").hidden = true;
  cards.choose(null);
  chart.hide();
}

function figure() {
  const newest = store.newest(focus);
  setText($("focus-value"), !newest ? "–" : newest.value === null ? (newest.text ?? "…") : number(newest.value, decimalsOf(newest.value)));
  setText($("focus-unit"), newest && newest.value !== null ? cards.unitOf(focus) : "");
}

function show(alert) {
  const key = keyOf(alert);
  if (cards.of(key)) openFocus(key);
  else {
    sought = key;
    search(`${alert.device_id} ${alert.sensor_type}`);
  }
}

function search(text) {
  $("search").value = text;
  view.named = [];
  turn({ q: text, page: 1, devices: 1 });
}

function turn(changes) {
  for (const [name, value] of Object.entries(changes)) view[name] = String(value);
  history.replaceState(null, "", query() || "/");
  connection.restart();
}

let typing = 0;
$("search").value = view.q;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => search($("search").value), TYPING_MS);
});
$("search-form").addEventListener("submit", (event) => event.preventDefault());
$("focus-close").addEventListener("click", () => closeFocus());
$("theme").addEventListener("click", () => window.switchTheme());
addEventListener("keydown", (event) => {
  const writing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    $("search").focus();
  } else if (event.key === "Escape" && event.target === $("search") && $("search").value) search("");
  else if (event.key === "Escape" && focus && !writing) closeFocus();
});

connection.restart();
