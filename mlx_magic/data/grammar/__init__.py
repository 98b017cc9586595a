"""JSON schemas as grammars, and JSON texts that were cut."""
