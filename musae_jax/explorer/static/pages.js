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
  const [low, high] = d.ci;
  return make(
    "div",
    { title: `${signed(d.mean, 2)} (${signed(low, 2)} to ${signed(high, 2)}), p ${number(d.p, 4)}, ${d.n} pairs` },
    draw(
      "svg",
      {
        class: "strip",
        viewBox: "0 0 100 16",
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `${signed(d.mean, 2)}, interval ${signed(low, 2)} to ${signed(high, 2)}`,
      },
      draw("line", { class: "chance", x1: 50, x2: 50, y1: 1, y2: 15, "vector-effect": "non-scaling-stroke" }),
      draw("line", { class: "whisker", x1: x(low), x2: x(high), y1: 8, y2: 8, "vector-effect": "non-scaling-stroke" }),
      draw("rect", { class: low > 0 ? "dot above" : "dot", x: x(d.mean) - 1.2, y: 3, width: 2.4, height: 10, rx: 1 }),
    ),
  );
}
const ADDED = {
  contrast: "A vector towards the music in which the feature is strongest",
  add: "Each feature’s decoder row",
};
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
        `${ADDED[(data.steeringSummary || {}).config?.how] || ADDED.add} is added at every step, and the sound compared with that of the same prompt and noise left alone, and with other vectors of the same norm. Gains are of the feature’s concept, in standard deviations of the unsteered clips; whiskers: 95 % bootstrap intervals over pairs.`,
      ),
    ),
  );
  const s = data.steeringSummary;
  if (!s || !s.features.length) {
    page.append(make("div", { class: "panel empty" }, "No feature was steered in this run; musae steer does it."));
    return page;
  }
  page.append(
    make(
      "p",
      { "data-testid": "steering-summary" },
      make("b", {}, `${percent(s.steered, 0)} of ${s.tested} features`),
      ` take their concept above both the unsteered clips and a random direction (q < ${s.level}); ${percent(s.monotone, 0)} of all rise with every step of strength. ${percent(s.collapsed, 0)} of the steered clips break down. Measured by `,
      Object.entries(s.measures)
        .map(([measure, count]) => `${MEASURES[measure]} (${count})`)
        .join(", "),
      ".",
    ),
    make("h3", {}, "When the SAE wins, and when it does not"),
    sortable(
      [
        { text: "The SAE against", value: (r) => r.arm, cell: (r) => ARMS[r.arm] },
        { text: "Won", kind: "number", value: (r) => r.share_won, cell: (r) => percent(r.share_won, 0) },
        { text: "Lost", kind: "number", value: (r) => r.share_lost, cell: (r) => percent(r.share_lost, 0) },
        {
          text: "Gain over it",
          kind: "number",
          value: (r) => r.effect,
          cell: (r) =>
            r.ci
              ? [
                  make("b", {}, signed(r.effect, 2)),
                  make("span", { class: "quiet small" }, ` ${signed(r.ci[0], 2)} to ${signed(r.ci[1], 2)}`),
                ]
              : "–",
        },
        {
          text: "Its own gain",
          kind: "number",
          value: (r) => r.own.gain,
          cell: (r) => signed(r.own.gain, 2),
        },
        {
          text: "Prompt kept",
          kind: "number",
          value: (r) => r.own.adherence,
          cell: (r) => (r.own.adherence == null ? "–" : signed(r.own.adherence, 3)),
          hint: "change of CLAP’s cosine of prompt and sound",
        },
        {
          text: "KL, nats",
          kind: "number",
          value: (r) => mean(r.own.kl),
          cell: (r) => number(mean(r.own.kl)),
          hint: "of predictions on the same codes",
        },
        {
          text: "KAD",
          kind: "number",
          value: (r) => r.own.kernel,
          cell: (r) => number(r.own.kernel, 1),
          hint: "distance of the sound from the corpus, by CLAP",
        },
        { text: "Broken", kind: "number", value: (r) => r.own.collapsed, cell: (r) => percent(r.own.collapsed, 0) },
      ],
      Object.keys(s.arms).map((arm) => ({ arm, ...s.against[arm], own: s.arms[arm] })),
      "against",
      3,
    ),
  );
  const widest = (of) => Math.max(1e-9, ...s.features.flatMap((r) => of(r).ci.map(Math.abs)));
  const versus = (arm) => {
    const scale = widest((r) => r.against[arm] || { ci: [0, 0] });
    return {
      text: ARMS[arm],
      kind: "arm",
      hint: `gain over ${ARMS[arm].toLowerCase()}`,
      value: (r) => r.against[arm] && r.against[arm].mean,
      cell: (r) => interval(r.against[arm], scale),
    };
  };
  const steepest = widest((r) => r.slope);
  page.append(
    make("h3", {}, "Each feature, and its gain over each arm"),
    sortable(
      [
        {
          text: "Feature",
          value: (r) => r.feature,
          cell: (r) => featureLink(keyOf(r), `#${r.feature} ${r.name}`),
        },
        {
          text: "By",
          value: (r) => r.measure,
          cell: (r) => `${MEASURES[r.measure]}${r.circular ? " ○" : ""}`,
          hint: "○: it also named the feature, or confirmed its name",
        },
        { text: "α", kind: "number", value: (r) => r.strength, cell: (r) => number(r.strength) },
        { text: "Slope", value: (r) => r.slope.mean, cell: (r) => interval(r.slope, steepest) },
        ...Object.keys(s.against).map(versus),
        {
          text: "q",
          kind: "number",
          value: (r) => r.q,
          cell: (r) => make(r.steered ? "b" : "span", {}, number(r.q, 3)),
          hint: "above unsteered and random, corrected over features",
        },
      ],
      s.features,
      "effects",
      3,
    ),
  );
  return page;
}
const mean = (values) => (values ? values.reduce((a, b) => a + b, 0) / values.length : null);
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
