"""A line and a body -> arguments, commands, completions, help."""
