// One feature: its page, exemplars, steering. What is said of its names is in evidence.js.

const state = { tab: "concepts", key: null, first: null };
const REASONS = { kept: "kept", dead: "never active", rare: "too few clips", common: "too many clips" };

function detailPane(f) {
  const pane = make("article", { class: "detail", "data-testid": "detail", "aria-label": `Feature ${f.feature}` });
  const step = (by, text, label) =>
    make(
      "button",
      {
        class: "ghost",
        type: "button",
        "aria-label": label,
        "data-testid": by > 0 ? "next" : "previous",
        onclick: () => walk(by),
      },
      text,
    );
  pane.append(
    make(
      "header",
      {},
      make(
        "div",
        {},
        make("p", { class: "overline" }, `Feature ${f.feature} · ${f.hook} · ${f.sae}`),
        make("h2", { "data-testid": "feature-title" }, title(f)),
        make("p", { class: "lede" }, ledeOf(f)),
      ),
      make("div", { class: "walk" }, step(-1, "←", "Previous feature"), step(1, "→", "Next feature")),
    ),
  );
  pane.append(
    make(
      "dl",
      { class: "facts", "data-testid": "facts" },
      [
        ["Active on", `${percent(f.density, 2)} of frames`],
        ["Active in", `${f.clips_active} clips (${percent(f.share, 0)})`],
        ["Maximum", number(f.maximum)],
        ["Mean when active", number(f.mean_active)],
        ["Filter", REASONS[f.verdict] || f.verdict],
      ].map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, v))),
    ),
  );
  if (f.names.length)
    pane.append(block("Evidence", "AUROC on held-out tracks", null, evidenceLegend(f), evidenceOf(f)));
  if (f.bucket) pane.append(natureBlock(f));
  const shown = data.exemplars[f.key] || [];
  if (shown.length) pane.append(exemplarBlock(f, shown));
  else
    pane.append(
      block(
        "Exemplars",
        null,
        null,
        make(
          "p",
          { class: "quiet" },
          f.density
            ? "Sound is kept for the best-evidenced features only; raise the report’s media limit to hear this one."
            : "This feature is never active on the harvested music.",
        ),
      ),
    );
  if (data.steering[f.key]) pane.append(steeringBlock(f));
  return pane;
}
const block = (name, note, extra, ...content) =>
  make(
    "section",
    { class: "block" },
    make("header", {}, make("h3", {}, name), note ? make("span", { class: "quiet small" }, note) : null, extra),
    content,
  );

function exemplarBlock(f, shown) {
  const seconds = Math.max(...shown.map((e) => data.media[e.media].seconds));
  const players = shown.map((e) => {
    const p = player(e.media, `clip ${e.clip}`, { curve: levels(e.curve) });
    p.node.prepend(
      make(
        "div",
        { class: "head" },
        make("span", { class: "caption", title: `${e.caption || ""} (${e.clip})` }, e.caption || e.clip),
        make(
          "span",
          {
            class: e.half === "score" ? "badge held" : "badge",
            title:
              e.half === "score" ? "from the half on which the name is scored" : "from the half that chose the name",
          },
          e.half === "score" ? "held out" : "naming half",
        ),
        make(
          "span",
          { class: "quiet small", title: "peak activation, in shares of the feature’s maximum" },
          `peak ${percent(e.peak, 0)}`,
        ),
      ),
    );
    const end = data.media[e.media].seconds;
    p.node.append(
      make(
        "div",
        { class: "axis", "aria-hidden": "true" },
        [0, 1, 2, 3, 4].map((i) =>
          make("span", {}, `${number((end * i) / 4, end < 4 ? 1 : end % 4 ? 1 : 0)}${i === 4 ? " s" : ""}`),
        ),
      ),
    );
    return p;
  });
  state.first = players[0];
  const all = make(
    "button",
    {
      class: "ghost",
      type: "button",
      "data-testid": "play-all",
      onclick: () => {
        players.forEach((p, i) => {
          p.after = players[i + 1] ? () => players[i + 1].play(0) : null;
        });
        players[0].play(0);
      },
    },
    "Play all",
  );
  return block(
    "Where it is active",
    `${shown.length} strongest clips, ${number(seconds, 0)} s; shaded above ${percent(data.threshold, 0)} of its maximum`,
    all,
    make(
      "div",
      { class: "exemplars", "data-testid": "exemplars" },
      players.map((p) => p.node),
    ),
  );
}
const CONDITIONS = [
  ["unsteered", "Unsteered"],
  ["steered", "Steered"],
  ["random", "Random direction"],
];
function steeringBlock(f) {
  const rows = data.steering[f.key];
  const strengths = [...new Set(rows.filter((r) => r.condition === "steered").map((r) => r.strength))].sort(
    (a, b) => a - b,
  );
  const summary = data.steeringSummary && data.steeringSummary.features.find((s) => keyOf(s) === f.key);
  const holder = make("div", { class: "ab", "data-testid": "steering" });
  const buttons = make("span", { class: "chips", style: "margin-left:auto" });
  const show = (strength) => {
    holder.replaceChildren();
    for (const prompt of [...new Set(rows.map((r) => r.prompt))]) {
      const of = (condition) =>
        rows.find(
          (r) =>
            r.prompt === prompt && r.condition === condition && (condition === "unsteered" || r.strength === strength),
        );
      holder.append(make("p", { class: "prompt" }, `“${of("unsteered").text}”`));
      for (const [condition, text] of CONDITIONS) {
        const r = of(condition);
        if (!r) continue;
        const p = player(r.media, `${text.toLowerCase()}, prompt ${r.text}`, { plain: true });
        p.node.prepend(
          make(
            "div",
            { class: "head" },
            make(
              "span",
              { class: "caption" },
              make("b", {}, text),
              condition === "unsteered" ? "" : ` ${signed(r.strength, 1)}`,
            ),
          ),
        );
        const facts = [];
        if (r.judge != null) facts.push("judge ", make("b", {}, percent(r.judge, 0)), " · ");
        if (r.descriptor != null && summary && summary.descriptor)
          facts.push(
            `${summary.descriptor} `,
            make("b", {}, number(r.descriptor, Math.abs(r.descriptor) >= 100 ? 0 : 2)),
            " · ",
          );
        facts.push("activation ", make("b", {}, percent(r.activation)));
        p.node.append(make("div", { class: "measure" }, facts));
        holder.append(p.node);
      }
    }
    [...buttons.children].forEach((b, i) => b.setAttribute("aria-pressed", strengths[i] === strength));
  };
  strengths.forEach((s) =>
    buttons.append(make("button", { class: "ghost", type: "button", onclick: () => show(s) }, `strength ${s}`)),
  );
  show(strengths[strengths.length - 1]);
  return block(
    "Steering",
    "same prompt, same noise; the random direction has the same norm",
    strengths.length > 1 ? buttons : null,
    steeringSentence(summary, strengths),
    holder,
  );
}
function steeringSentence(summary, strengths) {
  const last = summary && summary.strengths.find((s) => s.strength === strengths[strengths.length - 1]);
  const found = last && (last.judge || last.activation);
  if (!found) return null;
  const what = last.judge
    ? `A judge that hears only the sound finds “${summary.concept}” in`
    : "Harvested anew, the sound activates the feature at";
  const digits = last.judge ? 0 : 1;
  const d = found.steered_minus_random;
  return make(
    "p",
    { class: "lede", style: "margin-bottom:14px" },
    `${what} ${percent(found.unsteered, digits)} unsteered, `,
    make("strong", {}, percent(found.steered, digits)),
    ` steered, ${percent(found.random, digits)} along a random direction (difference ${signed(100 * d.mean, 1)} points, 95 % interval ${signed(100 * d.low, 1)} to ${signed(100 * d.high, 1)}, ${d.n} prompts).`,
  );
}
