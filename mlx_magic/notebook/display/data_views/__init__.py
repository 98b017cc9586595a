"""Views of answers that are data."""
