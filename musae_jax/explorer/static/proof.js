// Names and proof: who named how much, who judged it, how much of it is right, and the same of the controls.

const FATES = {
  "named right": ["✓", "right", "a feature fires where it is, and bears it as a confirmed name"],
  misnamed: ["~", "mis", "a feature fires where it is, but no confirmed name says so"],
  "not found": ["–", "none", "no feature fires where it is"],
};
const CONTROLS = {
  random_sae: "SAE with random directions",
  neurons: "raw neurons",
  pca: "principal components",
  random_weights: "SAE on random weights",
};
const ratio = (r) => (r.precision == null ? "–" : [make("b", {}, number(r.precision)), between(r.ci)]);

function proofPage() {
  const p = data.proof;
  const page = make("section", { class: "sheet", "aria-label": "Names and proof" });
  page.append(
    make(
      "header",
      {},
      make("h2", {}, "Names and proof"),
      make(
        "p",
        { class: "lede" },
        "No source judges its own names. What one source named on one half of the tracks, another that had no part in it hears on the other half: does the name tell where the feature fires?",
      ),
    ),
    ...section("Sources", "AUROC of the names, by the source that judged them", sourcesTable(p)),
  );
  const buckets = Object.entries(p.buckets);
  page.append(
    ...section(
      "What became of the features",
      `${p.features} that are ever active`,
      make(
        "dl",
        { class: "buckets", "data-testid": "buckets" },
        buckets.map(([name, count]) =>
          make(
            "div",
            {},
            make("dt", {}, make("b", {}, String(count)), ` ${name}`, bar(count / Math.max(p.features, 1))),
            make("dd", { class: "quiet small" }, BUCKETS[name]),
          ),
        ),
      ),
    ),
  );
  if (p.overall) page.append(...section("Right by the composer’s truth", null, overallTable(p)));
  if (p.concepts)
    page.append(
      ...section("The fate of each concept", "those that occur in enough clips to be judged", fateGrid(p.concepts)),
    );
  if (p.families) page.append(...section("By family of concepts", null, familiesTable(p.families)));
  const pairs = Object.entries(p.agreement);
  if (pairs.length)
    page.append(
      ...section(
        "Do sources agree?",
        "features that both named; by chance: the same names dealt out at random",
        agreementTable(pairs),
      ),
    );
  if (data.filters.length) page.append(...section("What the filter does", null, filterBlock()));
  return page;
}
const section = (name, note, ...content) => [
  make("h3", {}, name, note ? make("span", { class: "quiet small note" }, note) : null),
  ...content,
];
const bar = (share, kind = "") =>
  make("span", { class: `bar ${kind}`, "aria-hidden": "true" }, make("i", { style: `width:${100 * share}%` }));

function sourcesTable(p) {
  const rows = Object.entries(p.sources).map(([source, s]) => ({ source, ...s, right: s.by_truth }));
  const columns = [
    {
      text: "Source",
      value: (r) => sourceName(r.source),
      cell: (r) => make("span", { class: `badge ${r.source}` }, sourceName(r.source)),
    },
    {
      text: "Named",
      kind: "number",
      value: (r) => r.named,
      cell: (r) => String(r.named),
      hint: "features with a name",
    },
    {
      text: "Judged by",
      value: (r) => r.scored_by,
      cell: (r) =>
        r.scored
          ? Object.entries(r.scored)
              .map(([scorer, count]) => `${sourceName(scorer)} ${count}`)
              .join(", ")
          : make("span", { class: "quiet" }, "nobody else here knows its names"),
      hint: "the first other source that knows the name, and for how many",
    },
    {
      text: "Detection",
      value: (r) => r.detection,
      cell: (r) =>
        r.detection == null
          ? "–"
          : strip(r.detection, null, {
              label: `AUROC ${number(r.detection)}, names of others ${number(r.null)}, near misses ${number(r.near)}`,
              others: [
                ["random", r.null],
                ["neuron", r.near],
              ],
              whisker: r.ci,
              above: Boolean(r.ci && r.null != null && r.ci[0] > r.null),
            }),
      hint: "mean AUROC for the clips in which the feature fires; scale 0.3 to 1, tick at 0.5",
    },
    {
      text: "Mean AUROC",
      kind: "number",
      value: (r) => r.detection,
      cell: (r) => (r.detection == null ? "–" : [make("b", {}, number(r.detection)), between(r.ci)]),
      hint: "in brackets the 95 % interval over features",
    },
    {
      text: "Names of others",
      kind: "number",
      value: (r) => r.null,
      cell: (r) => number(r.null),
      hint: "the null: names of features that fire about as often",
    },
    {
      text: "Near misses",
      kind: "number",
      value: (r) => r.near,
      cell: (r) => number(r.near),
      hint: "against the silent clips that sound most like those in which the feature fires",
    },
    {
      text: "In time",
      kind: "number",
      value: (r) => r.spans && r.spans.passed,
      cell: (r) => (r.spans ? `${r.spans.passed} of ${r.spans.tested}` : "–"),
      hint: "names that hold when the feature fires and not with its moments shifted within the clip",
    },
    {
      text: "Passed",
      kind: "number",
      value: (r) => r.passed,
      cell: (r) => make("b", {}, String(r.passed)),
      hint: "names with a q of at most 5 %",
    },
  ];
  if (p.overall)
    columns.push({
      text: "Right by truth",
      kind: "number",
      value: (r) => r.right && r.right.precision,
      cell: (r) => (r.right ? ratio(r.right) : "–"),
      hint: "share of the passed names that are right, of those whose meaning the composer knows",
    });
  const key = (mark, text) => make("span", {}, markOf(mark), ` ${text}`);
  return make(
    "div",
    {},
    make(
      "div",
      { class: "legend" },
      key("dot", "the names, with their 95 % interval"),
      key("neuron", "against near misses only"),
      key("random", "names of other features"),
    ),
    sortable(columns, rows, "sources", 1),
  );
}
function overallTable(p) {
  const rows = [
    { name: "This run’s SAE", ...p.overall, own: true },
    ...Object.entries(p.controls).map(([name, row]) => ({ name: CONTROLS[name] || name, ...row })),
  ];
  const columns = [
    { text: "Dictionary", cell: (r) => (r.own ? make("b", {}, r.name) : r.name) },
    {
      text: "Precision",
      kind: "number",
      value: (r) => r.precision,
      cell: ratio,
      hint: "share of confirmed names that are right; in brackets the 95 % interval over features",
    },
    {
      text: "Recall",
      kind: "number",
      value: (r) => r.recall,
      cell: (r) => number(r.recall),
      hint: "share of concepts that are named right",
    },
    {
      text: "Concepts found",
      kind: "number",
      value: (r) => r.found,
      cell: (r) => `${percent(r.found, 0)} of ${r.concepts}`,
      hint: "concepts for which some feature fires where they are, whatever its name",
    },
    {
      text: "Confirmed names",
      kind: "number",
      value: (r) => r.names,
      cell: (r) => [
        String(r.names),
        r.unjudged ? make("span", { class: "quiet small" }, ` and ${r.unjudged} the composer does not know`) : "",
      ],
      hint: "names that another source passed; truth counts for nothing here",
    },
  ];
  return make(
    "div",
    {},
    make(
      "p",
      { class: "lede" },
      "A name is right when its concept is at least half of what could be gained commoner where the feature fires, beyond luck. The controls are named and judged in the same way.",
      p.marked_on && p.marked_on.fresh
        ? ` All are marked on ${p.marked_on.clips} fresh clips, on which no name was chosen or confirmed.`
        : " All are marked on the clips on which names were confirmed, which flatters.",
    ),
    sortable(columns, rows, "overall-names", 1),
  );
}
function fateGrid(concepts) {
  const families = new Map();
  for (const [name, fate] of Object.entries(concepts)) {
    const [family, ...value] = name.split(": ");
    if (!families.has(family)) families.set(family, []);
    families.get(family).push([value.join(": ") || family, fate]);
  }
  const counts = Object.keys(FATES).map((fate) => Object.values(concepts).filter((f) => f === fate).length);
  const cell = (text, fate, extra = {}) =>
    make(
      "span",
      { class: `fate ${FATES[fate][1]}`, ...extra },
      make("i", { "aria-hidden": "true" }, FATES[fate][0]),
      ` ${text}`,
    );
  return make(
    "div",
    {},
    make(
      "div",
      { class: "legend" },
      Object.entries(FATES).map(([fate, [, , why]], i) =>
        make("span", {}, cell(`${counts[i]} ${fate}`, fate), ` ${why}`),
      ),
    ),
    make(
      "dl",
      { class: "fates", "data-testid": "fates" },
      [...families].map(([family, members]) =>
        make(
          "div",
          {},
          make("dt", { class: "quiet small" }, family),
          make(
            "dd",
            {},
            members.map(([text, fate]) =>
              cell(text, fate, { title: fate, "aria-label": `${text}: ${fate}`, "data-testid": "fate" }),
            ),
          ),
        ),
      ),
    ),
  );
}
function familiesTable(families) {
  const rows = Object.entries(families).map(([family, row]) => ({ family, ...row }));
  const count = (text, field, hint) => ({
    text,
    kind: "number",
    value: (r) => r[field],
    cell: (r) => (r[field] ? String(r[field]) : make("span", { class: "quiet" }, "0")),
    hint,
  });
  return sortable(
    [
      { text: "Family", value: (r) => r.family, cell: (r) => r.family },
      {
        text: "Concepts",
        cell: (r) => {
          const all = r.named_right + r.misnamed + r.not_found;
          return make(
            "span",
            { class: "bar fates-bar", "aria-hidden": "true" },
            [
              ["right", r.named_right],
              ["mis", r.misnamed],
              ["none", r.not_found],
            ].map(([kind, n]) => make("i", { class: kind, style: `width:${(100 * n) / all}%` })),
          );
        },
      },
      count("Named right", "named_right", FATES["named right"][2]),
      count("Misnamed", "misnamed", FATES.misnamed[2]),
      count("Not found", "not_found", FATES["not found"][2]),
      count("Names", "names", "confirmed names that mean a concept of the family"),
      {
        text: "Precision",
        kind: "number",
        value: (r) => r.precision,
        cell: ratio,
        hint: "share of names that are right; in brackets the 95 % interval over features",
      },
      {
        text: "Recall",
        kind: "number",
        value: (r) => r.recall,
        cell: (r) => number(r.recall),
        hint: "share of concepts that are named right",
      },
    ],
    rows,
    "families",
    2,
  );
}
function agreementTable(pairs) {
  const rows = pairs.map(([pair, row]) => ({ pair: pair.split(" and ").map(sourceName).join(" and "), ...row }));
  const beside = (text, field) => ({
    text,
    kind: "number",
    value: (r) => r[field],
    cell: (r) => [
      make("b", {}, percent(r[field], 0)),
      make("span", { class: "quiet small" }, ` by chance ${percent(r[`${field}_by_chance`], 0)}`),
    ],
  });
  return sortable(
    [
      { text: "Sources", value: (r) => r.pair, cell: (r) => r.pair },
      { text: "Features", kind: "number", value: (r) => r.features, cell: (r) => String(r.features) },
      beside("Same meaning", "same"),
      beside("Same family", "same_family"),
    ],
    rows,
    "agreement",
    1,
  );
}
const POOLING = { mean: "mean activation", max: "greatest activation" };
function filterBlock() {
  const values = (field) => [...new Set(data.filters.map((r) => r[field]))];
  const [leasts, mosts] = [values("minimum_share"), values("maximum_share")];
  const total = (rows, field) => rows.reduce((sum, r) => sum + r[field], 0);
  const everyNamed = features.filter((f) => f.bucket === "named").length;
  const body = make("tbody");
  const buttons = make("span", { class: "chips" });
  const show = (least) => {
    body.replaceChildren(
      ...values("pooling").flatMap((pooling) =>
        values("active_above").map((above) =>
          make(
            "tr",
            { "data-testid": "filter-row" },
            make("td", {}, POOLING[pooling] || pooling),
            make("td", { class: "number" }, percent(above, 0)),
            mosts.map((most) => {
              const rows = data.filters.filter(
                (r) =>
                  r.pooling === pooling &&
                  r.active_above === above &&
                  r.minimum_share === least &&
                  r.maximum_share === most,
              );
              const [kept, named] = [total(rows, "kept"), total(rows, "named")];
              return make(
                "td",
                { class: "number" },
                String(kept),
                make("span", { class: "quiet small" }, ` · ${named} named`),
                bar(everyNamed ? named / everyNamed : 0),
              );
            }),
          ),
        ),
      ),
    );
    [...buttons.children].forEach((b, i) => b.setAttribute("aria-pressed", leasts[i] === least));
  };
  leasts.forEach((least) =>
    buttons.append(
      make("button", { class: "ghost", type: "button", onclick: () => show(least) }, `at least ${percent(least, 0)}`),
    ),
  );
  show(leasts.includes(0.01) ? 0.01 : leasts[0]);
  return make(
    "div",
    {},
    make(
      "p",
      { class: "lede" },
      "How many features each setting keeps, and how many of these have a confirmed name. A clip is active above a share of the feature’s greatest; a feature is kept when neither too few nor too many clips are. Bars: share of all named features that are kept.",
    ),
    make("div", { class: "chips filter-least" }, make("span", { class: "quiet small" }, "of clips active"), buttons),
    make(
      "div",
      { class: "panel wide" },
      make(
        "table",
        { "data-testid": "filters" },
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("th", { scope: "col" }, "A clip’s"),
            make("th", { class: "number", scope: "col" }, "is above"),
            mosts.map((most) => make("th", { class: "number", scope: "col" }, `at most ${percent(most, 0)}`)),
          ),
        ),
        body,
      ),
    ),
  );
}
