/* What the page does without the server. */

(function () {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try {
      return localStorage.getItem("murmuration-theme");
    } catch (error) {
      return null; // storage is blocked
    }
  }

  function current() {
    return stored() || (dark.matches ? "dark" : "light");
  }

  function show(theme) {
    root.dataset.theme = theme;
    root.dataset.agThemeMode = theme === "dark" ? "dark-blue" : "light";
    return theme;
  }

  show(current());
  dark.addEventListener("change", () => {
    window.dash_clientside.set_props("theme", { data: show(current()) });
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.murmuration = {
    theme: function (clicks) {
      if (clicks) {
        const next = current() === "dark" ? "light" : "dark";
        try {
          localStorage.setItem("murmuration-theme", next);
        } catch (error) {
          return show(next);
        }
      }
      return show(current());
    },

    chosen: function (rows, before) {
      const ids = (Array.isArray(rows) ? rows : []).map((row) => row.id);
      const same = ids.length === before.length && ids.every((id, i) => id === before[i]);
      return same ? window.dash_clientside.no_update : ids;
    },

    search: function (text, options) {
      return { ...options, quickFilterText: text || "" };
    },

    scroll: function () {
      const console = document.getElementById("console");
      const atEnd = console.scrollHeight - console.scrollTop - console.clientHeight < 80;
      if (atEnd || !console.dataset.scrolled) {
        console.dataset.scrolled = "yes";
        requestAnimationFrame(() => (console.scrollTop = console.scrollHeight));
      }
      return "";
    },

    reload: function (seen, columns) {
      return seen && seen.epoch === null ? [...(columns || [])] : window.dash_clientside.no_update;
    },
  };

  const cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  cells.RunLink = function (props) {
    const path = "/run/" + props.data.id;
    return React.createElement(
      "a",
      {
        href: path,
        onClick: function (event) {
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          event.stopPropagation();
          window.history.pushState({}, "", path);
          window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
          window.scrollTo(0, 0);
        },
      },
      props.value || "(no name)"
    );
  };

  const forms = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  const known = (write) => (value) => (value === null || value === undefined ? "" : write(value));
  forms.count = known((value) => Math.round(value).toLocaleString("en"));
  forms.percent = known((value) => (100 * value).toFixed(1) + " %");
  forms.percent0 = known((value) => Math.floor(100 * value) + " %");
  forms.short = known((value) => Number(value.toPrecision(4)).toString());
  forms.duration = known((value) => {
    const minutes = Math.floor(value / 60);
    if (minutes >= 60) {
      return Math.floor(minutes / 60) + " h " + String(minutes % 60).padStart(2, "0") + " min";
    }
    return minutes ? minutes + " min" : Math.round(value) + " s";
  });
  const order = new Intl.Collator("en", { numeric: true });
  forms.natural = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return order.compare(String(a ?? ""), String(b ?? ""));
  };
})();
