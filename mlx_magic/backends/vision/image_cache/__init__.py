"""Caches of processed and encoded images, for further questions about them."""
