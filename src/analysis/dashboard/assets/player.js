/* The player: steps through an episode that is here as a whole. */

(function () {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  const AGENT_AXES = ["agent", "other agent"];
  const WIDE = 4; // columns that the table of actions has room for

  // --- Building ---

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "style") Object.assign(element.style, value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function fill(id, ...children) {
    const place = document.getElementById(id);
    if (place) place.replaceChildren(...children);
  }

  function short(value) {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  }

  function shown(value, kind) {
    if (value === null || value === undefined) return "–";
    if (kind === "probability") return (100 * value).toFixed(value > 0.0995 ? 0 : 1) + " %";
    if (kind === "number") return value < 0 ? "–" : String(value);
    return short(value);
  }

  /* Smallest and largest number of nested lists. */
  function extent(values, found = [Infinity, -Infinity]) {
    if (Array.isArray(values)) for (const one of values) extent(one, found);
    else if (values !== null) {
      found[0] = Math.min(found[0], values);
      found[1] = Math.max(found[1], values);
    }
    return found;
  }

  function share(value, kind, [low, high]) {
    if (value === null) return 0;
    if (kind === "probability") return value;
    return high > low ? (value - low) / (high - low) : 0.5;
  }

  /* A cell with a bar of this share of its width behind the text. */
  function barred(value, kind, range, classes) {
    const width = Math.round(100 * Math.min(1, Math.max(0, share(value, kind, range))));
    return make(
      "td",
      { class: `number ${classes || ""}`, style: { backgroundSize: `${width}% 100%` } },
      shown(value, kind)
    );
  }

  function table(caption, head, rows, classes) {
    const body = make("tbody", {}, ...rows);
    const top = head ? make("thead", {}, make("tr", {}, ...head.map(heading))) : null;
    const made = make("table", { class: `inner ${classes || ""}` }, top, body);
    const title = caption ? make("h4", {}, caption) : null;
    return make("div", { class: "scrolled" }, title, made);
  }

  function heading(text) {
    return make("th", { scope: "col" }, text);
  }

  function row(name, cells, classes) {
    return make("tr", { class: classes || null }, make("th", { scope: "row" }, name), ...cells);
  }

  // --- What there is to show ---

  function names(episode, axis, length, agent) {
    if (AGENT_AXES.includes(axis)) return episode.agents;
    if (axis === "action") return episode.actions[agent || 0].slice(0, length);
    return Array.from({ length }, (_, i) => `${axis}_${i}`);
  }

  /* The values of one agent and the axes that are left; an action's axis comes first. */
  function of_agent(array, t, agent) {
    let values = array.values[t];
    let axes = array.axes;
    const place = axes.indexOf("agent");
    values = pick(values, place, agent);
    axes = axes.filter((_, i) => i !== place);
    if (axes.length === 2 && axes[1] === "action") {
      values = values[0].map((_, u) => values.map((one) => one[u]));
      axes = [axes[1], axes[0]];
    }
    return { values, axes };
  }

  function pick(values, depth, index) {
    return depth === 0 ? values[index] : values.map((one) => pick(one, depth - 1, index));
  }

  function of_each(array) {
    return array.axes.includes("agent") && array.axes.includes("action");
  }

  function range_of(array) {
    if (!array.range) array.range = extent(array.values);
    return array.range;
  }

  /* The range of what an agent could do in the whole episode. */
  function range_of_agent(episode, array, agent) {
    array.ranges = array.ranges || {};
    if (!(agent in array.ranges)) {
      const found = [Infinity, -Infinity];
      array.values.forEach((_, t) => {
        const { values } = of_agent(array, t, agent);
        values.forEach((one, u) => episode.avail[t][agent][u] && extent(one, found));
      });
      array.ranges[agent] = found;
    }
    return array.ranges[agent];
  }

  // --- The team ---

  function team(episode, t) {
    return episode.inner.filter((array) => !of_each(array)).map((array) => one(episode, array, t));
  }

  function one(episode, array, t) {
    const { name, axes, kind } = array;
    const values = array.values[t];
    const cell = (value, agent) =>
      kind === "action"
        ? make("td", {}, value === null ? "–" : episode.actions[agent || 0][value])
        : barred(value, kind, range_of(array));
    if (axes.length === 0) return table(name, null, [row("", [cell(values)])]);
    const first = names(episode, axes[0], values.length);
    if (axes.length === 1) {
      return table(name, null, values.map((value, i) => row(first[i], [cell(value, i)])));
    }
    const second = names(episode, axes[1], values[0].length);
    // What all agents do is easier to compare one agent a row.
    if (axes[1] === "agent") {
      const rows = second.map((who, j) => row(who, values.map((line) => cell(line[j], j))));
      return table(name, ["", ...first], rows);
    }
    const rows = values.map((line, i) => row(first[i], line.map((value) => cell(value))));
    return table(name, ["", ...second], rows);
  }

  // --- An agent ---

  function actions(episode, t, agent) {
    const arrays = episode.inner.filter(of_each);
    const available = episode.avail[t][agent];
    const taken = t < episode.taken.length ? episode.taken[t][agent] : null;
    const columns = [];
    const apart = [];
    for (const array of arrays) {
      const { values, axes } = of_agent(array, t, agent);
      const range = range_of_agent(episode, array, agent);
      if (axes.length === 1) columns.push({ head: array.name, kind: array.kind, values, range });
      else if (values[0].length <= WIDE) {
        names(episode, axes[1], values[0].length).forEach((head, i) =>
          columns.push({ head, kind: array.kind, values: values.map((line) => line[i]), range })
        );
      } else apart.push({ array, values, axes, range });
    }
    if (Array.isArray(taken)) {
      columns.unshift({ head: "taken", kind: "value", values: taken, range: [-1, 1] });
    }
    const best = columns.map(({ values }) => highest(values, available));
    const rows = episode.actions[agent].map((name, u) => {
      const is = u === taken;
      const cells = columns.map(({ kind, values, range }, i) =>
        available[u] ? barred(values[u], kind, range, u === best[i] ? "best" : "") : quiet()
      );
      const marks = `${available[u] ? "" : "unavailable"} ${is ? "taken" : ""}`;
      return row(is ? `● ${name}` : name, cells, marks);
    });
    const say = taken === null ? "The episode is over." : "● is what it does, bold is the highest.";
    return [
      make("p", { class: "note" }, say),
      table(null, ["Action", ...columns.map(({ head }) => head)], rows, "actions"),
      ...apart.map(({ array, values, axes, range }) => {
        const head = names(episode, axes[1], values[0].length);
        const lines = episode.actions[agent].map((name, u) =>
          row(name, values[u].map((value) => barred(value, array.kind, range)))
        );
        return table(array.name, ["Action", ...head], lines);
      }),
    ];
  }

  function highest(values, available) {
    let best = -1;
    values.forEach((value, u) => {
      if (available[u] && value !== null && (best < 0 || value > values[best])) best = u;
    });
    return best;
  }

  function quiet() {
    return make("td", { class: "number" }, "–");
  }

  function observation(episode, t, agent) {
    const groups = new Map();
    episode.observations[agent].forEach((name, k) => {
      const [group, ...entry] = name.split(": ");
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push([entry.join(": "), episode.obs[t][agent][k]]);
    });
    return [...groups].map(([group, entries]) => {
      const empty = entries.every(([, value]) => value === 0);
      const chips = entries.map(([entry, value]) =>
        make("span", { class: `chip ${value === 0 ? "zero" : ""}` }, entry, " ", strong(value))
      );
      const content = empty ? [make("span", { class: "note" }, "all zero")] : chips;
      return make("div", { class: "group" }, make("b", {}, group), ...content);
    });
  }

  function strong(value) {
    return make("b", {}, short(value));
  }

  // --- The step ---

  function total(rewards, agent_rewards) {
    if (!agent_rewards) return rewards.reduce((a, b) => a + b, 0);
    return rewards.reduce((a, b) => a + b.reduce((x, y) => x + y, 0) / b.length, 0);
  }

  function fact(name, value) {
    return make("div", {}, make("dt", {}, name), make("dd", {}, value));
  }

  function now(episode, t) {
    const each = Array.isArray(episode.rewards[0]);
    const so_far = total(episode.rewards.slice(0, t), each);
    const last = t > 0 ? total([episode.rewards[t - 1]], each) : null;
    return [
      fact("Step", `${t} / ${episode.taken.length}`),
      fact(each ? "Last reward, mean" : "Last reward", short(last)),
      fact(each ? "Reward so far, mean" : "Reward so far", short(so_far)),
    ];
  }

  function cursor(t) {
    const graph = document.querySelector("#curves .js-plotly-plot");
    if (!graph || !graph.layout || !window.Plotly) return;
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    window.Plotly.relayout(graph, {
      shapes: [
        { type: "line", x0: t, x1: t, yref: "paper", y0: 0, y1: 1, line: { color: colour, width: 1.5 } },
      ],
    });
  }

  let preloaded = null;

  /* The pictures come before they are needed. */
  function preload(episode) {
    if (preloaded === episode.number) return;
    preloaded = episode.number;
    for (let t = 0; t < episode.pictures; t++) new Image().src = `/picture/${episode.number}/${t}.png`;
  }

  const PLAY = "▶ Play";
  const PAUSE = "⏸ Pause";

  dash.player = {
    move: function (episode, first, back, play, forward, last, ticks, click, at, paused) {
      const none = dash.no_update;
      if (!episode) return [none, none, none, none];
      const end = episode.taken.length;
      const by = dash.callback_context.triggered_id;
      const stop = (t) => [none, Math.min(end, Math.max(0, t)), true, PLAY];
      switch (by) {
        case "first":
          return stop(0);
        case "back":
          return stop(at - 1);
        case "forward":
          return stop(at + 1);
        case "last":
          return stop(end);
        case "curves":
          return click ? stop(Math.round(click.points[0].x)) : [none, none, none, none];
        case "play":
          if (!paused) return [none, none, true, PLAY];
          return [none, at >= end ? 0 : none, false, PAUSE];
        case "clock":
          if (paused) return [none, none, none, none];
          if (at + 1 >= end) return stop(end);
          return [none, at + 1, none, none];
        default:
          return [end, 0, true, PLAY];
      }
    },

    speed: function (steps) {
      return 1000 / steps;
    },

    show: function (episode, at, agent) {
      if (!episode) return [dash.no_update, dash.no_update];
      preload(episode);
      const t = Math.min(at, episode.taken.length);
      const who = Math.min(agent || 0, episode.agents.length - 1);
      fill("now", ...now(episode, t));
      fill("team", ...team(episode, t));
      fill("actions", ...actions(episode, t, who));
      fill("observation", ...observation(episode, t, who));
      fill("facts", ...Object.entries(episode.facts).map(([name, value]) => fact(name, value)));
      const notes = episode.pictures ? episode.notes : [...episode.notes, "There are no pictures."];
      fill("notes", ...notes.map((note) => make("p", { class: "note" }, note)));
      document.getElementById("picture").hidden = !episode.pictures;
      requestAnimationFrame(() => cursor(t));
      const src = episode.pictures ? `/picture/${episode.number}/${t}.png` : "";
      return [src, `step ${t} of ${episode.taken.length}`];
    },
  };

  document.addEventListener("keydown", (event) => {
    const keys = { " ": "play", ArrowLeft: "back", ArrowRight: "forward", Home: "first", End: "last" };
    const name = keys[event.key];
    const typing = event.target.closest("input, textarea, select, button, [role]");
    if (name && !typing && document.getElementById(name)) {
      event.preventDefault();
      document.getElementById(name).click();
    }
  });
})();
