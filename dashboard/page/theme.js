// Light or dark, before anything is painted: as the system has it, until somebody chooses.
(() => {
  const KEY = "sluice-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off: the choice lasts as long as the page
    }
  };
  const apply = (name) => {
    document.documentElement.dataset.theme = name;
    document.dispatchEvent(new CustomEvent("theme"));
  };
  let now = chosen() ?? (dark.matches ? "dark" : "light");
  apply(now);
  dark.addEventListener("change", () => {
    if (!chosen()) apply((now = dark.matches ? "dark" : "light"));
  });
  window.switchTheme = () => {
    now = now === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, now);
    } catch {
      // as above
    }
    apply(now);
  };
})();
