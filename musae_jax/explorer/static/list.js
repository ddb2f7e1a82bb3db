// The table of features: sorted, searched, drawn as far as it is scrolled.

const list = { query: "", only: "all", sort: "confidence", down: true, drawn: 0, rows: [] };
Object.assign(list, { sae: "", bucket: "", source: "" }); // what is chosen; empty: any
const ORDER = {
  feature: (f) => f.feature,
  name: (f) => (f.named ? f.best.name : "\uffff"),
  confidence: (f) => f.named + f.confidence + 1e-3 * ((f.best && f.best.score) || 0),
  density: (f) => f.density,
  share: (f) => f.share,
};
const KINDS = {
  all: ["All", () => true],
  named: ["Named", (f) => f.named, "its name passed or, where nobody could judge it, rose above its own null"],
  kept: ["Kept", (f) => f.verdict === "kept"],
  sound: ["With sound", (f) => f.sound],
};
const BUCKETS = {
  named: "a name passed the judgement of a source that did not give it (the composer’s truth aside)",
  "coherent but unnamed":
    "no name passed (the composer’s truth aside), but the clips it fires in sound alike beyond chance",
  neither: "no name passed (the composer’s truth aside), and the clips it fires in sound no more alike than others",
};

function select() {
  const words = list.query.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (f) => {
    const text = `${f.feature} ${f.names
      .filter((n) => n.holds)
      .map((n) => n.name)
      .join(" ")} ${f.verdict} ${f.hook}`.toLowerCase();
    return words.every((w) => text.includes(w));
  };
  const order = ORDER[list.sort];
  list.rows = features.filter(
    (f) =>
      KINDS[list.only][1](f) &&
      (!list.sae || `${f.hook}/${f.sae}` === list.sae) &&
      (!list.bucket || f.bucket === list.bucket) &&
      (!list.source || f.names.some((n) => n.source === list.source && n.holds)) &&
      fits(f),
  );
  list.rows.sort((a, b) => {
    const x = order(a),
      y = order(b);
    return (x < y ? -1 : x > y ? 1 : a.feature - b.feature) * (list.down ? -1 : 1);
  });
}
function featureRow(f) {
  const named = f.named;
  const other = f.names.find((n) => n.holds && n.name !== f.best.name);
  return make(
    "tr",
    { "data-key": f.key, "data-testid": "feature-row", "aria-current": f.key === state.key ? "true" : null },
    make("td", { class: "id number" }, String(f.feature)),
    make(
      "td",
      { class: named ? "name" : "name unnamed" },
      featureLink(f.key, named ? f.best.name : f.verdict === "dead" ? "dead" : "unnamed"),
      f.sound
        ? draw(
            "svg",
            { class: "speaker", viewBox: "0 0 12 12", role: "img", "aria-label": "has sound" },
            draw("path", { d: "M1 4.5v3M4 3v6M7 1v10M10 4v4" }),
          )
        : null,
      named
        ? make(
            "div",
            { class: "source" },
            sourceName(f.best.source),
            f.best.judged ? `, ✓ ${sourceName(f.best.judged.scorer)}` : "",
            other ? ` · ${sourceName(other.source)}: ${other.name}` : "",
          )
        : null,
    ),
    make(
      "td",
      { style: "width:24%" },
      f.best && f.best.score != null
        ? strip(f.best.score, f.best.null_p95, {
            label: `AUROC ${number(f.best.score)}, null ${number(f.best.null_p95)}`,
          })
        : "",
    ),
    make("td", { class: "number" }, percent(f.density, f.density < 0.001 ? 2 : 1)),
    make("td", { class: "number" }, String(f.clips_active)),
  );
}
function drawRows(body, reset) {
  if (reset) {
    body.replaceChildren();
    list.drawn = 0;
  }
  const next = list.rows.slice(list.drawn, list.drawn + LIST_STEP);
  body.append(...next.map(featureRow));
  list.drawn += next.length;
}
function listPane() {
  const body = make("tbody");
  const count = make("span", { class: "count quiet small", "data-testid": "count" });
  const head = [
    ["feature", "#", "number"],
    ["name", "Name"],
    ["confidence", "Evidence"],
    ["density", "Density", "number"],
    ["share", "Clips", "number"],
  ];
  const cells = head.map(([name, text, kind]) =>
    make(
      "th",
      { scope: "col", class: kind },
      make(
        "button",
        {
          type: "button",
          "data-testid": `sort-${name}`,
          title: {
            confidence: "AUROC on held-out clips, beside its null",
            density: "share of frames on which it is active",
            share: "clips in which it is active",
          }[name],
          onclick: () => {
            list.down = list.sort === name ? !list.down : !["name", "feature"].includes(name);
            list.sort = name;
            refresh();
          },
        },
        text,
      ),
    ),
  );
  const scroll = make(
    "div",
    {
      class: "scroll",
      "data-testid": "list-scroll",
      onscroll: () => {
        if (scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 400) drawRows(body);
      },
    },
    make(
      "table",
      { class: "features", "data-testid": "features" },
      make("caption", { class: "visually-hidden" }, "Features of the dictionary"),
      make("thead", {}, make("tr", {}, cells)),
      body,
    ),
  );
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("a")) open(row.dataset.key);
  });
  const chips = Object.entries(KINDS).map(([kind, [text, , hint]]) =>
    make(
      "button",
      {
        class: "ghost",
        type: "button",
        title: hint,
        "data-testid": `only-${kind}`,
        onclick: () => {
          list.only = kind;
          refresh();
        },
      },
      text,
    ),
  );
  const names = [...new Set(features.map((f) => `${f.hook}/${f.sae}`))];
  const sources = Object.keys(SOURCES).filter((s) => features.some((f) => f.names.some((n) => n.source === s)));
  // a list of [value, text] to choose from, kept in list[field]
  const choice = (field, label, all, options, after = () => {}) =>
    make(
      "select",
      {
        "aria-label": label,
        "data-testid": field,
        onchange: (e) => {
          list[field] = e.target.value;
          refresh();
          after();
        },
      },
      make("option", { value: "" }, all),
      options.map(([value, text]) => make("option", { value, selected: value === list[field] }, text)),
    );
  const refresh = () => {
    select();
    drawRows(body, true);
    head.forEach(([name], i) => {
      if (name === list.sort) cells[i].setAttribute("aria-sort", list.down ? "descending" : "ascending");
      else cells[i].removeAttribute("aria-sort");
    });
    chips.forEach((chip, i) => chip.setAttribute("aria-pressed", Object.keys(KINDS)[i] === list.only));
    count.textContent = `${list.rows.length} of ${features.length}`;
    scroll.scrollTop = 0;
  };
  list.mark = () => {
    const place = list.rows.findIndex((f) => f.key === state.key);
    while (place >= list.drawn && list.drawn < list.rows.length) drawRows(body);
    for (const row of body.children) {
      if (row.dataset.key === state.key) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    const row = body.children[place];
    if (row) {
      const a = row.getBoundingClientRect(),
        b = scroll.getBoundingClientRect();
      if (a.top < b.top + 40 || a.bottom > b.bottom) scroll.scrollTop += a.top - b.top - b.height / 2;
    }
  };
  refresh();
  return make(
    "aside",
    { class: "list", "aria-label": "Features" },
    make(
      "div",
      { class: "controls" },
      make("input", {
        type: "search",
        id: "search",
        placeholder: "Search names and numbers",
        "aria-label": "Search features",
        "data-testid": "search",
        value: list.query,
        oninput: (e) => {
          list.query = e.target.value;
          refresh();
        },
      }),
      names.length > 1
        ? choice(
            "sae",
            "Dictionary",
            "All dictionaries",
            names.map((n) => [n, n]),
            tiles,
          )
        : null,
      make(
        "div",
        { class: "choices" },
        features.some((f) => f.bucket)
          ? choice(
              "bucket",
              "Bucket",
              "Any bucket",
              Object.keys(BUCKETS).map((b) => [b, b]),
            )
          : null,
        sources.length > 1
          ? choice(
              "source",
              "Source of the name",
              "Any source",
              sources.map((s) => [s, `named by ${sourceName(s)}`]),
            )
          : null,
      ),
      make("div", { class: "chips" }, chips, count),
    ),
    scroll,
  );
}
