// What anywidget asks for, once for each model of the panel's two widgets.

export default () => {
  let turns;
  return {
    initialize({ model }) {
      if (model.get("role") === "conversation") turns = new Turns(model);
    },
    render({ model, el }) {
      const tray = model.get("role") === "tray";
      return tray ? renderTray(model, el) : renderConversation(turns, el);
    },
  };
};
