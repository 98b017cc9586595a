// What concerns the panel as a whole: its keys, what is dropped and pasted, a lost kernel.

const LOST =
  "The kernel was restarted or the connection is lost. The panel shows its last state; " +
  "run the cell again for a live panel.";
// From an element with it upwards, JupyterLab and Notebook look for no shortcut.
const SUPPRESS = "data-lm-suppress-shortcuts";
const KERNEL_GONE = ["restarting", "autorestarting", "dead", "terminating"];

/** Call `then` with the panel's root once the element stands in one. */
function whenInPanel(el, signal, then) {
  const look = () => {
    const root = el.closest(".mlxm-panel");
    if (!root || !el.isConnected) return;
    observer.disconnect();
    then(root);
  };
  // Its size changes when it is put into the page.
  const observer = new ResizeObserver(look);
  observer.observe(el);
  signal.addEventListener("abort", () => observer.disconnect());
}

/** Run with Ctrl or Cmd and Enter, cancel with Escape; keep the panel's keys from the notebook. */
function bindKeys(root, model, signal) {
  const isAccel = (event) => event.ctrlKey || event.metaKey;
  const act = (event) => {
    const { key, target } = event;
    if (event.isComposing) return;
    if (key === "Enter" && isAccel(event) && target.matches(".mlxm-prompt textarea")) {
      event.preventDefault();
      model.send({ type: "run", prompt: target.value });
    } else if (key === "Escape" && !target.closest("[data-escape]")) {
      event.preventDefault();
      model.send({ type: "cancel" });
    }
  };
  const isOurs = (event) => {
    // Saving and the like stay the notebook's. Typing is ours, and Ctrl-Enter, which would run
    // the cell, and so begin a new panel.
    if (/^F\d+$/.test(event.key)) return false;
    return !isAccel(event) || ["enter", ..."acvxyz"].includes(event.key.toLowerCase());
  };
  const keep = (event) => {
    const { target } = event;
    if (root.contains(target)) target.toggleAttribute(SUPPRESS, isOurs(event));
  };
  const stop = (event) => {
    if (isOurs(event)) event.stopPropagation();
  };
  // Notebook listens on the document before its parts do; the window comes still earlier.
  window.addEventListener("keydown", keep, { signal, capture: true });
  // On the way down: a Textarea of ipywidgets lets no key out.
  root.addEventListener("keydown", act, { signal, capture: true });
  root.addEventListener("keydown", stop, { signal });
}

/** Let an element have Escape for itself while it is open; then it cancels nothing. */
function bindEscape(node, close) {
  node.dataset.escape = "";
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    close();
  });
}

/** Take files that are dropped on the panel, and pictures that are pasted into it. */
function bindFiles(root, add, signal) {
  const drop = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    const inert = root.classList.contains("mlxm-inert");
    root.classList.toggle("mlxm-dropping", event.type !== "drop" && !inert);
    if (event.type === "drop" && !inert) add([...event.dataTransfer.files]);
  };
  const leave = (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("mlxm-dropping");
  };
  const paste = (event) => {
    event.stopPropagation();
    const data = event.clipboardData;
    const files = [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    const typing = event.target.closest?.("input, textarea");
    // A spreadsheet's cells are text and picture at once: where one types, they are text.
    if (!files.length || (typing && data.types.includes("text/plain"))) return;
    event.preventDefault();
    add(files.map((file) => named(file, "pasted")));
  };
  for (const type of ["dragenter", "dragover", "drop"]) {
    root.addEventListener(type, drop, { signal });
  }
  root.addEventListener("dragleave", leave, { signal });
  root.addEventListener("paste", paste, { signal });
}

/** Return a file with a name that says where it came from. */
function named(file, stem) {
  const ending = file.type.split("/")[1]?.split("+")[0] || "png";
  return new File([file], `${stem}.${ending}`, { type: file.type });
}

/** Show the banner and stop everything while the kernel behind the panel is gone. */
function watchKernel(root, el, model, signal) {
  const kernel = model.widget_manager?.kernel; // not every front end has it
  let gone = false;
  const show = () => {
    const away = (kernel?.connectionStatus ?? "connected") !== "connected";
    setLost(root, gone || away || el.classList.contains("jupyter-widgets-disconnected"));
  };
  const onStatus = (_, status) => {
    // The kernel that answers after these knows nothing of this panel.
    gone ||= KERNEL_GONE.includes(status);
    show();
  };
  // This is how ipywidgets says so, in every front end.
  const observer = new MutationObserver(show);
  observer.observe(el, { attributes: true, attributeFilter: ["class"] });
  kernel?.statusChanged?.connect(onStatus);
  kernel?.connectionStatusChanged?.connect(show);
  signal.addEventListener("abort", () => {
    observer.disconnect();
    kernel?.statusChanged?.disconnect(onStatus);
    kernel?.connectionStatusChanged?.disconnect(show);
  });
  show();
}

/** Put the panel's banner there and make the rest inert, or the reverse. */
function setLost(root, lost) {
  const banner = root.querySelector(":scope > .mlxm-lost");
  if (lost === Boolean(banner)) return;
  root.classList.toggle("mlxm-inert", lost);
  for (const child of root.children) child.inert = lost && child !== banner;
  if (!lost) return banner.remove();
  // A region must be there before its text, or it is not read out.
  const region = make("div", { class: `mlxm-lost ${UNSET}`, role: "alert" });
  root.prepend(region);
  region.textContent = LOST;
}
