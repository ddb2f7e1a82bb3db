// What is said of a feature's names: by the source of each, by the source that judged it, and of the feature itself.

function ledeOf(f) {
  const n = f.best;
  if (!n) return "No concept goes with it on the clips that were used for naming.";
  const where = n.level === "frame" ? "a moment" : "a clip";
  const strong = (x) => make("strong", {}, x);
  const j = n.judged;
  if (j && n.holds)
    return [
      `Named by ${theSource(n.source)} on one half of the tracks. On the other half ${theSource(j.scorer)}, which had no part in the name, hears more of it in ${where} in which the feature fires than in one in which it is silent `,
      strong(percent(j.detection, 0)),
      " of the time",
      j.null == null ? "." : `; of the names of other features it does so ${percent(j.null, 0)} of the time.`,
    ];
  if (j)
    return [
      "Its best candidate, ",
      strong(n.name),
      ` of ${theSource(n.source)}, was not confirmed: as ${theSource(j.scorer)} hears it, it tells where the feature fires with an AUROC of ${number(j.detection)}${between(j.interval)}. So it goes unnamed.`,
    ];
  if (n.score == null)
    return `${n.holds ? "Named" : `Called “${n.name}”`} by ${theSource(n.source)}, which gives no evidence, and judged by nobody else.`;
  if (n.holds)
    return [
      `Named on one half of the tracks. On the other half ${where} in which it fires has more of the concept than one in which it is silent `,
      strong(percent(n.score, 0)),
      ` of the time; with clips exchanged that reaches ${percent(n.null_p95, 0)} one time in twenty.`,
    ];
  return [
    "Its best candidate, ",
    strong(n.name),
    `, scores ${number(n.score)} on held-out tracks, no more than names do by luck (one in twenty reaches ${number(n.null_p95)}). So it goes unnamed.`,
  ];
}
function evidenceLegend(f) {
  const key = (mark, text) => make("span", {}, mark, ` ${text}`);
  const judged = f.names.some((n) => n.judged);
  return make(
    "div",
    { class: "legend" },
    judged || f.names.some((n) => n.score != null) ? key(markOf("dot"), "the name") : null,
    f.names.some((n) => n.null_p95 != null) ? key(markOf("null"), "clips exchanged, 95 %") : null,
    judged ? key(markOf("neuron"), "against near misses only") : null,
    judged ? key(markOf("random"), "names of other features") : null,
  );
}
const UNJUDGED = "not judged: no other source knows the name, or the feature fires in too few held-out clips";
function evidenceOf(f) {
  const grid = make("div", { class: "evidence", "data-testid": "evidence" });
  for (const n of f.names) {
    if (n !== f.best) grid.append(make("hr"));
    grid.append(
      make("span", { class: `badge who ${n.source}` }, sourceName(n.source)),
      make("span", { class: n.holds ? "named" : "quiet" }, n.name),
      ...(n.score == null ? ownWord(n) : ownScore(n)),
    );
    const notes = [];
    if (n.descriptor) notes.push(`${n.direction} ${n.descriptor} (${n.unit})`);
    const rivals = (n.candidates || []).filter((c) => c.name !== n.name);
    if (rivals.length) notes.push(`next: ${rivals.map((c) => `${c.name} ${number(c.label_score)}`).join(", ")}`);
    if (notes.length) grid.append(make("span", { class: "rivals quiet small" }, notes.join(" · ")));
    if (n.judged) grid.append(...judgement(n.judged));
    else if (data.proof)
      grid.append(make("span", { class: "rivals quiet small", "data-testid": "unjudged" }, UNJUDGED));
  }
  return grid;
}
function ownScore(n) {
  const shuffles = n.p == null ? "" : ` · p ${smallP(n.p)}`;
  return [
    strip(n.score, n.null_p95, { label: `AUROC ${number(n.score)}, null ${number(n.null_p95)}` }),
    make(
      "span",
      { class: "small number" },
      make("b", {}, number(n.score)),
      make(
        "span",
        { class: "quiet" },
        ` null ${number(n.null_mean)}–${number(n.null_p95)}${shuffles} · fires in ${n.positives} of ${n.n} clips`,
      ),
    ),
  ];
}
function ownWord(n) {
  return [
    make("span", { class: "quiet small" }, n.description || ""),
    make(
      "span",
      { class: "small number quiet", title: "how sure the model says it is, which is no evidence" },
      [n.model, `sure to ${percent(n.confidence, 0)}`, n.clips ? `from ${n.clips.length} clips` : null]
        .filter(Boolean)
        .join(" · "),
    ),
  ];
}
function judgement(j) {
  const others = [
    ["random", j.null],
    ["neuron", j.near],
  ];
  const label = `AUROC ${number(j.detection)}, names of others ${number(j.null)}, near misses ${number(j.near)}`;
  const row = [
    make("span", { class: "judge quiet small" }, `judged by ${sourceName(j.scorer)}`),
    make(
      "span",
      { class: j.passed ? "verdict passed" : "verdict", "data-testid": "verdict" },
      j.passed ? "✓ passed" : "✕ not passed",
      make("span", { class: "quiet small" }, ` q ${smallP(j.q)}`),
    ),
    strip(j.detection, null, { label, others, whisker: j.interval, above: j.passed }),
    make(
      "span",
      { class: "small number", "data-testid": "judgement" },
      make("b", {}, number(j.detection)),
      between(j.interval),
      make("span", { class: "quiet" }, ` names of others ${number(j.null)} · near misses ${number(j.near)}`),
    ),
  ];
  if (j.span)
    row.push(
      make(
        "span",
        { class: "rivals quiet small", "data-testid": "span-test" },
        `within ${j.span.clips} clips: ${number(j.span.auroc)} for the moments in which it fires against the rest, ${number(j.span.null_mean)} (95 %: ${number(j.span.null_p95)}) with them shifted in time, p ${smallP(j.span.p)}`,
      ),
    );
  return row;
}
const MEMBERS = 12; // of a family, shown before the rest is counted
function natureBlock(f) {
  const i = f.intruder;
  const kin = (g) => g !== f && g.hook === f.hook && g.sae === f.sae && g.family === f.family;
  const family = f.family < 0 ? [] : features.filter(kin);
  return block(
    "Apart from names",
    "is it about one thing, and what fires with it?",
    null,
    make(
      "dl",
      { class: "nature", "data-testid": "nature" },
      make("dt", {}, "Intruder"),
      make(
        "dd",
        {},
        i
          ? [
              "Of five clips, in four of which it fires, the odd one is told by its sound ",
              make("b", {}, percent(i.score, 0)),
              ` of the time; of clips drawn at random ${percent(i.null_mean, 0)}, one time in twenty ${percent(i.null_p95, 0)} (q ${smallP(i.q)}).`,
            ]
          : "It fires in too few clips, or nobody could listen.",
      ),
      make("dt", {}, "Family"),
      make(
        "dd",
        { "data-testid": "family" },
        family.length
          ? [
              "Fires in the same clips as ",
              ...family
                .slice(0, MEMBERS)
                .flatMap((g, n) => [
                  n ? ", " : "",
                  featureLink(g.key, `#${g.feature}${g.named ? ` ${g.best.name}` : ""}`),
                ]),
              family.length > MEMBERS ? ` and ${family.length - MEMBERS} more.` : ".",
            ]
          : "No other feature fires in the same clips.",
      ),
      make("dt", {}, "Bucket"),
      make("dd", {}, make("b", {}, f.bucket), `: ${BUCKETS[f.bucket]}.`),
    ),
  );
}
