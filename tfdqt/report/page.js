"use strict";
(() => {
const read = (name) => JSON.parse(document.getElementById("data-" + name).textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = {};

// Charts in the colours of the page, drawn again when these change.
async function draw(name, spec) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  const config = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: line },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line },
    legend: { labelColor: ink, titleColor: ink },
    title: { color: ink },
    range: { category: dark.matches
      ? ["#58a6ff", "#f0883e", "#56d364", "#f778ba", "#bc8cff", "#e3b341", "#39c5cf", "#ff7b72"]
      : ["#0969da", "#bc4c00", "#1a7f37", "#bf3989", "#8250df", "#9a6700", "#1b7c83", "#cf222e"] },
  };
  const result = await vegaEmbed("#chart-" + name, spec, { config, actions: false, renderer: "svg" });
  views[name] = result.view;
}

async function drawAll() {
  for (const [name, spec] of Object.entries(read("charts"))) await draw(name, spec);
  if (film) film.show(film.now);
}

// A game step by step: picture, values, attention and the rule in the chart move together.
function makeFilm(data) {
  const get = (id) => document.getElementById(id);
  const slider = get("film-step");
  const last = data.rewards.length - 1;
  const known = data.scores.flat().filter((score) => score !== null); // null: not legal
  const low = known.reduce((least, score) => Math.min(least, score), 0);
  const high = known.reduce((most, score) => Math.max(most, score), -Infinity);
  let timer = null;
  const self = { now: 0 };

  function element(tag, parent, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function bars(step) {
    const box = get("film-values");
    box.replaceChildren();
    data.names.forEach((name, i) => {
      const value = data.scores[step][i];
      const chosen = data.chosen[step].includes(i);
      const row = element("div", box, "bar" + (chosen ? " chosen" : ""));
      element("span", row, "", name + (chosen ? " ✓" : ""));
      const fill = element("div", element("div", row, "track"), "fill");
      fill.style.width = value === null ? 0 : (100 * (value - low)) / (high - low || 1) + "%";
      element("span", row, "", value === null ? "not legal" : value.toFixed(3));
      if (data.quantiles && value !== null) {
        const each = data.quantiles[step][i];
        row.title = "quantiles " + each.map((x) => x.toFixed(2)).join(" ");
      }
    });
  }

  function attention(step) {
    const box = get("film-attention");
    if (!box) return;
    box.replaceChildren();
    const shares = data.attention[step];
    box.style.gridTemplateColumns = "5rem repeat(" + shares[0].length + ", 1fr)";
    shares.forEach((block, i) => {
      element("span", box, "", "block " + (i + 1));
      block.forEach((share) => {
        const cell = element("span", box, "cell", (100 * share).toFixed(0) + "%");
        cell.style.background = "color-mix(in srgb, var(--mark) " + 60 * share + "%, transparent)";
      });
    });
  }

  // Maps over the entries of the observation, each a canvas with its strongest places in words.
  const maps = data.maps && data.maps.names.map((name) => {
    const box = element("figure", get("film-maps"));
    const canvas = element("canvas", box);
    canvas.width = data.maps.columns;
    canvas.height = data.maps.rows;
    canvas.setAttribute("role", "img");
    return { name, canvas, said: element("figcaption", box) };
  });
  let over = null;
  if (data.maps && data.maps.margin !== null && data.frames) {
    over = element("canvas", get("film-picture").parentElement, "over");
    over.width = data.maps.columns + 2 * data.maps.margin;
    over.height = data.maps.rows + 2 * data.maps.margin;
  }

  function paint(canvas, places, margin) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--mark");
    places.forEach((share, i) => {
      context.globalAlpha = share / 255;
      const row = Math.floor(i / data.maps.columns), column = i % data.maps.columns;
      context.fillRect(column + margin, row + margin, 1, 1);
    });
  }

  function drawMaps(step) {
    if (!maps) return;
    const bytes = Uint8Array.from(atob(data.maps.steps[step]), (c) => c.charCodeAt(0));
    const size = data.maps.rows * data.maps.columns;
    maps.forEach(({ name, canvas, said }, i) => {
      const places = bytes.subarray(i * size, (i + 1) * size);
      paint(canvas, places, 0);
      const strongest = data.maps.strongest[step][i];
      said.textContent = name + (strongest && ": " + strongest);
      canvas.setAttribute("aria-label", said.textContent);
      if (over && i === maps.length - 1) paint(over, places, data.maps.margin);
    });
  }

  self.show = (step) => {
    self.now = Math.max(0, Math.min(last, step));
    slider.value = self.now;
    if (data.frames) get("film-picture").src = "data:image/jpeg;base64," + data.frames[self.now];
    bars(self.now);
    attention(self.now);
    drawMaps(self.now);
    const best = data.chosen[self.now].map((i) => data.names[i]).join(", ");
    const lost = data.lives[self.now] ? " A life is lost." : "";
    get("film-said").textContent =
      "Step " + self.now + " of " + last + ": " + best + ", reward " + data.rewards[self.now] + "." + lost;
    if (views.timeline) views.timeline.signal("now", self.now).runAsync();
  };
  const stop = () => { clearInterval(timer); timer = null; get("film-play").textContent = "Play"; };
  get("film-play").onclick = () => {
    if (timer) return stop();
    get("film-play").textContent = "Stop";
    timer = setInterval(() => (self.now < last ? self.show(self.now + 1) : stop()), 100);
  };
  get("film-back").onclick = () => { stop(); self.show(self.now - 1); };
  get("film-on").onclick = () => { stop(); self.show(self.now + 1); };
  const next = get("film-life");
  if (next) next.onclick = () => {
    stop();
    const found = data.lives.findIndex((lost, i) => lost && i > self.now);
    self.show(found < 0 ? data.lives.indexOf(true) : found);
  };
  slider.max = last;
  slider.oninput = () => { stop(); self.show(Number(slider.value)); };
  return self;
}

const film = document.getElementById("film") ? makeFilm(read("film")) : null;
dark.addEventListener("change", drawAll);
drawAll().then(() => { document.body.dataset.ready = "yes"; });
})();
