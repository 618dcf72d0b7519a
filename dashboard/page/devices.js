// The devices of the page, with what they last said of themselves.

import { $, el, keyed, setText } from "./dom.js";
import { age } from "./format.js";
import { pager } from "./pager.js";

export class Devices {
  #store;
  #turned;
  #devices = [];

  // `search(device)`: somebody wants the series of a device. `turn(page)`.
  constructor(store, search, turn) {
    this.#store = store;
    this.search = search;
    this.#turned = pager($("devices-pager"), turn);
    setInterval(() => this.#ages(), 1000);
  }

  show({ page, pages, total, online, offline, devices }) {
    this.#devices = devices;
    keyed($("devices"), devices, (one) => one.device_id, (one) => this.#make(one), (node, one) => this.#fill(node, one));
    this.#turned(page, pages);
    const said = [online && `${online} online`, offline && `${offline} offline`].filter(Boolean);
    setText($("devices-count"), said.length ? said.join(", ") : total ? String(total) : "");
    $("devices-empty").hidden = devices.length > 0;
    setText($("devices-empty"), "No device is known.");
  }

  #make(one) {
    const name = el("button", { type: "button", text: one.device_id, title: one.device_id });
    name.addEventListener("click", () => this.search(one.device_id));
    return el("li", {}, el("i", { "aria-hidden": "true" }), el("p", { class: "what" }, name), el("small"));
  }

  #fill(node, one) {
    node.className = one.status ?? "";
    const seen = one.last_seen ? age((this.#store.now() - Date.parse(one.last_seen)) / 1000) : "never heard";
    setText(node.querySelector("small"), one.status === "offline" ? `offline, ${seen}` : seen);
    node.title = `${one.series} series${one.owner ? `, of ${one.owner}` : ""}`;
  }

  #ages() {
    const nodes = new Map([...$("devices").children].map((node) => [node.dataset.key, node]));
    for (const one of this.#devices) if (nodes.has(one.device_id)) this.#fill(nodes.get(one.device_id), one);
  }
}
