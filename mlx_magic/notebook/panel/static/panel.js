// The entry point for anywidget, called once for each of the panel's two widget models.

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
