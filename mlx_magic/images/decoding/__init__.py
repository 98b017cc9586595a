"""Decodes image files within limits, after checks that run before Pillow."""
