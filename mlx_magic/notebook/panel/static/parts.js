// Small helpers of the other files. front.py joins all files of this folder into one module, so
// they share their declarations. Text of models, files and users is added to the page as text; only
// finished blocks of answers are HTML, which Python has sanitized.

/** Make an element: attributes, `on…` listeners and children; a string becomes text. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** Make a button; `label` is for screen readers where the text alone does not say enough. */
function makeButton(text, onclick, { label, title, kind = "" } = {}) {
  const look = `mlxv-button ${kind}`;
  return make("button", { type: "button", class: look, "aria-label": label, title, onclick }, text);
}

/** Make a button of one character. */
function makeIcon(sign, title, label, onclick) {
  return makeButton(sign, onclick, { label, title, kind: "mlxv-icon" });
}

/** Disable a button with a reason, or enable it (`why` is ""). */
function allow(button, why) {
  button.disabled = Boolean(why);
  button.title = why;
}

/** Set text only if it differs, as screen readers announce each change; hide it if empty. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

/** Make an image from a data URI; any other URL is never requested. */
function makeThumb(source) {
  const image = make("img", { class: "mlxv-thumb", alt: "", draggable: "false" });
  if (/^data:image\//i.test(source ?? "")) image.src = source;
  return image;
}

/** Format a size in pixels. */
function sizeOf({ width, height }) {
  return width && height ? `${width} × ${height}` : "";
}

/** Format a number of bytes. */
function bytesOf(count) {
  if (count < 1e6) return `${Math.max(1, Math.round(count / 1e3))} kB`;
  return `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
}

/** Update the children of `parent` to `items`, by id; kept items keep their nodes. */
function reconcile(parent, items, shown, create) {
  const ids = new Set(items.map((item) => item.id));
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  for (const [id, view] of shown) {
    if (ids.has(id)) continue;
    view.node.remove();
    shown.delete(id);
  }
  items.forEach((item, place) => {
    if (!shown.has(item.id)) shown.set(item.id, create(item));
    const view = shown.get(item.id);
    view.update(item, place, items.length);
    if (parent.children[place] !== view.node) {
      parent.insertBefore(view.node, parent.children[place] ?? null);
    }
  });
  // Moving a node removes its focus.
  if (focused?.isConnected && document.activeElement !== focused) focused.focus();
}

/** A progress bar; a fraction below 0 is unknown. */
class Bar {
  constructor(label) {
    this.fill = make("div", { class: "mlxv-fill" });
    const range = { "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": label };
    this.node = make("div", { class: "mlxv-progress", role: "progressbar", ...range }, this.fill);
  }

  /** Set the progress. */
  set(fraction) {
    const known = fraction >= 0;
    this.node.classList.toggle("mlxv-unknown", !known);
    this.fill.style.width = known ? `${Math.min(100, fraction * 100)}%` : "";
    if (known) this.node.setAttribute("aria-valuenow", Math.round(fraction * 100));
    else this.node.removeAttribute("aria-valuenow");
  }
}

/** A line with the outcome of an action, optionally with a Replace button. */
class Note {
  constructor(replace = () => {}) {
    this.text = make("span");
    this.button = makeButton("Replace", () => replace(), { kind: "mlxv-small" });
    this.node = make("p", { class: "mlxv-note", role: "status" }, this.text);
  }

  /** Show it, or nothing. */
  show(words) {
    this.node.classList.toggle("mlxv-error", words?.ok === false);
    setText(this.text, words?.text ?? "");
    if (words?.ask === "replace") this.node.append(this.button);
    else this.button.remove();
  }
}
