"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);

/* ---- theme, contents, zoom, tables */
one("#theme").onclick = () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing */ }
};

function open(state) {
  document.body.classList.toggle("open", state);
  one("#menu").setAttribute("aria-expanded", document.body.classList.contains("open"));
}
one("#menu").onclick = () => open();
all("#side a").forEach((link) => link.addEventListener("click", () => open(false)));
one("main").addEventListener("click", () => open(false));
document.addEventListener("keydown", (event) => event.key === "Escape" && open(false));

const links = new Map(all("#side a").map((link) => [link.hash.slice(1), link]));
const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
function follow() {
  const reached = places.filter((place) => place.getBoundingClientRect().top < 120);
  const here = links.get((reached.at(-1) ?? places[0]).id);
  if (here.classList.contains("here")) return;
  all("#side .here, #side .on").forEach((node) => node.classList.remove("here", "on"));
  const chapter = here.closest("#side > ol > li");
  here.classList.add("here");
  chapter?.classList.add("on");
  one("#where").textContent = (chapter?.querySelector("a") ?? here).textContent;
  const side = one("#side"), top = here.offsetTop - side.clientHeight / 2;
  if (Math.abs(side.scrollTop - top) > side.clientHeight / 3) side.scrollTop = top;
}
let asked = false;
addEventListener("scroll", () => {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; follow(); });
}, { passive: true });
follow();

all(".shown img").forEach((picture) => picture.addEventListener("click", () => {
  Object.assign(one("#zoom img"), { src: picture.src, alt: picture.alt });
  one("#zoom").showModal();
}));
one("#zoom").onclick = () => one("#zoom").close();

function number(text) { /* the first number of a cell, however it is written; NaN for words */
  const plain = text.replace(/[−–]/g, "-").replace(/(\d),(?=\d{3})/g, "$1").trim();
  return /^[-+±]?[\d.]/.test(plain) ? parseFloat(plain.replace(/^[+±]/, "")) : NaN;
}
all("table:not(.matrix)").forEach((table) => {
  const body = table.tBodies[0];
  if (!table.tHead || !body || body.rows.length < 3) return;
  all("th", table.tHead).forEach((head, column) => {
    if (!head.textContent.trim()) return;
    head.classList.add("sorts");
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row.cells[column]?.textContent.trim() ?? "", row]);
      const numeric = rows.some(([text]) => !isNaN(number(text)));
      rows.sort(([a], [b]) => {
        const [x, y] = [number(a), number(b)];
        if (numeric && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y); /* words and dashes last */
        return (down ? -1 : 1) * (numeric ? x - y : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    };
    head.onclick = sort;
    head.onkeydown = (event) => event.key === "Enter" && sort();
  });
});

/* ---- pieces of the interactive figures */
function node(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "rect", "circle", "line", "text"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made[name] = value;
    else if (value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
const controls = (...parts) => node("div", { class: "controls" }, ...parts);
const fixed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const unique = (values) => [...new Set(values)];

function slider(name, { min, max, step, value, show = fixed, colour }, change) {
  const output = node("output", {}, show(value));
  const input = node("input", { type: "range", min, max, step, value, style: colour ? `accent-color: var(--${colour})` : false });
  input.oninput = () => { output.textContent = show(+input.value); change(+input.value); };
  const label = node("label", {}, node("span", {}, name), input, output);
  const set = (next) => { input.value = next; output.textContent = show(+input.value); };
  return { label, input, set };
}
function choice(name, options, change) { /* options: text of each */
  const list = node("select", {}, ...options.map((text, i) => node("option", { value: i }, text)));
  list.onchange = () => change(+list.value);
  return node("label", {}, name, list);
}
function tick(name, change) {
  const box = node("input", { type: "checkbox", onchange: () => change(box.checked) });
  return node("label", {}, box, name);
}
/* Lines of a name, a bar and a number. A line: name, value, low and high, was (a mark), colour. */
function bars(lines, [from, to] = [0, 1], digits = 2) {
  const at = (value) => `${(100 * (Math.min(Math.max(value, from), to) - from)) / (to - from)}%`;
  return node("div", { class: "bars" }, ...lines.flatMap((line) => {
    const bar = node("span", { class: "bar" }), style = `background: var(--${line.colour ?? "soft"})`;
    if (line.low === undefined) bar.append(node("i", { style: `${style}; width: ${at(line.value)}` }));
    else {
      bar.append(node("i", { class: "span", style: `left: ${at(line.low)}; width: calc(${at(line.high)} - ${at(line.low)})` }));
      bar.append(node("i", { class: "dot", style: `left: ${at(line.value)}` }));
    }
    if (line.was !== undefined) bar.append(node("i", { class: "was", style: `left: ${at(line.was)}` }));
    return [node("span", {}, line.name), bar, node("span", { class: "value" }, line.text ?? fixed(line.value, digits))];
  }));
}
const softmax = (scores) => {
  const top = Math.max(...scores), exps = scores.map((q) => Math.exp(q - top));
  const sum = exps.reduce((a, b) => a + b);
  return exps.map((e) => e / sum);
};
const MODALITIES = ["frames", "audio", "text"];

/* ---- the five: each gets its box, the rows of its file, and the clips' videos by id */
const FIGURES = {
  temperature(box, stage_one_loss) {
    const cosines = stage_one_loss.map((row) => Object.values(row).map(Number)), n = cosines.length;
    const same = (i, j) => i !== j && cosines.every((row) => row[i] === row[j]);
    let tau = 0.25, masked = false;
    const rows = (t) => cosines.map((row, i) => softmax(row.map((c, j) => (masked && same(i, j) ? -Infinity : c / t))));
    const loss = (t) => -rows(t).reduce((sum, row, i) => sum + Math.log(Math.max(row[i], 1e-12)), 0) / n;
    const [low, high] = [0.02, 2], x = (t) => (300 * Math.log(t / low)) / Math.log(high / low);
    const table = node("table", { class: "matrix" }), words = node("p"), curve = node("svg", { viewBox: "-4 -14 320 186", role: "img", "aria-label": "Loss against temperature" });
    const draw = () => {
      table.replaceChildren(...rows(tau).map((row, i) => node("tr", {}, node("th", {}, `clip ${i + 1}`), ...row.map((share, j) =>
        node("td", { style: `background: color-mix(in srgb, var(--plum) ${60 * share}%, transparent); ${i === j ? "font-weight: 700" : ""}` }, masked && same(i, j) ? "left out" : fixed(share))))),
        node("tr", {}, node("th"), ...cosines.map((_, j) => node("th", {}, `text ${j + 1}`))));
      const top = Math.max(1.3 * Math.log(n), loss(low)), y = (v) => 150 - (140 * v) / top, steps = [...Array(61).keys()].map((k) => low * (high / low) ** (k / 60));
      curve.replaceChildren(
        node("line", { x1: 0, x2: 300, y1: y(0), y2: y(0), class: "axis" }),
        node("line", { x1: 0, x2: 300, y1: y(Math.log(n)), y2: y(Math.log(n)), class: "axis", "stroke-dasharray": "4 4" }),
        node("text", { x: 300, y: y(Math.log(n)) - 5, "text-anchor": "end", class: "soft" }, `guessing, ln ${n}`),
        node("path", { d: `M${steps.map((t) => `${x(t)},${y(loss(t))}`).join("L")}`, fill: "none", stroke: "currentColor", "stroke-width": 2 }),
        node("circle", { cx: x(tau), cy: y(loss(tau)), r: 6, fill: "var(--plum)" }),
        node("text", { x: 0, y: 168, class: "soft" }, low), node("text", { x: 300, y: 168, "text-anchor": "end", class: "soft" }, `τ = ${high}`), node("text", { x: 0, y: -2, class: "soft" }, "loss"));
      words.textContent = `Loss ${fixed(loss(tau), 3)}. ` + (!masked && loss(0.02) > 0.1
        ? "However small τ is, it cannot reach 0: two clips say the same words, and each takes from the other."
        : "A small τ sharpens each row, a large one makes all texts alike.");
    };
    const tauSlider = slider("τ", { min: Math.log(low), max: Math.log(high), step: 0.01, value: Math.log(tau), show: (v) => fixed(Math.exp(v), 3) }, (v) => { tau = Math.exp(v); draw(); });
    box.append(node("h5", {}, "Turn the temperature ", node("small", {}, "shares that each text gets of a clip's row")),
      controls(tauSlider.label, tick("leave equal words out", (on) => { masked = on; draw(); })), node("div", { class: "panels" }, node("div", { class: "wide" }, table), curve), words);
    draw();
  },

  quality(box, rows) {
    const scores = [0, 0, 0], present = [true, true, true], target = node("div"), words = node("p");
    const draw = () => {
      const weights = present.some(Boolean) ? softmax(scores.map((q, i) => (present[i] ? q : -Infinity))) : [0, 0, 0];
      target.replaceChildren(bars(MODALITIES.map((name, i) => ({ name: `β of ${name}`, value: weights[i], colour: name, text: present[i] ? undefined : "absent" }))));
      const top = weights.indexOf(Math.max(...weights));
      words.textContent = present.some(Boolean) ? `Only differences count: one point more for ${MODALITIES[top]} and it is worth e = 2.72 times as much against each of the others.` : "Without any modality there is nothing to weigh.";
    };
    const sliders = MODALITIES.map((name, i) => slider(`q of ${name}`, { min: -3, max: 3, step: 0.05, value: 0, colour: name }, (v) => { scores[i] = v; draw(); }));
    const take = (row) => {
      const logs = MODALITIES.map((name) => Math.log(+row[name])), finite = logs.filter(isFinite);
      const mean = finite.reduce((a, b) => a + b, 0) / Math.max(finite.length, 1);
      logs.forEach((value, i) => {
        present[i] = isFinite(value);
        scores[i] = present[i] ? value - mean : 0;
        sliders[i].set(scores[i]);
        sliders[i].input.disabled = !present[i];
      });
      draw();
    };
    const clips = unique(rows.map((row) => row.clip)).map((clip) => rows.find((row) => row.clip === clip));
    box.append(node("h5", {}, "Score the modalities yourself ", node("small", {}, "Eq. 8, from the first segment of a clip of the figure")),
      controls(choice("clip with", clips.map((row) => row.clip), (i) => take(clips[i]))), node("div", { class: "panels" }, node("div", {}, ...sliders.map((s) => controls(s.label))), target), words);
    take(clips[0]);
  },

  attention(box, rows, videos) {
    const clips = unique(rows.map((row) => row.clip)), screen = node("div"), words = node("p"), strips = node("div", { class: "strips" });
    let time = 0, video = null, parts = [];
    const move = (next, seek) => {
      time = next;
      if (seek && video?.duration) video.currentTime = time * video.duration;
      scrub.set(time);
      all(".cursor", strips).forEach((cursor) => { cursor.style.left = `${100 * time}%`; });
      words.textContent = parts.map(({ name, heads, steps }) => steps < 2 ? `${name}: missing, a learned token stands in.` :
        `${name}: ${heads.map((head) => `${fixed(head[Math.min(steps - 1, Math.floor(time * steps))] * steps, 1)}×`).join(", ")} an even share.`).join(" ");
    };
    const scrub = slider("moment", { min: 0, max: 1, step: 0.001, value: 0, show: (v) => (video?.duration ? `${fixed(v * video.duration, 1)} s` : `${Math.round(100 * v)} %`) }, (v) => { video?.pause(); move(v, true); });
    const play = () => { if (!video || video.paused) return; move(video.currentTime / video.duration); requestAnimationFrame(play); };
    const take = (clip) => {
      parts = ["frames", "audio"].map((name) => {
        const own = rows.filter((row) => row.clip === clip && row.modality === name);
        const heads = unique(own.map((row) => row.head)).map((head) => own.filter((row) => row.head === head).map((row) => +row.attention));
        return { name, heads, steps: heads[0]?.length ?? 0 };
      }).filter((part) => part.steps);
      const top = Math.max(...parts.filter((p) => p.steps > 1).flatMap((p) => p.heads.flat().map((a) => a * p.steps)), 1);
      strips.replaceChildren(...parts.filter((p) => p.steps > 1).map(({ name, heads, steps }) => node("div", {}, `${name}, ${heads.length} heads × ${steps} steps`,
        node("div", { class: "strip" }, node("svg", { viewBox: `0 0 ${steps} ${heads.length}`, preserveAspectRatio: "none", role: "img", "aria-label": `Attention over ${name}` },
          ...heads.flatMap((head, i) => head.map((a, j) => node("rect", { x: j, y: i, width: 1.02, height: 0.92, fill: `var(--${name})`, "fill-opacity": fixed((a * steps) / top, 3) })))), node("i", { class: "cursor" })))));
      video = videos[clip] ? node("video", { src: videos[clip], controls: "", playsinline: "", preload: "metadata", "aria-label": `Clip ${clip}`, onplay: play, onloadedmetadata: () => move(time), onseeked: () => move(video.currentTime / video.duration) }) : null;
      screen.replaceChildren(...(video ? [video] : []));
      move(0);
    };
    box.append(node("h5", {}, "Scrub through the clip ", node("small", {}, "where the words look, head by head; the stronger the colour, the more")),
      controls(choice("clip", clips, (i) => take(clips[i])), scrub.label), node("div", { class: "watch" }, screen, strips), words);
    take(clips[0]);
  },

  damage(box, rows) {
    const name = (row) => `${row.kind}: ${row.modality}`, kinds = unique(rows.map(name));
    const target = node("div"), words = node("p"), place = node("span");
    const take = (kind) => {
      const own = rows.filter((row) => name(row) === kind), levels = unique(own.map((row) => row.level));
      const range = [Math.min(...own.map((r) => +r.low)), Math.max(...own.map((r) => +r.high))];
      const clean = new Map(own.filter((row) => !row.level).map((row) => [row.model, +row.rho]));
      const text = (i) => (!levels[i] ? "none" : kind.startsWith("white noise") ? `${levels[i]} dB` : `${Math.round(100 * levels[i])} %`);
      const draw = (i) => {
        const now = own.filter((row) => row.level === levels[i]);
        target.replaceChildren(bars(now.map((row) => ({ name: row.model, value: +row.rho, low: +row.low, high: +row.high, was: clean.get(row.model) })), range, 3));
        const costs = now.map((row) => clean.get(row.model) - row.rho);
        words.textContent = !levels[i] ? "Undamaged clips. The line marks where each model starts; the band is its 95 % interval."
          : `ρ falls by ${fixed(Math.min(...costs), 3)} to ${fixed(Math.max(...costs), 3)}. The axis runs from ${fixed(range[0])} to ${fixed(range[1])}.`;
      };
      place.replaceChildren(slider("damage", { min: 0, max: levels.length - 1, step: 1, value: 0, show: text }, draw).label);
      draw(0);
    };
    box.append(node("h5", {}, "Damage the clips ", node("small", {}, "ρ on validation, all models on the same clips")), controls(choice("what", kinds, (i) => take(kinds[i])), place), target, words);
    take(kinds[0]);
  },

  removed(box, every) {
    const models = unique(every.map((row) => row.model)), of = (name) => every.filter((row) => row.model === name);
    let model = models[0], gone = 0;
    const target = node("div"), words = node("p");
    const draw = () => {
      const [, , ...emotions] = Object.keys(every[0]), whole = of(model)[0], row = of(model)[gone];
      target.replaceChildren(bars(emotions.map((name) => ({ name, value: +row[name], was: +whole[name] }))));
      const moved = emotions.map((name) => [Math.abs(row[name] - whole[name]), name]).sort((a, b) => b[0] - a[0])[0];
      words.textContent = gone ? `${moved[1]} moves most, by ${fixed(row[moved[1]] - whole[moved[1]])}. The line marks the prediction from everything.` : "The prediction from everything. Now take a modality away.";
    };
    box.append(node("h5", {}, "Take a modality away ", node("small", {}, "one clip, six predicted intensities")),
      controls(choice("model", models, (i) => { model = models[i]; draw(); }), choice("input", of(model).map((row) => row.input), (i) => { gone = i; draw(); })), target, words);
    draw();
  },
};
all(".live").forEach((box) => {
  const { rows, videos } = JSON.parse(box.querySelector("script").textContent);
  FIGURES[box.dataset.name](box, rows, videos);
});
