// Data, making elements, numbers in words, and the strips that show a score beside its null.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SOURCES = { truth: "composer’s truth", descriptors: "signal" };
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
const title = (f) => (f.names.length && f.names[0].confidence > 0 ? f.names[0].name : "unnamed");

const features = data.features;
features.forEach((f) => {
  f.key = keyOf(f);
  f.best = f.names[0];
  f.confidence = f.best ? f.best.confidence : -1;
  f.sound = f.key in data.exemplars;
});
const byKey = new Map(features.map((f) => [f.key, f]));

// AUROC from 0.3 to 1, the null's 95 % as a band, chance as a tick
const place = (x) => Math.max(0, Math.min(1, (x - 0.3) / 0.7)) * 100;
function strip(score, nullHigh, others = [], label = "") {
  const svg = draw("svg", {
    class: "strip",
    viewBox: "0 0 100 16",
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": label,
  });
  svg.append(
    draw("rect", { class: "null", x: 0, y: 5, width: place(nullHigh ?? 0.5), height: 6, rx: 1 }),
    draw("line", { class: "rail", x1: 0, x2: 100, y1: 8, y2: 8, "vector-effect": "non-scaling-stroke" }),
    draw("line", {
      class: "chance",
      x1: place(0.5),
      x2: place(0.5),
      y1: 3,
      y2: 13,
      "vector-effect": "non-scaling-stroke",
    }),
  );
  const holder = make("div", { class: "strip-holder" }, svg);
  for (const [kind, value] of [...others, ["dot", score]]) {
    if (value == null) continue;
    const mark = markOf(kind, kind === "dot" && score > (nullHigh ?? 0.5));
    mark.style.cssText = `position:absolute;left:calc(${place(value)}% - 6px);top:2px`;
    holder.append(mark);
  }
  return holder;
}
function markOf(kind, above = true) {
  const svg = draw("svg", { class: "symbol", viewBox: "0 0 12 12", "aria-hidden": "true" });
  if (kind === "dot") svg.append(draw("circle", { class: above ? "dot above" : "dot", cx: 6, cy: 6, r: 4.6 }));
  if (kind === "neuron") svg.append(draw("path", { class: "neuron", d: "M6 1.6 10.4 6 6 10.4 1.6 6z" }));
  if (kind === "random") svg.append(draw("rect", { class: "random", x: 2.4, y: 2.4, width: 7.2, height: 7.2 }));
  return svg;
}
