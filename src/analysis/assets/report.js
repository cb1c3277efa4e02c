// A report's page: draws figures as they come into view, follows the theme, prints on white,
// hides and shows groups, sorts tables.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = JSON.parse(document.getElementById("dark").textContent);
  const root = document.documentElement;
  const places = [...document.querySelectorAll(".plot")];
  const hidden = new Set();
  const paper = { half: 334, whole: 680 }; // [px] of a page of A4 with its margins
  let printing = false;

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",");
  const changed = new Map();
  for (const [light, other] of Object.entries(dark)) {
    changed.set(light.toLowerCase(), other);
    changed.set(`rgba(${rgb(light)}`, `rgba(${rgb(other)}`);
  }

  // The figure's colours on a dark page.
  function darkened(value) {
    if (typeof value === "string") {
      if (value.startsWith("#")) return changed.get(value.toLowerCase()) ?? value;
      if (!value.startsWith("rgba(")) return value;
      const end = value.lastIndexOf(",");
      return (changed.get(value.slice(0, end)) ?? value.slice(0, end)) + value.slice(end);
    }
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(darkened);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, darkened(v)]));
    }
    return value;
  }

  function isDark() {
    return root.dataset.theme === "dark" && !printing;
  }

  function draw(place) {
    place.dataset.drawn = "yes";
    const figure = figures[Number(place.dataset.figure)];
    const { data, layout } = isDark() ? darkened(figure) : figure;
    const shown = data.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
    const look = { ...layout, autosize: true };
    const touched = matchMedia("(pointer: coarse)").matches;
    if (touched) look.dragmode = false; // a finger scrolls
    if (printing) {
      const wide = place.parentElement.classList.contains("wide");
      Object.assign(look, { autosize: false, width: wide ? paper.whole : paper.half });
    }
    Plotly.react(place, shown, look, {
      displaylogo: false,
      displayModeBar: touched ? false : "hover",
      responsive: true,
      modeBarButtonsToRemove: ["lasso2d", "select2d"],
      toImageButtonOptions: { format: "svg", filename: "figure" },
    });
  }

  function redraw() {
    for (const line of document.querySelectorAll("line[data-colour]")) {
      line.setAttribute("stroke", isDark() ? darkened(line.dataset.colour) : line.dataset.colour);
    }
    places.filter((place) => place.dataset.drawn).forEach(draw);
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting || entry.target.dataset.drawn) continue;
        draw(entry.target);
        watcher.unobserve(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  redraw(); // the samples of the legends
  places.forEach((place) => watcher.observe(place));

  // Theme and paper

  function choose(theme) {
    root.dataset.theme = theme;
    redraw();
  }

  document.getElementById("theme-button").addEventListener("click", () => {
    choose(root.dataset.theme === "dark" ? "light" : "dark");
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    choose(event.matches ? "dark" : "light");
  });

  let themeOnScreen = root.dataset.theme;

  function toPaper() {
    if (printing) return;
    printing = true;
    themeOnScreen = root.dataset.theme;
    root.dataset.theme = "light";
    places.forEach((place) => (place.dataset.drawn = "yes"));
    redraw();
  }

  function toScreen() {
    if (!printing) return;
    printing = false;
    choose(themeOnScreen);
  }

  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", toScreen);

  // Groups: a click hides or shows one in all figures

  function toggle(group) {
    if (!hidden.delete(group)) hidden.add(group);
    for (const button of document.querySelectorAll(".group")) {
      if (button.dataset.group === group) button.ariaPressed = String(!hidden.has(group));
    }
    places.filter((place) => place.dataset.drawn).forEach(draw);
  }

  for (const button of document.querySelectorAll(".group")) {
    button.addEventListener("click", () => toggle(button.dataset.group));
  }

  // Tables: a click on a head sorts

  const order = new Intl.Collator("en", { numeric: true });

  function key(row, column) {
    const text = row.cells[column].textContent;
    const number = parseFloat(text.replaceAll(",", ""));
    return text === "never" ? Infinity : Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b || 0;
    if (typeof a === typeof b) return order.compare(a, b);
    return typeof a === "number" ? -1 : 1;
  }

  function sort(head) {
    const descending = head.ariaSort === "ascending";
    const table = head.closest("table");
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = descending ? "descending" : "ascending";
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => (descending ? compare(b, a) : compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const head of document.querySelectorAll("th")) {
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sort(head);
    });
  }
})();
