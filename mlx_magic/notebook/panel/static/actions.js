// Actions on an ended answer: copy, insert as a cell, save as a variable.

/** The buttons under an answer. */
class Actions {
  constructor(view) {
    this.view = view;
    const quiet = (text, onclick) => makeButton(text, onclick, { kind: "mlxv-quiet" });
    this.copy = quiet("Copy", () => this.copyAs("text", "Copied"));
    this.copyCell = quiet("Copy as cell", () => this.copyAs("cell", "Copied as a cell"));
    this.insert = quiet("Insert cell below", () => this.insertCell());
    this.save = quiet("Save as variable", () => this.toggleForm());
    this.save.setAttribute("aria-expanded", "false");
    const buttons = [this.copy, this.copyCell, this.insert, this.save];
    this.row = make("div", { class: "mlxv-actions" }, ...buttons);
    this.note = new Note(() => this.send(true));
    this.buildForm();
    this.node = make("div", { hidden: true }, this.row, this.form, this.note.node);
  }

  /** Make the form for a variable's name. */
  buildForm() {
    const plain = { spellcheck: "false", autocomplete: "off", autocapitalize: "off" };
    const field = { type: "text", class: "mlxv-field", placeholder: "answer", ...plain };
    this.name = make("input", field);
    const submit = make("button", { type: "submit", class: "mlxv-button mlxv-primary" }, "Save");
    const close = makeButton("Close", () => this.closeForm());
    const label = make("label", {}, "Variable name ", this.name);
    this.form = make("form", { class: "mlxv-form", hidden: true }, label, submit, close);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(false);
    });
    bindEscape(this.form, () => this.closeForm());
  }

  /** Update the actions for the answer's state. */
  show(running) {
    const { answer, turns, turn, index, node } = this.view;
    this.node.hidden = running;
    if (running) return;
    const noCell = answer.cell ? "" : "There is no cell for this answer";
    allow(this.copy, answer.text ? "" : "There is no text");
    allow(this.copyCell, noCell);
    allow(this.insert, noCell || whyNoInsert(node));
    allow(this.save, answer.state === "failed" ? "There is no result" : "");
    this.row.hidden = !answer.text && !answer.cell && answer.state === "failed";
    const said = turns.notes.get(`${turn}/${index}`);
    if (said !== this.said && said?.ok && said.ask === "" && !this.own) this.closeForm();
    this.said = said;
    this.own = false;
    const saved = answer.saved ? { ok: true, text: `Saved as ${answer.saved}` } : null;
    this.note.show(said ?? saved);
  }

  /** Show a note below the answer. */
  tell(ok, text) {
    const { turns, turn, index } = this.view;
    this.own = true; // the form stays as it is
    turns.note(turn, index, { ok, text, ask: "" });
  }

  /** Copy the text or the cell. */
  async copyAs(what, done) {
    const ok = await copyText(this.view.answer[what]);
    this.tell(ok, ok ? done : "The browser did not allow copying");
    if (ok && what === "cell") this.sendUsed();
  }

  /** Insert the cell below this one. */
  async insertCell() {
    const { node, answer } = this.view;
    const why = whyNoInsert(node) || (await insertCell(node, answer.cell));
    this.tell(!why, why || "Inserted below");
    if (!why) this.sendUsed();
  }

  /** Let Python define what the cell needs. */
  sendUsed() {
    const { turns, turn, index } = this.view;
    turns.model.send({ type: "cell_used", turn, index });
  }

  /** Open or close the form for the name. */
  toggleForm() {
    if (!this.form.hidden) return this.closeForm();
    this.form.hidden = false;
    this.save.setAttribute("aria-expanded", "true");
    this.name.focus();
  }

  /** Close the form and restore the focus. */
  closeForm() {
    const focused = this.form.contains(document.activeElement);
    this.form.hidden = true;
    this.save.setAttribute("aria-expanded", "false");
    if (focused) this.save.focus();
  }

  /** Save under the name in the field. */
  send(replace) {
    const { turns, turn, index } = this.view;
    const name = this.name.value.trim();
    if (!name) return this.tell(false, "Enter a name for the variable");
    turns.model.send({ type: "save", turn, index, name, replace });
  }
}

/** Copy text; return whether that succeeded. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Missing without https, or not allowed: fall back to execCommand, which needs a selection.
    const focused = document.activeElement;
    const area = make("textarea", { class: "mlxv-spoken", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}
