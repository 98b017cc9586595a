"""Objects of other libraries: figures, columns and records."""
