"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const touched = matchMedia("(pointer: coarse)").matches;
const config = {
  responsive: true, displaylogo: false, doubleClick: "reset", displayModeBar: touched || "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toggleSpikelines"],
};
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const printed = matchMedia("print");
const KEPT = "mec-report:" + location.pathname;

/* What was zoomed and switched is found again after the page of a running training has been made anew. */
const state = Object.assign({ across: "step", hidden: [], range: null, by: {}, scroll: 0 }, recall());
function recall() {
  try { return page.stamp ? JSON.parse(sessionStorage.getItem(KEPT)) : null; } catch { return null; }
}

const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function themed(figure) {
  const soft = color("--soft"), line = color("--line"), ink = color("--ink");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line };
  const layout = structuredClone(figure.layout);
  Object.assign(layout, {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 52, r: 14, t: 8, b: 44 },
    hoverlabel: { bgcolor: color("--raised"), bordercolor: line, font: { color: ink }, namelength: 40 },
    dragmode: touched ? false : "zoom", // a finger scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink }, uirevision: "kept",
  });
  for (const key of ["xaxis", "yaxis"]) layout[key] = { ...axis, ...layout[key] };
  for (const shape of layout.shapes ?? []) shape.line = { ...shape.line, color: color("--warn") };
  for (const note of layout.annotations ?? []) note.font = { color: color("--warn"), size: 11 };
  const data = structuredClone(figure.data);
  for (const trace of data) {
    const chosen = color(`--run-${trace.meta.color}`);
    trace.line = { ...trace.line, color: chosen };
    trace.marker = { ...trace.marker, color: chosen };
  }
  return { data, layout };
}

function curve(id) {
  const { data, layout } = themed(page.curves[id]);
  for (const trace of data) {
    if (state.across === "epoch") trace.x = trace.x.map((step) => step / trace.meta.per_epoch);
    trace.visible = state.hidden.includes(trace.meta.run) ? "legendonly" : true;
  }
  layout.xaxis.title = { text: state.across };
  layout.xaxis.hoverformat = state.across === "epoch" ? ".2f" : ",d";
  if (state.range) Object.assign(layout.xaxis, { range: state.range, autorange: false });
  else layout.xaxis.autorange = true;
  return draw(document.getElementById(id), data, layout);
}

function map(number) {
  const div = document.getElementById(`map-${number}`);
  const figures = page.maps[number];
  const { data, layout } = themed(figures[state.by[number] ?? "label"] ?? figures.cluster);
  layout.legend = { orientation: "h", y: 0, yanchor: "top", itemsizing: "constant" };
  layout.margin = { l: 4, r: 4, t: 4, b: 4 };
  for (const trace of data) trace.marker.opacity = 0.85;
  if (div.chosen !== undefined) layout.shapes = [ring(figures, div.chosen)];
  return draw(div, data, layout);
}

function draw(div, data, layout) {
  // paper does not wait until a chart has noticed its new width
  if (printed.matches) Object.assign(layout, { width: div.clientWidth, height: div.clientHeight });
  else layout.autosize = true;
  return Plotly.react(div, data, layout, config);
}

function drawAll() {
  for (const id of Object.keys(page.curves)) curve(id);
  for (const number of Object.keys(page.maps)) map(number);
  if (page.spectrum) {
    const { data, layout } = themed(page.spectrum);
    layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom" };
    draw(document.getElementById("chart-spectrum"), data, layout);
  }
}

/* Curves share their stretch of steps. */
function followZoom(div) {
  div.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    const range = from !== undefined ? [from, to] : change["xaxis.range"];
    if (range) state.range = range;
    else if (change["xaxis.autorange"]) state.range = null;
    else return;
    for (const id of Object.keys(page.curves)) {
      if (id === div.id) continue;
      const other = document.getElementById(id).layout.xaxis;
      if (state.range) {
        if (other.autorange === false && String(other.range) === String(state.range)) continue;
        Plotly.relayout(id, { "xaxis.range": [...state.range], "xaxis.autorange": false });
      } else if (other.autorange !== true) Plotly.relayout(id, { "xaxis.autorange": true });
    }
  });
}

/* Maps: the image that is pointed at, touched, or stepped to. */
function ring(figures, image) {
  const [x, y] = figures.points[image];
  return {
    type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -9, x1: 9, y0: -9, y1: 9,
    line: { width: 2.5, color: color("--ink") },
  };
}

function choose(number, image) {
  const figures = page.maps[number];
  const div = document.getElementById(`map-${number}`), card = document.getElementById(`card-${number}`);
  if (div.chosen === image) return;
  div.chosen = image;
  Plotly.relayout(div, { shapes: [ring(figures, image)] });
  card.classList.add("chosen");
  const sprite = card.querySelector(".sprite");
  if (sprite) {
    const side = card.querySelector(".window").clientWidth, columns = Number(sprite.dataset.columns);
    sprite.style.width = `${columns * side}px`;
    sprite.style.imageRendering = Number(sprite.dataset.cell) < 48 ? "pixelated" : "auto";
    sprite.style.transform = `translate(${-(image % columns) * side}px, ${-Math.floor(image / columns) * side}px)`;
  }
  const title = document.createElement("strong"), group = document.createElement("span");
  title.append(isolated(figures.titles[image]));
  if (figures.labels) group.append("label ", isolated(figures.labels[image]), ", ");
  group.append(`cluster ${figures.clusters[image]}`);
  card.querySelector("figcaption").replaceChildren(title, group);
}

function isolated(text) {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
}

function step(number, dx, dy) {
  const { points } = page.maps[number];
  const from = document.getElementById(`map-${number}`).chosen;
  if (from === undefined) return choose(number, 0);
  let best = from, least = Infinity;
  points.forEach(([x, y], i) => {
    const along = (x - points[from][0]) * dx + (y - points[from][1]) * dy;
    const aside = Math.abs((x - points[from][0]) * dy) + Math.abs((y - points[from][1]) * dx);
    if (along > 0 && along + 2 * aside < least) { best = i; least = along + 2 * aside; }
  });
  choose(number, best);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function listen() {
  for (const id of Object.keys(page.curves)) followZoom(document.getElementById(id));
  for (const number of Object.keys(page.maps)) {
    const div = document.getElementById(`map-${number}`);
    const chosen = (event) => choose(number, event.points[0].customdata);
    div.on("plotly_hover", chosen);
    div.on("plotly_click", chosen);
    div.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      step(number, ...ARROWS[event.key]);
    });
  }
  for (const input of document.querySelectorAll("input[name=across]")) {
    input.checked = input.value === state.across;
    input.addEventListener("change", () => {
      state.across = input.value;
      state.range = null;
      for (const id of Object.keys(page.curves)) curve(id);
    });
  }
  for (const input of document.querySelectorAll("input[data-map]")) {
    const number = input.dataset.map;
    input.checked = input.value === (state.by[number] ?? "label");
    input.addEventListener("change", () => { state.by[number] = input.value; map(number); });
  }
  for (const button of document.querySelectorAll("button[data-run]")) {
    const run = Number(button.dataset.run);
    const mark = () => button.setAttribute("aria-pressed", String(!state.hidden.includes(run)));
    mark();
    button.addEventListener("click", () => {
      state.hidden = state.hidden.includes(run) ? state.hidden.filter((r) => r !== run) : [...state.hidden, run];
      mark();
      for (const id of Object.keys(page.curves)) curve(id);
    });
  }
  dark.addEventListener("change", drawAll);
  printed.addEventListener("change", forPaper);
}

/* On paper: light, as wide as the paper, nothing folded. */
function forPaper() {
  for (const details of document.querySelectorAll("details")) {
    if (printed.matches) { details.wasOpen = details.open; details.open = true; }
    else details.open = details.wasOpen ?? details.open;
  }
  drawAll();
}

function markSection() {
  const links = [...document.querySelectorAll("nav a")];
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const link of links) {
        if (link.hash === `#${target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  for (const section of document.querySelectorAll("section")) seen.observe(section);
}

async function follow() {
  const live = document.getElementById("live");
  try {
    const { stamp } = await (await fetch("/changed", { cache: "no-store", signal: AbortSignal.timeout(10000) })).json();
    live.textContent = "Follows the run as it trains.";
    if (stamp !== page.stamp) {
      state.scroll = scrollY;
      sessionStorage.setItem(KEPT, JSON.stringify(state));
      return location.reload();
    }
  } catch {
    live.textContent = "mec report --watch no longer answers; this is the last it showed.";
  }
  setTimeout(follow, 3000);
}

async function inflated() {
  const packed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function begin() {
  markSection();
  if (page.stamp) setTimeout(follow, 3000);
  try {
    const script = document.createElement("script");
    script.textContent = await inflated();
    document.head.append(script);
    root.classList.remove("still");
    drawAll();
    listen();
  } catch (error) {
    root.classList.add("still");
    const trouble = document.getElementById("trouble");
    trouble.hidden = false;
    trouble.textContent = `This browser cannot draw the charts (${error.message}); tables and images are here. `
      + "It takes one with DecompressionStream: Chrome or Edge 80, Safari 16.4, Firefox 113, or newer.";
  }
  if (state.scroll) scrollTo({ top: state.scroll, behavior: "instant" });
  root.dataset.ready = "yes";
}
begin();
