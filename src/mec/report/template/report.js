"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const isTouch = matchMedia("(pointer: coarse)").matches;
const plotlyConfig = {
  responsive: true, displaylogo: false, doubleClick: "reset", displayModeBar: isTouch, // icons would cover the curves
  showSendToCloud: false, // newer versions of plotly would offer to upload the chart
  modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d", "toggleSpikelines"],
};
const darkMode = matchMedia("screen and (prefers-color-scheme: dark)");
const printMode = matchMedia("print");
const STORAGE_KEY = "mec-report:" + location.pathname;
const POLL_MS = 3000, TIMEOUT_MS = 10000;

/* With --watch the page reloads itself; zoom and switches are restored from the session storage. */
const state = Object.assign({ xAxis: "step", hiddenRuns: [], range: null, colorBy: {}, scroll: 0 }, loadState());
function loadState() {
  try { return page.revision ? JSON.parse(sessionStorage.getItem(STORAGE_KEY)) : null; } catch { return null; }
}

const cssColor = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function applyTheme(figure) {
  const muted = cssColor("--muted"), border = cssColor("--border"), text = cssColor("--text");
  const axis = { gridcolor: border, linecolor: border, zerolinecolor: border, tickcolor: border };
  const layout = structuredClone(figure.layout);
  Object.assign(layout, {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: muted },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 52, r: 14, t: isTouch ? 34 : 8, b: 44 },
    hoverlabel: { bgcolor: cssColor("--surface"), bordercolor: border, font: { color: text }, namelength: 40 },
    dragmode: isTouch ? false : "zoom", // on a touch screen, dragging scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: text }, uirevision: "constant",
  });
  for (const key of ["xaxis", "yaxis"]) layout[key] = { ...axis, ...layout[key] };
  for (const shape of layout.shapes ?? []) shape.line = { ...shape.line, color: cssColor("--warning") };
  for (const annotation of layout.annotations ?? []) annotation.font = { color: cssColor("--warning"), size: 11 };
  const data = structuredClone(figure.data);
  for (const trace of data) {
    const color = cssColor(`--run-${trace.meta.color}`);
    trace.line = { ...trace.line, color };
    trace.marker = { ...trace.marker, color };
  }
  return { data, layout };
}

function drawCurve(id) {
  const { data, layout } = applyTheme(page.curves[id]);
  for (const trace of data) {
    if (state.xAxis === "epoch") trace.x = trace.x.map((step) => step / trace.meta.steps_per_epoch);
    trace.visible = state.hiddenRuns.includes(trace.meta.run) ? "legendonly" : true;
  }
  layout.xaxis.title = { text: state.xAxis };
  layout.xaxis.hoverformat = state.xAxis === "epoch" ? ".2f" : ",d";
  if (state.range) Object.assign(layout.xaxis, { range: state.range, autorange: false });
  else layout.xaxis.autorange = true;
  return draw(document.getElementById(id), data, layout);
}

function drawMap(run) {
  const div = document.getElementById(`map-${run}`);
  const map = page.maps[run];
  const { data, layout } = applyTheme(map[state.colorBy[run] ?? "label"] ?? map.cluster);
  layout.legend = { orientation: "h", y: 0, yanchor: "top", itemsizing: "constant" };
  layout.margin = { l: 4, r: 4, t: isTouch ? 34 : 4, b: 4 };
  for (const trace of data) trace.marker.opacity = 0.85;
  if (div.selectedImage !== undefined) layout.shapes = [selectionMarker(map, div.selectedImage)];
  return draw(div, data, layout);
}

function draw(div, data, layout) {
  // printing does not wait for plotly's resize event, so the size is set explicitly
  if (printMode.matches) Object.assign(layout, { width: div.clientWidth, height: div.clientHeight });
  else layout.autosize = true;
  return Plotly.react(div, data, layout, plotlyConfig);
}

function drawAll() {
  for (const id of Object.keys(page.curves)) drawCurve(id);
  for (const run of Object.keys(page.maps)) drawMap(run);
  if (page.spectrum) {
    const { data, layout } = applyTheme(page.spectrum);
    layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom" };
    layout.margin.l = 72; // the title of the y axis is beside its numbers
    draw(document.getElementById("chart-spectrum"), data, layout);
  }
}

/* All curves show the same range of the x axis. */
function synchronizeZoom(div) {
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

/* Maps: a circle around the selected image. */
function selectionMarker(map, image) {
  const [x, y] = map.points[image];
  return {
    type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -9, x1: 9, y0: -9, y1: 9,
    line: { width: 2.5, color: cssColor("--text") },
  };
}

function selectImage(run, image) {
  const map = page.maps[run];
  const div = document.getElementById(`map-${run}`), card = document.getElementById(`card-${run}`);
  if (div.selectedImage === image) return;
  div.selectedImage = image;
  Plotly.relayout(div, { shapes: [selectionMarker(map, image)] });
  card.classList.add("selected");
  const sprites = card.querySelector(".sprites");
  if (sprites) {
    const side = card.querySelector(".thumbnail").clientWidth, columns = Number(sprites.dataset.columns);
    sprites.style.width = `${columns * side}px`;
    sprites.style.imageRendering = Number(sprites.dataset.cellSize) < 48 ? "pixelated" : "auto";
    sprites.style.transform = `translate(${-(image % columns) * side}px, ${-Math.floor(image / columns) * side}px)`;
  }
  const title = document.createElement("strong"), group = document.createElement("span");
  title.append(bidiIsolated(map.titles[image]));
  if (map.labels) group.append("label ", bidiIsolated(map.labels[image]), ", ");
  group.append(`cluster ${map.clusters[image]}`);
  card.querySelector("figcaption").replaceChildren(title, group);
}

function bidiIsolated(text) {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
}

/* Select the nearest image in the direction (dx, dy); a sideways offset counts twice. */
function moveSelection(run, dx, dy) {
  const { points } = page.maps[run];
  const from = document.getElementById(`map-${run}`).selectedImage;
  if (from === undefined) return selectImage(run, 0);
  let nearest = from, minDistance = Infinity;
  points.forEach(([x, y], i) => {
    const forward = (x - points[from][0]) * dx + (y - points[from][1]) * dy;
    const sideways = Math.abs((x - points[from][0]) * dy) + Math.abs((y - points[from][1]) * dx);
    const distance = forward + 2 * sideways;
    if (forward > 0 && distance < minDistance) { nearest = i; minDistance = distance; }
  });
  selectImage(run, nearest);
}

const ARROW_KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function addListeners() {
  for (const id of Object.keys(page.curves)) synchronizeZoom(document.getElementById(id));
  for (const run of Object.keys(page.maps)) {
    const div = document.getElementById(`map-${run}`);
    const select = (event) => selectImage(run, event.points[0].customdata);
    div.on("plotly_hover", select);
    div.on("plotly_click", select);
    div.addEventListener("keydown", (event) => {
      if (!(event.key in ARROW_KEYS)) return;
      event.preventDefault();
      moveSelection(run, ...ARROW_KEYS[event.key]);
    });
  }
  for (const input of document.querySelectorAll("input[name=x-axis]")) {
    input.checked = input.value === state.xAxis;
    input.addEventListener("change", () => {
      state.xAxis = input.value;
      state.range = null;
      for (const id of Object.keys(page.curves)) drawCurve(id);
    });
  }
  for (const input of document.querySelectorAll("input[data-map]")) {
    const run = input.dataset.map;
    input.checked = input.value === (state.colorBy[run] ?? "label");
    input.addEventListener("change", () => { state.colorBy[run] = input.value; drawMap(run); });
  }
  for (const button of document.querySelectorAll("button[data-run]")) {
    const run = Number(button.dataset.run);
    const update = () => button.setAttribute("aria-pressed", String(!state.hiddenRuns.includes(run)));
    update();
    button.addEventListener("click", () => {
      const isHidden = state.hiddenRuns.includes(run);
      state.hiddenRuns = isHidden ? state.hiddenRuns.filter((r) => r !== run) : [...state.hiddenRuns, run];
      update();
      for (const id of Object.keys(page.curves)) drawCurve(id);
    });
  }
  for (const link of document.querySelectorAll("nav a[href='#settings']")) {
    link.addEventListener("click", () => { document.querySelector("#settings details").open = true; });
  }
  darkMode.addEventListener("change", drawAll);
  printMode.addEventListener("change", updatePrintLayout);
}

/* Printing: open everything that is collapsed, and redraw the charts with the colors and width of the print style. */
function updatePrintLayout() {
  for (const details of document.querySelectorAll("details")) {
    if (printMode.matches) { details.wasOpen = details.open; details.open = true; }
    else details.open = details.wasOpen ?? details.open;
  }
  drawAll();
}

function highlightCurrentSection() {
  const links = [...document.querySelectorAll("nav a")];
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const link of links) {
        if (link.hash === `#${target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  for (const section of document.querySelectorAll("section")) observer.observe(section);
}

async function poll() {
  const status = document.getElementById("live-status");
  try {
    const response = await fetch("/revision", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    const { revision } = await response.json();
    status.textContent = "Updates while the run trains.";
    if (revision !== page.revision) {
      state.scroll = scrollY;
      sessionStorage.setItem(STORAGE_KEY, JSON.stringify(state));
      return location.reload();
    }
  } catch {
    status.textContent = "mec report --watch does not respond; this is the last version of the page.";
  }
  setTimeout(poll, POLL_MS);
}

async function decompressPlotly() {
  const compressed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(compressed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function start() {
  highlightCurrentSection();
  if (page.revision) setTimeout(poll, POLL_MS);
  try {
    const script = document.createElement("script");
    script.textContent = await decompressPlotly();
    document.head.append(script);
    root.classList.remove("no-charts");
    drawAll();
    addListeners();
  } catch (error) {
    root.classList.add("no-charts");
    const message = document.getElementById("error");
    message.hidden = false;
    message.textContent = `This browser cannot draw the charts (${error.message}). Tables and images are shown. `
      + "Charts need DecompressionStream: Chrome or Edge 80, Safari 16.4, Firefox 113, or newer.";
  }
  if (state.scroll) scrollTo({ top: state.scroll, behavior: "instant" });
  root.dataset.ready = "true";
}
start();
