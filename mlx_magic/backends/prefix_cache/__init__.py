"""Prompts that were read before, kept for the next ones that begin alike."""
