"""Whether a model answers several requests at once as it answers each alone."""
