"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SOURCES = { truth: "composer’s truth", descriptors: "signal" };
  const LIST_STEP = 150; // rows drawn at a time; more come on scrolling

  // ---------------------------------------------------------------- making elements
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
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
  features.forEach((f) => { f.key = keyOf(f); f.best = f.names[0]; f.confidence = f.best ? f.best.confidence : -1; f.sound = f.key in data.exemplars; });
  const byKey = new Map(features.map((f) => [f.key, f]));

  // ---------------------------------------------------------------- evidence strips
  // AUROC from 0.3 to 1, the null's 95 % as a band, chance as a tick
  const place = (x) => Math.max(0, Math.min(1, (x - 0.3) / 0.7)) * 100;
  function strip(score, nullHigh, others = [], label = "") {
    const svg = draw("svg", { class: "strip", viewBox: "0 0 100 16", preserveAspectRatio: "none", role: "img", "aria-label": label });
    svg.append(draw("rect", { class: "null", x: 0, y: 5, width: place(nullHigh ?? 0.5), height: 6, rx: 1 }),
      draw("line", { class: "rail", x1: 0, x2: 100, y1: 8, y2: 8, "vector-effect": "non-scaling-stroke" }),
      draw("line", { class: "chance", x1: place(0.5), x2: place(0.5), y1: 3, y2: 13, "vector-effect": "non-scaling-stroke" }));
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

  // ---------------------------------------------------------------- sound
  let current = null; // the player that is heard
  const frame = () => { if (current) { current.show(); requestAnimationFrame(frame); } };
  const ICONS = () => [draw("svg", { class: "go", viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: "M4.5 2.5v11l9-5.5z" })),
    draw("svg", { class: "pause", viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: "M4 3h3v10H4zM9 3h3v10H9z" }))];

  function player(mediaIndex, label, { curve = null, plain = false, after = null } = {}) {
    const media = data.media[mediaIndex];
    const audio = new Audio();
    audio.preload = "none";
    audio.src = media.sound;
    const cursor = make("div", { class: "cursor" });
    const track = make("div", {
      class: plain ? "track plain" : "track", role: "slider", tabindex: 0, "aria-label": `Position in ${label}`, "aria-valuemin": 0,
      "aria-valuemax": number(media.seconds, 1), "aria-valuenow": 0, "aria-valuetext": "0 seconds", "data-testid": "track",
    }, make("img", { class: "mel", src: media.mel, alt: `Mel spectrogram of ${label}`, loading: "lazy", draggable: "false" }));
    if (curve) { track.append(curveOf(curve)); spansOf(curve).forEach((s) => track.append(s)); }
    track.append(cursor);
    const button = make("button", { class: "play", type: "button", "aria-label": `Play ${label}`, "data-testid": "play" }, ICONS());
    const node = make("div", { class: "clip", "data-testid": "clip" }, button, track);
    const self = {
      node, audio, after,
      show() {
        const share = Math.min(1, audio.currentTime / media.seconds);
        cursor.style.left = `${share * 100}%`;
        track.setAttribute("aria-valuenow", number(audio.currentTime, 1));
        track.setAttribute("aria-valuetext", `${number(audio.currentTime, 1)} seconds`);
      },
      play(from) {
        if (current && current !== self) current.pause();
        if (from != null) self.seek(from);
        current = self;
        node.classList.add("playing", "started");
        button.setAttribute("aria-label", `Pause ${label}`);
        audio.play().catch(() => self.pause());
        requestAnimationFrame(frame);
      },
      pause() {
        audio.pause();
        node.classList.remove("playing");
        button.setAttribute("aria-label", `Play ${label}`);
        if (current === self) current = null;
      },
      seek(seconds) {
        const to = Math.max(0, Math.min(media.seconds - 0.02, seconds));
        node.classList.add("started");
        if (audio.readyState >= 1) audio.currentTime = to;
        else { audio.addEventListener("loadedmetadata", () => { audio.currentTime = to; self.show(); }, { once: true }); audio.load(); }
        cursor.style.left = `${(to / media.seconds) * 100}%`;
      },
      toggle() { if (current === self) self.pause(); else self.play(audio.ended ? 0 : null); },
    };
    audio.addEventListener("ended", () => { self.pause(); self.show(); if (self.after) self.after(); });
    button.addEventListener("click", () => { self.after = after; self.toggle(); });
    const at = (event) => { const box = track.getBoundingClientRect(); return ((event.clientX - box.left) / box.width) * media.seconds; };
    track.addEventListener("pointerdown", (event) => { if (event.button === 0) { track.setPointerCapture(event.pointerId); self.play(at(event)); } });
    track.addEventListener("pointermove", (event) => { if (track.hasPointerCapture(event.pointerId)) self.seek(at(event)); });
    track.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -3, PageUp: 3, Home: -1e9, End: 1e9 };
      if (event.key in steps) { event.preventDefault(); event.stopPropagation(); self.seek(audio.currentTime + steps[event.key]); self.show(); }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); self.toggle(); }
    });
    return self;
  }
  const levels = (encoded) => Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  function curveOf(values) {
    const points = Array.from(values, (v, t) => `${t + 0.5} ${(98 - (v / 255) * 94).toFixed(1)}`);
    const line = 98 - data.threshold * 94;
    return draw("svg", { class: "curve", viewBox: `0 0 ${values.length} 100`, preserveAspectRatio: "none", role: "img", "aria-label": "Activation at 50 Hz" },
      draw("path", { class: "area", d: `M0 98L${points.join("L")}L${values.length} 98z` }),
      draw("line", { class: "threshold", x1: 0, x2: values.length, y1: line, y2: line }),
      draw("path", { class: "linepath", d: `M${points.join("L")}` }));
  }
  function spansOf(values) {
    const spans = [];
    const high = data.threshold * 255;
    for (let t = 0, start = -1; t <= values.length; t++) {
      const on = t < values.length && values[t] >= high;
      if (on && start < 0) start = t;
      if (!on && start >= 0) {
        spans.push(make("div", { class: "span", style: `left:${(100 * start) / values.length}%;width:${(100 * (t - start)) / values.length}%` }));
        start = -1;
      }
    }
    return spans;
  }

  // ---------------------------------------------------------------- the list of features
  const list = { query: "", only: "all", sort: "confidence", down: true, drawn: 0, rows: [], sae: "" };
  const ORDER = {
    feature: (f) => f.feature, name: (f) => (f.confidence > 0 ? f.best.name : "\uffff"), confidence: (f) => f.confidence + 1e-3 * (f.best ? f.best.score : 0),
    density: (f) => f.density, share: (f) => f.share,
  };
  const KINDS = { all: ["All", () => true], named: ["Above null", (f) => f.confidence > 0], kept: ["Kept", (f) => f.verdict === "kept"], sound: ["With sound", (f) => f.sound] };

  function select() {
    const words = list.query.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (f) => { const text = `${f.feature} ${f.names.filter((n) => n.confidence > 0).map((n) => n.name).join(" ")} ${f.verdict} ${f.hook}`.toLowerCase(); return words.every((w) => text.includes(w)); };
    const order = ORDER[list.sort];
    list.rows = features.filter((f) => KINDS[list.only][1](f) && (!list.sae || `${f.hook}/${f.sae}` === list.sae) && fits(f));
    list.rows.sort((a, b) => { const x = order(a), y = order(b); return (x < y ? -1 : x > y ? 1 : a.feature - b.feature) * (list.down ? -1 : 1); });
  }
  function featureRow(f) {
    const named = f.confidence > 0;
    const other = f.names.slice(1).find((n) => n.confidence > 0);
    return make("tr", { "data-key": f.key, "data-testid": "feature-row", "aria-current": f.key === state.key ? "true" : null },
      make("td", { class: "id number" }, String(f.feature)),
      make("td", { class: named ? "name" : "name unnamed" }, featureLink(f.key, named ? f.best.name : f.verdict === "dead" ? "dead" : "unnamed"),
        f.sound ? draw("svg", { class: "speaker", viewBox: "0 0 12 12", role: "img", "aria-label": "has sound" }, draw("path", { d: "M1 4.5v3M4 3v6M7 1v10M10 4v4" })) : null,
        named ? make("div", { class: "source" }, SOURCES[f.best.source] || f.best.source, other ? ` · ${SOURCES[other.source] || other.source}: ${other.name}` : "") : null),
      make("td", { style: "width:24%" }, f.best ? strip(f.best.score, f.best.null_p95, [], `AUROC ${number(f.best.score)}, null ${number(f.best.null_p95)}`) : ""),
      make("td", { class: "number" }, percent(f.density, f.density < 0.001 ? 2 : 1)),
      make("td", { class: "number" }, String(f.clips_active)));
  }
  function drawRows(body, reset) {
    if (reset) { body.replaceChildren(); list.drawn = 0; }
    const next = list.rows.slice(list.drawn, list.drawn + LIST_STEP);
    body.append(...next.map(featureRow));
    list.drawn += next.length;
  }
  function listPane() {
    const body = make("tbody");
    const count = make("span", { class: "count quiet small", "data-testid": "count" });
    const head = [["feature", "#", "number"], ["name", "Name"], ["confidence", "Evidence"], ["density", "Density", "number"], ["share", "Clips", "number"]];
    const cells = head.map(([name, text, kind]) => make("th", { scope: "col", class: kind }, make("button", {
      type: "button", "data-testid": `sort-${name}`, title: { confidence: "AUROC on held-out clips, beside its null", density: "share of frames on which it is active", share: "clips in which it is active" }[name],
      onclick: () => { list.down = list.sort === name ? !list.down : !["name", "feature"].includes(name); list.sort = name; refresh(); },
    }, text)));
    const scroll = make("div", { class: "scroll", "data-testid": "list-scroll", onscroll: () => { if (scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 400) drawRows(body); } },
      make("table", { class: "features", "data-testid": "features" }, make("caption", { class: "visually-hidden" }, "Features of the dictionary"), make("thead", {}, make("tr", {}, cells)), body));
    body.addEventListener("click", (event) => { const row = event.target.closest("tr"); if (row && !event.target.closest("a")) open(row.dataset.key); });
    const chips = Object.entries(KINDS).map(([kind, [text]]) => make("button", { class: "ghost", type: "button", "data-testid": `only-${kind}`, onclick: () => { list.only = kind; refresh(); } }, text));
    const names = [...new Set(features.map((f) => `${f.hook}/${f.sae}`))];
    const refresh = () => {
      select();
      drawRows(body, true);
      head.forEach(([name], i) => { if (name === list.sort) cells[i].setAttribute("aria-sort", list.down ? "descending" : "ascending"); else cells[i].removeAttribute("aria-sort"); });
      chips.forEach((chip, i) => chip.setAttribute("aria-pressed", Object.keys(KINDS)[i] === list.only));
      count.textContent = `${list.rows.length} of ${features.length}`;
      scroll.scrollTop = 0;
    };
    list.mark = () => {
      const place = list.rows.findIndex((f) => f.key === state.key);
      while (place >= list.drawn && list.drawn < list.rows.length) drawRows(body);
      for (const row of body.children) { if (row.dataset.key === state.key) row.setAttribute("aria-current", "true"); else row.removeAttribute("aria-current"); }
      const row = body.children[place];
      if (row) { const a = row.getBoundingClientRect(), b = scroll.getBoundingClientRect(); if (a.top < b.top + 40 || a.bottom > b.bottom) scroll.scrollTop += a.top - b.top - b.height / 2; }
    };
    refresh();
    return make("aside", { class: "list", "aria-label": "Features" },
      make("div", { class: "controls" },
        make("input", { type: "search", id: "search", placeholder: "Search names and numbers", "aria-label": "Search features", "data-testid": "search", value: list.query, oninput: (e) => { list.query = e.target.value; refresh(); } }),
        names.length > 1 ? make("select", { "aria-label": "Dictionary", "data-testid": "dictionary", onchange: (e) => { list.sae = e.target.value; refresh(); tiles(); } }, make("option", { value: "" }, "All dictionaries"), names.map((n) => make("option", { value: n, selected: n === list.sae }, n))) : null,
        make("div", { class: "chips" }, chips, count)),
      scroll);
  }

  // ---------------------------------------------------------------- one feature
  const state = { tab: "concepts", key: null, first: null };
  const REASONS = { kept: "kept", dead: "never active", rare: "too few clips", common: "too many clips" };

  function detailPane(f) {
    const pane = make("article", { class: "detail", "data-testid": "detail", "aria-label": `Feature ${f.feature}` });
    const best = f.best, named = f.confidence > 0;
    const step = (by, text, label) => make("button", { class: "ghost", type: "button", "aria-label": label, "data-testid": by > 0 ? "next" : "previous", onclick: () => walk(by) }, text);
    const lede = !best ? "No concept goes with it on the clips that were used for naming."
      : named ? ["Named on one half of the tracks. On the other half, ", best.level === "frame" ? "a moment" : "a clip", " with the concept is more active than one without it ", make("strong", {}, percent(best.score, 0)), ` of the time; on shuffled clips the best of all names reaches ${percent(best.null_p95, 0)} one time in twenty.`]
        : ["Its best candidate, ", make("strong", {}, best.name), `, scores ${number(best.score)} on held-out tracks, no more than names reach on shuffled clips (${number(best.null_p95)}). So it goes unnamed.`];
    pane.append(make("header", {}, make("div", {}, make("p", { class: "overline" }, `Feature ${f.feature} · ${f.hook} · ${f.sae}`), make("h2", { "data-testid": "feature-title" }, title(f)), make("p", { class: "lede" }, lede)),
      make("div", { class: "walk" }, step(-1, "←", "Previous feature"), step(1, "→", "Next feature"))));
    pane.append(make("dl", { class: "facts", "data-testid": "facts" }, [["Active on", `${percent(f.density, 2)} of frames`], ["Active in", `${f.clips_active} clips (${percent(f.share, 0)})`],
      ["Maximum", number(f.maximum)], ["Mean when active", number(f.mean_active)], ["Filter", REASONS[f.verdict] || f.verdict]].map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, v)))));
    if (f.names.length) pane.append(block("Evidence", "AUROC on held-out tracks; grey: 95 % of the null", null, evidenceOf(f)));
    const shown = data.exemplars[f.key] || [];
    if (shown.length) pane.append(exemplarBlock(f, shown));
    else pane.append(block("Exemplars", null, null, make("p", { class: "quiet" }, f.density ? "Sound is kept for the best-evidenced features only; raise the report’s media limit to hear this one." : "This feature is never active on the harvested music.")));
    if (data.steering[f.key]) pane.append(steeringBlock(f));
    return pane;
  }
  const block = (name, note, extra, ...content) => make("section", { class: "block" }, make("header", {}, make("h3", {}, name), note ? make("span", { class: "quiet small" }, note) : null, extra), content);

  function evidenceOf(f) {
    const grid = make("div", { class: "evidence", "data-testid": "evidence" });
    for (const n of f.names) {
      const shuffles = n.p == null ? "" : ` · p ${n.p < 0.001 ? "< 0.001" : number(n.p, 3)}`;
      grid.append(make("span", { class: `badge who ${n.source}` }, SOURCES[n.source] || n.source), make("span", { class: n.confidence > 0 ? "named" : "quiet" }, n.name),
        strip(n.score, n.null_p95, [], `AUROC ${number(n.score)}, null ${number(n.null_p95)}`),
        make("span", { class: "small number" }, make("b", {}, number(n.score)), make("span", { class: "quiet" }, ` null ${number(n.null_mean)}–${number(n.null_p95)}${shuffles} · ${n.positives} of ${n.n} clips`)));
      const notes = [];
      if (n.threshold != null && n.direction !== "equal") notes.push(`${n.direction === "low" ? "below" : "above"} ${Math.abs(n.threshold) >= 100 ? number(n.threshold, 0) : number(n.threshold)} (${n.unit})`);
      if (n.spearman != null) notes.push(`rank correlation ${signed(n.spearman)}`);
      const rivals = (n.candidates || []).filter((c) => c.name !== n.name);
      if (rivals.length) notes.push(`next: ${rivals.map((c) => `${c.name} ${number(c.score)}`).join(", ")}`);
      if (notes.length) grid.append(make("span", { class: "rivals quiet small" }, notes.join(" · ")));
    }
    return grid;
  }
  function exemplarBlock(f, shown) {
    const seconds = Math.max(...shown.map((e) => data.media[e.media].seconds));
    const players = shown.map((e) => {
      const p = player(e.media, `clip ${e.clip}`, { curve: levels(e.curve) });
      p.node.prepend(make("div", { class: "head" }, make("span", { class: "caption", title: `${e.caption || ""} (${e.clip})` }, e.caption || e.clip),
        make("span", { class: e.half === "score" ? "badge held" : "badge", title: e.half === "score" ? "from the half on which the name is scored" : "from the half that chose the name" }, e.half === "score" ? "held out" : "naming half"),
        make("span", { class: "quiet small", title: "peak activation, in shares of the feature’s maximum" }, `peak ${percent(e.peak, 0)}`)));
      const end = data.media[e.media].seconds;
      p.node.append(make("div", { class: "axis", "aria-hidden": "true" }, [0, 1, 2, 3, 4].map((i) => make("span", {}, `${number((end * i) / 4, end < 4 ? 1 : end % 4 ? 1 : 0)}${i === 4 ? " s" : ""}`))));
      return p;
    });
    state.first = players[0];
    const all = make("button", { class: "ghost", type: "button", "data-testid": "play-all", onclick: () => { players.forEach((p, i) => { p.after = players[i + 1] ? () => players[i + 1].play(0) : null; }); players[0].play(0); } }, "Play all");
    return block("Where it is active", `${shown.length} strongest clips, ${number(seconds, 0)} s; shaded above ${percent(data.threshold, 0)} of its maximum`, all,
      make("div", { class: "exemplars", "data-testid": "exemplars" }, players.map((p) => p.node)));
  }
  const CONDITIONS = [["unsteered", "Unsteered"], ["steered", "Steered"], ["random", "Random direction"]];
  function steeringBlock(f) {
    const rows = data.steering[f.key];
    const strengths = [...new Set(rows.filter((r) => r.condition === "steered").map((r) => r.strength))].sort((a, b) => a - b);
    const summary = data.steeringSummary && data.steeringSummary.features.find((s) => keyOf(s) === f.key);
    const holder = make("div", { class: "ab", "data-testid": "steering" });
    const buttons = make("span", { class: "chips", style: "margin-left:auto" });
    const show = (strength) => {
      holder.replaceChildren();
      for (const prompt of [...new Set(rows.map((r) => r.prompt))]) {
        const of = (condition) => rows.find((r) => r.prompt === prompt && r.condition === condition && (condition === "unsteered" || r.strength === strength));
        holder.append(make("p", { class: "prompt" }, `“${of("unsteered").text}”`));
        for (const [condition, text] of CONDITIONS) {
          const r = of(condition);
          if (!r) continue;
          const p = player(r.media, `${text.toLowerCase()}, prompt ${r.text}`, { plain: true });
          p.node.prepend(make("div", { class: "head" }, make("span", { class: "caption" }, make("b", {}, text), condition === "unsteered" ? "" : ` ${signed(r.strength, 1)}`)));
          const facts = [];
          if (r.judge != null) facts.push("judge ", make("b", {}, percent(r.judge, 0)), " · ");
          if (r.descriptor != null && summary && summary.descriptor) facts.push(`${summary.descriptor} `, make("b", {}, number(r.descriptor, Math.abs(r.descriptor) >= 100 ? 0 : 2)), " · ");
          facts.push("activation ", make("b", {}, percent(r.activation)));
          p.node.append(make("div", { class: "measure" }, facts));
          holder.append(p.node);
        }
      }
      [...buttons.children].forEach((b, i) => b.setAttribute("aria-pressed", strengths[i] === strength));
    };
    strengths.forEach((s) => buttons.append(make("button", { class: "ghost", type: "button", onclick: () => show(s) }, `strength ${s}`)));
    show(strengths[strengths.length - 1]);
    return block("Steering", "same prompt, same noise; the random direction has the same norm", strengths.length > 1 ? buttons : null, steeringSentence(summary, strengths), holder);
  }
  function steeringSentence(summary, strengths) {
    const last = summary && summary.strengths.find((s) => s.strength === strengths[strengths.length - 1]);
    const found = last && (last.judge || last.activation);
    if (!found) return null;
    const what = last.judge ? `A judge that hears only the sound finds “${summary.concept}” in` : "Harvested anew, the sound activates the feature at";
    const digits = last.judge ? 0 : 1;
    const d = found.steered_minus_random;
    return make("p", { class: "lede", style: "margin-bottom:14px" }, `${what} ${percent(found.unsteered, digits)} unsteered, `, make("strong", {}, percent(found.steered, digits)), ` steered, ${percent(found.random, digits)} along a random direction (difference ${signed(100 * d.mean, 1)} points, 95 % interval ${signed(100 * d.low, 1)} to ${signed(100 * d.high, 1)}, ${d.n} prompts).`);
  }

  // ---------------------------------------------------------------- the other pages
  function sortable(columns, rows, testid, start) {
    const sort = { by: start, down: true };
    const body = make("tbody");
    const cells = columns.map((c, i) => make("th", { scope: "col", class: c.kind, title: c.hint }, c.value ? make("button", { type: "button", "data-testid": `${testid}-sort-${i}`, onclick: () => { sort.down = sort.by === i ? !sort.down : c.kind === "number"; sort.by = i; refresh(); } }, c.text) : c.text));
    const refresh = () => {
      const value = columns[sort.by].value;
      const ordered = [...rows].sort((a, b) => { const x = value(a), y = value(b); if (x == null || y == null) return (x == null) - (y == null); return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1); });
      body.replaceChildren(...ordered.map((r) => make("tr", { "data-testid": `${testid}-row` }, columns.map((c) => make("td", { class: c.kind }, c.cell(r))))));
      cells.forEach((cell, i) => { if (i === sort.by) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending"); else cell.removeAttribute("aria-sort"); });
    };
    refresh();
    return make("div", { class: "panel wide" }, make("table", { "data-testid": testid }, make("thead", {}, make("tr", {}, cells)), body));
  }
  const dictionary = (name) => (r) => r[`${name}_auroc`];
  function linked(r, name) {
    if (r[`${name}_auroc`] == null) return "–";
    const index = r[`${name}_feature`];
    const target = name === "sae" && features.find((f) => f.feature === index && (!r.hook || f.hook === r.hook));
    const id = target ? featureLink(target.key, `#${index}`) : `${r[`${name}_sign`] < 0 ? "−" : ""}#${index}`;
    return [make("b", {}, number(r[`${name}_auroc`])), " ", make("span", { class: "quiet small" }, id)];
  }
  function truthPage() {
    const page = make("section", { class: "sheet", "aria-label": "Table of truth" });
    page.append(make("header", {}, make("h2", {}, "Is there a feature for each concept?"), make("p", { class: "lede" }, "The composer knows what it wrote. For each concept the best feature is chosen on one half of the tracks and scored on the other, as are the best raw neuron of the same layer (either sign) and the best feature of an autoencoder trained on the same architecture with random weights.")));
    if (!data.truth.length) { page.append(make("div", { class: "panel empty" }, "This music came without truth, so there is nothing to compare with.")); return page; }
    const layers = new Set(data.truth.map((r) => r.hook)).size;
    const s = data.truthSummary;
    if (s) page.append(make("p", { "data-testid": "truth-summary" }, `Mean held-out AUROC over ${s.judged} concepts: `, make("b", {}, `SAE ${number(s.sae && s.sae.mean_auroc)}`), s.neuron ? `, neurons ${number(s.neuron.mean_auroc)}` : "", s.random_weights ? `, random weights ${number(s.random_weights.mean_auroc)}` : "", s.sae ? `. The SAE’s best feature exceeds its null for ${s.sae.above_null}.` : ""));
    const key = (kind, text) => make("span", {}, kind === "null" ? draw("svg", { viewBox: "0 0 12 12", class: "symbol", "aria-hidden": "true" }, draw("rect", { class: "null", x: 0, y: 3, width: 12, height: 6 })) : markOf(kind), ` ${text}`);
    page.append(make("div", { class: "legend", style: "margin-top:14px" }, key("dot", "SAE feature"), key("neuron", "raw neuron"), key("random", "random weights"), key("null", "null of the same choice on shuffled clips, 95 %"), make("span", {}, "scale 0.3 to 1, tick at 0.5")));
    page.append(sortable([
      { text: "Concept", value: (r) => r.concept, cell: (r) => [r.concept, layers > 1 ? make("span", { class: "quiet small" }, ` ${r.hook}`) : null].filter(Boolean) },
      { text: "Base rate", kind: "number", value: (r) => r.base_rate, cell: (r) => percent(r.base_rate, 0) },
      { text: "AUROC, held out", cell: (r) => (r.sae_auroc == null ? make("span", { class: "quiet small" }, "too few clips") : strip(r.sae_auroc, r.sae_null_p95, [["random", r.random_weights_auroc], ["neuron", r.neuron_auroc]], `SAE ${number(r.sae_auroc)}, neuron ${number(r.neuron_auroc)}, random weights ${number(r.random_weights_auroc)}`)) },
      { text: "SAE", kind: "number", value: dictionary("sae"), cell: (r) => linked(r, "sae") },
      { text: "Neuron", kind: "number", value: dictionary("neuron"), cell: (r) => linked(r, "neuron"), hint: "a minus sign: the concept goes with a low value" },
      { text: "Random weights", kind: "number", value: dictionary("random_weights"), cell: (r) => linked(r, "random_weights") },
      { text: "Null 95 %", kind: "number", value: (r) => r.sae_null_p95, cell: (r) => number(r.sae_null_p95) },
    ], data.truth, "truth", 3));
    page.querySelectorAll("th:nth-child(3)").forEach((th) => { th.style.width = "32%"; });
    return page;
  }
  function interval(d, scale) {
    if (!d) return "–";
    const x = (v) => 50 + Math.max(-48, Math.min(48, (v / scale) * 48));
    return make("div", { title: `${signed(d.mean, 3)} (${signed(d.low, 3)} to ${signed(d.high, 3)}), ${d.n} pairs` }, draw("svg", { class: "strip", viewBox: "0 0 100 16", preserveAspectRatio: "none", role: "img", "aria-label": `${signed(d.mean, 3)}, interval ${signed(d.low, 3)} to ${signed(d.high, 3)}` },
      draw("line", { class: "chance", x1: 50, x2: 50, y1: 1, y2: 15, "vector-effect": "non-scaling-stroke" }), draw("line", { class: "whisker", x1: x(d.low), x2: x(d.high), y1: 8, y2: 8, "vector-effect": "non-scaling-stroke" }),
      draw("rect", { class: d.low > 0 ? "dot above" : "dot", x: x(d.mean) - 1.2, y: 3, width: 2.4, height: 10, rx: 1 })));
  }
  function steeringPage() {
    const page = make("section", { class: "sheet", "aria-label": "Steering" });
    page.append(make("header", {}, make("h2", {}, "What the features do when they are pushed"), make("p", { class: "lede" }, "Each feature’s decoder direction is added at every step, scaled to the feature’s own maximum, and compared with the same prompt and noise left alone and with a random direction of equal norm. Whiskers: 95 % bootstrap intervals over prompts.")));
    const summary = data.steeringSummary;
    if (!summary || !summary.features.length) { page.append(make("div", { class: "panel empty" }, "No feature was steered in this run.")); return page; }
    const share = (o, m) => {
      if (!o[m]) return "–";
      const d = o[m].steered_minus_random;
      return [make("b", {}, `${o[m].above_random} of ${o[m].features}`), " above random, ", make("b", {}, String(o[m].above_unsteered)), " above unsteered",
        d ? make("div", { class: "quiet small" }, `mean ${signed(100 * d.mean, 1)} points against random (${signed(100 * d.low, 1)} to ${signed(100 * d.high, 1)})`) : null];
    };
    page.append(make("div", { class: "panel wide" }, make("table", { "data-testid": "overall" }, make("thead", {}, make("tr", {}, ["Strength", "Judge", "Activation", "Descriptor of the name"].map((t) => make("th", { scope: "col" }, t)))),
      make("tbody", {}, summary.overall.map((o) => make("tr", {}, make("td", {}, signed(o.strength, 1)), ["judge", "activation", "descriptor"].map((m) => make("td", {}, share(o, m)))))))));
    const rows = summary.features.flatMap((f) => f.strengths.map((s) => ({ ...f, ...s, key: keyOf(f) })));
    const scale = (m) => Math.max(1e-9, ...rows.map((r) => (r[m] ? Math.max(Math.abs(r[m].steered_minus_random.low), Math.abs(r[m].steered_minus_random.high)) : 0)));
    const [judgeScale, activationScale] = [scale("judge"), scale("activation")];
    const three = (c, digits) => (c ? [make("span", { class: "quiet" }, `${percent(c.unsteered, digits)} → `), make("b", {}, percent(c.steered, digits)), make("span", { class: "quiet" }, ` (random ${percent(c.random, digits)})`)] : "–");
    page.append(make("h3", {}, "Each feature"), sortable([
      { text: "Feature", kind: "number", value: (r) => r.feature, cell: (r) => featureLink(r.key, `#${r.feature}`) },
      { text: "Name", value: (r) => r.name, cell: (r) => featureLink(r.key, r.name) },
      { text: "Strength", kind: "number", value: (r) => r.strength, cell: (r) => signed(r.strength, 1) },
      { text: "Judge’s probability", value: (r) => r.judge && r.judge.steered_minus_random.mean, cell: (r) => three(r.judge, 0) },
      { text: "against random", value: (r) => r.judge && r.judge.steered_minus_random.mean, cell: (r) => (r.judge ? interval(r.judge.steered_minus_random, judgeScale) : "–") },
      { text: "Activation, harvested anew", value: (r) => r.activation && r.activation.steered_minus_random.mean, cell: (r) => three(r.activation, 1) },
      { text: "against random", value: (r) => r.activation && r.activation.steered_minus_random.mean, cell: (r) => (r.activation ? interval(r.activation.steered_minus_random, activationScale) : "–") },
    ], rows, "effects", 4));
    return page;
  }
  function runPage() {
    const page = make("section", { class: "sheet", "aria-label": "About this run" });
    page.append(make("header", {}, make("h2", {}, "About this run"), make("p", { class: "lede" }, "How good the dictionaries are, how good the judge is, and everything needed to repeat the run.")));
    const names = { fvu: "FVU: variance unexplained", fvu_within_positions: "FVU about each position’s own mean", l0: "L0: active features a frame", dead_share: "Dead features", l2_ratio: "Norm of the reconstruction", relative_reconstruction_bias: "Reconstruction bias" };
    for (const s of data.saes) {
      if (!s.metrics) continue;
      page.append(make("h3", {}, `${s.hook} · ${s.sae}`), make("div", { class: "panel wide" }, make("table", { "data-testid": "quality" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Measure"), make("th", { class: "number", scope: "col" }, "This SAE"), make("th", { class: "number", scope: "col" }, "SAE on random weights"))),
        make("tbody", {}, Object.entries(names).filter(([k]) => s.metrics[k] != null).map(([k, text]) => { const show = (m) => (m && m[k] != null ? (k === "dead_share" ? percent(m[k]) : number(m[k], k === "l0" ? 1 : 3)) : "–"); return make("tr", {}, make("td", {}, text), make("td", { class: "number" }, show(s.metrics)), make("td", { class: "number" }, show(s.control))); })))));
      if (s.training.length > 2) {
        const top = Math.max(...s.training.map((p) => p[1])), last = s.training[s.training.length - 1];
        page.append(make("div", { class: "panel", style: "padding:14px 18px" }, make("p", { class: "small quiet" }, `FVU while training, ${number(top)} at most, ${number(last[1], 3)} after ${last[0]} steps`),
          draw("svg", { class: "chart", viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": "Training curve" }, draw("path", { d: "M" + s.training.map(([x, y]) => `${((x / last[0]) * 100).toFixed(2)} ${(98 - (y / top) * 94).toFixed(2)}`).join("L") }))));
      }
    }
    if (data.judge.length) page.append(make("h3", {}, "The judge, on tracks it was not fitted to"), sortable([
      { text: "Concept", value: (r) => r.concept, cell: (r) => r.concept }, { text: "Base rate", kind: "number", value: (r) => r.base_rate, cell: (r) => percent(r.base_rate, 0) },
      { text: "Accuracy", kind: "number", value: (r) => r.accuracy, cell: (r) => percent(r.accuracy, 0) }, { text: "Balanced accuracy", kind: "number", value: (r) => r.balanced_accuracy, cell: (r) => percent(r.balanced_accuracy, 0) },
      { text: "AUROC", kind: "number", value: (r) => r.auroc, cell: (r) => number(r.auroc) }], data.judge, "judge", 4));
    page.append(make("h3", {}, "Record"), make("div", { class: "panel wide" }, make("table", { "data-testid": "about" }, make("tbody", {}, data.about.map(([k, v]) => make("tr", {}, make("td", { class: "quiet" }, k), make("td", { style: "overflow-wrap:anywhere" }, v)))))));
    return page;
  }

  // ---------------------------------------------------------------- the frame around it
  function tiles() {
    const s = data.saes.find((x) => `${x.hook}/${x.sae}` === list.sae) || data.saes.find((x) => x.metrics) || data.saes[0];
    const mine = features.filter((f) => f.hook === s.hook && f.sae === s.sae);
    const m = s.metrics || {}, c = s.control;
    const beside = (k, show) => (c && c[k] != null ? `random weights ${show(c[k])}` : s.hook);
    const named = mine.filter((f) => f.confidence > 0).length;
    const t = data.truthSummary;
    const cards = [
      ["Unexplained variance, FVU", number(m.fvu, 3), beside("fvu", (x) => number(x, 3))],
      ["Active per frame, L0", number(m.l0, 1), beside("l0", (x) => number(x, 1))],
      ["Dead features", percent(m.dead_share), beside("dead_share", percent)],
      ["Kept by the filter", [String(mine.filter((f) => f.verdict === "kept").length), make("small", {}, ` of ${mine.length}`)], "active in 1–25 % of clips"],
      ["Named above null", [String(named), make("small", {}, ` of ${mine.filter((f) => f.density > 0).length} alive`)], "on held-out tracks"],
      t && t.sae ? ["Concepts, mean AUROC", number(t.sae.mean_auroc), [t.neuron ? `neurons ${number(t.neuron.mean_auroc)}` : null, t.random_weights ? `random ${number(t.random_weights.mean_auroc)}` : null].filter(Boolean).join(", ")] : null,
    ];
    byId("tiles").replaceChildren(...cards.filter(Boolean).map(([name, value, note]) => make("div", { class: "tile", "data-testid": "tile" }, make("div", { class: "label" }, name), make("div", { class: "value" }, value), make("div", { class: "beside" }, note))));
  }
  const TABS = { concepts: ["Concepts", null], truth: ["Truth", truthPage], steering: ["Steering", steeringPage], run: ["Run", runPage] };
  const main = byId("main");

  function route() {
    const hash = location.hash.slice(1);
    if (current) current.pause();
    const key = hash.startsWith("f/") ? decodeURIComponent(hash.slice(2)) : null;
    const tab = hash in TABS ? hash : "concepts";
    if (tab === "concepts") {
      if (!main.querySelector(".concepts")) main.replaceChildren(make("div", { class: "concepts" }, listPane(), make("div", { id: "detail" })));
      state.key = byKey.has(key) ? key : state.key || (list.rows[0] && list.rows[0].key);
      state.first = null;
      const f = byKey.get(state.key);
      byId("detail").replaceChildren(f ? detailPane(f) : make("p", { class: "empty" }, "No features."));
      list.mark();
      if (f && key) byId("live").textContent = `Feature ${f.feature}, ${title(f)}`;
    } else main.replaceChildren(TABS[tab][1]());
    state.tab = tab;
    [...byId("tabs").children].forEach((b) => { const on = b.dataset.tab === tab; b.setAttribute("aria-selected", on); b.tabIndex = on ? 0 : -1; });
  }
  function open(key) { location.hash = `f/${encodeURIComponent(key)}`; }
  function walk(by) {
    const place = list.rows.findIndex((f) => f.key === state.key);
    const next = list.rows[place < 0 ? 0 : Math.max(0, Math.min(list.rows.length - 1, place + by))];
    if (next && next.key !== state.key) { open(next.key); if (byId("detail").getBoundingClientRect().top < 0) byId("detail").scrollIntoView({ block: "start" }); }
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, [role=tab]")) return;
    if (state.tab !== "concepts") return;
    const steps = { ArrowDown: 1, ArrowRight: 1, j: 1, ArrowUp: -1, ArrowLeft: -1, k: -1 };
    if (event.key in steps) { event.preventDefault(); walk(steps[event.key]); }
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    if (event.key === " " && !event.target.closest("button, a") && (current || state.first)) { event.preventDefault(); (current || state.first).toggle(); }
  });
  for (const [tab, [text]] of Object.entries(TABS)) byId("tabs").append(make("button", { type: "button", role: "tab", "data-tab": tab, "data-testid": `tab-${tab}`, "aria-controls": "main", onclick: () => { location.hash = tab === "concepts" && state.key ? `f/${encodeURIComponent(state.key)}` : tab; } }, text));
  byId("tabs").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { const all = [...byId("tabs").children]; const next = all[(all.indexOf(document.activeElement) + by + all.length) % all.length]; next.click(); next.focus(); }
  });
  const store = { get: () => { try { return localStorage.getItem("musae-theme"); } catch { return null; } }, set: (v) => { try { localStorage.setItem("musae-theme", v); } catch { /* a private page */ } } };
  function theme(name) { document.documentElement.dataset.theme = name; byId("theme").textContent = name === "dark" ? "Light" : "Dark"; }
  const system = matchMedia("(prefers-color-scheme: dark)");
  theme(store.get() || (system.matches ? "dark" : "light"));
  system.addEventListener("change", (event) => { if (!store.get()) theme(event.matches ? "dark" : "light"); });
  byId("theme").addEventListener("click", () => { const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; store.set(next); theme(next); });

  byId("title").textContent = data.title;
  const about = Object.fromEntries(data.about);
  byId("subtitle").textContent = [about.model && `model ${about.model}`, about.music, data.saes.map((s) => s.hook).filter((h, i, a) => a.indexOf(h) === i).join(", "), `${features.length} features`].filter(Boolean).join(" · ");
  tiles();
  window.addEventListener("hashchange", route);
  route();
})();
