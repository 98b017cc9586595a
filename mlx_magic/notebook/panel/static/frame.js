// The panel as a whole: keys, dropped and pasted files, a lost kernel.

const LOST =
  "The kernel was restarted or the connection is lost. The panel shows its last state; " +
  "run the cell again for a live panel.";
// JupyterLab and Notebook ignore shortcuts of an element with this attribute.
const SUPPRESS = "data-lm-suppress-shortcuts";
const KERNEL_GONE = ["restarting", "autorestarting", "dead", "terminating"];

/** Call `then` with the panel's root once the element is inside one. */
function whenInPanel(el, signal, then) {
  const look = () => {
    const root = el.closest(".mlxm-panel");
    if (!root || !el.isConnected) return;
    observer.disconnect();
    then(root);
  };
  // The element's size changes when it is added to the page.
  const observer = new ResizeObserver(look);
  observer.observe(el);
  signal.addEventListener("abort", () => observer.disconnect());
}

/** Run with Ctrl/Cmd-Enter, cancel with Escape; hide the panel's keys from the notebook. */
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
    // Shortcuts such as Save stay the notebook's. The panel keeps typing, and Ctrl-Enter, which
    // would run the cell and so open a new panel.
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
  // Notebook listens on the document in the capture phase; the window comes before it.
  window.addEventListener("keydown", keep, { signal, capture: true });
  // In the capture phase: a Textarea of ipywidgets stops the propagation of keys.
  root.addEventListener("keydown", act, { signal, capture: true });
  root.addEventListener("keydown", stop, { signal });
}

/** Let Escape close an element while it is open, instead of cancelling answers. */
function bindEscape(node, close) {
  node.dataset.escape = "";
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    close();
  });
}

/** Receive files dropped on the panel, and images pasted into it. */
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
    // Cells of a spreadsheet are both text and image: in a text field they are text.
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

/** Show the banner and disable the panel while its kernel is gone. */
function watchKernel(root, el, model, signal) {
  const kernel = model.widget_manager?.kernel; // not in every front end
  let gone = false;
  const show = () => {
    const away = (kernel?.connectionStatus ?? "connected") !== "connected";
    setLost(root, gone || away || el.classList.contains("jupyter-widgets-disconnected"));
  };
  const onStatus = (_, status) => {
    // A restarted kernel knows nothing of this panel.
    gone ||= KERNEL_GONE.includes(status);
    show();
  };
  // ipywidgets sets this class in every front end.
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

/** Show the banner and make the rest inert, or the reverse. */
function setLost(root, lost) {
  const banner = root.querySelector(":scope > .mlxm-lost");
  if (lost === Boolean(banner)) return;
  root.classList.toggle("mlxm-inert", lost);
  for (const child of root.children) child.inert = lost && child !== banner;
  if (!lost) return banner.remove();
  // A live region must exist before its text, or it is not read out.
  const region = make("div", { class: `mlxm-lost ${UNSET}`, role: "alert" });
  root.prepend(region);
  region.textContent = LOST;
}
