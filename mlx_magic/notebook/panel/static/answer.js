// One model's answer: streamed while it runs, with actions when it has ended.

const MOST_SHOWN = 100_000; // characters of one text; Python sends no more
const LONGEST_HTML = 400_000; // characters of a block; a longer one is shown as plain text
const SEGMENT = 2_000; // characters after which a newline starts a new segment
const LONGEST_SEGMENT = 8_000;
const SEGMENT_LOOK = { class: "mlxv-segment", dir: "auto" };

/** One view of an answer. */
class AnswerView {
  constructor(turns, turn, index, several) {
    Object.assign(this, { turns, turn, index, several });
    this.model = make("span", { class: "mlxv-model" });
    this.status = make("span", { class: "mlxv-status" });
    this.bar = new Bar("Progress");
    this.stop = makeButton("Cancel", () => this.cancel(), { kind: "mlxv-small" });
    this.blocks = make("div", { class: "mlxv-blocks" });
    this.tail = make("div", { class: "mlxv-tail" });
    this.error = make("p", { class: "mlxv-error", hidden: true });
    this.footer = make("p", { class: "mlxv-meta", hidden: true });
    this.actions = new Actions(this);
    const head = make("div", { class: "mlxv-who" }, this.model, this.status, this.stop);
    const text = make("div", { class: "mlxv-text" }, this.blocks, this.tail);
    this.thoughts = make("div", { class: "mlxv-thought" });
    const summary = make("summary", {}, "Thinking");
    this.fold = make("details", { class: "mlxv-thoughts", hidden: true }, summary, this.thoughts);
    const parts = [head, this.bar.node, this.fold, text, this.error, this.footer];
    parts.push(this.actions.node);
    this.node = make("section", { class: "mlxv-answer" }, ...parts);
  }

  /** Update within the character budget of this frame; return whether text is left. */
  draw(answer, room) {
    if (answer !== this.answer) this.reset(answer);
    const { state, status, footer } = answer;
    const running = state === "running";
    const silent = state === "cancelled" && !footer ? "cancelled" : "";
    setText(this.status, running ? status : silent);
    this.bar.node.hidden = !running;
    this.bar.set(answer.fraction);
    this.stop.hidden = !(running && this.several);
    this.actions.show(running);
    const left = this.drawThoughts(answer, room);
    return this.drawBlocks(answer, room) || this.drawTail(answer, room) || left;
  }

  /** Start over with a new state of the answer. */
  reset(answer) {
    this.answer = answer;
    [this.blocksShown, this.tailShown, this.times, this.thoughtsShown] = [0, 0, 0, 0];
    this.thoughts.replaceChildren();
    this.blocks.replaceChildren();
    this.tail.replaceChildren();
    this.node.setAttribute("aria-label", `Answer of ${answer.model}`);
    this.stop.textContent = `Cancel ${answer.model}`;
    this.stop.disabled = false;
    setText(this.model, answer.model);
    setText(this.error, answer.error);
    setText(this.footer, answer.footer);
  }

  /** Cancel only this answer. */
  cancel() {
    this.stop.disabled = true;
    this.turns.model.send({ type: "cancel", turn: this.turn, index: this.index });
  }

  /** Append finished blocks; return whether some are left. */
  drawBlocks({ blocks, state }, room) {
    while (this.blocksShown < blocks.length && room.left > 0) {
      const html = blocks[this.blocksShown++];
      const block = make("div", { class: `mlxv-block ${UNSET}`, dir: "auto" });
      if (html.length > LONGEST_HTML) appendText(block, plainOf(html).slice(0, MOST_SHOWN));
      else block.innerHTML = html;
      room.left -= html.length;
      this.blocks.append(block);
      this.typesetDone = false;
    }
    const left = this.blocksShown < blocks.length;
    if (!left && state !== "running" && !this.typesetDone) this.typeset();
    return left;
  }

  /** Typeset the formulas of an answer that has ended, if the page has MathJax for its outputs. */
  typeset() {
    this.typesetDone = true;
    if (!this.blocks.querySelector(SET)) return;
    const manager = this.turns.model.widget_manager;
    const typesetter = (manager?.rendermime ?? manager?._rendermime)?.latexTypesetter;
    // Blocks are elements that MathJax skips, apart from the formulas that Python allowed.
    typesetter?.typeset(this.blocks);
  }

  /** Append new thoughts; return whether some are left. */
  drawThoughts({ thoughts = "" }, room) {
    this.fold.hidden = !thoughts;
    const most = Math.min(thoughts.length, MOST_SHOWN);
    const end = wholeTo(thoughts, Math.min(most, this.thoughtsShown + Math.max(room.left, 0)));
    appendText(this.thoughts, thoughts.slice(this.thoughtsShown, end));
    room.left -= end - this.thoughtsShown;
    this.thoughtsShown = end;
    return end < most;
  }

  /** Append new text of the tail; return whether some is left. */
  drawTail(answer, room) {
    const { times } = this.turns.tailOf(answer);
    if (times !== this.times) {
      [this.times, this.tailShown] = [times, 0];
      this.tail.replaceChildren();
    }
    const most = Math.min(answer.tail.length, MOST_SHOWN);
    const end = wholeTo(answer.tail, Math.min(most, this.tailShown + Math.max(room.left, 0)));
    appendText(this.tail, answer.tail.slice(this.tailShown, end));
    room.left -= end - this.tailShown;
    this.tailShown = end;
    return end < most;
  }
}

/** Return a position at or after `end` that does not split a surrogate pair. */
function wholeTo(text, end) {
  const unit = end < text.length ? text.charCodeAt(end) : 0;
  return unit >= 0xdc00 && unit < 0xe000 ? end + 1 : end;
}

/** Append plain text in segments, so that only the last one is laid out again. */
function appendText(node, text) {
  for (let at = 0; at < text.length; ) {
    let last = node.lastElementChild;
    if (!last || last.full) last = node.appendChild(make("div", SEGMENT_LOOK));
    const used = last.used ?? 0;
    const line = text.indexOf("\n", at + Math.max(0, SEGMENT - used));
    const full = wholeTo(text, at + LONGEST_SEGMENT - used);
    const end = Math.min(full, line < 0 ? Infinity : line + 1);
    last.append(text.slice(at, end));
    last.used = used + Math.min(end, text.length) - at;
    last.full = end <= text.length;
    at = end;
  }
}

/** Return the text of HTML without adding it to the page. */
function plainOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.textContent;
}
