// Active alerts with a button that ends them, and those that ended lately.

import { $, el, keyed, setText } from "./dom.js";
import { number, rule, span } from "./format.js";

const SPEAK_MS = 4000; // a screen reader is told at most so often

export class Alerts {
  #store;
  #known = null;
  #active = [];
  #news = [];
  #speaking = 0;

  // `select(alert)`: somebody wants to see the series. `changed(active)`: what is active now.
  constructor(store, select, changed) {
    this.#store = store;
    this.changed = changed;
    this.select = select;
    setInterval(() => this.#ages(), 1000);
  }

  show({ active, active_total: total, resolved }) {
    active.sort((a, b) => (b.severity === "critical") - (a.severity === "critical")); // each newest first
    this.#active = active;
    keyed($("alerts"), active, (one) => one.id, (one) => this.#make(one, true), (node, one) => this.#fill(node, one));
    keyed($("resolved"), resolved, (one) => one.id, (one) => this.#make(one, false), (node, one) => this.#fill(node, one));
    $("resolved-box").hidden = !resolved.length;
    $("alerts-empty").hidden = active.length > 0;
    setText($("alerts-count"), total ? `${total} active${total > active.length ? `, ${active.length} shown` : ""}` : "");
    document.title = total ? `(${total}) Sluice` : "Sluice";
    this.#announce(active);
    this.changed(active);
  }

  #make(one, active) {
    const name = el("button", { type: "button" }, one.sensor_type, el("span", { text: one.device_id }));
    name.addEventListener("click", () => this.select(one));
    const node = el("li", { class: one.severity },
      el("div", {},
        el("p", { class: "what" }, name),
        el("p", { class: "how" }, el("em", { text: rule(one) }), " ", el("small"))));
    if (active) {
      const button = el("button", { class: "quiet", type: "button", text: "Resolve" });
      button.setAttribute("aria-label", `Resolve: ${one.device_id} ${one.sensor_type} ${rule(one)}`);
      button.addEventListener("click", () => this.#resolve(node, button, one));
      node.append(button);
    }
    return node;
  }

  #fill(node, one) {
    const since = Date.parse(one.created_at);
    const end = one.resolved_at ? Date.parse(one.resolved_at) : this.#store.now();
    const value = one.value === null || one.kind === "silence" ? "" : `at ${number(one.value)} · `;
    const lasted = span((end - since) / 1000);
    setText(node.querySelector("small"), one.resolved_at ? `${value}lasted ${lasted}` : `${value}for ${lasted}`);
  }

  #ages() {
    const nodes = new Map([...$("alerts").children].map((node) => [node.dataset.key, node]));
    for (const one of this.#active) if (nodes.has(one.id)) this.#fill(nodes.get(one.id), one);
  }

  async #resolve(node, button, one) {
    button.disabled = true;
    setText(button, "Resolving");
    node.querySelector(".error")?.remove();
    try {
      const answer = await fetch(`/api/alerts/${one.id}/resolve`, { method: "POST" });
      if (!answer.ok) throw new Error((await answer.json()).error);
      this.#leave(node);
    } catch (error) {
      node.append(el("p", { class: "error", role: "alert", text: error.message || "the server does not answer" }));
      button.disabled = false;
      setText(button, "Resolve");
    }
  }

  // It goes when the server says so; whoever pressed the button with a keyboard stays in the list.
  #leave(node) {
    const next = node.nextElementSibling ?? node.previousElementSibling;
    if (node.contains(document.activeElement)) (next?.querySelector(".quiet") ?? $("search")).focus();
    node.remove();
  }

  // Only what is new since the page was opened, and many at once as a number.
  #announce(active) {
    const ids = new Set(active.map((one) => one.id));
    if (this.#known) this.#news.push(...active.filter((one) => !this.#known.has(one.id)));
    this.#known = ids;
    if (!this.#news.length || this.#speaking) return;
    const [first, ...rest] = this.#news;
    this.#news = [];
    const what = `${first.severity} alert: ${first.device_id} ${first.sensor_type} ${rule(first)}`;
    $("spoken").textContent = rest.length ? `${what}, and ${rest.length} more` : what;
    this.#speaking = setTimeout(() => {
      this.#speaking = 0;
      this.#announce(this.#active);
    }, SPEAK_MS);
  }
}
