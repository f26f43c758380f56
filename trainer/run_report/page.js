// Draws the curves of a report: lines of several runs over one axis, smoothed or not, on plain or logarithmic scales.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg", KEY = "trireme-report:" + location.pathname;
  const LIGHT = ["#1f7488", "#c8611a", "#7a4fa3", "#2f8f4e", "#b3335f", "#9a7b0a", "#3b5bb5", "#6b6f78"];
  const DARK = ["#59b7cb", "#f0985a", "#b794e0", "#6fd69a", "#f285a8", "#dcc04a", "#8ea9f5", "#b3b8c2"];
  const HELD = ["#c8611a", "#f0985a"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const AXES = { step: "step", tokens: unit(), seconds: "training time" };
  const state = Object.assign({ x: "step", smooth: 0, logx: false, logy: false, hidden: [], zoom: null, run: 0, open: [] },
    recall());
  let hover = null, redrawing = 0;

  const runs = DATA.runs.map((run, place) => ({ ...run, place }));
  const views = [];
  const $ = (id) => document.getElementById(id);

  // -- small helpers ---------------------------------------------------------------------------------------------
  function recall() {
    try { return JSON.parse(sessionStorage.getItem(KEY)) || {}; } catch { return {}; }
  }
  function remember() {
    state.open = [...document.querySelectorAll("details")].flatMap((one, place) => (one.open ? [place] : []));
    try { sessionStorage.setItem(KEY, JSON.stringify({ ...state, scroll: scrollY })); } catch { /* not kept */ }
  }
  function unit() {
    return (DATA.runs.find((run) => run.unit) || { unit: "tokens" }).unit;
  }
  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value); else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  function draw(parent, name, attributes, content) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (content !== undefined) made.textContent = content;
    parent.append(made);
    return made;
  }
  function colour(run) {
    const colours = dark.matches ? DARK : LIGHT;
    if (runs.length <= colours.length) return colours[run.place];
    return `hsl(${Math.round(run.place * 137.5) % 360} 55% ${dark.matches ? 65 : 42}%)`;
  }
  const heldColour = (run) => (runs.length === 1 ? HELD[dark.matches ? 1 : 0] : colour(run));
  function short(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e12)) return value.toExponential(2).replace(/\.?0+e/, "e");
    for (const [limit, sign] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= limit) return trim((value / (limit === 1e4 ? 1e3 : limit)).toPrecision(3)) + sign;
    }
    return trim(size >= 100 ? value.toFixed(1) : value.toPrecision(4));
  }
  const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);
  function time(seconds) {
    if (seconds < 120) return trim(seconds.toPrecision(3)) + " s";
    if (seconds < 7200) return trim((seconds / 60).toFixed(1)) + " min";
    return trim((seconds / 3600).toFixed(1)) + " h";
  }
  const along = (value) => (state.x === "seconds" ? time(value) : state.x === "step" ? Math.round(value).toLocaleString("en") : short(value));

  // -- numbers ---------------------------------------------------------------------------------------------------
  function smoothed(values, reach) {
    if (!reach) return values;
    const sums = [0], counts = [0];
    values.forEach((value, at) => {
      sums.push(sums[at] + (value ?? 0));
      counts.push(counts[at] + (value === null ? 0 : 1));
    });
    return values.map((value, at) => {
      const r = Math.min(reach, at, values.length - 1 - at), count = counts[at + r + 1] - counts[at - r];
      return value === null || !count ? null : (sums[at + r + 1] - sums[at - r]) / count;
    });
  }
  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw)), rest = raw / power;
    const step = (rest > 5 ? 10 : rest > 2.5 ? 5 : rest > 2 ? 2.5 : rest > 1 ? 2 : 1) * power, found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return found;
  }
  function logTicks(low, high) {
    const found = [], decades = Math.log10(high / low);
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const lead of decades > 4 ? [1] : decades > 1.5 ? [1, 3] : [1, 1.5, 2, 3, 5, 7]) found.push(lead * 10 ** power);
    }
    const inside = found.filter((at) => at >= low * 0.999 && at <= high * 1.001);
    return inside.length >= 2 ? inside : ticks(low, high, 4).filter((at) => at > 0);
  }
  function scale(low, high, from, to, log) {
    if (log) return (value) => from + (Math.log(value / low) / Math.log(high / low)) * (to - from);
    return (value) => from + ((value - low) / (high - low)) * (to - from);
  }
  function line(chart, run) {
    const xs = run.x[state.x], raw = chart.train && run.y[chart.train];
    if (!xs || !raw) return null;
    const bounds = run.low[chart.train] ? { low: run.low[chart.train], high: run.high[chart.train] } : null;
    return { run, xs, raw, ys: smoothed(raw, state.smooth), bounds, held: false };
  }
  function heldOut(chart, run) {
    const xs = run.eval.x[state.x], raw = chart.held_out && run.eval.y[chart.held_out];
    return xs && raw ? { run, xs, raw, ys: raw, bounds: null, held: true } : null;
  }

  // -- one chart -------------------------------------------------------------------------------------------------
  function makeChart(chart, place) {
    const svg = document.createElementNS(SVG, "svg"), tip = el("div", { class: "tip", role: "status" });
    const figure = el("figure", { class: "chart" + (place === 0 ? " big" : "") }, el("figcaption", {}, chart.title), svg, tip);
    tip.hidden = true;
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("role", "img");
    $("charts").append(figure);
    const view = { chart, svg, tip, figure, big: place === 0, lines: [], start: null };
    views.push(view);
    svg.addEventListener("pointermove", (event) => moved(view, event));
    svg.addEventListener("pointerleave", () => { if (view.start === null) point(null); });
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "touch" && event.button === 0) { view.start = at(view, event); svg.setPointerCapture(event.pointerId); }
    });
    svg.addEventListener("pointerup", (event) => released(view, at(view, event)));
    svg.addEventListener("pointercancel", () => { view.start = null; });
    svg.addEventListener("dblclick", () => zoom(null));
    svg.addEventListener("keydown", (event) => pressed(view, event));
    svg.addEventListener("blur", () => point(null));
  }
  function render(view) {
    const { svg, chart } = view, shown = runs.filter((run) => !state.hidden.includes(run.name));
    const width = svg.clientWidth, height = svg.clientHeight;
    if (!width) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const lines = shown.flatMap((run) => [line(chart, run), heldOut(chart, run)]).filter(Boolean);
    view.lines = lines;
    const labelled = view.big && width > 560 && shown.length === 1;
    const box = { left: 48, right: width - (labelled ? 118 : 10), top: 10, bottom: height - 24 };
    const logx = state.logx, range = extent(lines.flatMap((one) => one.xs), logx);
    const [x0, x1] = state.zoom || range || [0, 1];
    const inside = (one, values) => values.filter((value, i) => value !== null && one.xs[i] >= x0 && one.xs[i] <= x1);
    let values = lines.flatMap((one) => inside(one, one.ys));
    if (!state.smooth) values.push(...lines.flatMap((one) => (one.bounds ? [...inside(one, one.bounds.low), ...inside(one, one.bounds.high)] : [])));
    const references = chart.train === "loss" && shown.length === 1 ? Object.entries(shown[0].references) : [];
    values.push(...references.map(([, value]) => value));
    const logy = state.logy && values.some((value) => value > 0), bounds = extent(values, logy);
    view.scales = null;
    if (!bounds || !(x1 > x0)) {
      draw(svg, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, lines.length ? "one point only, or none in this range" : "not logged");
      if (!bounds) return;
    }
    const [y0, y1] = padded(bounds, logy, chart);
    const X = scale(x0, x1 > x0 ? x1 : x0 + 1, box.left, box.right, logx), Y = scale(y0, y1, box.bottom, box.top, logy);
    view.scales = { X, Y, x0, x1, y0, y1, box, logx, logy };
    frame(svg, view.scales, shown);
    const inner = clipped(view);
    for (const one of lines) path(inner, one, view.scales);
    for (const [name, value] of references) {
      draw(svg, "line", { class: "reference", x1: box.left, x2: box.right, y1: Y(value), y2: Y(value) });
      draw(svg, "text", { x: box.right - 4, y: Y(value) - 5, "text-anchor": "end" }, `${name} ${short(value)}`);
    }
    for (const run of shown) if (chart.train === "loss" && run.bad !== null) notFinite(svg, run, view.scales);
    if (labelled) ends(svg, lines, view.scales);
    svg.setAttribute("aria-label", summary(chart, lines));
    if (hover !== null) cross(view);
  }
  function extent(values, log) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (value === null || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low <= high ? [low, high] : null;
  }
  function padded([low, high], log, chart) {
    if (log) { const by = high > low ? (high / low) ** 0.05 : 1.5; return [low / by, high * by]; }
    const fromZero = low >= 0 && ((chart.train || "").endsWith("_per_second") || ["lr", "memory_mib", "mfu"].includes(chart.train));
    const space = Math.max((high - low) * 0.05, fromZero ? high * 0.05 : 0) || Math.abs(high) * 0.1 || 1;
    return [fromZero ? 0 : low - space, high + space];
  }
  function frame(svg, { X, Y, x0, x1, y0, y1, box, logx, logy }) {
    for (const at of logy ? logTicks(y0, y1) : ticks(y0, y1, (box.bottom - box.top) / (box.bottom > 250 ? 45 : 32))) {
      draw(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: Y(at), y2: Y(at) });
      draw(svg, "text", { x: box.left - 6, y: Y(at) + 4, "text-anchor": "end" }, short(at));
    }
    draw(svg, "line", { class: "base", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
    const wide = Math.max((box.right - box.left) / 85, 2);
    let free = -Infinity;
    const shown = logx ? logTicks(x0, x1) : ticks(x0, x1, wide);
    for (const at of shown.filter((one) => state.x !== "step" || Number.isInteger(one))) {
      const text = along(at), half = text.length * 3.2, middle = Math.min(Math.max(X(at), box.left + half - 20), box.right - half + 8);
      if (middle - half < free) continue;
      draw(svg, "text", { x: middle, y: box.bottom + 16, "text-anchor": "middle" }, text);
      free = middle + half + 6;
    }
  }
  function path(clip, one, { X, Y, x0, x1, logx, logy }) {
    const good = (i, value) => value !== null && value !== undefined && !(logy && value <= 0) && !(logx && one.xs[i] <= 0);
    const within = (i) => (one.xs[i + 1] ?? one.xs[i]) >= x0 && (one.xs[i - 1] ?? one.xs[i]) <= x1;
    const trace = (values) => {
      let text = "", open = false;
      values.forEach((value, i) => {
        if (!good(i, value) || !within(i)) { open = open && within(i) && false; return; }
        text += `${open ? "L" : "M"}${X(one.xs[i]).toFixed(1)} ${Y(value).toFixed(1)}`;
        open = true;
      });
      return text;
    };
    const stroke = one.held ? heldColour(one.run) : colour(one.run);
    if (one.bounds && !state.smooth) {
      const top = [], bottom = [];
      one.xs.forEach((x, i) => {
        if (good(i, one.bounds.low[i]) && within(i)) { top.push(`${X(x).toFixed(1)} ${Y(one.bounds.high[i]).toFixed(1)}`); bottom.unshift(`${X(x).toFixed(1)} ${Y(one.bounds.low[i]).toFixed(1)}`); }
      });
      if (top.length > 1) draw(clip, "path", { class: "band", d: `M${top.join("L")}L${bottom.join("L")}Z`, fill: stroke });
    }
    if (state.smooth && !one.held) draw(clip, "path", { class: "line faint", d: trace(one.raw), stroke });
    const dashed = one.held && runs.length > 1 ? { "stroke-dasharray": "5 4" } : {};
    draw(clip, "path", { class: "line" + (one.held ? " held" : ""), d: trace(one.ys), stroke, ...dashed });
    const few = one.xs.length <= 60;
    if (one.held || one.xs.length === 1) {
      one.xs.forEach((x, i) => {
        if ((few || i === one.xs.length - 1) && good(i, one.ys[i]) && x >= x0 && x <= x1) draw(clip, "circle", { cx: X(x), cy: Y(one.ys[i]), r: runs.length > 3 ? 2.2 : 3, fill: stroke, stroke: "var(--card)" });
      });
    }
  }
  function clipped({ svg, scales: { box } }) {
    const id = `clip${views.findIndex((one) => one.svg === svg)}`, edge = 4; // as wide as the points at the ends
    const size = { x: box.left - edge, width: box.right - box.left + 2 * edge, y: box.top - edge, height: box.bottom - box.top + 2 * edge };
    draw(draw(svg, "clipPath", { id }), "rect", size);
    return draw(svg, "g", { "clip-path": `url(#${id})` });
  }
  function notFinite(svg, run, { X, x0, x1, box }) {
    const at = axisAt(run, run.bad);
    if (at === null || at < x0 || at > x1) return;
    draw(svg, "line", { class: "bad", x1: X(at), x2: X(at), y1: box.top, y2: box.bottom });
    draw(svg, "text", { class: "badtext", x: X(at) - 5, y: box.top + 10, "text-anchor": "end" }, `not finite from step ${run.bad.toLocaleString("en")}`);
  }
  function axisAt(run, step) {
    const place = run.x.step.findIndex((one) => one >= step);
    return place < 0 || !run.x[state.x] ? null : run.x[state.x][place];
  }
  function ends(svg, lines, { Y, box, y0, y1 }) {
    const found = lines.map((one) => ({ value: [...one.ys].reverse().find((value) => value !== null), one }))
      .filter(({ value }) => value !== undefined && value >= y0 && value <= y1).sort((a, b) => b.value - a.value);
    let free = -Infinity;
    for (const { value, one } of found) {
      const y = Math.max(Y(value) + 4, free);
      free = y + 14;
      draw(svg, "text", { class: "ends", x: box.right + 8, y, style: `fill:${one.held ? heldColour(one.run) : colour(one.run)}` }, `${one.held ? "held out" : "train"} ${short(value)}`);
    }
  }
  function summary(chart, lines) {
    const parts = lines.map((one) => {
      const known = one.ys.filter((value) => value !== null);
      return known.length ? `${one.run.name}${one.held ? ", held out" : ""}: from ${short(known[0])} to ${short(known[known.length - 1])}` : "";
    });
    return `${chart.title} by ${AXES[state.x]}. ${parts.filter(Boolean).join("; ")}. Arrow keys read values.`;
  }

  // -- pointing, zooming -----------------------------------------------------------------------------------------
  function at(view, event) {
    if (!view.scales) return null;
    const { box, x0, x1, logx } = view.scales, bounds = view.svg.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - bounds.left - box.left) / (box.right - box.left), 0), 1);
    return logx ? x0 * (x1 / x0) ** share : x0 + share * (x1 - x0);
  }
  function moved(view, event) {
    const value = at(view, event);
    if (value === null) return;
    point(value, view);
    if (view.start !== null) {
      const { X, box } = view.scales, [left, right] = [X(view.start), X(value)].sort((a, b) => a - b);
      draw(view.svg.querySelector(".over"), "rect", { class: "zoom", x: left, width: right - left, y: box.top, height: box.bottom - box.top });
    }
  }
  function released(view, value) {
    const start = view.start;
    view.start = null;
    if (start === null || value === null) return;
    const { X } = view.scales;
    if (Math.abs(X(start) - X(value)) > 12) zoom([Math.min(start, value), Math.max(start, value)]);
  }
  function pressed(view, event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") { if (hover === null) zoom(null); else point(null); return; }
    if (by === undefined || !view.lines.length || !view.scales) return;
    event.preventDefault();
    const xs = [...new Set(view.lines.flatMap((one) => one.xs))].sort((a, b) => a - b).filter((x) => x >= view.scales.x0 && x <= view.scales.x1);
    const now = hover === null ? (by > 0 ? -1 : xs.length) : nearest(xs, hover);
    point(xs[Math.min(Math.max(now + by, 0), xs.length - 1)], view);
  }
  function point(value, view = null) {
    hover = value;
    for (const each of views) {
      each.svg.querySelector(".over")?.remove();
      each.tip.hidden = true;
      if (value !== null) cross(each, each === view);
    }
  }
  function nearest(xs, value) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < value) low = middle; else high = middle; }
    return Math.abs((xs[low] ?? Infinity) - value) <= Math.abs((xs[high] ?? Infinity) - value) ? low : high;
  }
  function cross(view, tells = false) {
    if (!view.scales) return;
    const { X, Y, box, x0, x1, logx, logy } = view.scales, over = draw(view.svg, "g", { class: "over" });
    const places = view.lines.map((one) => nearest(one.xs, hover));
    const snapped = view.lines.length ? view.lines.map((one, i) => one.xs[places[i]]).reduce((best, x) => (Math.abs(x - hover) < Math.abs(best - hover) ? x : best)) : hover;
    if (snapped < x0 || snapped > x1 || (logx && snapped <= 0)) return;
    draw(over, "line", { class: "cross", x1: X(snapped), x2: X(snapped), y1: box.top, y2: box.bottom });
    const rows = [];
    view.lines.forEach((one, i) => {
      const value = one.ys[places[i]], x = one.xs[places[i]];
      if (value === null || value === undefined || x < x0 || x > x1) return;
      const tint = one.held ? heldColour(one.run) : colour(one.run);
      if (!(logy && value <= 0)) draw(over, "circle", { cx: X(x), cy: Y(value), r: 3.5, fill: tint });
      const name = runs.length > 1 ? one.run.name + (one.held ? ", held out" : "") : one.held ? "held out" : "train";
      rows.push({ value, name: one.held ? `${name} (${along(x)})` : name, tint });
    });
    if (tells) tell(view, X(snapped), snapped, rows);
  }
  function tell(view, left, x, rows) {
    const title = `${AXES[state.x]} ${along(x)}`, many = rows.length > 12;
    if (many) rows = rows.sort((a, b) => a.value - b.value).slice(0, 12);
    view.tip.replaceChildren(el("b", {}, title), ...rows.map(({ name, value, tint }) => el("div", {},
      el("span", { class: "of" }, el("span", { class: "swatch", style: `background:${tint}` }), name), el("span", {}, short(value)))));
    if (many) view.tip.append(el("div", { class: "dim" }, "the lowest twelve"));
    view.tip.hidden = false;
    const space = view.figure.clientWidth, wide = view.tip.offsetWidth;
    view.tip.style.left = `${left + wide + 16 < space ? left + 12 : Math.max(left - wide - 12, 0)}px`;
    view.tip.style.top = "2rem";
  }
  function zoom(to) {
    state.zoom = to;
    $("whole").hidden = to === null;
    renderAll();
  }

  // -- controls --------------------------------------------------------------------------------------------------
  function controls() {
    const known = Object.keys(AXES).filter((axis) => runs.some((run) => run.x[axis]));
    if (!known.includes(state.x)) state.x = "step";
    const group = el("span", { class: "group", role: "group", "aria-label": "horizontal axis" }, ...known.map((axis) => el("button", {
      type: "button", "data-axis": axis, "aria-pressed": String(axis === state.x),
      onclick: () => { state.x = axis; state.zoom = null; press(); zoom(null); },
    }, AXES[axis])));
    const press = () => group.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.axis === state.x)));
    const longest = Math.max(...runs.map((run) => run.x.step.length), 1);
    const slider = el("input", { type: "range", id: "smooth", min: 0, max: Math.max(Math.min(Math.floor(longest / 6), 60), 1), value: state.smooth,
      oninput: (event) => { state.smooth = Number(event.target.value); renderAll(); } });
    const check = (key, text) => {
      const box = el("input", { type: "checkbox", id: key, onchange: (event) => { state[key] = event.target.checked; renderAll(); } });
      box.checked = state[key];
      return el("label", {}, box, text);
    };
    const whole = el("button", { type: "button", class: "plain", id: "whole", onclick: () => zoom(null) }, "whole range");
    whole.hidden = state.zoom === null;
    $("controls").append(group, el("label", {}, "smooth", slider), check("logy", "log values"), check("logx", `log axis`), whole);
  }
  function legend() {
    const some = DATA.charts.some((chart) => chart.held_out && chart.train);
    if (runs.length > 1) {
      for (const run of runs) {
        $("legend").append(el("button", { type: "button", "aria-pressed": String(!state.hidden.includes(run.name)), onclick: (event) => {
          const off = state.hidden.includes(run.name);
          state.hidden = off ? state.hidden.filter((name) => name !== run.name) : [...state.hidden, run.name];
          event.currentTarget.setAttribute("aria-pressed", String(off));
          renderAll();
        } }, el("span", { class: "swatch", "data-run": run.place }), run.name));
      }
      if (some) $("legend").append(el("span", { class: "mark" }, "solid: training, dashed: held out"));
    } else if (some) {
      $("legend").append(el("span", { class: "mark" }, el("span", { class: "swatch", "data-run": 0 }), "training"),
        el("span", { class: "mark" }, el("span", { class: "swatch", "data-held": 0 }), "held out"));
    }
  }
  function tint() {
    document.querySelectorAll(".swatch[data-run]").forEach((one) => { one.style.background = colour(runs[Number(one.dataset.run)]); });
    document.querySelectorAll(".swatch[data-held]").forEach((one) => { one.style.background = heldColour(runs[0]); });
  }
  function choose() {
    const choice = $("run");
    if (!choice) return;
    if (state.run >= runs.length) state.run = 0;
    const show = () => document.querySelectorAll(".run").forEach((one) => { one.hidden = one.dataset.run !== String(state.run); });
    choice.value = String(state.run);
    choice.closest("p").hidden = false;
    choice.addEventListener("change", () => { state.run = Number(choice.value); show(); remember(); });
    show();
  }
  function renderAll() {
    cancelAnimationFrame(redrawing);
    redrawing = requestAnimationFrame(() => { views.forEach(render); remember(); });
  }
  function follow() {
    if (DATA.refresh === null) return;
    setTimeout(() => {
      const again = () => { remember(); location.reload(); };
      if (!document.hidden) again(); else document.addEventListener("visibilitychange", again, { once: true });
    }, DATA.refresh * 1000);
  }

  const { open, scroll } = state;
  if (DATA.charts.length) {
    controls();
    legend();
    DATA.charts.forEach(makeChart);
  }
  choose();
  tint();
  document.querySelectorAll("details").forEach((one, place) => { if (open.includes(place)) one.open = true; });
  views.forEach(render);
  if (DATA.refresh !== null && scroll) scrollTo(0, scroll);
  new ResizeObserver(renderAll).observe(document.body);
  dark.addEventListener("change", () => { tint(); renderAll(); });
  addEventListener("pagehide", remember);
  follow();
})();
