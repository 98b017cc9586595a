// Inserts a cell below the panel's cell, with the notebook's own command.

const COMMAND = "notebook:insert-cell-below";

/** Return why no cell can be inserted from here, or "". */
function whyNoInsert(node) {
  const cell = node.closest(".jp-Notebook .jp-Cell");
  const instead = "use Copy as cell";
  if (!cell) return `Works only in a cell of JupyterLab or Notebook; ${instead}`;
  return inserter(cell) ? "" : `The notebook has no visible button that inserts a cell; ${instead}`;
}

/** Return a function that inserts a cell below the active one: a command or a button's click. */
function inserter(cell) {
  const commands = window.jupyterapp?.commands; // only if the server is configured to expose it
  if (commands?.hasCommand(COMMAND)) return () => commands.execute(COMMAND);
  // The first one is in the notebook's toolbar; a cell's own toolbar also exists in narrow windows.
  const button = cell.closest(".jp-NotebookPanel")?.querySelector(`[data-command="${COMMAND}"]`);
  if (!button) return null;
  // One kind of button reacts to mousedown, the other to click; neither to both.
  return () => {
    const press = { bubbles: true, cancelable: true, button: 0 };
    button.dispatchEvent(new MouseEvent("mousedown", press));
    button.dispatchEvent(new MouseEvent("click", press));
  };
}

/** Insert a cell with text below the cell of `node`; return why it failed, or "". */
async function insertCell(node, text) {
  const cell = node.closest(".jp-Cell");
  const notebook = cell.closest(".jp-Notebook");
  const active = () => notebook.querySelector(".jp-Cell.jp-mod-active");
  // It is inserted below the active cell; the keyboard may not have activated this one.
  if (active() !== cell) cell.dispatchEvent(new MouseEvent("mousedown", { bubbles: true }));
  if (active() !== cell) return "Click into this cell first, then insert again";
  inserter(cell)();
  const made = () => active() !== cell && active()?.querySelector(".cm-content");
  const editor = await eventually(made);
  if (!editor) return "The notebook inserted no cell; use Copy as cell";
  // Pasted, so that the editor handles it, including undo.
  editor.focus();
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  const paste = { clipboardData, bubbles: true, cancelable: true };
  editor.dispatchEvent(new ClipboardEvent("paste", paste));
  const filled = await eventually(() => editor.textContent.trim());
  return filled ? "" : "The new cell could not be filled; use Copy as cell";
}

/** Return the first truthy value of `look`, called each frame for two seconds. */
async function eventually(look) {
  for (const end = performance.now() + 2_000; performance.now() < end; ) {
    const found = look();
    if (found) return found;
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }
  return null;
}
