"""Converts files, URLs, arrays and other objects to images."""
