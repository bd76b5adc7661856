// What the page does in the browser alone: light or dark, enlarging, downloads, and the maps of "Look inside".
// All by events of the document, since Gradio replaces elements whenever it likes.
(() => {
  const STORED = "unimm-theme";

  function setTheme(name) {
    document.body.classList.toggle("dark", name === "dark");
    document.documentElement.style.colorScheme = name;
  }

  function begin() {
    const asked = new URL(location.href).searchParams.get("__theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const stored = asked || localStorage.getItem(STORED);
    setTheme(stored || (system.matches ? "dark" : "light"));
    system.addEventListener("change", (event) => {
      if (!localStorage.getItem(STORED)) setTheme(event.matches ? "dark" : "light");
    });
  }
  if (document.body) begin();
  else document.addEventListener("DOMContentLoaded", begin);

  function toggleTheme() {
    const name = document.body.classList.contains("dark") ? "light" : "dark";
    localStorage.setItem(STORED, name);
    setTheme(name);
  }

  function enlarge(button) {
    const image = button.querySelector("img");
    const dialog = document.createElement("dialog");
    dialog.className = "enlarged";
    const large = document.createElement("img");
    large.src = image.src;
    large.alt = image.alt;
    const close = document.createElement("button");
    close.textContent = "×";
    close.setAttribute("aria-label", button.dataset.close || "Close");
    dialog.append(large, close);
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      button.focus();
    });
    document.body.append(dialog);
    dialog.showModal();
  }

  function download(link) {
    link.href = link.closest(".card").querySelector("img").src;
  }

  // Where the model looked for one word of an answer: one map a word, of which one is shown.
  function chooseMap(button) {
    const view = button.closest(".looks");
    const chosen = button.dataset.map;
    view.querySelectorAll("[data-map]").forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
    view.querySelectorAll(".map").forEach((one) => one.classList.toggle("on", one.dataset.of === chosen));
  }

  // Words against patches of a drawing: data-weights holds a row a patch, a number from 0 to 1 for each word.
  function weightsOf(view) {
    if (!view.weights) view.weights = JSON.parse(view.dataset.weights);
    return view.weights;
  }

  function press(view, button) {
    view.querySelectorAll("[data-word], [data-patch]").forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
  }

  function chooseWord(button) {
    const view = button.closest(".threads");
    const word = Number(button.dataset.word);
    const weights = weightsOf(view);
    press(view, button);
    view.querySelectorAll("[data-word]").forEach((one) => one.style.setProperty("--w", 0));
    view.querySelectorAll("[data-patch]").forEach((one, index) => one.style.setProperty("--shade", 1 - weights[index][word]));
    view.classList.add("by-word");
    view.classList.remove("by-patch");
  }

  function choosePatch(button) {
    const view = button.closest(".threads");
    const row = weightsOf(view)[Number(button.dataset.patch)];
    const most = Math.max(...row, 1e-9);
    press(view, button);
    view.querySelectorAll("[data-word]").forEach((one, index) => one.style.setProperty("--w", row[index] / most));
    view.querySelectorAll("[data-patch]").forEach((one) => one.style.setProperty("--shade", 0));
    view.classList.add("by-patch");
    view.classList.remove("by-word");
  }

  function readCode(cell) {
    const out = cell.closest(".codes").querySelector(".code-read");
    if (out) out.textContent = cell.dataset.code;
  }

  document.addEventListener("click", (event) => {
    const hit = (selector) => event.target.closest && event.target.closest(selector);
    let found;
    if ((found = hit("#theme-toggle"))) toggleTheme();
    else if ((found = hit("[data-enlarge]"))) enlarge(found);
    else if ((found = hit("a[data-download]"))) download(found);
    else if ((found = hit("[data-map]"))) chooseMap(found);
    else if ((found = hit("[data-word]"))) chooseWord(found);
    else if ((found = hit("[data-patch]"))) choosePatch(found);
    else if ((found = hit("[data-code]"))) readCode(found);
  });
  document.addEventListener("mouseover", (event) => {
    const cell = event.target.closest && event.target.closest("[data-code]");
    if (cell) readCode(cell);
  });

  // Arrow keys walk through words and through grids, so that a grid is one stop of the Tab key.
  document.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down" };
    const here = event.target.closest && event.target.closest("[data-roving] > *");
    if (!here || !(event.key in moves)) return;
    const group = here.parentElement;
    const all = [...group.children];
    const width = Number(group.dataset.roving) || 1;
    const move = moves[event.key];
    const step = move === "up" ? -width : move === "down" ? width : move;
    const next = all[all.indexOf(here) + step];
    if (!next) return;
    event.preventDefault();
    all.forEach((one) => (one.tabIndex = one === next ? 0 : -1));
    next.focus();
    if ("code" in next.dataset) readCode(next);
    else next.click();
  });
})();
