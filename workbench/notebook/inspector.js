// Draws what the kernel sends of a pair and says which key was pressed. Text of models only ever becomes text nodes.

const ROW = 30; // height of a table row in pixels, as in the style sheet
const PAGE = 100; // rows asked for at once
const SILENT_MS = 20000; // after which the kernel counts as gone
const NOTE_MS = 900; // pause in typing after which a note is written

const KEYS = [
  ["1", "left is better", "Say that the side at the left is the better one (a keep, when that is the chosen one)"],
  ["2", "right is better", "Say that the side at the right is the better one (a flip, when that is the rejected one)"],
  ["0", "drop", "Leave the pair out of the alignment"],
  ["c", "clear", "Take the review of this pair back"],
  ["u", "undo", "Take back the last thing you said here, and go to its pair"],
  ["j", "next", "Next pair (also the right arrow)"],
  ["k", "previous", "Previous pair (also the left arrow)"],
  ["n", "note", "Write a note; Escape leaves it, and what was typed is saved"],
  ["b", "blind", "Hide which side is chosen, and show the sides at random"],
  ["q", "queue", "Pairs nobody has reviewed, those first where a word is likely to change most"],
  ["p", "pair", "Look at one pair"],
  ["t", "table", "Look at all pairs; Enter opens one"],
  ["w", "what if", "Try another rule or signal"],
  ["/", "search", "Search prompts and texts"],
  ["?", "help", "Show or hide this list"],
];
const REVIEWED = { keep: "✓ kept", flip: "⇄ flipped", drop: "✕ dropped", reviewed: "• reviewed" };
const WORDS = { icl: "one-shot score", one_shot: "one-shot score", score_gap: "difference", p_chosen: "probability" };
const DONE = { keep: "kept", flip: "flipped", drop: "dropped", "": "review taken back" };
const LISTED = 24; // pairs in the list beside the pair
const SIGNS = { chosen: "●", rejected: "▲" };
const CONTROL =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;
const NAMED = { "\u001b": "ESC", "\r": "CR", "\u0000": "NUL", "\u0007": "BEL", "\u202e": "RLO", "\u202d": "LRO" };

/** Makes an element. Attributes that begin with "on" are listeners; children are elements or text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Returns text as nodes, with characters that would be invisible or turn the text round shown by name. */
function literal(text) {
  const nodes = document.createDocumentFragment();
  let rest = text;
  for (let found = CONTROL.exec(rest); found; found = CONTROL.exec(rest)) {
    const code = "U+" + found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.append(rest.slice(0, found.index), make("span", { class: "wbi-control", title: code }, NAMED[found[0]] || code));
    rest = rest.slice(found.index + 1);
  }
  nodes.append(rest);
  return nodes;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const named = (name) => WORDS[name] || name.replaceAll("_", " ");
const percent = (value) => (value === null || value === undefined ? "not known" : `${Math.floor(value * 1000) / 10} %`);

const isSaving = (event) => (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s";

/** Asks the kernel and waits for the answer that carries the same number. */
class Kernel {
  constructor(model, changed) {
    this.model = model;
    this.waiting = new Map();
    this.last = 0;
    this.hear = (message) => {
      if (message.changed) return changed(message);
      const asked = this.waiting.get(message.to);
      if (!asked) return undefined;
      this.waiting.delete(message.to);
      clearTimeout(asked.timer);
      return message.error ? asked.reject(new Error(message.error)) : asked.resolve(message);
    };
    model.on("msg:custom", this.hear);
  }

  ask(what, given = {}) {
    const id = `${Math.random().toString(36).slice(2)}-${++this.last}`;
    return new Promise((resolve, reject) => {
      const gone = () => {
        this.waiting.delete(id);
        reject(new Error("silent"));
      };
      this.waiting.set(id, { resolve, reject, timer: setTimeout(gone, SILENT_MS) });
      this.model.send({ id, do: what, with: given });
    });
  }

  leave() {
    this.model.off("msg:custom", this.hear);
    for (const asked of this.waiting.values()) clearTimeout(asked.timer);
  }
}

/** Keeps in the browser what the kernel has not yet said it wrote, so that a killed kernel loses no word. */
class Outbox {
  constructor(store) {
    this.key = `workbench reviews not yet written: ${store}`;
  }

  all() {
    try {
      return JSON.parse(localStorage.getItem(this.key) || "[]");
    } catch {
      return [];
    }
  }

  put(item) {
    this.keep([...this.all().filter((one) => one.given.event_id !== item.given.event_id), item]);
  }

  drop(eventId) {
    this.keep(this.all().filter((one) => one.given.event_id !== eventId));
  }

  keep(items) {
    try {
      if (items.length) localStorage.setItem(this.key, JSON.stringify(items));
      else localStorage.removeItem(this.key);
    } catch {
      // A browser that stores nothing: the kernel still writes every review at once.
    }
  }
}

function scale(signal) {
  const { value, low, high } = signal;
  if (low < 0 || high > 1) return null;
  const bar = make("span", { class: "wbi-scale", "aria-hidden": "true" });
  const range = make("span", { class: "wbi-range" });
  range.style.left = `${100 * low}%`;
  range.style.width = `${100 * (high - low)}%`;
  const point = make("span", { class: "wbi-point" });
  point.style.left = `${100 * value}%`;
  bar.append(range, point);
  return bar;
}

class Inspector {
  constructor(model, el) {
    this.kernel = new Kernel(model, (message) => this.take(message));
    this.el = el;
    this.tab = "pair";
    this.rows = new Map();
    this.busy = false;
    this.asked = 0;
    this.build();
    // Before Lab looks: its shortcuts are shut out, but saving the notebook is let through.
    this.guard = (event) => {
      if (!this.root.contains(event.target)) return;
      this.root.toggleAttribute("data-lm-suppress-shortcuts", !isSaving(event));
    };
    window.addEventListener("keydown", this.guard, true);
    this.start();
  }

  leave() {
    window.removeEventListener("keydown", this.guard, true);
    clearTimeout(this.noteTimer);
    this.kernel.leave();
  }

  // The page

  build() {
    const id = `wbi-${Math.random().toString(36).slice(2)}`;
    this.id = id;
    this.position = make("strong", { class: "wbi-position" });
    this.facts = make("span", { class: "wbi-facts" });
    this.saved = make("span", { class: "wbi-saved" });
    this.progress = make("progress", { class: "wbi-progress", "aria-label": "Pairs reviewed", max: "1", value: "0" });
    this.undoes = make("button", { type: "button", onclick: () => this.undo() }, "undo ", make("kbd", {}, "u"));
    this.said = make("span");
    this.toast = make("div", { class: "wbi-toast", hidden: true }, this.said, " ", this.undoes);
    this.live = make("div", { class: "wbi-hidden", role: "status", "aria-live": "polite" });
    this.alert = make("div", { class: "wbi-alert", role: "alert", hidden: true });
    this.tabs = {};
    this.panels = {};
    const tablist = make("div", { class: "wbi-tabs", role: "tablist", "aria-label": "Views" });
    for (const [name, words] of [["pair", "Pair"], ["table", "Table"], ["what_if", "What if"]]) {
      const attributes = { role: "tab", type: "button", id: `${id}-tab-${name}`, "aria-controls": `${id}-${name}` };
      this.tabs[name] = make("button", { ...attributes, onclick: () => this.open(name) }, words);
      tablist.append(this.tabs[name]);
      const panel = { role: "tabpanel", id: `${id}-${name}`, "aria-labelledby": `${id}-tab-${name}` };
      this.panels[name] = make("div", { ...panel, class: "wbi-panel" });
    }
    this.blind = this.switch("Blind", "b", () => this.set({ blind: !this.state.blind }));
    this.queue = this.switch("Queue", "q", () => this.toggleQueue());
    this.help = this.switch("Keys", "?", () => this.toggleHelp());
    const bar = make("div", { class: "wbi-bar" }, tablist, make("span", { class: "wbi-space" }), this.blind, this.queue, this.help);
    this.buildPair();
    this.buildTable();
    this.buildWhatIf();
    this.legend = make("div", { class: "wbi-legend", role: "note", "aria-label": "Keys" });
    for (const [key, words] of KEYS) this.legend.append(make("span", {}, make("kbd", {}, key), ` ${words}`), " ");
    this.list = make("dl", { class: "wbi-keys", hidden: true, role: "note", "aria-label": "All keys" });
    for (const [key, , words] of KEYS) this.list.append(make("dt", {}, make("kbd", {}, key)), make("dd", {}, words));
    const step = (key, words, by) => make("button", { type: "button", class: "wbi-step", "aria-label": `${words} pair`, onclick: () => this.move(by) }, ...(by < 0 ? ["‹ ", make("kbd", {}, key)] : [make("kbd", {}, key), " ›"]));
    const head = make("div", { class: "wbi-head" }, step("k", "previous", -1), this.position, step("j", "next", 1), this.progress, this.facts);
    this.foot = make("div", { class: "wbi-foot" }, this.acts, this.saved, this.toast);
    this.root = make(
      "div",
      {
        class: "wbi mathjax_ignore tex2jax_ignore",
        role: "group",
        "aria-label": "Pair inspector",
        tabindex: "0",
        "data-lm-suppress-shortcuts": true,
        onkeydown: (event) => this.key(event),
      },
      bar, head, this.filters, this.alert, ...Object.values(this.panels), this.foot, this.legend, this.list, this.live,
    );
    this.el.append(this.root);
    this.open("pair", false);
  }

  switch(words, key, act) {
    return make("button", { type: "button", class: "wbi-switch", "aria-pressed": "false", onclick: act }, `${words} `, make("kbd", {}, key));
  }

  buildPair() {
    this.chips = make("div", { class: "wbi-chips" });
    this.decided = make("div", { class: "wbi-decided" });
    this.prompt = make("div", { class: "wbi-text wbi-prompt", tabindex: "0", role: "region", "aria-label": "Prompt" });
    this.sides = [0, 1].map((n) => {
      const side = { head: make("h4", {}), facts: make("div", { class: "wbi-side-facts" }) };
      const words = n ? "Text at the right" : "Text at the left";
      side.text = make("div", { class: "wbi-text", tabindex: "0", role: "region", "aria-label": words });
      side.box = make("section", { class: "wbi-side" }, side.head, side.facts, side.text);
      return side;
    });
    const act = (key, words, does) =>
      make("button", { type: "button", class: "wbi-act", onclick: does }, make("kbd", {}, key), " ", words);
    this.lefts = act("1", "left is better", () => this.review({ side: "left" }));
    this.rights = act("2", "right is better", () => this.review({ side: "right" }));
    this.acts = make(
      "div", { class: "wbi-acts", role: "group", "aria-label": "Review" },
      this.lefts, this.rights,
      act("0", "drop", () => this.review({ value: "drop" })),
      act("c", "clear", () => this.review({ value: "", advance: false })),
    );
    const id = `${this.id}-note`;
    this.note = make("textarea", { id, rows: "2", maxlength: "10000", oninput: () => this.noteSoon(), onblur: () => this.noteNow() });
    this.history = make("div", { class: "wbi-history" });
    const note = make("div", { class: "wbi-note" }, make("label", { for: id }, "Note ", make("kbd", {}, "n")), this.note, this.history);
    this.heat = make("div", { class: "wbi-heat" });
    const sides = make("div", { class: "wbi-sides" }, ...this.sides.map((side) => side.box));
    this.nextPairs = make("div", { class: "wbi-next", role: "group", "aria-label": "Pairs around this one" });
    const texts = make("div", { class: "wbi-texts" }, this.chips, this.prompt, sides);
    const evidence = make("div", { class: "wbi-evidence" }, this.decided, this.heat, note);
    this.something = make("div", { class: "wbi-main" }, this.nextPairs, texts, evidence);
    this.nothing = make("p", { hidden: true }, "No pair is left by these filters. Widen them above.");
    this.panels.pair.append(this.something, this.nothing);
  }

  buildTable() {
    this.filters = make("div", { class: "wbi-filters", role: "search", "aria-label": "Filters" });
    this.selects = {};
    this.searchBox = make("input", { type: "search", "aria-label": "search prompts and texts", placeholder: "search  /", oninput: () => this.searchSoon() });
    this.heads = {};
    const columns = [["", "#"], ["student", "student"], ["task", "task"], ["kind", "kind"], ["gap", "difference"], ["p_chosen", "decided"], ["review", "review"], ["", "text"]];
    const heads = make("div", { class: "wbi-row wbi-heads", role: "row", "aria-rowindex": "1" });
    for (const [sort, words] of columns) {
      const head = make("div", { role: "columnheader" });
      if (sort) {
        head.append(make("button", { type: "button", onclick: () => this.sort(sort) }, words));
        this.heads[sort] = head;
      } else head.append(words);
      heads.append(head);
    }
    this.body = make("div", { class: "wbi-body" });
    const scrolls = { class: "wbi-scroller", role: "rowgroup", tabindex: "-1", onscroll: () => this.scrolled() };
    this.scroller = make("div", scrolls, this.body);
    this.grid = make("div", { class: "wbi-table", role: "grid", tabindex: "0", "aria-label": "All pairs" },
      make("div", { role: "rowgroup" }, heads), this.scroller);
    const bulk = (value, words) => make("button", { type: "button", onclick: (event) => this.bulk(event.currentTarget, value) }, words);
    this.panels.table.append(make("div", { class: "wbi-acts", role: "group", "aria-label": "All pairs listed" },
      bulk("keep", "keep all that are not reviewed"), bulk("drop", "drop all that are not reviewed")), this.grid);
  }

  buildWhatIf() {
    this.sliders = {};
    const box = make("div", { class: "wbi-sliders" });
    this.signal = make("select", { id: `${this.id}-signal`, onchange: () => this.askWhatIf({ signal: this.signal.value }) });
    box.append(make("label", { for: this.signal.id }, "signal"), this.signal, make("span"));
    const sliders = [
      ["min_gap", "least difference of scores", 0, 0.5, 0.01], ["min_probability", "least probability that chosen is better", 0, 0.99, 0.01],
      ["quantile", "share of questions at each end that form pairs", 0.05, 0.5, 0.05], ["n_question_pairs", "pairs of questions, for each task", 0, 100, 1],
    ];
    for (const [name, words, min, max, step] of sliders) {
      const id = `${this.id}-${name}`;
      const slider = make("input", { type: "range", id, min, max, step });
      const value = make("output", { for: id });
      slider.addEventListener("input", () => {
        value.textContent = slider.value;
        this.askWhatIf({ [name]: Number(slider.value) });
      });
      this.sliders[name] = { slider, value };
      box.append(make("label", { for: id }, words), slider, value);
    }
    this.back = make("button", { type: "button", onclick: () => this.askWhatIf(this.own) }, "Back to the run's own rule");
    this.outcome = make("div", { class: "wbi-outcome" });
    this.panels.what_if.append(make("p", {}, "Other rules on the answers that are stored; no model is asked. Nothing here changes the run."), box, this.back, this.outcome);
  }

  open(name, focus = true) {
    this.tab = name;
    for (const [one, tab] of Object.entries(this.tabs)) {
      tab.setAttribute("aria-selected", String(one === name));
      tab.tabIndex = one === name ? 0 : -1;
      this.panels[one].hidden = one !== name;
    }
    this.foot.hidden = name !== "pair";
    if (name === "table") this.drawTable();
    if (name === "what_if" && !this.own) this.askWhatIf({});
    if (!focus) return;
    if (name === "table") this.grid.focus({ preventScroll: true });
    else if (!this.root.contains(document.activeElement) || this.grid.contains(document.activeElement)) this.root.focus({ preventScroll: true });
    this.say({ pair: "One pair", table: "Table of all pairs", what_if: "What if" }[name]);
  }

  // Talking to the kernel

  async start() {
    this.position.textContent = "Asking the kernel …";
    let message = null;
    // A kernel that is busy with other cells may be silent for longer than one waits for a key.
    do message = await this.ask("hello");
    while (!message && this.silent);
    if (!message) return;
    this.outbox = new Outbox(message.store);
    this.tabs.what_if.hidden = !message.can_ask_what_if;
    this.fillFilters(message);
    this.take(message);
    for (const item of this.outbox.all()) {
      const done = await this.ask(item.what, item.what === "review" ? { ...item.given, advance: false } : item.given);
      if (!done) break;
      this.outbox.drop(item.given.event_id);
      this.take(done);
      this.say("A review that was not written before is written now.");
    }
  }

  /** Asks, and shows what went wrong; returns nothing then. */
  async ask(what, given = {}) {
    try {
      const answer = await this.kernel.ask(what, given);
      this.alert.hidden = true;
      return answer;
    } catch (error) {
      const silent = error.message === "silent";
      this.silent = silent;
      const unsent = silent && this.outbox && this.outbox.all().length;
      this.alert.textContent = silent
        ? `The kernel does not answer. When it is not just busy, run this cell again to go on; what was reviewed is kept with the run.${unsent ? " What is not written yet waits in this browser and is written then." : ""}`
        : error.message;
      this.alert.hidden = false;
      if (silent && !this.state) this.position.textContent = "No kernel";
      return null;
    }
  }

  take(message) {
    const held = this.root.contains(document.activeElement);
    const other = !this.state || JSON.stringify({ ...this.state, at: 0 }) !== JSON.stringify({ ...message.state, at: 0 });
    this.state = message.state;
    this.counts = message.counts;
    this.facts.textContent = message.facts;
    this.pair = message.pair;
    this.aim = this.state.at;
    // A review made here or elsewhere changes rows too: those on screen are asked for again, and shown meanwhile.
    if (other) this.rows.clear();
    else this.stale = new Set(this.rows.keys());
    this.draw();
    // Whatever had the focus may have been drawn anew; outside, keys would reach Lab.
    if (held && !this.root.contains(document.activeElement)) this.root.focus({ preventScroll: true });
  }

  async set(values) {
    const message = await this.ask("set", { values });
    if (message) this.take(message);
    return message;
  }

  async toggleQueue() {
    const message = await this.ask("queue", { on: !this.state.queue });
    if (!message) return;
    this.take(message);
    this.say(this.state.queue ? `Queue: ${this.counts.left} pairs to review` : "All pairs");
  }

  move(by) {
    if (!this.state) return;
    this.goTo((this.aim ?? this.state.at) + by);
  }

  async goTo(at) {
    this.noteNow();
    this.aim = Math.min(Math.max(at, 0), Math.max(this.counts.left - 1, 0));
    const asked = ++this.asked;
    const message = await this.ask("go", { at: this.aim });
    if (message && asked === this.asked) {
      this.take(message);
      this.sayWhere();
    }
  }

  async review(given) {
    // A review is of the pair on the screen: while the next one is on its way, keys wait for it.
    if (this.busy || !this.pair.pair_id) return;
    this.noteNow();
    this.busy = true;
    const before = this.state.at + 1;
    const said = await this.write("review", { pair_id: this.pair.pair_id, sides: this.state.sides, ...given });
    this.busy = false;
    if (!said) return;
    const words = given.side ? `${given.side} is better` : DONE[given.value];
    this.tell(`Pair ${before}: ${words}.`);
    this.say(`Pair ${before}: ${words}, saved. ${this.where()}`);
  }

  /** Says what was just done, beside the way to undo it. */
  tell(words, n = 1) {
    this.undone = n;
    this.said.textContent = words;
    this.toast.hidden = false;
  }

  /** Reviews every listed pair that nobody has reviewed; the first click asks. */
  async bulk(button, value) {
    const n = this.counts.to_go;
    const asks = `${value} ${n.toLocaleString("en")} pairs? click again`;
    if (!n || button.textContent !== asks) {
      const words = button.textContent;
      button.textContent = n ? asks : "no pair is left to review here";
      return setTimeout(() => (button.textContent = words), 5000);
    }
    const message = await this.ask("bulk", { value });
    if (!message) return;
    this.take(message);
    this.open("pair");
    this.tell(`${n} pairs ${DONE[value]}.`, n);
  }

  async write(what, given) {
    const item = { what, given: { ...given, event_id: crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}` } };
    this.outbox.put(item);
    this.saved.textContent = "saving …";
    const message = await this.ask(what, item.given);
    if (!message) {
      this.saved.textContent = "not saved yet";
      return null;
    }
    this.outbox.drop(item.given.event_id);
    this.saved.textContent = "✓ saved";
    this.take(message);
    return message;
  }

  async undo() {
    if (this.busy) return;
    const message = await this.ask("undo", { n: this.undone || 1 });
    if (!message) return;
    this.take(message);
    this.undone = 1;
    this.toast.hidden = true;
    this.saved.textContent = message.undone ? "undone" : "nothing to undo";
    this.say(message.undone ? `Undone. ${this.where()}` : "Nothing to undo");
  }

  noteSoon() {
    clearTimeout(this.noteTimer);
    this.noting = this.pair.pair_id;
    this.saved.textContent = "typing …";
    this.noteTimer = setTimeout(() => this.noteNow(), NOTE_MS);
  }

  noteNow() {
    clearTimeout(this.noteTimer);
    const pair_id = this.noting;
    this.noting = null;
    if (pair_id) this.write("note", { pair_id, value: this.note.value });
  }

  searchSoon() {
    clearTimeout(this.searchTimer);
    this.searchTimer = setTimeout(async () => {
      if (await this.set({ search: this.searchBox.value })) this.say(`${this.counts.left} pairs found`);
    }, 250);
  }

  sort(column) {
    const descending = this.state.sort === column ? !this.state.descending : column === "gap";
    this.set({ sort: column, descending });
  }

  // Keys

  key(event) {
    if (isSaving(event)) return;
    event.stopPropagation();
    const target = event.target;
    if (event.key === "Escape" && /^(TEXTAREA|INPUT|SELECT)$/.test(target.tagName)) {
      event.preventDefault();
      this.root.focus({ preventScroll: true });
      return;
    }
    if (event.key === "Escape" && !this.list.hidden) return this.toggleHelp();
    const typing = target.tagName === "TEXTAREA" || target.tagName === "SELECT" || target.type === "search";
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !this.state) return;
    if (target.getAttribute("role") === "tab" && this.tabKey(event)) return;
    if (target.dataset.heat && this.heatKey(event)) return;
    if (this.tab === "table" && this.grid.contains(target) && this.tableKey(event)) return;
    const slides = target.type === "range" && event.key.startsWith("Arrow");
    const act = slides ? null : this.action(event.key);
    if (!act) return;
    event.preventDefault();
    act();
  }

  action(key) {
    const actions = {
      1: () => this.review({ side: "left" }),
      2: () => this.review({ side: "right" }),
      0: () => this.review({ value: "drop" }),
      c: () => this.review({ value: "", advance: false }),
      u: () => this.undo(),
      j: () => this.move(1),
      k: () => this.move(-1),
      ArrowRight: () => this.move(1),
      ArrowLeft: () => this.move(-1),
      n: () => {
        this.open("pair", false);
        this.note.focus();
      },
      b: () => this.blind.click(),
      q: () => this.queue.click(),
      p: () => this.open("pair"),
      t: () => this.open("table"),
      w: () => !this.tabs.what_if.hidden && this.open("what_if"),
      "/": () => this.searchBox.focus(),
      "?": () => this.help.click(),
    };
    return actions[key];
  }

  tabKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return false;
    const names = Object.keys(this.tabs).filter((name) => !this.tabs[name].hidden);
    const name = names[(names.indexOf(this.tab) + step + names.length) % names.length];
    event.preventDefault();
    this.open(name, false);
    this.tabs[name].focus();
    return true;
  }

  tableKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && event.target === this.grid) this.open("pair");
    else if (event.key in steps) this.goTo(this.aim + Math.max(Math.min(steps[event.key], this.counts.left), -this.counts.left));
    else return false;
    event.preventDefault();
    return true;
  }

  heatKey(event) {
    const [row, column] = event.target.dataset.heat.split(",").map(Number);
    const to = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!to) return false;
    event.preventDefault();
    const next = this.heat.querySelector(`[data-heat="${row + to[0]},${column + to[1]}"]`);
    if (next) next.focus();
    return true;
  }

  toggleHelp() {
    this.list.hidden = !this.list.hidden;
    this.help.setAttribute("aria-pressed", String(!this.list.hidden));
  }

  say(words) {
    this.live.textContent = words;
  }

  where() {
    return this.counts.left ? `Pair ${this.state.at + 1} of ${this.counts.left}.` : "No pair.";
  }

  sayWhere() {
    const review = this.pair.review ? `, ${REVIEWED[this.pair.review]}` : "";
    this.say(`${this.where()} ${named(this.pair.task || "")}${review}`);
  }

  // Drawing

  draw() {
    const { left, pairs } = this.counts;
    const of = left === pairs ? pairs.toLocaleString("en") : `${left.toLocaleString("en")} (of ${pairs.toLocaleString("en")})`;
    this.position.textContent = left ? `Pair ${(this.state.at + 1).toLocaleString("en")} of ${of}` : `0 of ${pairs.toLocaleString("en")} pairs`;
    const { keep, flip, drop, to_go: toGo } = this.counts;
    this.progress.max = Math.max(pairs, 1);
    this.progress.value = keep + flip + drop;
    if (left !== pairs) this.facts.append(` ${toGo.toLocaleString("en")} to go in this ${this.state.queue ? "queue" : "selection"}.`);
    this.blind.setAttribute("aria-pressed", String(this.state.blind));
    this.queue.setAttribute("aria-pressed", String(this.state.queue));
    for (const [name, select] of Object.entries(this.selects)) select.value = this.state[name];
    if (document.activeElement !== this.searchBox) this.searchBox.value = this.state.search;
    this.something.hidden = !this.pair.pair_id;
    this.nothing.hidden = Boolean(this.pair.pair_id);
    if (this.pair.pair_id) this.drawPair();
    if (this.tab === "table") this.drawTable();
  }

  drawPair() {
    const pair = this.pair;
    const chips = [pair.student, pair.task, pair.kind].map((text) => make("span", { class: "wbi-chip" }, literal(named(text))));
    if (pair.review) chips.push(make("span", { class: `wbi-chip wbi-is-${pair.review}` }, REVIEWED[pair.review]));
    if (pair.wrong) chips.push(make("span", { class: "wbi-chip wbi-is-warning" }, "⚠ chosen answers wrong, rejected right"));
    this.chips.replaceChildren(...chips);
    this.prompt.replaceChildren(literal(pair.prompt));
    // What is asked stands at the end.
    this.prompt.scrollTop = this.prompt.scrollHeight;
    pair.sides.forEach((side, n) => this.drawSide(this.sides[n], side, n ? "Right" : "Left"));
    const words = this.state.blind ? ["left is better", "right is better"] : ["keep: chosen is better", "flip: rejected is better"];
    this.lefts.lastChild.textContent = words[0];
    this.rights.lastChild.textContent = words[1];
    this.drawDecided(pair);
    if (!this.noting) this.note.value = pair.note;
    const told = pair.history || [];
    this.history.textContent = told.length ? `So far: ${told.join("; ")}` : "";
    this.drawHeat(pair.heat, pair);
    this.drawNext();
  }

  /** Lists the pairs around the one in sight, where there is room for a list. */
  drawNext() {
    if (this.tab !== "pair" || !this.nextPairs.offsetWidth) return;
    const first = Math.max(0, Math.min(this.state.at - 3, this.counts.left - LISTED));
    const last = Math.min(this.counts.left, first + LISTED);
    const rows = [];
    for (let at = first; at < last; at += 1) {
      const row = this.rows.get(at);
      const mark = row && row.review ? `${(REVIEWED[row.review] || "")[0]} ` : "";
      const gap = row && row.gap !== null ? `${row.gap.toFixed(2)} ` : "";
      const words = row ? `${mark}${gap}${named(row.task)}` : "…";
      const title = row ? `${row.kind} pair of ${row.student}` : "";
      const attributes = { type: "button", tabindex: "-1", onclick: () => this.goTo(at), title };
      rows.push(make("button", { ...attributes, "aria-current": at === this.state.at ? "true" : null }, make("span", {}, String(at + 1)), " ", literal(words)));
    }
    this.nextPairs.replaceChildren(...rows);
    this.fetchRows(first, last);
  }

  drawDecided(pair) {
    if (this.state.blind) {
      this.decided.replaceChildren("Blind: which side is chosen, its scores and who wrote it are hidden, and the sides are at random.");
      return;
    }
    const bar = make("span", { class: "wbi-meter", "aria-hidden": "true" });
    const full = make("span");
    full.style.width = `${100 * (pair.p_chosen ?? 0)}%`;
    bar.append(full);
    const title = "From the questions answered differently under the two, for two drafts named beforehand; of the best and worst of several it promises too much";
    const sign = pair.gap >= 0 ? "+" : "−";
    this.decided.replaceChildren(
      make("span", { title }, "Probability that chosen is better ", make("strong", {}, percent(pair.p_chosen))), bar,
      make("span", {}, "difference of scores ", make("strong", {}, `${sign}${number(Math.abs(pair.gap), 3)}`)),
    );
  }

  drawSide(box, side, place) {
    const name = side.name || "";
    box.box.className = `wbi-side ${name ? `wbi-${name}` : ""}`;
    const words = name ? `${SIGNS[name]} ${name === "chosen" ? "Chosen" : "Rejected"}` : place;
    box.head.replaceChildren(make("span", { class: "wbi-name" }, words));
    if (side.technique) box.head.append(make("span", { class: "wbi-technique" }, literal(side.technique)));
    if (side.correct !== null && side.correct !== undefined) {
      const mark = side.correct ? "✓ right answer " : `✗ wrong answer, not ${side.gold}: `;
      box.head.append(make("span", { class: side.correct ? "wbi-right" : "wbi-wrong" }, literal(mark + side.answer)));
    }
    box.facts.replaceChildren(...(side.signals || []).map((signal) =>
      make("div", { class: "wbi-signal" }, make("span", {}, literal(named(signal.signal))), scale(signal),
        make("span", {}, make("strong", {}, number(signal.value, 3)), ` (95 % ${number(signal.low)} to ${number(signal.high)}, n = ${signal.n})`))));
    const pieces = side.pieces.map(([differs, text]) => (differs ? make("mark", {}, literal(text)) : literal(text)));
    box.text.replaceChildren(...pieces);
    box.text.scrollTop = 0;
  }

  drawHeat(heat, pair) {
    const at = document.activeElement?.dataset?.heat;
    if (!heat) {
      this.heat.replaceChildren();
      return;
    }
    const n = heat.questions.length;
    const about = `${heat.n_decisive} of ${n} preference questions decide: answered differently with chosen and with rejected as the example. They come first.`;
    const detail = make("div", { class: "wbi-detail", "aria-live": "polite" }, "Go to a cell to read the question and the answer.");
    const table = make("table", { "aria-label": "Answers by candidate and preference question" });
    const head = make("tr", {}, make("td"));
    for (let q = 0; q < n; q += 1) head.append(make("th", { scope: "col", class: q < heat.n_decisive ? "wbi-decisive" : "" }, String(q + 1)));
    head.append(make("th", { scope: "col" }, "mean"));
    table.append(make("thead", {}, head));
    const body = make("tbody");
    heat.names.forEach((name, c) => body.append(this.heatRow(heat, pair, name, c, detail)));
    table.append(body);
    const frame = make("div", { class: "wbi-heat-frame", tabindex: "-1" }, table);
    this.heat.replaceChildren(make("h4", {}, "What decided it"), make("p", {}, about), frame, detail);
    if (at) this.heat.querySelector(`[data-heat="${at}"]`)?.focus({ preventScroll: true });
  }

  heatRow(heat, pair, name, c, detail) {
    const side = heat.ids[c] === pair.sides[0].id || heat.ids[c] === pair.sides[1].id ? name.split(" · ").at(-1) : "";
    const row = make("tr", { class: side ? `wbi-${side}` : "" }, make("th", { scope: "row" }, literal(side ? `${SIGNS[side]} ${name}` : name)));
    const asked = heat.scores[c].filter((score) => score !== null);
    heat.scores[c].forEach((score, q) => {
      const words = score === null ? "·" : score === 1 ? "✓" : score === 0 ? "✗" : number(score, 1).replace("0.", ".");
      const told = () => {
        const { question, target } = heat.questions[q];
        const answer = heat.answers[c][q];
        const outcome = score === null ? "not asked" : answer ? `answered ${answer}` : heat.answers[c].some(Boolean) ? "no answer that could be read" : `right in ${percent(score)}`;
        detail.replaceChildren(make("strong", {}, `Question ${q + 1}: `), literal(question), make("br"), literal(`Right answer ${target}; with ${name} as the example: ${outcome} ${words}`));
      };
      const grade = score === null ? "none" : score >= 0.75 ? "right" : score <= 0.25 ? "wrong" : "part";
      const label = `${name}, question ${q + 1}: ${score === null ? "not asked" : score === 1 ? "right" : score === 0 ? "wrong" : percent(score)}`;
      const cell = make("button", { type: "button", tabindex: c + q ? "-1" : "0", "data-heat": `${c},${q}`, "aria-label": label, class: `wbi-cell wbi-${grade}`, onfocus: told, onmouseenter: told }, words);
      row.append(make("td", { class: q < heat.n_decisive ? "wbi-decisive" : "" }, cell));
    });
    const mean = asked.reduce((sum, score) => sum + score, 0) / (asked.length || 1);
    row.append(make("td", { class: "wbi-mean" }, asked.length ? number(mean) : "–"));
    return row;
  }

  fillFilters(message) {
    const choices = { ...message.filters, review: ["open", "keep", "flip", "drop", "noted"] };
    const all = { student: "all students", kind: "both kinds", task: "all tasks", review: "any review" };
    const words = { open: "not reviewed", keep: "kept", flip: "flipped", drop: "dropped", noted: "with a note" };
    this.filters.replaceChildren(this.searchBox);
    for (const [name, values] of Object.entries(choices)) {
      const select = make("select", { "aria-label": name, onchange: () => this.set({ [name]: select.value }) });
      for (const value of ["", ...values]) {
        select.append(make("option", { value }, value ? literal(name === "review" ? words[value] : named(value)) : all[name]));
      }
      this.selects[name] = select;
      this.filters.append(select);
    }
  }

  drawTable() {
    if (!this.counts) return;
    this.grid.setAttribute("aria-rowcount", String(this.counts.left + 1));
    this.grid.setAttribute("aria-colcount", "8");
    for (const [name, head] of Object.entries(this.heads)) {
      const sorted = this.state.sort === name;
      head.setAttribute("aria-sort", sorted ? (this.state.descending ? "descending" : "ascending") : "none");
    }
    this.body.style.height = `${this.counts.left * ROW}px`;
    const top = this.state.at * ROW;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop || top + ROW > scrollTop + clientHeight) {
      this.scroller.scrollTop = top < scrollTop ? top : top + ROW - clientHeight;
    }
    this.drawRows();
  }

  scrolled() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      this.drawRows();
    });
  }

  drawRows() {
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 5);
    const last = Math.min(this.counts.left, first + Math.ceil(this.scroller.clientHeight / ROW) + 10);
    const rows = [];
    for (let at = first; at < last; at += 1) rows.push(this.tableRow(at, this.rows.get(at)));
    this.body.replaceChildren(...rows);
    const active = `${this.id}-row-${this.state.at}`;
    if (this.state.at >= first && this.state.at < last) this.grid.setAttribute("aria-activedescendant", active);
    else this.grid.removeAttribute("aria-activedescendant");
    this.fetchRows(first, last);
  }

  tableRow(at, row) {
    const here = at === this.state.at;
    const attributes = { class: `wbi-row${here ? " wbi-here" : ""}`, role: "row", id: `${this.id}-row-${at}`, "aria-rowindex": String(at + 2), "aria-selected": String(here) };
    const element = make("div", { ...attributes, onclick: () => this.goTo(at), ondblclick: () => this.open("pair") });
    element.style.top = `${at * ROW}px`;
    const words = row
      ? [row.student, named(row.task), row.kind, number(row.gap, 3), row.p_chosen === null ? "–" : percent(row.p_chosen), `${REVIEWED[row.review] || ""}${row.noted ? " ✎" : ""}`, row.text]
      : ["…", "", "", "", "", "", ""];
    for (const text of [(at + 1).toLocaleString("en"), ...words]) element.append(make("div", { role: "gridcell" }, literal(text)));
    return element;
  }

  async fetchRows(first, last) {
    if (this.fetching) return;
    const start = Math.floor(first / PAGE) * PAGE;
    for (let page = start; page < last; page += PAGE) {
      const some = [];
      for (let at = Math.max(page, first); at < Math.min(page + PAGE, last); at += 1) some.push(at);
      if (!some.some((at) => !this.rows.has(at) || this.stale?.has(at))) continue;
      const state = this.state;
      this.fetching = true;
      const message = await this.ask("page", { start: page, stop: page + PAGE });
      this.fetching = false;
      if (!message) return;
      if (state !== this.state && JSON.stringify({ ...state, at: 0 }) !== JSON.stringify({ ...this.state, at: 0 })) return this.drawRows();
      message.rows.forEach((row, n) => {
        this.rows.set(message.start + n, row);
        this.stale?.delete(message.start + n);
      });
      this.drawNext();
      return this.drawRows();
    }
  }

  // What if

  async askWhatIf(values) {
    this.wanted = { ...this.wanted, ...values };
    if (this.thinking) return;
    this.thinking = true;
    this.outcome.setAttribute("aria-busy", "true");
    let message = null;
    do {
      const asked = this.wanted;
      this.wanted = null;
      message = await this.ask("what_if", { values: asked });
    } while (this.wanted);
    this.thinking = false;
    this.outcome.setAttribute("aria-busy", "false");
    if (message) this.drawWhatIf(message);
  }

  drawWhatIf(message) {
    const { settings, summary } = message;
    this.own = message.own;
    if (!this.signal.options.length) for (const name of message.signals) this.signal.append(make("option", { value: name }, literal(named(name))));
    this.signal.value = settings.signal;
    for (const [name, { slider, value }] of Object.entries(this.sliders)) {
      if (Number(slider.max) < settings[name]) slider.max = settings[name];
      slider.value = settings[name];
      value.textContent = String(settings[name]);
    }
    const tiles = [["pairs", summary.now.pairs, summary.then.pairs], ["of rationales", summary.now.rationale, summary.then.rationale],
      ["of questions", summary.now.question, summary.then.question], ["decided (0.9 or more)", percent(summary.now.decided), percent(summary.then.decided)]];
    const tile = ([words, now, then]) => make("div", { class: "wbi-tile" }, make("strong", {}, String(then)), make("span", {}, words), make("span", {}, `now ${now}`));
    const most = Math.max(1, ...summary.now.histogram, ...summary.then.histogram);
    const bars = summary.then.histogram.map((n, bin) => {
      const [now, then] = [make("span", { class: "wbi-now" }), make("span", { class: "wbi-then" })];
      now.style.height = `${(100 * summary.now.histogram[bin]) / most}%`;
      then.style.height = `${(100 * n) / most}%`;
      return make("div", {}, make("div", { class: "wbi-columns" }, now, then), make("span", {}, (0.5 + bin * 0.05).toFixed(2)));
    });
    const words = summary.then.histogram.map((n, bin) => `${(0.5 + bin * 0.05).toFixed(2)}: ${n}, now ${summary.now.histogram[bin]}`).join("; ");
    const columns = ["change", "student", "task", "kind", "score_gap", "p_chosen"];
    const rows = message.rows.map((row) => make("tr", {}, ...columns.map((name) => make("td", {}, typeof row[name] === "number" ? number(row[name], 3) : literal(row[name] ?? "–")))));
    const table = rows.length ? make("table", { class: "wbi-changed", "aria-label": "Pairs that change" }, make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, named(name))))), make("tbody", {}, ...rows)) : null;
    this.outcome.replaceChildren(
      make("p", {}, make("strong", {}, literal(message.facts))), make("div", { class: "wbi-tiles" }, ...tiles.map(tile)),
      make("h4", {}, "How decided the pairs are: probability that chosen is better"), make("div", { class: "wbi-histogram", role: "img", "aria-label": `Pairs by probability. ${words}` }, ...bars),
      make("p", { class: "wbi-small" }, make("span", { class: "wbi-key-now" }), " now ", make("span", { class: "wbi-key-then" }), " with this rule"),
      ...(summary.overrides ? [make("p", {}, "For a new run: ", make("code", {}, `overrides = "${summary.overrides}"`))] : []),
      ...(table ? [make("h4", {}, `Pairs that change (${summary.lost} lost, ${summary.new} new, ${summary.turned} turned; the first of each)`), make("div", { class: "wbi-changed-frame", tabindex: "0", role: "region", "aria-label": "Pairs that change" }, table)] : []),
    );
    this.say(message.facts);
  }
}

export default {
  render({ model, el }) {
    const inspector = new Inspector(model, el);
    return () => inspector.leave();
  },
};
