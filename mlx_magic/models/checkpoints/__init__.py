"""Checkpoint folders, checked before a library reads them."""
