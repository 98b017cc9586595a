// Views of the conversation: changes are collected and drawn once per frame.

const A_FRAME = 20_000; // characters added per frame: more would delay it noticeably
const BOTTOM = 24; // pixels from the end that still count as the end
const STATES = { running: "is answering", done: "has answered", cancelled: "was cancelled" };

/** Draw the conversation; return its cleanup function. */
function renderConversation(turns, el) {
  const view = new Conversation(turns);
  el.append(view.node);
  turns.views.add(view);
  view.hear({ all: true });
  return () => {
    turns.views.delete(view);
    view.observer.disconnect();
  };
}

/** One view of the conversation. */
class Conversation {
  constructor(turns) {
    this.turns = turns;
    this.views = new Map();
    this.changed = new Set();
    this.whole = false;
    this.frame = 0;
    this.atEnd = true;
    this.lastTop = 0;
    this.build();
    // Scrolls after layout: reading a height earlier would force a layout.
    this.observer = new ResizeObserver(() => this.follow());
    this.observer.observe(this.log);
    this.observer.observe(this.list);
  }

  /** Make the permanent parts. */
  build() {
    const give = (text, format) =>
      makeButton(text, () => this.turns.export(format), { kind: "mlxv-quiet" });
    this.exports = [give("Export Markdown", "markdown"), give("Export JSON", "json")];
    this.note = new Note();
    this.empty = make("p", { class: "mlxv-empty" }, "Answers appear here.");
    this.list = make("div", { class: "mlxv-turns" });
    // Not live, as each new word would be read out; `spoken` announces the states.
    const log = { role: "log", "aria-label": "Conversation", "aria-live": "off", tabindex: "0" };
    this.log = make("div", { class: "mlxv-log", ...log }, this.list);
    this.log.addEventListener("scroll", () => this.scrolled());
    this.spoken = make("div", { class: "mlxv-spoken", role: "status" });
    const title = make("span", { class: "mlxv-title" }, "Conversation");
    const buttons = make("span", { class: "mlxv-buttons" }, ...this.exports);
    const head = make("div", { class: "mlxv-bar" }, title, buttons);
    const group = { class: `mlxm-conversation ${UNSET}`, role: "group", "aria-label": "Conversation" };
    const parts = [head, this.note.node, this.empty, this.log, this.spoken];
    this.node = make("div", group, ...parts);
  }

  /** Record whether the view is scrolled to the end. */
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.log;
    const near = scrollHeight - scrollTop - clientHeight < BOTTOM;
    if (near || scrollTop < this.lastTop) this.atEnd = near;
    this.lastTop = scrollTop;
  }

  /** Keep the view at the end, if it was there. */
  follow() {
    if (this.atEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  /** Record changes, to be drawn with the next frame. */
  hear({ all, added, turn, said }) {
    if (all) this.whole = true;
    if (added) this.atEnd = true; // a new question scrolls to the end
    if (said) this.note.show(this.turns.notes.get(""));
    if (turn) this.changed.add(turn);
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  /** Draw changes, within the character budget of a frame. */
  draw() {
    this.frame = 0;
    const { list } = this.turns;
    const ids = this.whole ? list.map((turn) => turn.id) : [...this.changed];
    if (this.whole) {
      const items = list.map(({ id }) => ({ id }));
      reconcile(this.list, items, this.views, ({ id }) => new TurnView(this.turns, id));
    }
    this.whole = false;
    this.changed.clear();
    const room = { left: A_FRAME };
    // The newest first, as it is the visible one.
    for (const id of ids.reverse()) {
      const turn = this.turns.find(id);
      if (turn && this.views.get(id)?.draw(turn, room)) this.hear({ turn: id });
    }
    this.showAround(list);
  }

  /** Update the parts around the turns. */
  showAround(list) {
    this.empty.hidden = list.length > 0;
    this.log.hidden = !list.length;
    const why = list.length ? "" : "There is nothing to export yet";
    for (const button of this.exports) allow(button, why);
    const running = list.some((turn) => turn.answers.some(({ state }) => state === "running"));
    this.log.setAttribute("aria-busy", String(running));
    const said = ({ model, state }) => `${model} ${STATES[state] ?? "has failed"}`;
    const words = list.at(-1)?.answers.map(said).join(", ") ?? "";
    if (this.spoken.textContent !== words) this.spoken.textContent = words;
  }
}

/** One turn: the question, its images, and the answers side by side. */
class TurnView {
  constructor(turns, id) {
    this.turns = turns;
    this.id = id;
    this.answers = [];
    this.columns = make("div", { class: "mlxv-answers" });
    this.node = make("article", { class: "mlxv-turn" });
  }

  /** Do nothing; `draw` updates the view. */
  update() {}

  /** Update within the character budget of this frame; return whether something is left. */
  draw(turn, room) {
    if (turn !== this.turn) this.ask(turn);
    const several = turn.answers.length > 1;
    while (this.answers.length > turn.answers.length) this.answers.pop().node.remove();
    while (this.answers.length < turn.answers.length) {
      const answer = new AnswerView(this.turns, this.id, this.answers.length, several);
      this.answers.push(answer);
      this.columns.append(answer.node);
    }
    const left = this.answers.map((view, index) => view.draw(turn.answers[index], room));
    const running = turn.answers.some(({ state }) => state === "running");
    this.node.classList.toggle("mlxv-ended", !running);
    return left.includes(true);
  }

  /** Show the question. */
  ask(turn) {
    this.turn = turn;
    const meta = (text) => make("p", { class: "mlxv-meta" }, text);
    const standalone = !turn.follows && turn.number > 1;
    const asked = make(
      "div", { class: "mlxv-asked" },
      standalone ? meta("Standalone question (earlier turns not sent)") : null,
      turn.system ? meta(`System: ${turn.system}`) : null,
      make("p", { class: "mlxv-ask", dir: "auto" }, turn.prompt),
    );
    const label = `Edit and ask again: question ${turn.number}`;
    const title = "Edit and ask again";
    const edit = makeButton("Edit", () => this.edit(), { label, title, kind: "mlxv-quiet" });
    const number = make("span", { class: "mlxv-number" }, String(turn.number));
    const head = make("div", { class: "mlxv-question" }, number, asked, edit);
    this.node.setAttribute("aria-label", `Question ${turn.number}`);
    const images = turn.images.length ? [makeAsked(turn.images)] : [];
    for (const part of [...this.node.children]) if (part !== this.columns) part.remove();
    this.node.prepend(head, ...images);
    this.node.append(this.columns);
  }

  /** Put the question back into the controls. */
  edit() {
    this.turns.model.send({ type: "edit", turn: this.id });
    this.node.closest(".mlxm-panel")?.querySelector(".mlxm-prompt textarea")?.focus();
  }
}

/** Make the row of a question's images. */
function makeAsked(images) {
  const list = make("ul", { class: "mlxv-asked-about", "aria-label": "Images of this question" });
  for (const image of images) {
    const { name, note, thumb } = image;
    const seen = (image.seen ?? "").replace(/ ?x ?/, " × ");
    const sized = seen && seen !== sizeOf(image) ? `seen at ${seen}` : "";
    const details = [sizeOf(image), sized, note].filter(Boolean).join(" · ");
    const title = make("span", { class: "mlxv-name" }, name);
    const caption = make("span", { class: "mlxv-size" }, details);
    const words = make("span", { class: "mlxv-caption" }, title, caption);
    list.append(make("li", { title: `${name}\n${details}` }, makeThumb(thumb), words));
  }
  return list;
}
