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
const ARMS = {
  unsteered: "Unsteered",
  sae: "SAE",
  random: "Random direction",
  decoder: "Decoder row",
  inactive: "Inactive feature",
  other_layer: "Other layer",
  diff_in_means: "Difference in means",
  probe: "Probe",
  pca: "Principal component",
  prompt: "Prompt alone",
};
const MEASURES = {
  judge: "judge",
  tagger: "tagger",
  clap: "CLAP, its name",
  descriptors: "descriptor",
  exemplars: "CLAP, its exemplars",
};
const heard = (measure, value) =>
  measure === "judge" || measure === "tagger" ? percent(1 / (1 + Math.exp(-value)), 0) : number(value);
const steeredFeature = (key) => data.steeringSummary && data.steeringSummary.features.find((s) => keyOf(s) === key);
function steeringBlock(f) {
  const rows = data.steering[f.key];
  const summary = steeredFeature(f.key);
  const doses = [...new Set(rows.filter((r) => r.arm === "sae").map((r) => r.strength))].sort((a, b) => a - b);
  const holder = make("div", { class: "ab", "data-testid": "steering" });
  const buttons = make("span", { class: "chips", style: "margin-left:auto" });
  const show = (strength) => {
    holder.replaceChildren();
    for (const pair of [...new Set(rows.map((r) => JSON.stringify([r.prompt, r.seed])))]) {
      const [prompt, seed] = JSON.parse(pair);
      holder.append(make("p", { class: "prompt" }, prompt ? `“${prompt}”` : "no prompt"));
      for (const arm of Object.keys(ARMS)) {
        const r = rows.find(
          (one) =>
            one.arm === arm &&
            one.prompt === prompt &&
            one.seed === seed &&
            (one.strength === strength || arm === "unsteered" || arm === "prompt"),
        );
        if (!r) continue;
        const p = player(r.media, `${ARMS[arm].toLowerCase()}, ${r.text || "no prompt"}`, { plain: true });
        const dose = arm === "unsteered" ? "" : arm === "prompt" ? ` “${r.text}”` : ` ${signed(strength, 2)}`;
        p.node.prepend(
          make("div", { class: "head" }, make("span", { class: "caption" }, make("b", {}, ARMS[arm]), dose)),
        );
        const facts = Object.keys(MEASURES)
          .filter((m) => r[m] != null)
          .slice(0, 2)
          .flatMap((m) => [`${MEASURES[m]} `, make("b", {}, heard(m, r[m])), " · "]);
        p.node.append(make("div", { class: "measure" }, facts, "activation ", make("b", {}, percent(r.activation))));
        holder.append(p.node);
      }
    }
    [...buttons.children].forEach((b, i) => b.setAttribute("aria-pressed", doses[i] === strength));
  };
  doses.forEach((s) =>
    buttons.append(make("button", { class: "ghost", type: "button", onclick: () => show(s) }, `strength ${s}`)),
  );
  show(summary ? summary.strength : doses[doses.length - 1]);
  return block(
    "Steering",
    "same prompt, same noise; all vectors have the same norm",
    doses.length > 1 ? buttons : null,
    summary ? steeringSentence(summary) : null,
    holder,
  );
}
function steeringSentence(s) {
  const over = (arm) => {
    const d = s.against[arm];
    return `${signed(d.mean, 2)} (${signed(d.ci[0], 2)} to ${signed(d.ci[1], 2)})`;
  };
  return make(
    "p",
    { class: "lede", style: "margin-bottom:14px" },
    `At strength ${s.strength} its concept, by the ${MEASURES[s.measure]}, goes from ${heard(s.measure, s.means.unsteered)} unsteered to `,
    make("strong", {}, heard(s.measure, s.means.sae)),
    `; along random directions it is ${heard(s.measure, s.means.random)}. In deviations of unsteered clips that is ${over("unsteered")} over them and ${over("random")} over random, ${s.pairs} pairs.`,
  );
}
