// The frame around it: tiles, tabs, addresses, keys, theme.

function tiles() {
  const s =
    data.saes.find((x) => `${x.hook}/${x.sae}` === list.sae) || data.saes.find((x) => x.metrics) || data.saes[0];
  const mine = features.filter((f) => f.hook === s.hook && f.sae === s.sae);
  const m = s.metrics || {},
    c = s.control;
  const beside = (k, show) => (c && c[k] != null ? `random weights ${show(c[k])}` : s.hook);
  const confirmed = data.proof && mine.some((f) => f.bucket);
  const named = mine.filter((f) => (confirmed ? f.bucket === "named" : f.named)).length;
  const t = data.truthSummary;
  const right = data.proof && data.proof.overall && data.proof.overall.precision;
  const cards = [
    ["Unexplained variance, FVU", number(m.fvu, 3), beside("fvu", (x) => number(x, 3))],
    ["Active per frame, L0", number(m.l0, 1), beside("l0", (x) => number(x, 1))],
    ["Dead features", percent(m.dead_share), beside("dead_share", percent)],
    [
      "Kept by the filter",
      [String(mine.filter((f) => f.verdict === "kept").length), make("small", {}, ` of ${mine.length}`)],
      "by the share of clips",
    ],
    [
      confirmed ? "Named and confirmed" : "Named above null",
      [String(named), make("small", {}, ` of ${mine.filter((f) => f.density > 0).length} alive`)],
      confirmed ? "by another source" : "on held-out tracks",
    ],
    right == null
      ? null
      : [
          "Names that are right",
          percent(right, 0),
          Object.entries({ neurons: "neurons", random_sae: "random SAE" })
            .filter(([control]) => data.proof.controls[control])
            .map(([control, text]) => `${text} ${percent(data.proof.controls[control].precision, 0)}`)
            .join(", "),
        ],
    t && t.sae
      ? [
          "Concepts, mean AUROC",
          number(t.sae.mean_auroc),
          [
            t.neuron ? `neurons ${number(t.neuron.mean_auroc)}` : null,
            t.random_weights ? `random ${number(t.random_weights.mean_auroc)}` : null,
          ]
            .filter(Boolean)
            .join(", "),
        ]
      : null,
  ];
  byId("tiles").replaceChildren(
    ...cards
      .filter(Boolean)
      .map(([name, value, note]) =>
        make(
          "div",
          { class: "tile", "data-testid": "tile" },
          make("div", { class: "label" }, name),
          make("div", { class: "value" }, value),
          make("div", { class: "beside" }, note),
        ),
      ),
  );
}
const TABS = {
  concepts: ["Concepts", null],
  ...(data.proof ? { proof: ["Proof", proofPage] } : {}),
  truth: ["Truth", truthPage],
  steering: ["Steering", steeringPage],
  run: ["Run", runPage],
};
const main = byId("main");

function route() {
  const hash = location.hash.slice(1);
  if (current) current.pause();
  const key = hash.startsWith("f/") ? decodeURIComponent(hash.slice(2)) : null;
  const tab = hash in TABS ? hash : "concepts";
  if (tab === "concepts") {
    if (!main.querySelector(".concepts"))
      main.replaceChildren(make("div", { class: "concepts" }, listPane(), make("div", { id: "detail" })));
    state.key = byKey.has(key) ? key : state.key || (list.rows[0] && list.rows[0].key);
    state.first = null;
    const f = byKey.get(state.key);
    byId("detail").replaceChildren(f ? detailPane(f) : make("p", { class: "empty" }, "No features."));
    list.mark();
    if (f && key) byId("live").textContent = `Feature ${f.feature}, ${title(f)}`;
  } else main.replaceChildren(TABS[tab][1]());
  state.tab = tab;
  [...byId("tabs").children].forEach((b) => {
    const on = b.dataset.tab === tab;
    b.setAttribute("aria-selected", on);
    b.tabIndex = on ? 0 : -1;
  });
}
function open(key) {
  location.hash = `f/${encodeURIComponent(key)}`;
}
function walk(by) {
  const place = list.rows.findIndex((f) => f.key === state.key);
  const next = list.rows[place < 0 ? 0 : Math.max(0, Math.min(list.rows.length - 1, place + by))];
  if (next && next.key !== state.key) {
    open(next.key);
    if (byId("detail").getBoundingClientRect().top < 0) byId("detail").scrollIntoView({ block: "start" });
  }
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, [role=tab]"))
    return;
  if (state.tab !== "concepts") return;
  const steps = { ArrowDown: 1, ArrowRight: 1, j: 1, ArrowUp: -1, ArrowLeft: -1, k: -1 };
  if (event.key in steps) {
    event.preventDefault();
    walk(steps[event.key]);
  }
  if (event.key === "/") {
    event.preventDefault();
    byId("search").focus();
  }
  if (event.key === " " && !event.target.closest("button, a") && (current || state.first)) {
    event.preventDefault();
    (current || state.first).toggle();
  }
});
for (const [tab, [text]] of Object.entries(TABS))
  byId("tabs").append(
    make(
      "button",
      {
        type: "button",
        role: "tab",
        "data-tab": tab,
        "data-testid": `tab-${tab}`,
        "aria-controls": "main",
        onclick: () => {
          location.hash = tab === "concepts" && state.key ? `f/${encodeURIComponent(state.key)}` : tab;
        },
      },
      text,
    ),
  );
byId("tabs").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by) {
    const all = [...byId("tabs").children];
    const next = all[(all.indexOf(document.activeElement) + by + all.length) % all.length];
    next.click();
    next.focus();
  }
});
const store = {
  get: () => {
    try {
      return localStorage.getItem("musae-theme");
    } catch {
      return null;
    }
  },
  set: (v) => {
    try {
      localStorage.setItem("musae-theme", v);
    } catch {
      /* a private page */
    }
  },
};
function theme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}
const system = matchMedia("(prefers-color-scheme: dark)");
theme(store.get() || (system.matches ? "dark" : "light"));
system.addEventListener("change", (event) => {
  if (!store.get()) theme(event.matches ? "dark" : "light");
});
byId("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  store.set(next);
  theme(next);
});

byId("title").textContent = data.title;
const about = Object.fromEntries(data.about);
byId("subtitle").textContent = [
  about.model && `model ${about.model}`,
  about.music,
  data.saes
    .map((s) => s.hook)
    .filter((h, i, a) => a.indexOf(h) === i)
    .join(", "),
  `${features.length} features`,
]
  .filter(Boolean)
  .join(" · ");
tiles();
window.addEventListener("hashchange", route);
route();
