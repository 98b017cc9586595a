// The state of the turns: applies the kernel's messages once for all views.

const PATIENCE = 2000; // ms until a turn is requested again

/** Return how many characters Python counts in a text: code points, not UTF-16 units. */
function lengthOf(text) {
  let count = 0;
  for (let i = 0; i < text.length; i++, count++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit < 0xdc00 && i + 1 < text.length) i++;
  }
  return count;
}

/** The conversation of one widget model; notifies its views of changes. */
class Turns {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.notes = new Map(); // note about an answer, by turn and index
    this.awaited = new Map(); // id of a turn -> when it was requested again
    this.exporting = false;
    // answer -> lengths of its tail and of its thoughts, and number of replacements of the tail
    this.tails = new WeakMap();
    this.adopt();
    model.on("change:turns", () => this.adopt());
    model.on("msg:custom", (message) => this.receive(message));
  }

  /** Adopt the model's turns; they are changed in place, so that new views start from them. */
  adopt() {
    this.list = this.model.get("turns");
    this.awaited.clear();
    this.tell({ all: true });
  }

  /** Return a turn. */
  find(id) {
    return this.list.find((turn) => turn.id === id);
  }

  /** Notify every view of a change. */
  tell(news) {
    for (const view of this.views) view.hear(news);
  }

  /** Return the state of a tail. */
  tailOf(answer) {
    if (!this.tails.has(answer)) {
      const thoughts = lengthOf((answer.thoughts ??= ""));
      this.tails.set(answer, { length: lengthOf(answer.tail), times: 0, thoughts });
    }
    return this.tails.get(answer);
  }

  /** Apply a message of the kernel. */
  receive(message) {
    const { type } = message;
    if (type === "turn") this.putTurn(message);
    else if (type === "drop") this.drop(message);
    else if (type === "answer") this.putAnswer(message);
    else if (type === "d") this.grow(message);
    else if (type === "b") this.finish(message);
    else if (type === "r") this.think(message);
    else if (type === "s") this.report(message);
    else if (type === "download") this.download(message);
    else if (type === "said") this.note(message.turn, message.index, message);
  }

  /** Add or replace a turn. */
  putTurn({ turn }) {
    const place = this.list.findIndex((one) => one.id === turn.id);
    if (place < 0) this.list.push(turn);
    else this.list[place] = turn;
    this.awaited.delete(turn.id);
    this.tell({ all: true, added: place < 0 });
  }

  /** Remove turns. */
  drop({ ids }) {
    for (const id of ids) {
      const place = this.list.findIndex((turn) => turn.id === id);
      if (place >= 0) this.list.splice(place, 1);
      this.awaited.delete(id);
    }
    this.tell({ all: true });
  }

  /** Replace an answer. */
  putAnswer({ turn, index, answer }) {
    const found = this.find(turn);
    if (!found || index > found.answers.length) return this.refresh(turn);
    found.answers[index] = answer;
    this.tell({ turn });
  }

  /** Request a whole turn, after a missed message. */
  refresh(turn) {
    // The reply may be lost while a page loads: a later message requests it again.
    const now = performance.now();
    if (now - (this.awaited.get(turn) ?? -Infinity) < PATIENCE) return;
    this.awaited.set(turn, now);
    this.model.send({ type: "refresh", turn });
  }

  /** Return the answer of a short message, if its state is what the message expects. */
  target({ t, i }, fits = () => true) {
    const answer = this.find(t)?.answers[i];
    if (answer && fits(answer)) return answer;
    this.refresh(t);
    return null;
  }

  /** Append to a tail. */
  grow(message) {
    const answer = this.target(message, (one) => this.tailOf(one).length === message.n);
    if (!answer) return;
    this.tailOf(answer).length += lengthOf(message.x);
    answer.tail += message.x;
    if (message.s) answer.status = message.s;
    this.tell({ turn: message.t });
  }

  /** Append to the thoughts. */
  think(message) {
    const answer = this.target(message, (one) => this.tailOf(one).thoughts === message.n);
    if (!answer) return;
    this.tailOf(answer).thoughts += lengthOf(message.x);
    answer.thoughts += message.x;
    this.tell({ turn: message.t });
  }

  /** Append finished blocks and replace the tail. */
  finish(message) {
    const answer = this.target(message, (one) => one.blocks.length === message.k);
    if (!answer) return;
    const tail = this.tailOf(answer);
    tail.length = lengthOf(message.x);
    tail.times++;
    answer.blocks.push(...message.h);
    answer.tail = message.x;
    this.tell({ turn: message.t });
  }

  /** Change an answer's phase. */
  report(message) {
    const answer = this.target(message);
    if (!answer) return;
    answer.status = message.s;
    answer.fraction = message.f;
    this.tell({ turn: message.t });
  }

  /** Request the conversation as a file. */
  export(format) {
    this.exporting = true;
    this.model.send({ type: "export", format });
  }

  /** Download a file if this page requested one; other pages get the same message. */
  download({ name, mime, text }) {
    if (!this.exporting) return;
    this.exporting = false;
    const href = URL.createObjectURL(new Blob([text], { type: mime }));
    make("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  /** Store a note about an answer, or about the conversation (turn ""). */
  note(turn, index, { ok, text, ask }) {
    this.notes.set(turn && `${turn}/${index}`, { ok, text, ask });
    this.tell(turn ? { turn } : { said: true });
  }
}
