// The thumbnails of the tray: remove and reorder by mouse and keyboard.

/** The pictures of the next question. A change is shown at once, then sent to Python. */
class Thumbnails {
  constructor(model, fallback, say) {
    this.model = model;
    this.fallback = fallback; // gets the focus when no picture is left
    this.say = say;
    this.views = new Map();
    this.known = null;
    this.dragged = null;
    this.clear = makeButton("Remove all", () => this.removeAll(), { kind: "mlxv-quiet" });
    this.node = make("ul", { class: "mlxv-pictures", "aria-label": "Pictures to ask about" });
  }

  /** Update the thumbnails. */
  draw(pictures) {
    this.announce(pictures);
    reconcile(this.node, pictures, this.views, (picture) => this.makePicture(picture));
    this.clear.hidden = pictures.length < 2;
  }

  /** Announce added and removed pictures to screen readers. */
  announce(pictures) {
    const now = new Map(pictures.map((picture) => [picture.id, picture.name]));
    const before = this.known ?? now;
    this.known = now;
    const came = pictures.filter(({ id }) => !before.has(id)).map(({ name }) => `${name} added`);
    const went = [...before].filter(([id]) => !now.has(id)).map(([, name]) => `${name} removed`);
    const words = [...came, ...went].join(", ");
    if (words) this.say(`${words}. ${now.size} in all.`);
  }

  /** Return a picture's index. */
  placeOf(id) {
    return this.model.get("pictures").findIndex((picture) => picture.id === id);
  }

  /** Show a change and send it to Python. */
  change(pictures, message) {
    this.model.set("pictures", pictures);
    this.model.send(message);
  }

  /** Remove a picture; the focus goes to its neighbor. */
  remove(id) {
    const pictures = this.model.get("pictures");
    const place = this.placeOf(id);
    const next = pictures[place + 1] ?? pictures[place - 1];
    const rest = pictures.filter((picture) => picture.id !== id);
    this.change(rest, { type: "remove", id });
    (next ? this.views.get(next.id).node : this.fallback).focus();
  }

  /** Remove every picture. */
  removeAll() {
    this.change([], { type: "clear" });
    this.fallback.focus();
  }

  /** Move a picture to another index. */
  move(id, to) {
    const pictures = [...this.model.get("pictures")];
    const from = this.placeOf(id);
    if (from < 0 || to < 0 || to >= pictures.length || from === to) return;
    const [picture] = pictures.splice(from, 1);
    pictures.splice(to, 0, picture);
    this.change(pictures, { type: "order", ids: pictures.map((one) => one.id) });
    this.say(`${picture.name}: now ${to + 1} of ${pictures.length}`);
  }

  /** Make a thumbnail with its buttons. */
  makePicture({ id, name, thumb }) {
    const step = (by) => this.move(id, this.placeOf(id) + by);
    const left = makeIcon("‹", "Move left", `Move ${name} left`, () => step(-1));
    const right = makeIcon("›", "Move right", `Move ${name} right`, () => step(1));
    const away = makeIcon("×", "Remove", `Remove ${name}`, () => this.remove(id));
    const tools = make("div", { class: "mlxv-tools" }, left, right, away);
    const frame = make("div", { class: "mlxv-frame" }, makeThumb(thumb), tools);
    const title = make("span", { class: "mlxv-name" }, name);
    const size = make("span", { class: "mlxv-size" });
    const look = { class: "mlxv-picture", tabindex: "0", draggable: "true" };
    const node = make("li", look, frame, title, size);
    this.bindKeys(node, id, step);
    this.bindDrag(node, id);
    const update = (picture, at, count) => {
      [left.disabled, right.disabled] = [at === 0, at === count - 1];
      left.title = left.disabled ? "Already first" : "Move left";
      right.title = right.disabled ? "Already last" : "Move right";
      size.textContent = [sizeOf(picture), picture.note].filter(Boolean).join(" · ");
      node.title = `${name}\n${size.textContent}\nDrag, or Alt with an arrow key, to move it`;
      node.setAttribute("aria-label", `${at + 1} of ${count}: ${name}, ${size.textContent}`);
    };
    return { node, update };
  }

  /** Alt with an arrow key moves a thumbnail, Delete removes it. */
  bindKeys(node, id, step) {
    node.addEventListener("keydown", (event) => {
      const by = event.altKey && { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const removes = event.target === node && ["Delete", "Backspace"].includes(event.key);
      if (!by && !removes) return;
      event.preventDefault(); // Alt with an arrow key would leave the page
      if (by) step(by);
      else this.remove(id);
    });
  }

  /** Make a thumbnail draggable to another's position. */
  bindDrag(node, id) {
    const clear = () => delete node.dataset.side;
    node.addEventListener("dragstart", (event) => {
      this.dragged = id;
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", "");
    });
    node.addEventListener("dragend", () => (this.dragged = null));
    node.addEventListener("dragover", (event) => {
      if (!this.dragged || this.dragged === id) return;
      event.preventDefault();
      const { left, width } = node.getBoundingClientRect();
      node.dataset.side = event.clientX < left + width / 2 ? "before" : "after";
    });
    node.addEventListener("dragleave", clear);
    node.addEventListener("drop", (event) => {
      if (!this.dragged) return;
      event.preventDefault();
      event.stopPropagation();
      const to = this.placeOf(id) + (node.dataset.side === "after" ? 1 : 0);
      clear();
      this.move(this.dragged, this.placeOf(this.dragged) < to ? to - 1 : to);
    });
  }
}
