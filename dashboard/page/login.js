// The login: says what is wrong without losing the page.

import { $, setText } from "./dom.js";

// Only back to a view of our own page.
const next = new URLSearchParams(location.search).get("next") ?? "/";
const target = next === "/" || next.startsWith("/?") ? next : "/";

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  setText($("login-error"), "");
  try {
    const answer = await fetch("/login", { method: "POST", body: new URLSearchParams(new FormData(event.target)) });
    if (answer.ok) {
      location.assign(target);
      return;
    }
    setText($("login-error"), `${(await answer.json()).error}.`);
  } catch {
    setText($("login-error"), "The server does not answer.");
  }
  button.disabled = false;
  $("password").select();
});
