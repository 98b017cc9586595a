"""Answers and tables, as they are seen in a notebook and in a terminal."""
