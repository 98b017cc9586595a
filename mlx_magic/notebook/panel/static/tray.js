// The image tray: drop zone, uploads, problems.

const PIECE = 512 * 1024; // bytes of a file in one message
const FILE_TYPES = "image/*,.heic,.heif,.avif,.tif,.tiff,.jxl,.jp2";
const TRAY_TRAITS = ["images", "opening", "problems", "why_not", "max_images"];

/** Draw the tray; return its cleanup function. */
function renderTray(model, el) {
  const life = new AbortController();
  const tray = new Tray(model, life.signal);
  el.append(tray.node);
  whenInPanel(el, life.signal, (root) => {
    bindKeys(root, model, life.signal);
    bindFiles(root, (files) => tray.add(files), life.signal);
    watchKernel(root, el, model, life.signal);
  });
  for (const name of TRAY_TRAITS) model.on(`change:${name}`, () => tray.draw());
  return () => life.abort();
}

/** One view of the tray. */
class Tray {
  constructor(model, signal) {
    this.model = model;
    this.signal = signal;
    this.sending = []; // like `opening`, but not yet known to Python
    this.stopped = new Set(); // ids of files whose upload was stopped
    this.refused = []; // like `problems`
    this.count = 0;
    this.busyViews = new Map();
    this.problemViews = new Map();
    this.build();
    this.draw();
    signal.addEventListener("abort", () => this.camera.release());
  }

  /** Make the permanent parts. */
  build() {
    const chosen = () => {
      this.add([...this.input.files]);
      this.input.value = "";
    };
    const files = { type: "file", accept: FILE_TYPES, multiple: true, hidden: true };
    this.input = make("input", { ...files, "aria-label": "Choose files", onchange: chosen });
    this.choose = makeButton("Choose files…", () => this.input.click());
    this.camera = new Camera((file) => this.add([file]));
    this.thumbnails = new Thumbnails(this.model, this.choose, (text) => this.say(text));
    const { clear } = this.thumbnails;
    this.reason = make("p", { class: "mlxv-reason", hidden: true });
    this.busy = make("ul", { class: "mlxv-busy", "aria-label": "Images being received" });
    this.problems = make("ul", { class: "mlxv-problems" });
    const alert = make("div", { role: "alert" }, this.problems);
    this.spoken = make("div", { class: "mlxv-spoken", role: "status" });
    const hint = make("span", { class: "mlxv-hint" }, "Drop, paste or choose images");
    const buttons = [this.choose, this.camera.button, clear, this.input];
    const bar = make(
      "div", { class: "mlxv-bar" }, hint, make("span", { class: "mlxv-buttons" }, ...buttons),
    );
    const inside = [bar, this.reason, this.camera.reason, this.camera.node, this.thumbnails.node];
    this.zone = make("div", { class: "mlxv-zone" }, ...inside, this.busy);
    const group = { class: `mlxm-tray ${UNSET}`, role: "group", "aria-label": "Images" };
    this.node = make("div", group, this.zone, alert, this.spoken);
  }

  /** Update the tray from the model. */
  draw() {
    const [images, opening, problems, why] = TRAY_TRAITS.map((name) => this.model.get(name));
    const told = new Set([...images, ...opening, ...problems].map((item) => item.id));
    this.sending = this.sending.filter((item) => !told.has(item.id));
    this.thumbnails.draw(images);
    const busy = [...opening, ...this.sending];
    reconcile(this.busy, busy, this.busyViews, (item) => this.makeBusy(item));
    const wrong = [...problems, ...this.refused];
    reconcile(this.problems, wrong, this.problemViews, (item) => this.makeProblem(item));
    setText(this.reason, why && why[0].toUpperCase() + why.slice(1));
    allow(this.choose, why);
    this.camera.allow(why);
    this.zone.classList.toggle("mlxv-closed", Boolean(why));
  }

  /** Announce text to screen readers. */
  say(text) {
    this.spoken.textContent = text;
  }

  /** Add files: those within the limits are sent, one after the other. */
  async add(files) {
    const why = this.model.get("why_not");
    if (why) return this.refuse(why);
    const taken = [];
    for (const file of files) {
      if (!this.accept(file)) continue;
      const id = `f${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
      this.sending.push({ id, name: file.name, fraction: 0 });
      taken.push([id, file]);
    }
    this.draw();
    for (const [id, file] of taken) await this.send(id, file);
  }

  /** Return whether a file is within the limits; show why not. */
  accept(file) {
    const [most, limit] = [this.model.get("max_images"), this.model.get("max_bytes")];
    const there = this.model.get("images").length + this.model.get("opening").length;
    if (file.size > limit) {
      const sizes = `${bytesOf(file.size)}, the limit for one image is ${bytesOf(limit)}`;
      this.refuse(`${file.name} was not added: it has ${sizes}.`);
    } else if (there + this.sending.length >= most) {
      this.refuse(`${file.name} was not added: the limit is ${most} images.`);
    } else return true;
    return false;
  }

  /** Send a file in pieces. */
  async send(id, file) {
    const pieces = Math.max(1, Math.ceil(file.size / PIECE));
    const given = { type: "file", id, name: file.name, size: file.size, pieces };
    try {
      for (let piece = 0; piece < pieces; piece++) {
        const bytes = await file.slice(piece * PIECE, (piece + 1) * PIECE).arrayBuffer();
        if (this.signal.aborted || this.stopped.has(id)) return;
        this.model.send({ ...given, piece }, undefined, [bytes]);
        const item = this.sending.find((one) => one.id === id);
        if (item) item.fraction = (piece + 1) / pieces;
        this.draw();
      }
    } catch (error) {
      // A folder, a deleted file, or a lost kernel.
      this.refuse(`${file.name} could not be sent: ${error.message}`);
      this.stop(id);
    }
  }

  /** Stop an upload. */
  stop(id) {
    this.stopped.add(id);
    this.sending = this.sending.filter((item) => item.id !== id);
    this.draw();
    this.model.send({ type: "remove", id });
  }

  /** Show a problem without telling Python. */
  refuse(text) {
    this.refused = this.refused.filter((item) => item.text !== text);
    this.refused.push({ id: `r${this.count++}`, text });
    this.draw();
  }

  /** Make the line of a file that is being received. */
  makeBusy({ id, name }) {
    const bar = new Bar(`Receiving ${name}`);
    const stop = makeIcon("×", "Stop", `Stop receiving ${name}`, () => this.stop(id));
    const title = make("span", { class: "mlxv-name" }, name);
    const node = make("li", { class: "mlxv-line" }, title, bar.node, stop);
    // All is sent; how long Python takes to open it is unknown.
    return { node, update: ({ fraction }) => bar.set(fraction >= 1 ? -1 : fraction) };
  }

  /** Make the line of a problem. */
  makeProblem({ id, text }) {
    const dismiss = makeIcon("×", "Dismiss", `Dismiss: ${text}`, () => {
      const mine = this.refused.some((item) => item.id === id);
      if (!mine) return this.model.send({ type: "dismiss", id });
      this.refused = this.refused.filter((item) => item.id !== id);
      this.draw();
    });
    const node = make("li", { class: "mlxv-line mlxv-error" }, make("span", {}, text), dismiss);
    return { node, update: () => {} };
  }
}
