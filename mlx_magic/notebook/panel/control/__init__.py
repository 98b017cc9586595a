"""Controllers of the panel: actions and updates."""
