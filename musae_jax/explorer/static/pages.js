// The pages beside the features: truth, steering, the run.

function sortable(columns, rows, testid, start) {
  const sort = { by: start, down: true };
  const body = make("tbody");
  const cells = columns.map((c, i) =>
    make(
      "th",
      { scope: "col", class: c.kind, title: c.hint },
      c.value
        ? make(
            "button",
            {
              type: "button",
              "data-testid": `${testid}-sort-${i}`,
              onclick: () => {
                sort.down = sort.by === i ? !sort.down : c.kind === "number";
                sort.by = i;
                refresh();
              },
            },
            c.text,
          )
        : c.text,
    ),
  );
  const refresh = () => {
    const value = columns[sort.by].value;
    const ordered = [...rows].sort((a, b) => {
      const x = value(a),
        y = value(b);
      if (x == null || y == null) return (x == null) - (y == null);
      return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
    });
    body.replaceChildren(
      ...ordered.map((r) =>
        make(
          "tr",
          { "data-testid": `${testid}-row` },
          columns.map((c) => make("td", { class: c.kind }, c.cell(r))),
        ),
      ),
    );
    cells.forEach((cell, i) => {
      if (i === sort.by) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  };
  refresh();
  return make(
    "div",
    { class: "panel wide" },
    make("table", { "data-testid": testid }, make("thead", {}, make("tr", {}, cells)), body),
  );
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
  page.append(
    make(
      "header",
      {},
      make("h2", {}, "Is there a feature for each concept?"),
      make(
        "p",
        { class: "lede" },
        "The composer knows what it wrote. For each concept the best feature is chosen on one half of the tracks and scored on the other, as are the best raw neuron of the same layer (either sign) and the best feature of an autoencoder trained on the same architecture with random weights.",
      ),
    ),
  );
  if (!data.truth.length) {
    page.append(
      make("div", { class: "panel empty" }, "This music came without truth, so there is nothing to compare with."),
    );
    return page;
  }
  const layers = new Set(data.truth.map((r) => r.hook)).size;
  const s = data.truthSummary;
  if (s)
    page.append(
      make(
        "p",
        { "data-testid": "truth-summary" },
        `Mean held-out AUROC over ${s.judged} concepts: `,
        make("b", {}, `SAE ${number(s.sae && s.sae.mean_auroc)}`),
        s.neuron ? `, neurons ${number(s.neuron.mean_auroc)}` : "",
        s.random_weights ? `, random weights ${number(s.random_weights.mean_auroc)}` : "",
        s.sae ? `. The SAE’s best feature exceeds its null for ${s.sae.above_null}.` : "",
      ),
    );
  const key = (kind, text) => make("span", {}, markOf(kind), ` ${text}`);
  page.append(
    make(
      "div",
      { class: "legend", style: "margin-top:14px" },
      key("dot", "SAE feature"),
      key("neuron", "raw neuron"),
      key("random", "random weights"),
      key("null", "null of the same choice on shuffled clips, 95 %"),
      make("span", {}, "scale 0.3 to 1, tick at 0.5"),
    ),
  );
  page.append(
    sortable(
      [
        {
          text: "Concept",
          value: (r) => r.concept,
          cell: (r) =>
            [r.concept, layers > 1 ? make("span", { class: "quiet small" }, ` ${r.hook}`) : null].filter(Boolean),
        },
        { text: "Base rate", kind: "number", value: (r) => r.base_rate, cell: (r) => percent(r.base_rate, 0) },
        {
          text: "AUROC, held out",
          cell: (r) =>
            r.sae_auroc == null
              ? make("span", { class: "quiet small" }, "too few clips")
              : strip(r.sae_auroc, r.sae_null_p95, {
                  label: `SAE ${number(r.sae_auroc)}, neuron ${number(r.neuron_auroc)}, random weights ${number(r.random_weights_auroc)}`,
                  others: [
                    ["random", r.random_weights_auroc],
                    ["neuron", r.neuron_auroc],
                  ],
                }),
        },
        { text: "SAE", kind: "number", value: dictionary("sae"), cell: (r) => linked(r, "sae") },
        {
          text: "Neuron",
          kind: "number",
          value: dictionary("neuron"),
          cell: (r) => linked(r, "neuron"),
          hint: "a minus sign: the concept goes with a low value",
        },
        {
          text: "Random weights",
          kind: "number",
          value: dictionary("random_weights"),
          cell: (r) => linked(r, "random_weights"),
        },
        { text: "Null 95 %", kind: "number", value: (r) => r.sae_null_p95, cell: (r) => number(r.sae_null_p95) },
      ],
      data.truth,
      "truth",
      3,
    ),
  );
  page.querySelectorAll("th:nth-child(3)").forEach((th) => {
    th.style.width = "32%";
  });
  return page;
}
function interval(d, scale) {
  if (!d) return "–";
  const x = (v) => 50 + Math.max(-48, Math.min(48, (v / scale) * 48));
  return make(
    "div",
    { title: `${signed(d.mean, 3)} (${signed(d.low, 3)} to ${signed(d.high, 3)}), ${d.n} pairs` },
    draw(
      "svg",
      {
        class: "strip",
        viewBox: "0 0 100 16",
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `${signed(d.mean, 3)}, interval ${signed(d.low, 3)} to ${signed(d.high, 3)}`,
      },
      draw("line", { class: "chance", x1: 50, x2: 50, y1: 1, y2: 15, "vector-effect": "non-scaling-stroke" }),
      draw("line", {
        class: "whisker",
        x1: x(d.low),
        x2: x(d.high),
        y1: 8,
        y2: 8,
        "vector-effect": "non-scaling-stroke",
      }),
      draw("rect", { class: d.low > 0 ? "dot above" : "dot", x: x(d.mean) - 1.2, y: 3, width: 2.4, height: 10, rx: 1 }),
    ),
  );
}
function steeringPage() {
  const page = make("section", { class: "sheet", "aria-label": "Steering" });
  page.append(
    make(
      "header",
      {},
      make("h2", {}, "What the features do when they are pushed"),
      make(
        "p",
        { class: "lede" },
        "Each feature’s decoder direction is added at every step, scaled to the feature’s own maximum, and compared with the same prompt and noise left alone and with a random direction of equal norm. Whiskers: 95 % bootstrap intervals over prompts.",
      ),
    ),
  );
  const summary = data.steeringSummary;
  if (!summary || !summary.features.length) {
    page.append(make("div", { class: "panel empty" }, "No feature was steered in this run."));
    return page;
  }
  const share = (o, m) => {
    if (!o[m]) return "–";
    const d = o[m].steered_minus_random;
    return [
      make("b", {}, `${o[m].above_random} of ${o[m].features}`),
      " above random, ",
      make("b", {}, String(o[m].above_unsteered)),
      " above unsteered",
      d
        ? make(
            "div",
            { class: "quiet small" },
            `mean ${signed(100 * d.mean, 1)} points against random (${signed(100 * d.low, 1)} to ${signed(100 * d.high, 1)})`,
          )
        : null,
    ];
  };
  page.append(
    make(
      "div",
      { class: "panel wide" },
      make(
        "table",
        { "data-testid": "overall" },
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            ["Strength", "Judge", "Activation", "Descriptor of the name"].map((t) => make("th", { scope: "col" }, t)),
          ),
        ),
        make(
          "tbody",
          {},
          summary.overall.map((o) =>
            make(
              "tr",
              {},
              make("td", {}, signed(o.strength, 1)),
              ["judge", "activation", "descriptor"].map((m) => make("td", {}, share(o, m))),
            ),
          ),
        ),
      ),
    ),
  );
  const rows = summary.features.flatMap((f) => f.strengths.map((s) => ({ ...f, ...s, key: keyOf(f) })));
  const scale = (m) =>
    Math.max(
      1e-9,
      ...rows.map((r) =>
        r[m] ? Math.max(Math.abs(r[m].steered_minus_random.low), Math.abs(r[m].steered_minus_random.high)) : 0,
      ),
    );
  const [judgeScale, activationScale] = [scale("judge"), scale("activation")];
  const three = (c, digits) =>
    c
      ? [
          make("span", { class: "quiet" }, `${percent(c.unsteered, digits)} → `),
          make("b", {}, percent(c.steered, digits)),
          make("span", { class: "quiet" }, ` (random ${percent(c.random, digits)})`),
        ]
      : "–";
  page.append(
    make("h3", {}, "Each feature"),
    sortable(
      [
        { text: "Feature", kind: "number", value: (r) => r.feature, cell: (r) => featureLink(r.key, `#${r.feature}`) },
        { text: "Name", value: (r) => r.name, cell: (r) => featureLink(r.key, r.name) },
        { text: "Strength", kind: "number", value: (r) => r.strength, cell: (r) => signed(r.strength, 1) },
        {
          text: "Judge’s probability",
          value: (r) => r.judge && r.judge.steered_minus_random.mean,
          cell: (r) => three(r.judge, 0),
        },
        {
          text: "against random",
          value: (r) => r.judge && r.judge.steered_minus_random.mean,
          cell: (r) => (r.judge ? interval(r.judge.steered_minus_random, judgeScale) : "–"),
        },
        {
          text: "Activation, harvested anew",
          value: (r) => r.activation && r.activation.steered_minus_random.mean,
          cell: (r) => three(r.activation, 1),
        },
        {
          text: "against random",
          value: (r) => r.activation && r.activation.steered_minus_random.mean,
          cell: (r) => (r.activation ? interval(r.activation.steered_minus_random, activationScale) : "–"),
        },
      ],
      rows,
      "effects",
      4,
    ),
  );
  return page;
}
function runPage() {
  const page = make("section", { class: "sheet", "aria-label": "About this run" });
  page.append(
    make(
      "header",
      {},
      make("h2", {}, "About this run"),
      make(
        "p",
        { class: "lede" },
        "How good the dictionaries are, how good the judge is, and everything needed to repeat the run.",
      ),
    ),
  );
  const names = {
    fvu: "FVU: variance unexplained",
    fvu_within_positions: "FVU about each position’s own mean",
    l0: "L0: active features a frame",
    dead_share: "Dead features",
    l2_ratio: "Norm of the reconstruction",
    relative_reconstruction_bias: "Reconstruction bias",
  };
  for (const s of data.saes) {
    if (!s.metrics) continue;
    page.append(
      make("h3", {}, `${s.hook} · ${s.sae}`),
      make(
        "div",
        { class: "panel wide" },
        make(
          "table",
          { "data-testid": "quality" },
          make(
            "thead",
            {},
            make(
              "tr",
              {},
              make("th", { scope: "col" }, "Measure"),
              make("th", { class: "number", scope: "col" }, "This SAE"),
              make("th", { class: "number", scope: "col" }, "SAE on random weights"),
            ),
          ),
          make(
            "tbody",
            {},
            Object.entries(names)
              .filter(([k]) => s.metrics[k] != null)
              .map(([k, text]) => {
                const show = (m) =>
                  m && m[k] != null ? (k === "dead_share" ? percent(m[k]) : number(m[k], k === "l0" ? 1 : 3)) : "–";
                return make(
                  "tr",
                  {},
                  make("td", {}, text),
                  make("td", { class: "number" }, show(s.metrics)),
                  make("td", { class: "number" }, show(s.control)),
                );
              }),
          ),
        ),
      ),
    );
    if (s.training.length > 2) {
      const top = Math.max(...s.training.map((p) => p[1])),
        last = s.training[s.training.length - 1];
      page.append(
        make(
          "div",
          { class: "panel", style: "padding:14px 18px" },
          make(
            "p",
            { class: "small quiet" },
            `FVU while training, ${number(top)} at most, ${number(last[1], 3)} after ${last[0]} steps`,
          ),
          draw(
            "svg",
            {
              class: "chart",
              viewBox: "0 0 100 100",
              preserveAspectRatio: "none",
              role: "img",
              "aria-label": "Training curve",
            },
            draw("path", {
              d:
                "M" +
                s.training
                  .map(([x, y]) => `${((x / last[0]) * 100).toFixed(2)} ${(98 - (y / top) * 94).toFixed(2)}`)
                  .join("L"),
            }),
          ),
        ),
      );
    }
  }
  if (data.judge.length)
    page.append(
      make("h3", {}, "The judge, on tracks it was not fitted to"),
      sortable(
        [
          { text: "Concept", value: (r) => r.concept, cell: (r) => r.concept },
          { text: "Base rate", kind: "number", value: (r) => r.base_rate, cell: (r) => percent(r.base_rate, 0) },
          { text: "Accuracy", kind: "number", value: (r) => r.accuracy, cell: (r) => percent(r.accuracy, 0) },
          {
            text: "Balanced accuracy",
            kind: "number",
            value: (r) => r.balanced_accuracy,
            cell: (r) => percent(r.balanced_accuracy, 0),
          },
          { text: "AUROC", kind: "number", value: (r) => r.auroc, cell: (r) => number(r.auroc) },
        ],
        data.judge,
        "judge",
        4,
      ),
    );
  page.append(
    make("h3", {}, "Record"),
    make(
      "div",
      { class: "panel wide" },
      make(
        "table",
        { "data-testid": "about" },
        make(
          "tbody",
          {},
          data.about.map(([k, v]) =>
            make("tr", {}, make("td", { class: "quiet" }, k), make("td", { style: "overflow-wrap:anywhere" }, v)),
          ),
        ),
      ),
    ),
  );
  return page;
}
