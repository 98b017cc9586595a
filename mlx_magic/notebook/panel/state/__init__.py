"""State of the panel as plain data, without widgets."""
