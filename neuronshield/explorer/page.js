/* The explorer: `mount(root, data, {onSelect})` draws into an element or a shadow root. `data` is made by page.py.
   Texts of prompts, models and files are written with textContent only; nothing is fetched, evaluated or stored. */

const SIDES = { harmful: "▲", benign: "▽", "": "◇" };
const STATUSES = { verified: "●", candidate: "○", "anti-refusal": "◆", backup: "◐" };
const ALONE = "this neuron ablated";
const HEAD = 160, TAIL = 60; // tokens of a folded prompt that stay
const EAGER = 3; // pairs drawn before anything is known about what is visible
let mounts = 0;

function mount(root, data, { onSelect = () => {} } = {}) {
  const ex = { data, onSelect, id: `explorer${(mounts += 1)}`, current: -1, marked: new Set(), pair: null, folded: true };
  ex.condition = data.conditions[0];
  ex.redacted = false;
  ex.unfolded = new Set();
  let start = 0;
  for (const prompt of data.prompts) {
    prompt.start = start;
    start += prompt.tokens.length;
  }
  const effect = (n) => (n.effect && n.effect[0] !== null ? n.effect[0] : -Infinity);
  ex.order = data.neurons.map((_, k) => k).sort((a, b) => effect(data.neurons[b]) - effect(data.neurons[a]) || a - b);
  ex.cells = data.modalities.flatMap((m) => data.languages.map((l) => `${l}/${m}`)).filter((c) => data.prompts.some((p) => p.cell === c));
  ex.cell = ex.cells[0];
  ex.hasAlone = data.prompts.some((p) => p.alone.some((said) => said !== null));
  ex.tip = make("div", { class: "tip", role: "status", hidden: true });
  ex.box = make("div", { class: "explorer", lang: "en" },
    make("div", { class: "panes" }, make("div", { class: "left" }, header(ex), sidebar(ex)), content(ex)), ex.tip);
  root.append(ex.box);
  hints(ex);
  const end = new AbortController();
  window.addEventListener("beforeprint", () => unfold(ex, true), { signal: end.signal });
  window.addEventListener("afterprint", () => unfold(ex, false), { signal: end.signal });
  filter(ex);
  prompts(ex);
  if (ex.order.length) go(ex, ex.order[0], false);
  return {
    select: (neurons) => select(ex, neurons),
    focus: () => ex.list.focus({ preventScroll: true }),
    remove: () => (end.abort(), ex.watch.disconnect(), ex.box.remove()),
  };
}

/* ---- small things ---- */

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === null || value === undefined || value === false) continue;
    else if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function number(value, scale) {
  const digits = Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(scale > 0 ? scale : 1))));
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? (0).toFixed(digits) : text).replace("-", "−");
}

const exact = (value) => (Number.isNaN(value) ? "not known" : String(Number(value.toPrecision(4))).replace("-", "−"));
const percent = (value) => `${number(100 * value, 10)} %`;
const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const name = (neuron) => `(${neuron.layer}, ${neuron.index})`;
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");

function shade(element, value, scale) {
  const strength = Number.isNaN(value) || !(scale > 0) ? 0 : Math.min(1, Math.abs(value) / scale);
  element.style.setProperty("--s", strength.toFixed(3));
  element.classList.toggle("cold", value < 0);
  element.classList.toggle("below", value < 0 && strength > 0.1);
}

/* Arrow keys move between the buttons of a table; one of them is in the tab order. */
function rove(table) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const one = (button) => table.querySelectorAll("button").forEach((b) => (b.tabIndex = b === button ? 0 : -1));
  one(table.querySelector("button"));
  table.addEventListener("focusin", (event) => event.target.matches("button") && one(event.target));
  table.addEventListener("keydown", (event) => {
    const step = steps[event.key], cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    for (let y = cell.parentElement.rowIndex + step[0], x = cell.cellIndex + step[1]; ; y += step[0], x += step[1]) {
      const next = table.rows[y] && table.rows[y].cells[x];
      if (!next) return;
      const button = next.querySelector("button");
      if (button) return button.focus();
    }
  });
  return table;
}

function language(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code);
  } catch {
    return code;
  }
}

const spoken = (cell) => `${language(cell.split("/")[0])}, ${cell.split("/")[1]}`;

/* ---- header ---- */

function header(ex) {
  return make("header", {}, make("h1", { text: ex.data.title, dir: "auto" }), make("p", { class: "muted", text: ex.data.summary, dir: "auto" }));
}

function warning(ex) {
  const hide = make("input", { type: "checkbox", onchange: () => ((ex.redacted = hide.checked), prompts(ex)) });
  return make("div", { class: "warning", role: "note" },
    make("span", { text: "Content warning: harmful requests, their pictures, and what a model answers to them." }),
    make("label", { class: "check" }, hide, "hide them"));
}

/* ---- the list of neurons ---- */

function sidebar(ex) {
  const { neurons } = ex.data;
  ex.query = make("input", { type: "search", placeholder: "layer, index or token", "aria-label": "Search neurons by layer, index or token", oninput: () => filter(ex) });
  ex.filters = ["status", "kind", "layer"].map((field) => {
    const values = [...new Set(neurons.map((n) => n[field]))].sort((a, b) => (a > b ? 1 : -1));
    const options = values.map((v) => make("option", { value: v, text: field === "layer" ? `layer ${v}` : v || "kind not known" }));
    const box = make("select", { "aria-label": `Show ${field}`, onchange: () => filter(ex), hidden: values.length < 2 }, make("option", { value: "*", text: `any ${field}` }), ...options);
    return { field, box };
  });
  ex.total = make("p", { class: "muted", role: "status" });
  ex.sharing = make("p", { class: "sharing", hidden: true });
  ex.markedBar = make("p", { class: "marked", hidden: true });
  const ends = neurons.flatMap((n) => (n.effect || []).filter((v) => v !== null));
  ex.low = Math.min(0, ...ends);
  ex.high = Math.max(0, ...ends) || 1;
  ex.list = make("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Neurons by effect", "aria-multiselectable": "true", onkeydown: (e) => keys(ex, e), onclick: (e) => clicked(ex, e) });
  ex.options = neurons.map((neuron, k) => option(ex, neuron, k));
  ex.list.append(...ex.order.map((k) => ex.options[k]));
  return make("nav", { "aria-label": "Neurons" },
    make("div", { class: "filters" }, ex.query, ...ex.filters.map((f) => f.box)), ex.sharing, ex.total,
    make("div", { class: "axis muted", "aria-hidden": "true", "--zero": at(ex, 0) },
      make("span", { text: "effect of ablating it alone" }), make("i", { text: parseFloat(at(ex, 0)) > 30 ? percent(ex.low) : "" }), make("i", { text: "0", class: "zero" }), make("i", { text: percent(ex.high) })),
    ex.list, ex.markedBar, key(ex));
}

const at = (ex, value) => `${((100 * (value - ex.low)) / (ex.high - ex.low)).toFixed(2)}%`;

function key(ex) {
  const statuses = Object.entries(STATUSES).filter(([status]) => ex.data.neurons.some((n) => n.status === status));
  const pairs = [["▲", "more active on harmful"], ["▽", "on benign"], ...statuses.map(([status, mark]) => [mark, status])];
  return make("p", { class: "key muted" }, ...pairs.flatMap(([mark, meaning]) => [make("span", {}, make("b", { text: mark, "aria-hidden": "true" }), ` ${meaning}`), " "]), "Arrow keys step, space marks.");
}

function option(ex, neuron, k) {
  const [value, low, high] = neuron.effect || [null, null, null];
  const track = make("span", { class: "track", "--zero": at(ex, 0) });
  if (value !== null) {
    track.append(make("i", { class: value < 0 ? "bar minus" : "bar", "--from": at(ex, Math.min(0, value)), "--to": at(ex, Math.max(0, value)) }));
    if (low !== null && high !== null) track.append(make("i", { class: "whisker", "--from": at(ex, low), "--to": at(ex, high) }));
  } else track.append(make("em", { text: "n/a" }));
  const effect = value === null ? "effect not measured" : `effect ${percent(value)}${low === null || high === null ? "" : `, ${percent(low)} to ${percent(high)}`}`;
  const side = neuron.leaning ? `more active on ${neuron.leaning}` : "no side known";
  const label = `Layer ${neuron.layer}, index ${neuron.index}; ${effect}; ${side}; ${neuron.status}${neuron.kind && neuron.kind !== neuron.status ? `, ${neuron.kind}` : ""}`;
  return make("div", { role: "option", id: `${ex.id}-${k}`, "data-k": k, "aria-label": label, "aria-selected": "false", title: label },
    make("span", { class: "box", "aria-hidden": "true" }), make("span", { class: "name", text: name(neuron) }), track,
    make("span", { class: `side ${neuron.leaning}`, text: SIDES[neuron.leaning] }), make("span", { class: "side", text: STATUSES[neuron.status] || "○" }));
}

function filter(ex) {
  const wanted = ex.query.value.trim().toLowerCase();
  const shared = ex.pair && new Set(ex.pair.neurons.map(String));
  ex.shown = ex.order.filter((k) => {
    const n = ex.data.neurons[k];
    const text = `${name(n)} ${n.layer},${n.index} ${n.promoted.join(" ")} ${n.suppressed.join(" ")}`.toLowerCase();
    return (!wanted || text.includes(wanted)) && (!shared || shared.has(String([n.layer, n.index]))) &&
      ex.filters.every(({ field, box }) => box.value === "*" || box.value === String(n[field]));
  });
  const shown = new Set(ex.shown);
  ex.options.forEach((element, k) => (element.hidden = !shown.has(k)));
  ex.shown.forEach((k, place) => {
    ex.options[k].setAttribute("aria-posinset", place + 1);
    ex.options[k].setAttribute("aria-setsize", ex.shown.length);
  });
  ex.total.textContent = `${ex.shown.length} of ${count(ex.order.length, "neuron")}`;
  if (ex.shown.length && ex.current >= 0 && !shown.has(ex.current)) go(ex, ex.shown[0]);
}

function keys(ex, event) {
  const place = ex.shown.indexOf(ex.current), last = ex.shown.length - 1;
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + 10, PageUp: place - 10, Home: 0, End: last }[event.key];
  if (event.key === " " && place >= 0) toggle(ex, ex.current);
  else if (next === undefined || last < 0) return;
  else go(ex, ex.shown[Math.max(0, Math.min(last, next))]);
  event.preventDefault();
}

function clicked(ex, event) {
  const row = event.target.closest("[data-k]");
  if (!row) return;
  if (event.target.closest(".box")) toggle(ex, Number(row.dataset.k));
  else go(ex, Number(row.dataset.k));
}

function toggle(ex, k) {
  if (!ex.marked.delete(k)) ex.marked.add(k);
  marks(ex);
  report(ex);
}

function marks(ex) {
  ex.options.forEach((element, k) => element.setAttribute("aria-selected", ex.marked.has(k)));
  const chosen = ex.order.filter((k) => ex.marked.has(k)).map((k) => name(ex.data.neurons[k]));
  ex.markedBar.hidden = !chosen.length;
  const clear = make("button", { type: "button", text: "clear", onclick: () => (ex.marked.clear(), marks(ex), report(ex), ex.list.focus()) });
  ex.markedBar.replaceChildren(make("b", { text: `${chosen.length} marked` }), clear, make("code", { text: `[${chosen.join(", ")}]` }));
}

function report(ex) {
  const chosen = ex.marked.size ? ex.order.filter((k) => ex.marked.has(k)) : [ex.current];
  ex.onSelect(chosen.map((k) => [ex.data.neurons[k].layer, ex.data.neurons[k].index]));
}

function select(ex, neurons) {
  const wanted = new Set(neurons.map(String));
  const chosen = ex.order.filter((k) => wanted.has(String([ex.data.neurons[k].layer, ex.data.neurons[k].index])));
  ex.marked = new Set(chosen.length > 1 ? chosen : []);
  marks(ex);
  if (chosen.length && !chosen.includes(ex.current)) go(ex, chosen[0], false);
}

/* Makes neuron k the current one. */
function go(ex, k, tell = true) {
  if (ex.current >= 0) ex.options[ex.current].classList.remove("current");
  const changed = k !== ex.current;
  ex.current = k;
  ex.options[k].classList.add("current");
  ex.list.setAttribute("aria-activedescendant", ex.options[k].id);
  const row = ex.options[k], top = row.offsetTop - ex.list.offsetTop;
  if (top < ex.list.scrollTop) ex.list.scrollTop = top;
  else if (top + row.offsetHeight > ex.list.scrollTop + ex.list.clientHeight) ex.list.scrollTop = top + row.offsetHeight - ex.list.clientHeight;
  if (!changed) return;
  const bytes = Uint8Array.from(atob(ex.data.neurons[k].values), (c) => c.charCodeAt(0));
  ex.values = Float32Array.from(new Int16Array(bytes.buffer), (v) => (v === -32768 ? NaN : v * ex.data.neurons[k].step));
  about(ex);
  ex.groups.forEach((group) => (group.painted = false));
  repaint(ex);
  if (tell && !ex.marked.size) report(ex);
}

/* ---- the current neuron ---- */

function content(ex) {
  ex.title = make("h2", { text: "No neuron to show" });
  ex.tags = make("p", { class: "tags" });
  ex.sentence = make("p", { class: "lead" });
  ex.words = make("dl", { class: "words" });
  ex.rows = make("div", { class: "pairs" });
  const step = (by, text, label) => make("button", { type: "button", text, "aria-label": label, onclick: () => ex.shown.length && go(ex, ex.shown[Math.max(0, Math.min(ex.shown.length - 1, ex.shown.indexOf(ex.current) + by))]) });
  const neuron = make("div", { id: `${ex.id}-neuron` },
    make("div", { class: "heading" }, ex.title, make("span", { class: "steps" }, step(-1, "↑", "Previous neuron"), step(1, "↓", "Next neuron"))),
    ex.tags, ex.sentence, ex.words, grid(ex), controls(ex), ex.rows, notes(ex));
  const main = make("div", { class: "main", role: "main" }, neuron);
  if (ex.data.shared.length) {
    const panel = overlaps(ex);
    panel.hidden = true;
    const tabs = [["Neuron", neuron], ["Neurons that cells share", panel]].map(([text, part], i) =>
      make("button", { type: "button", role: "tab", text, "aria-controls": part.id, "aria-selected": i === 0, tabindex: i ? -1 : 0, onclick: () => ex.tab(i) }));
    [neuron, panel].forEach((part, i) => (part.setAttribute("role", "tabpanel"), part.setAttribute("aria-labelledby", (tabs[i].id = `${part.id}-tab`))));
    ex.tab = (i) => {
      tabs.forEach((tab, j) => (tab.setAttribute("aria-selected", i === j), (tab.tabIndex = i === j ? 0 : -1)));
      neuron.hidden = i !== 0;
      panel.hidden = i !== 1;
    };
    const turn = (event) => ["ArrowLeft", "ArrowRight"].includes(event.key) && (ex.tab(tabs.indexOf(event.target) ? 0 : 1), tabs.find((t) => t.tabIndex === 0).focus());
    main.prepend(make("div", { class: "tabs", role: "tablist", "aria-label": "What is shown", onkeydown: turn }, ...tabs));
    main.append(panel);
  }
  main.prepend(warning(ex));
  return main;
}

function notes(ex) {
  if (!ex.data.notes.length) return null;
  return make("section", { class: "notes" }, make("h3", { text: "How it was measured, and what is not known" }), make("ul", {}, ...ex.data.notes.map((text) => make("li", { text, dir: "auto" }))));
}

function about(ex) {
  const n = ex.data.neurons[ex.current];
  ex.title.textContent = `Neuron ${name(n)}`;
  const tag = (mark, text, kind = "") => make("span", { class: `tag ${kind}` }, make("b", { text: mark, "aria-hidden": "true" }), ` ${text}`);
  ex.tags.replaceChildren(
    tag(STATUSES[n.status] || "○", n.status),
    ...(n.kind && n.kind !== n.status ? [tag(n.kind === "refusal-promoting" ? "＋" : "−", n.kind)] : []),
    ...(n.leaning ? [tag(SIDES[n.leaning], `more active on ${n.leaning}`, n.leaning)] : []),
    make("span", { class: "muted", text: `layer ${n.layer} · number ${ex.order.indexOf(ex.current) + 1} of ${ex.order.length} by effect` }));
  ex.sentence.textContent = n.sentence;
  const chips = (tokens) => (tokens.length ? tokens.map((text) => make("bdi", { class: "chip", text: text.trim() || visible(text), title: visible(text) })) : [make("span", { class: "muted", text: "not known" })]);
  ex.words.replaceChildren(make("dt", { text: "promotes" }), make("dd", {}, ...chips(n.promoted)), make("dt", { text: "suppresses" }), make("dd", {}, ...chips(n.suppressed)));
  const known = Object.values(n.differences).filter((d) => d !== null);
  const largest = Math.max(0, ...known.map(Math.abs));
  for (const [cell, element] of ex.gridCells) {
    const d = n.differences[cell];
    const missing = d === null || d === undefined;
    element.textContent = missing ? "–" : number(d, largest);
    shade(element, missing ? 0 : d, largest);
    element.classList.toggle("missing", missing);
    const text = missing ? "not measured" : `harmful minus benign ${exact(d)}`;
    element.title = `${spoken(cell)}: ${text}${element.tagName === "BUTTON" ? "; click for its prompts" : ""}`;
    if (element.tagName === "BUTTON") element.setAttribute("aria-label", `${spoken(cell)}: ${text}; show prompts`);
  }
  const scale = number(n.scale, n.scale);
  ex.legend.replaceChildren(make("span", { text: `−${scale}` }), make("i", { class: "ramp", "aria-hidden": "true" }), make("span", { text: `+${scale}` }), make("span", { class: "muted", text: "activation; dotted = negative" }));
}

function grid(ex) {
  ex.gridCells = new Map();
  const { languages, modalities } = ex.data;
  const table = make("table", { class: "grid" }, make("thead", {}, make("tr", {}, make("td"), ...languages.map((l) => make("th", { scope: "col", text: l, title: language(l) })))));
  const body = make("tbody");
  for (const modality of modalities) {
    const row = make("tr", {}, make("th", { scope: "row", text: modality }));
    for (const l of languages) {
      const cell = `${l}/${modality}`;
      const element = ex.cells.includes(cell)
        ? make("button", { type: "button", class: "value", "aria-pressed": cell === ex.cell, onclick: () => pick(ex, cell) })
        : make("span", { class: "value" });
      ex.gridCells.set(cell, element);
      row.append(make("td", {}, element));
    }
    body.append(row);
  }
  table.append(body);
  if (table.querySelector("button")) rove(table);
  return make("section", {}, make("h3", { text: "Mean activation on harmful minus benign requests" }),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Differences by language and modality" }, table));
}

function pick(ex, cell) {
  ex.cell = cell;
  for (const [other, element] of ex.gridCells) if (element.tagName === "BUTTON") element.setAttribute("aria-pressed", other === cell);
  prompts(ex);
}

/* ---- prompts ---- */

function controls(ex) {
  const names = [...ex.data.conditions];
  if (ex.hasAlone) names.splice(1, 0, ALONE);
  const radios = names.map((text) => make("label", {}, make("input", { type: "radio", name: `${ex.id}-condition`, value: text, checked: text === ex.condition, onchange: () => condition(ex, text) }), make("span", { text })));
  ex.legend = make("p", { class: "legend" });
  ex.where = make("h3");
  ex.tally = make("p", { class: "tally", role: "status" });
  const overlay = make("input", { type: "checkbox", checked: true, onchange: () => ex.box.classList.toggle("bare", !overlay.checked) });
  const switches = [make("fieldset", { class: "conditions", hidden: names.length < 2 }, make("legend", { text: "Answers" }), ...radios)];
  if (ex.data.pictures.length) switches.push(make("label", { class: "check" }, overlay, "activation on pictures"));
  return make("div", { class: "controls" }, make("div", { class: "line" }, ex.where, ex.legend), make("div", { class: "line" }, ...switches), ex.tally);
}

function condition(ex, text) {
  ex.condition = text;
  ex.groups.forEach((group) => (group.painted = false));
  repaint(ex);
}

/* One section a matched pair; only those near the window are filled. */
function prompts(ex) {
  if (ex.watch) ex.watch.disconnect();
  ex.watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const group = ex.groups.find((g) => g.element === entry.target);
      group.near = entry.isIntersecting;
      if (group.near) draw(ex, group);
    }
  }, { rootMargin: "800px" });
  const pairs = new Map();
  ex.data.prompts.filter((p) => p.cell === ex.cell).forEach((p) => pairs.set(p.pair, [...(pairs.get(p.pair) || []), p]));
  ex.groups = [...pairs.values()].map((members, i) => ({ members, near: i < EAGER, painted: false, rows: null, element: make("section", { class: "pair", "aria-label": members.length > 1 ? `matched pair ${members[0].pair}` : `prompt ${members[0].id}` }) }));
  ex.rows.replaceChildren(...ex.groups.map((g) => g.element));
  if (!ex.groups.length) ex.rows.append(make("p", { class: "muted", text: "No prompts are shown." }));
  ex.where.textContent = ex.cell ? `Prompts of ${ex.cell} (${language(ex.cell.split("/")[0])})` : "Prompts";
  repaint(ex);
  ex.groups.forEach((group) => ex.watch.observe(group.element));
}

function repaint(ex) {
  if (ex.current < 0) return;
  ex.groups.filter((group) => group.near).forEach((group) => draw(ex, group));
  tally(ex);
}

function draw(ex, group) {
  if (ex.current < 0) return;
  if (!group.rows) {
    group.rows = group.members.map((p) => promptRow(ex, p));
    group.element.replaceChildren(...group.rows.map((row) => row.element));
  }
  if (!group.painted) group.rows.forEach((row) => paint(ex, row));
  group.painted = true;
}

const reply = (ex, p, name) => ex.data.said[name === ALONE ? p.alone[ex.current] : p.answers[name]];

function tally(ex) {
  const first = ex.data.conditions[0], changed = ex.condition !== first;
  const texts = ["harmful", "benign"].map((label) => {
    const outcome = (p, c) => (reply(ex, p, c) || ["", ""])[1];
    const graded = ex.data.prompts.filter((p) => p.cell === ex.cell && p.label === label && outcome(p, ex.condition));
    const refused = (c) => graded.filter((p) => outcome(p, c) === "refused").length;
    return graded.length ? `${refused(ex.condition)} of ${graded.length} ${label}${changed ? ` (${first}: ${refused(first)})` : ""}` : "";
  }).filter(Boolean);
  ex.tally.textContent = texts.length ? `Refused, ${ex.condition}: ${texts.join(", ")}; of the prompts shown here.` : "No answers were graded here.";
}

function promptRow(ex, p) {
  const hidden = ex.redacted && p.label === "harmful";
  const row = { p, tokens: [], figures: [], hidden, stat: make("small", { class: "muted" }), answer: make("div", { class: "answer" }) };
  const own = p.tokens.map((_, j) => j).filter((j) => p.roles[j] !== "i");
  row.element = make("div", { class: `row ${p.label}` },
    make("div", { class: "who" }, make("span", { class: `tag ${p.label}` }, make("b", { text: SIDES[p.label], "aria-hidden": "true" }), ` ${p.label}`), make("small", { class: "muted id", text: p.id, dir: "auto" }), row.stat),
    make("div", { class: "asked" }, pictures(ex, row), text(ex, row, own)), row.answer);
  return row;
}

function text(ex, row, own) {
  const { p } = row;
  const box = make("p", { class: "tokens", dir: "auto", lang: p.language });
  const fold = !ex.unfolded.has(p.id) && ex.folded && own.length > HEAD + TAIL + 20;
  const parts = fold ? [own.slice(0, HEAD), own.slice(HEAD, -TAIL), own.slice(-TAIL)] : [own, [], []];
  for (const [part, list] of parts.entries()) {
    if (part === 1 && fold) {
      row.folded = { list, button: make("button", { type: "button", class: "fold", onclick: () => (ex.unfolded.add(p.id), replaceRow(ex, row)) }) };
      box.append(row.folded.button);
      continue;
    }
    let run = null; // of the chat template, set apart so that the direction of the text is that of the request
    for (const j of list) {
      const shown = row.hidden && p.roles[j] === "t" ? p.tokens[j].replace(/\S/gu, "▒") : p.tokens[j];
      const token = make("span", { class: "tok", "data-j": j, tabindex: row.tokens.length ? -1 : 0, text: shown.trim() || !shown ? shown : shown.replace(/\n/g, "⏎") });
      row.tokens.push([token, j]);
      if (p.roles[j] === "p") (run = run || box.appendChild(make("bdi", { class: "template" }))).append(token);
      else (run = null), box.append(token);
    }
  }
  box.row = row;
  return box;
}

function replaceRow(ex, row) {
  const group = ex.groups.find((g) => g.rows && g.rows.includes(row));
  const next = promptRow(ex, row.p);
  group.rows[group.rows.indexOf(row)] = next;
  row.element.replaceWith(next.element);
  paint(ex, next);
  const first = next.element.querySelector(".tok");
  if (first) first.focus({ preventScroll: true });
}

function unfold(ex, on) {
  ex.folded = !on;
  prompts(ex);
  if (on) ex.groups.forEach((group) => draw(ex, group));
}

/* Pictures with a canvas of one pixel a patch over them; tokens without a known place are a strip below. */
function pictures(ex, row) {
  const { p } = row;
  const image = [...p.roles].flatMap((role, j) => (role === "i" ? [j] : []));
  if (!p.pictures.length && !image.length) return null;
  const box = make("div", { class: "pictures" });
  const place = new Map(image.map((j, q) => [j, p.patches.slice(3 * q, 3 * q + 3)]));
  const loose = [];
  const known = (j) => {
    const [i, r, c] = place.get(j), size = p.pictures[i] && p.pictures[i][1];
    return size && r >= 0 && c >= 0 && r < size[0] && c < size[1];
  };
  image.forEach((j) => known(j) || loose.push(j));
  p.pictures.forEach(([number, size, area], i) => {
    const patches = image.filter((j) => place.get(j)[0] === i && known(j)).map((j) => [j, place.get(j)[1], place.get(j)[2]]);
    const label = `picture ${i + 1} of the ${p.label} request${row.hidden ? ", hidden" : ""}`;
    const picture = row.hidden ? make("div", { class: "veil", text: "hidden" }) : make("img", { src: ex.data.pictures[number], alt: "", draggable: "false" });
    box.append(figure(row, picture, { patches, size: size || [1, 1], area, label }));
  });
  if (loose.length) {
    const label = `${count(loose.length, "picture token")} in the order the model reads them; their place in the picture is not known`;
    const strip = figure(row, null, { patches: loose.map((j, q) => [j, 0, q]), size: [1, loose.length], label });
    box.append(make("div", { class: "loose" }, strip, make("small", { class: "muted", text: `${count(loose.length, "picture token")}, place not known` })));
  }
  return box;
}

function figure(row, picture, { patches, size, area = [0, 0, 1, 1], label }) {
  const [left, top, right, bottom] = area.map((v) => 100 * v); // of the picture, in percent
  const canvas = make("canvas", { width: size[1], height: size[0], "--left": `${left}%`, "--top": `${top}%`, "--width": `${right - left}%`, "--height": `${bottom - top}%` });
  const element = make("div", { class: picture ? "picture" : "strip", role: "img", tabindex: "0", "aria-label": label }, picture, canvas);
  const entry = { canvas, patches, label, element, size, at: [0, 0], picture: Boolean(picture) };
  element.figure = entry;
  element.row = row;
  row.figures.push(entry);
  return element;
}

function paint(ex, row) {
  const { p } = row, { scale } = ex.data.neurons[ex.current];
  const value = (j) => ex.values[p.start + j];
  row.tokens.forEach(([token, j]) => shade(token, value(j), scale));
  for (const { canvas, patches, picture } of row.figures) {
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (const [j, r, c] of patches) {
      const s = Math.min(1, Math.abs(value(j)) / scale) || 0;
      pen.fillStyle = `rgba(${value(j) < 0 ? "0,114,178" : "213,94,0"},${((picture ? 0.8 : 1) * s).toFixed(3)})`;
      pen.fillRect(c, r, 1, 1);
    }
  }
  const all = p.tokens.map((_, j) => value(j)).filter((v) => !Number.isNaN(v));
  const peak = all.reduce((a, v) => (Math.abs(v) > Math.abs(a) ? v : a), 0);
  row.stat.textContent = all.length ? `largest ${number(peak, scale)} · last ${number(value(p.tokens.length - 1) || 0, scale)}` : "";
  if (row.folded) {
    const inside = row.folded.list.map(value).reduce((a, v) => (Math.abs(v) > Math.abs(a) ? v : a), 0);
    row.folded.button.textContent = `… ${row.folded.list.length.toLocaleString("en")} more tokens, largest ${number(inside, scale)}: show`;
  }
  answer(ex, row);
}

function answer(ex, row) {
  const first = ex.data.conditions[0], said = reply(ex, row.p, ex.condition), before = reply(ex, row.p, first);
  if (!said) return row.answer.replaceChildren(make("small", { class: "muted", text: "no answer under this condition" }));
  const wrong = (row.p.label === "harmful" && said[1] === "complied") || (row.p.label === "benign" && said[1] === "refused") || said[1] === "incoherent";
  const chip = make("span", { class: `tag outcome ${wrong ? "wrong" : ""}` }, make("b", { text: { refused: "⊘", complied: "✓", incoherent: "≈" }[said[1]] || "?", "aria-hidden": "true" }), ` ${said[1] || "not graded"}`);
  const changed = before && ex.condition !== first && before[1] !== said[1] ? make("small", { class: "changed", text: `${first}: ${before[1] || "not graded"}` }) : null;
  row.answer.replaceChildren(make("div", {}, chip, " ", changed || ""), make("p", { dir: "auto", text: row.hidden ? "hidden" : said[0] || "(empty)", class: row.hidden || !said[0] ? "muted" : "" }));
}

/* Values of tokens and patches on hover and focus; arrow keys move between them. */
function hints(ex) {
  const show = (element, words) => {
    ex.tip.textContent = words;
    ex.tip.hidden = false;
    const from = element.getBoundingClientRect(), own = ex.tip.getBoundingClientRect();
    const box = ex.box.getBoundingClientRect(), middle = from.left + from.width / 2 - own.width / 2 - box.left;
    ex.tip.style.left = `${Math.max(4, Math.min(middle, box.width - own.width - 4))}px`;
    ex.tip.style.top = `${(from.top - own.height - 6 > 0 ? from.top - own.height - 6 : from.bottom + 6) - box.top}px`;
  };
  const token = (element) => {
    const { row } = element.closest(".tokens"), j = Number(element.dataset.j);
    const words = row.hidden && row.p.roles[j] === "t" ? "hidden" : `“${visible(row.p.tokens[j])}”`;
    show(element, `${words} · token ${j + 1} · ${exact(ex.values[row.p.start + j])}`);
  };
  const patch = (element) => {
    const { patches, at, picture } = element.figure;
    const found = patches.find(([, r, c]) => r === at[0] && c === at[1]);
    const where = picture ? `row ${at[0] + 1}, column ${at[1] + 1}` : `picture token ${at[1] + 1}`;
    show(element, found ? `${where} · ${exact(ex.values[element.row.p.start + found[0]])}` : `${where} · no value`);
  };
  const hide = () => (ex.tip.hidden = true);
  const find = (event, act) => {
    const one = event.target.closest && event.target.closest(".tok, .picture, .strip");
    if (!one) return hide();
    if (one.figure && act === "move") {
      const area = one.figure.canvas.getBoundingClientRect(), [rows, columns] = one.figure.size;
      const inside = (v, n) => Math.max(0, Math.min(n - 1, Math.floor(v * n)));
      one.figure.at = [inside((event.clientY - area.top) / area.height, rows), inside((event.clientX - area.left) / area.width, columns)];
    }
    return one.figure ? patch(one) : token(one);
  };
  ex.box.addEventListener("pointermove", (event) => find(event, "move"));
  ex.box.addEventListener("pointerleave", hide);
  ex.box.addEventListener("focusin", (event) => find(event, "focus"));
  ex.box.addEventListener("focusout", hide);
  ex.box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const one = event.target.closest && event.target.closest(".tok, .picture, .strip");
    if (!steps || !one) return;
    if (one.figure) {
      one.figure.at = one.figure.at.map((v, i) => Math.max(0, Math.min(one.figure.size[i] - 1, v + steps[i])));
      event.preventDefault();
      return patch(one);
    }
    if (!steps[1]) return;
    const box = one.closest(".tokens"), forward = getComputedStyle(box).direction === "rtl" ? -steps[1] : steps[1];
    const all = box.row.tokens.map(([element]) => element), next = all[all.indexOf(one) + forward];
    event.preventDefault();
    if (next) (one.tabIndex = -1), (next.tabIndex = 0), next.focus();
  });
}

/* ---- neurons that cells share ---- */

function overlaps(ex) {
  const { shared, languages, modalities } = ex.data;
  const seen = new Set(shared.flatMap((s) => s.cells));
  const ordered = modalities.flatMap((m) => languages.map((l) => `${l}/${m}`)).filter((c) => seen.has(c));
  const cells = [...ordered, ...[...seen].filter((c) => !ordered.includes(c))];
  const find = new Map(shared.flatMap((s) => [[s.cells.join(" "), s], [[...s.cells].reverse().join(" "), s]]));
  const dense = cells.length > 14;
  const head = make("tr", {}, make("td"), ...cells.map((c) => make("th", { scope: "col" }, make("span", { text: c }))));
  const table = make("table", { class: dense ? "overlap dense" : "overlap" }, make("thead", {}, head));
  const body = make("tbody");
  for (const a of cells) {
    const row = make("tr", {}, make("th", { scope: "row", text: a }));
    for (const b of cells) {
      const pair = a === b ? null : find.get(`${a} ${b}`);
      row.append(make("td", {}, pair ? overlapButton(ex, pair, [a, b], dense) : null));
    }
    body.append(row);
  }
  table.append(body);
  ex.overlapTable = rove(table);
  ex.sharedBox = make("div", { class: "shared", role: "status" }, make("p", { class: "muted", text: "Click a pair of cells to see the neurons that are in the best of both." }));
  return make("div", { id: `${ex.id}-shared` },
    make("h2", { text: "Neurons that cells share" }),
    make("p", { class: "lead", text: "Overlap of the best neurons of two cells: 0 is the overlap of unrelated benign groups, 1 is that of two halves of one cell." }),
    make("p", { class: "legend" }, make("span", { text: "0" }), make("i", { class: "ramp one", "aria-hidden": "true" }), make("span", { text: "1" }), make("span", { class: "muted", text: "hatched: too few requests to tell" })),
    make("div", { class: "sharing-panes" }, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Overlap of cells" }, table), ex.sharedBox));
}

const measured = (pair) => pair.overlap && pair.overlap[0] !== null;

function overlapText(pair) {
  if (!measured(pair)) return "too few requests to tell";
  const [value, low, high] = pair.overlap.map((v) => (v === null ? "?" : number(v, 1)));
  return `overlap ${value} [${low}, ${high}]`;
}

function overlapButton(ex, pair, [a, b], dense) {
  const label = `${a} and ${b}: ${overlapText(pair)}; ${count(pair.neurons.length, "neuron")} shared`;
  const button = make("button", { type: "button", class: measured(pair) ? "value cold" : "value missing", "aria-label": label, title: label, "aria-pressed": "false", onclick: () => share(ex, pair) });
  button.pair = pair;
  button.style.setProperty("--s", measured(pair) ? Math.max(0, Math.min(1, pair.overlap[0])).toFixed(3) : "0");
  button.textContent = dense ? "" : measured(pair) ? number(pair.overlap[0], 1) : "?";
  return button;
}

/* Filters the list to the neurons that two cells share; null shows all again. */
function share(ex, pair) {
  ex.pair = pair;
  ex.overlapTable.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b.pair === pair));
  ex.sharing.hidden = !pair;
  if (pair) {
    const text = `shared by ${pair.cells.join(" and ")}`;
    ex.sharing.replaceChildren(make("b", { text }), make("button", { type: "button", text: "show all", onclick: () => (share(ex, null), ex.list.focus()) }));
    const here = new Map(ex.data.neurons.map((n, k) => [String([n.layer, n.index]), k]));
    const items = pair.neurons.map((n) => {
      const k = here.get(String(n));
      return k === undefined ? make("span", { class: "chip muted", text: `(${n.join(", ")})` }) : make("button", { type: "button", class: "chip", text: `(${n.join(", ")})`, onclick: () => (go(ex, k), ex.tab(0)) });
    });
    const outside = pair.neurons.filter((n) => !here.has(String(n))).length;
    ex.sharedBox.replaceChildren(make("h3", { text: `${pair.cells.join(" and ")}: ${count(pair.neurons.length, "shared neuron")}` }),
      make("p", { text: `${overlapText(pair)}. The list shows ${outside ? `the ${pair.neurons.length - outside} of them that this page has` : "them"}.` }), make("p", { class: "chips" }, ...items));
  } else ex.sharedBox.replaceChildren(make("p", { class: "muted", text: "Click a pair of cells to see the neurons that are in the best of both." }));
  filter(ex);
}
