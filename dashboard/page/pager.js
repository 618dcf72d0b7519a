// Two buttons and where one is. Nothing where there is one page.

import { el, svg } from "./dom.js";

export function pager(nav, turn) {
  const arrow = (name, d) => {
    const button = el("button", { class: "plain", type: "button", "aria-label": name });
    button.append(svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d })));
    return button;
  };
  const back = arrow("Page before", "m10 3.5-4.5 4.5 4.5 4.5");
  const on = arrow("Next page", "m6 3.5 4.5 4.5-4.5 4.5");
  const where = el("span");
  nav.append(back, where, on);
  let page = 1;
  back.addEventListener("click", () => turn(page - 1));
  on.addEventListener("click", () => turn(page + 1));
  return (shown, pages) => {
    page = shown;
    nav.hidden = pages < 2;
    where.textContent = `${page} of ${pages}`;
    back.disabled = page <= 1;
    on.disabled = page >= pages;
  };
}
