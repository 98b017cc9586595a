// The thumbnails of the tray: remove and reorder by mouse and keyboard.

/** The images of the next question. A change is shown at once, then sent to Python. */
class Thumbnails {
  constructor(model, fallback, say) {
    this.model = model;
    this.fallback = fallback; // gets the focus when no image is left
    this.say = say;
    this.views = new Map();
    this.known = null;
    this.dragged = null;
    this.clear = makeButton("Remove all", () => this.removeAll(), { kind: "mlxv-quiet" });
    this.node = make("ul", { class: "mlxv-images", "aria-label": "Images to ask about" });
  }

  /** Update the thumbnails. */
  draw(images) {
    this.announce(images);
    reconcile(this.node, images, this.views, (image) => this.makeImage(image));
    this.clear.hidden = images.length < 2;
  }

  /** Announce added and removed images to screen readers. */
  announce(images) {
    const now = new Map(images.map((image) => [image.id, image.name]));
    const before = this.known ?? now;
    this.known = now;
    const came = images.filter(({ id }) => !before.has(id)).map(({ name }) => `${name} added`);
    const went = [...before].filter(([id]) => !now.has(id)).map(([, name]) => `${name} removed`);
    const words = [...came, ...went].join(", ");
    if (words) this.say(`${words}. ${now.size} in all.`);
  }

  /** Return an image's index. */
  placeOf(id) {
    return this.model.get("images").findIndex((image) => image.id === id);
  }

  /** Show a change and send it to Python. */
  change(images, message) {
    this.model.set("images", images);
    this.model.send(message);
  }

  /** Remove an image; the focus goes to its neighbor. */
  remove(id) {
    const images = this.model.get("images");
    const place = this.placeOf(id);
    const next = images[place + 1] ?? images[place - 1];
    const rest = images.filter((image) => image.id !== id);
    this.change(rest, { type: "remove", id });
    (next ? this.views.get(next.id).node : this.fallback).focus();
  }

  /** Remove every image. */
  removeAll() {
    this.change([], { type: "clear" });
    this.fallback.focus();
  }

  /** Move an image to another index. */
  move(id, to) {
    const images = [...this.model.get("images")];
    const from = this.placeOf(id);
    if (from < 0 || to < 0 || to >= images.length || from === to) return;
    const [image] = images.splice(from, 1);
    images.splice(to, 0, image);
    this.change(images, { type: "order", ids: images.map((one) => one.id) });
    this.say(`${image.name}: now ${to + 1} of ${images.length}`);
  }

  /** Make a thumbnail with its buttons. */
  makeImage({ id, name, thumb }) {
    const step = (by) => this.move(id, this.placeOf(id) + by);
    const left = makeIcon("‹", "Move left", `Move ${name} left`, () => step(-1));
    const right = makeIcon("›", "Move right", `Move ${name} right`, () => step(1));
    const away = makeIcon("×", "Remove", `Remove ${name}`, () => this.remove(id));
    const tools = make("div", { class: "mlxv-tools" }, left, right, away);
    const frame = make("div", { class: "mlxv-frame" }, makeThumb(thumb), tools);
    const title = make("span", { class: "mlxv-name" }, name);
    const size = make("span", { class: "mlxv-size" });
    const look = { class: "mlxv-image", tabindex: "0", draggable: "true" };
    const node = make("li", look, frame, title, size);
    this.bindKeys(node, id, step);
    this.bindDrag(node, id);
    const update = (image, at, count) => {
      [left.disabled, right.disabled] = [at === 0, at === count - 1];
      left.title = left.disabled ? "Already first" : "Move left";
      right.title = right.disabled ? "Already last" : "Move right";
      size.textContent = [sizeOf(image), image.note].filter(Boolean).join(" · ");
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
