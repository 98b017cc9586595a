"""Fetches images by URL, only from public internet addresses."""
