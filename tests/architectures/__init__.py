"""Tiny checkpoints of every architecture, against their libraries."""
