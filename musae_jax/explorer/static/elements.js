// Data, making elements, numbers in words, and the strips that show a score beside its null.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SOURCES = { truth: "composer’s truth", descriptors: "signal", tagger: "tagger", clap: "CLAP", llm: "audio LLM" };
const LIST_STEP = 150; // rows drawn at a time; more come on scrolling

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c != null && c !== false));
  return node;
}
const number = (x, digits = 2) => (x == null || Number.isNaN(x) ? "–" : x.toFixed(digits));
const percent = (x, digits = 1) => (x == null ? "–" : `${(100 * x).toFixed(digits)} %`);
const signed = (x, digits = 2) => (x == null ? "–" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`);
const keyOf = (f) => `${f.hook}/${f.sae}/${f.feature}`;
const featureLink = (key, text) => make("a", { href: `#f/${encodeURIComponent(key)}` }, text);
const sourceName = (source) => SOURCES[source] || source;
const ARTICLES = { truth: "the ", descriptors: "the ", tagger: "the ", llm: "an " };
const theSource = (source) => (ARTICLES[source] || "") + sourceName(source);
const between = (bounds, digits = 2) => (bounds ? ` (${number(bounds[0], digits)}–${number(bounds[1], digits)})` : "");
const smallP = (p) => (p < 0.001 ? "< 0.001" : number(p, 3));
const title = (f) => (f.named ? f.best.name : "unnamed");

const features = data.features;
features.forEach((f) => {
  f.key = keyOf(f);
  f.best = f.names[0];
  f.named = Boolean(f.best && f.best.holds);
  f.confidence = f.best ? f.best.confidence : -1;
  f.sound = f.key in data.exemplars;
});
const byKey = new Map(features.map((f) => [f.key, f]));

// AUROC from 0.3 to 1: the null's 95 % as a band, chance as a tick, an interval as a whisker
const place = (x) => Math.max(0, Math.min(1, (x - 0.3) / 0.7)) * 100;
function strip(score, nullHigh, { label = "", others = [], whisker = null, above = score > (nullHigh ?? 0.5) } = {}) {
  const line = (kind, x1, x2, y1, y2) =>
    draw("line", { class: kind, x1, x2, y1, y2, "vector-effect": "non-scaling-stroke" });
  const svg = draw(
    "svg",
    { class: "strip", viewBox: "0 0 100 16", preserveAspectRatio: "none", role: "img", "aria-label": label },
    nullHigh == null ? null : draw("rect", { class: "null", x: 0, y: 5, width: place(nullHigh), height: 6, rx: 1 }),
    line("rail", 0, 100, 8, 8),
    line("chance", place(0.5), place(0.5), 3, 13),
    whisker ? line("whisker", place(whisker[0]), place(whisker[1]), 8, 8) : null,
  );
  const holder = make("div", { class: "strip-holder" }, svg);
  for (const [kind, value] of [...others, ["dot", score]]) {
    if (value == null) continue;
    const mark = markOf(kind, kind === "dot" && above);
    mark.style.cssText = `position:absolute;left:calc(${place(value)}% - 6px);top:2px`;
    holder.append(mark);
  }
  return holder;
}
function markOf(kind, above = true) {
  const svg = draw("svg", { class: "symbol", viewBox: "0 0 12 12", "aria-hidden": "true" });
  if (kind === "dot") svg.append(draw("circle", { class: above ? "dot above" : "dot", cx: 6, cy: 6, r: 4.6 }));
  if (kind === "neuron") svg.append(draw("path", { class: "neuron", d: "M6 1.6 10.4 6 6 10.4 1.6 6z" }));
  if (kind === "null") svg.append(draw("rect", { class: "null", x: 0, y: 3, width: 12, height: 6 }));
  if (kind === "random") svg.append(draw("rect", { class: "random", x: 2.4, y: 2.4, width: 7.2, height: 7.2 }));
  return svg;
}
