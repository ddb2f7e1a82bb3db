// Players: one sound at a time, with a mel picture and an activation curve on the same time axis.

let current = null; // the player that is heard
const frame = () => {
  if (current) {
    current.show();
    requestAnimationFrame(frame);
  }
};
const ICONS = () => [
  draw("svg", { class: "go", viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: "M4.5 2.5v11l9-5.5z" })),
  draw(
    "svg",
    { class: "pause", viewBox: "0 0 16 16", "aria-hidden": "true" },
    draw("path", { d: "M4 3h3v10H4zM9 3h3v10H9z" }),
  ),
];

function player(mediaIndex, label, { curve = null, plain = false, after = null } = {}) {
  const media = data.media[mediaIndex];
  const audio = new Audio();
  audio.preload = "none";
  audio.src = media.sound;
  const cursor = make("div", { class: "cursor" });
  const track = make(
    "div",
    {
      class: plain ? "track plain" : "track",
      role: "slider",
      tabindex: 0,
      "aria-label": `Position in ${label}`,
      "aria-valuemin": 0,
      "aria-valuemax": number(media.seconds, 1),
      "aria-valuenow": 0,
      "aria-valuetext": "0 seconds",
      "data-testid": "track",
    },
    make("img", {
      class: "mel",
      src: media.mel,
      alt: `Mel spectrogram of ${label}`,
      loading: "lazy",
      draggable: "false",
    }),
  );
  if (curve) {
    track.append(curveOf(curve));
    spansOf(curve).forEach((s) => track.append(s));
  }
  track.append(cursor);
  const button = make(
    "button",
    { class: "play", type: "button", "aria-label": `Play ${label}`, "data-testid": "play" },
    ICONS(),
  );
  const node = make("div", { class: "clip", "data-testid": "clip" }, button, track);
  let wanted = null; // where to start, until the sound is loaded
  const now = () => wanted ?? audio.currentTime;
  audio.addEventListener("loadedmetadata", () => {
    if (wanted != null) {
      audio.currentTime = wanted;
      wanted = null;
    }
  });
  const self = {
    node,
    audio,
    after,
    show() {
      cursor.style.left = `${Math.min(1, now() / media.seconds) * 100}%`;
      track.setAttribute("aria-valuenow", number(now(), 1));
      track.setAttribute("aria-valuetext", `${number(now(), 1)} seconds`);
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
      else {
        wanted = to;
        audio.load();
      }
      self.show();
    },
    toggle() {
      if (current === self) self.pause();
      else self.play(audio.ended ? 0 : null);
    },
  };
  audio.addEventListener("ended", () => {
    self.pause();
    self.show();
    if (self.after) self.after();
  });
  button.addEventListener("click", () => {
    self.after = after;
    self.toggle();
  });
  const at = (event) => {
    const box = track.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * media.seconds;
  };
  track.addEventListener("pointerdown", (event) => {
    if (event.button === 0) {
      track.setPointerCapture(event.pointerId);
      self.play(at(event));
    }
  });
  track.addEventListener("pointermove", (event) => {
    if (track.hasPointerCapture(event.pointerId)) self.seek(at(event));
  });
  track.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -3, PageUp: 3, Home: -1e9, End: 1e9 };
    if (event.key in steps) {
      event.preventDefault();
      event.stopPropagation();
      self.seek(now() + steps[event.key]);
    }
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.stopPropagation();
      self.toggle();
    }
  });
  return self;
}
const levels = (encoded) => Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
function curveOf(values) {
  const points = Array.from(values, (v, t) => `${t + 0.5} ${(98 - (v / 255) * 94).toFixed(1)}`);
  const line = 98 - data.threshold * 94;
  return draw(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${values.length} 100`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": "Activation at 50 Hz",
    },
    draw("path", { class: "area", d: `M0 98L${points.join("L")}L${values.length} 98z` }),
    draw("line", { class: "threshold", x1: 0, x2: values.length, y1: line, y2: line }),
    draw("path", { class: "linepath", d: `M${points.join("L")}` }),
  );
}
function spansOf(values) {
  const spans = [];
  const high = data.threshold * 255;
  for (let t = 0, start = -1; t <= values.length; t++) {
    const on = t < values.length && values[t] >= high;
    if (on && start < 0) start = t;
    if (!on && start >= 0) {
      spans.push(
        make("div", {
          class: "span",
          style: `left:${(100 * start) / values.length}%;width:${(100 * (t - start)) / values.length}%`,
        }),
      );
      start = -1;
    }
  }
  return spans;
}
