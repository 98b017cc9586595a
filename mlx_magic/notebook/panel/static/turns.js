// What is known of the turns: the kernel's messages, applied once, however many views there are.

const PATIENCE = 2000; // ms until a turn is asked for once more

/** Return how many characters Python counts in a text: code points, not UTF-16 units. */
function lengthOf(text) {
  let count = 0;
  for (let i = 0; i < text.length; i++, count++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit < 0xdc00 && i + 1 < text.length) i++;
  }
  return count;
}

/** The conversation of one model; its views hear what is new. */
class Turns {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.notes = new Map(); // what was said about an answer, by its place
    this.awaited = new Map(); // id of a turn -> when it was asked for again
    this.exporting = false;
    this.tails = new WeakMap(); // answer -> length of its tail, and how often it was replaced
    this.adopt();
    model.on("change:turns", () => this.adopt());
    model.on("msg:custom", (message) => this.receive(message));
  }

  /** Take the model's turns; they are changed in place, and so are what a new view starts from. */
  adopt() {
    this.list = this.model.get("turns");
    this.awaited.clear();
    this.tell({ all: true });
  }

  /** Return a turn. */
  find(id) {
    return this.list.find((turn) => turn.id === id);
  }

  /** Say to every view what is new. */
  tell(news) {
    for (const view of this.views) view.hear(news);
  }

  /** Return what is known of a tail. */
  tailOf(answer) {
    if (!this.tails.has(answer)) {
      this.tails.set(answer, { length: lengthOf(answer.tail), times: 0 });
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

  /** Take turns away. */
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

  /** Ask for a turn as it is: something was missed. */
  refresh(turn) {
    // What was asked for may be lost while a page is loaded: a later message asks anew.
    const now = performance.now();
    if (now - (this.awaited.get(turn) ?? -Infinity) < PATIENCE) return;
    this.awaited.set(turn, now);
    this.model.send({ type: "refresh", turn });
  }

  /** Return the answer that a short message is about, where it is as the message supposes. */
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

  /** Ask for the conversation as a file. */
  export(format) {
    this.exporting = true;
    this.model.send({ type: "export", format });
  }

  /** Save a file, if this page asked for one: others see the same messages. */
  download({ name, mime, text }) {
    if (!this.exporting) return;
    this.exporting = false;
    const href = URL.createObjectURL(new Blob([text], { type: mime }));
    make("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  /** Keep a word about an answer, or about everything (turn ""). */
  note(turn, index, { ok, text, ask }) {
    this.notes.set(turn && `${turn}/${index}`, { ok, text, ask });
    this.tell(turn ? { turn } : { said: true });
  }
}
