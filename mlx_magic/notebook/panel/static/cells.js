// A new cell below the one that the panel stands in, by the notebook's own means.

const COMMAND = "notebook:insert-cell-below";

/** Return why no cell can be inserted from here, or "". */
function whyNoInsert(node) {
  const cell = node.closest(".jp-Notebook .jp-Cell");
  const instead = "use Copy as cell";
  if (!cell) return `Works only in a cell of JupyterLab or Notebook; ${instead}`;
  return inserter(cell) ? "" : `The notebook has no visible button that inserts a cell; ${instead}`;
}

/** Return what inserts a cell below the active one: a command, or the notebook's own button. */
function inserter(cell) {
  const commands = window.jupyterapp?.commands; // only where a server is set to expose it
  if (commands?.hasCommand(COMMAND)) return () => commands.execute(COMMAND);
  // The first is the notebook's toolbar; the cell's own stands there in a narrow window, too.
  const button = cell.closest(".jp-NotebookPanel")?.querySelector(`[data-command="${COMMAND}"]`);
  if (!button) return null;
  // One kind of button acts when pressed and the other on the click; neither does on both.
  return () => {
    const press = { bubbles: true, cancelable: true, button: 0 };
    button.dispatchEvent(new MouseEvent("mousedown", press));
    button.dispatchEvent(new MouseEvent("click", press));
  };
}

/** Insert a cell with a text below the one that holds `node`; return why not, or "". */
async function insertCell(node, text) {
  const cell = node.closest(".jp-Cell");
  const notebook = cell.closest(".jp-Notebook");
  const active = () => notebook.querySelector(".jp-Cell.jp-mod-active");
  // It goes below the active cell; a click has made this the one, a key perhaps not.
  if (active() !== cell) cell.dispatchEvent(new MouseEvent("mousedown", { bubbles: true }));
  if (active() !== cell) return "Click into this cell first, then insert again";
  inserter(cell)();
  const made = () => active() !== cell && active()?.querySelector(".cm-content");
  const editor = await eventually(made);
  if (!editor) return "The notebook inserted no cell; use Copy as cell";
  // As if pasted: the editor takes it by itself, with its history.
  editor.focus();
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  const paste = { clipboardData, bubbles: true, cancelable: true };
  editor.dispatchEvent(new ClipboardEvent("paste", paste));
  const filled = await eventually(() => editor.textContent.trim());
  return filled ? "" : "The new cell could not be filled; use Copy as cell";
}

/** Return the first true value of `look`, tried each frame for two seconds. */
async function eventually(look) {
  for (const end = performance.now() + 2_000; performance.now() < end; ) {
    const found = look();
    if (found) return found;
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }
  return null;
}
